#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod checkpoint;
pub mod compile;
pub mod data;
pub mod device;
pub mod evaluate;
mod events;
pub mod export;
mod files;
pub mod initial;
mod kept;
pub mod optimizer;
mod precision;
pub mod recipe;
pub mod report;
pub mod resolve;
pub mod run;
pub mod schedule;
pub mod softmax;
mod start;
pub mod teacher;
mod tensorboard;
mod test_outputs;
pub mod text;
