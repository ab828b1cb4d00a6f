#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod checkpoint;
pub mod cli;
mod commands;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod events;
pub mod export;
mod files;
pub mod initial;
mod kept;
pub mod optimizer;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod run;
pub mod schedule;
pub mod teacher;
