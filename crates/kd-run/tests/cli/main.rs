//! `kd` as a process.

mod classes;
mod disk;
mod errors;
mod evaluation;
mod figures;
mod going_on;
mod images;
mod ingredients;
mod kept;
mod kills;
mod methods;
mod networks;
mod own;
mod pictures;
mod recipes;
mod resolve;
mod resume;
mod shell;
mod signals;
mod targets;
mod teacher;
mod tensorboard;
mod training;
mod uneven;
mod usage;
mod workdir;
