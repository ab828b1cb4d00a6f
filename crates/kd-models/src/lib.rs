#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod architecture;
mod classifier;
mod cnn;
mod error;
mod init;
mod parameters;
mod resnet;
mod student;
mod teacher;
pub mod weights;

pub use architecture::{
    Architecture, ModelConfig, buffer_shapes, build, multiply_adds, parameter_count,
    parameter_shapes, places,
};
pub use classifier::{Classifier, Mode, Output, Place};
pub use error::{Error, Result};
pub use init::{init, uniform};
pub use parameters::{Parameters, frozen, partly_frozen, var_builder};
pub use resnet::ResNet;
pub use student::StudentCnn;
pub use teacher::TeacherCnn;
