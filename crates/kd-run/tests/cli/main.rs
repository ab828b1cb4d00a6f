//! `kd` as a process.

mod evaluation;
mod methods;
mod pictures;
mod resume;
mod shell;
mod targets;
mod teacher;
mod training;
mod usage;
mod workdir;
