#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

use std::path::PathBuf;

use kd_record::OutFolder;
use kd_record::own::{self, Output};
use kd_record::write::write_whole;

mod charts;
pub mod compare;
mod error;
mod experiment;
mod findings;
pub mod format;
mod notes;
mod page;
pub mod profile;
mod published;
mod sections;
pub mod softmax;
pub mod statistics;
mod summary;
pub mod tensorboard;
mod terminal;
pub mod text;

pub use error::{Error, Result};

/// Writes `report.html` and `summary.json` into each of these output folders and returns a table for the terminal.
///
/// With several folders, `comparison.html` in the first one shows the runs of all side by side.
///
/// # Errors
/// A folder without runs, a missing or damaged file, runs on different data in one folder, a file in a report's place that kd did
/// not write. Nothing is written unless every folder could be read.
pub fn write(outs: &[PathBuf]) -> Result<String> {
    write_over(outs, None)
}

/// The same for a command with the flag `--force`: with `Some(true)` a file in a report's place is replaced, whoever wrote it.
///
/// # Errors
/// As [`write()`]'s.
pub fn write_over(outs: &[PathBuf], force: Option<bool>) -> Result<String> {
    let experiments = experiment::read_all(outs)?;
    check_places(outs, force)?;
    for (out, experiment) in outs.iter().map(OutFolder::new).zip(&experiments) {
        let page = page::render(std::slice::from_ref(experiment))?;
        write_whole(&out.report(), page.as_bytes())?;
        write_whole(&out.summary(), summary::of(experiment).to_json().as_bytes())?;
    }
    if let [first, _, ..] = outs {
        let page = page::render(&experiments)?;
        write_whole(&OutFolder::new(first).comparison_page(), page.as_bytes())?;
    }
    Ok(terminal::table(&experiments))
}

/// Whether the reports of these folders may be written where they belong; `force` as in [`write_over`]. It lets a long run find
/// out beforehand.
///
/// # Errors
/// When a file lies there that kd did not write.
pub fn check_places(outs: &[PathBuf], force: Option<bool>) -> Result<()> {
    let check = |path: PathBuf, kind| Output { path: &path, kind, others: &[], force }.check();
    for out in outs.iter().map(OutFolder::new) {
        check(out.report(), own::PAGE)?;
        check(out.summary(), own::SUMMARY)?;
    }
    match outs {
        [first, _, ..] => Ok(check(OutFolder::new(first).comparison_page(), own::PAGE)?),
        _ => Ok(()),
    }
}
