//! `kd` as a process.

mod evaluation;
mod resume;
mod teacher;
mod training;
mod usage;
mod workdir;
