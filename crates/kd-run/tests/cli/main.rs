//! `kd` as a process.

mod evaluation;
mod methods;
mod resume;
mod targets;
mod teacher;
mod tensorboard;
mod training;
mod usage;
mod workdir;
