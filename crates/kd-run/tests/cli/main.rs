//! `kd` as a process.

mod evaluation;
mod images;
mod methods;
mod resume;
mod targets;
mod teacher;
mod training;
mod usage;
mod workdir;
