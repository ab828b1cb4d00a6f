//! `kd` as a process.

mod classes;
mod disk;
mod ensemble;
mod errors;
mod evaluation;
#[cfg(feature = "hub")]
mod fetch;
mod figures;
mod files;
mod foreign;
mod going_on;
mod images;
mod ingredients;
mod kept;
mod kills;
mod methods;
mod networks;
#[cfg(feature = "onnx")]
mod onnx;
mod own;
mod pictures;
mod plan;
mod profile;
mod quantize;
mod recipes;
mod resolve;
mod resume;
mod shell;
mod signals;
mod stored_logits;
mod targets;
mod teacher;
mod tensorboard;
mod training;
mod uneven;
mod unlabelled;
mod usage;
mod workdir;
