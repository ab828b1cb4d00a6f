//! Child processes that are told of Ctrl-C once, and finish in their own time: [`kd_record::process`], with this crate's errors.

use std::process::Command;

pub use kd_record::process::{Error, run_with, shown};

/// Runs a command to its end.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    Ok(kd_record::process::run(command)?)
}
