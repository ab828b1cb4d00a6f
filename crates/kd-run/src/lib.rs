#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod at;
#[cfg(feature = "cuda")]
mod captured;
pub mod checkpoint;
pub mod data;
pub mod device;
mod error;
pub mod evaluate;
mod events;
pub mod figures;
mod going_on;
pub mod initial;
pub mod keep;
mod layers;
mod pass;
pub mod plan;
mod precision;
mod progress;
pub mod recipe;
pub mod resolve;
pub mod run;
mod start;
pub mod step;
pub mod task;
pub mod teacher;
mod test_outputs;
pub mod train;
pub mod trainer;
mod unlabelled;

pub use error::{Error, Result};
