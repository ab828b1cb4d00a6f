//! `kd` as a process.

mod evaluation;
mod methods;
mod networks;
mod resume;
mod targets;
mod teacher;
mod training;
mod usage;
mod workdir;
