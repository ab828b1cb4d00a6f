//! `kd report`: what the run folders below one or more output folders say, as one HTML page,
//! a summary for programs and a table for the terminal.
//!
//! Everything shown is read from the files that the runs left (`recipe.toml`, `events.jsonl`,
//! `evaluation.json`, `test-outputs.safetensors`, the weights' size); nothing is computed anew on a network.

use std::path::{Path, PathBuf};

mod agreement;
mod calibration;
mod charts;
mod experiment;
mod format;
mod page;
mod soft_targets;
mod source;
mod statistics;
mod summary;
mod terminal;

pub use format::duration;

/// Why a report could not be made. Each names the file or folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No run folder below the given folder.
    #[error(
        "{}: no run folder here (a run folder holds events.jsonl); give the folder that `kd train`, `kd distill` or `cargo xtask reproduce` wrote with --out",
        .0.display()
    )]
    NoRuns(PathBuf),
    /// The folder of one run was given, and not the one above it.
    #[error("{}: this is the folder of one run; give the folder above it: {}", .0.display(), above(.0))]
    RunFolder(PathBuf),
    /// A file that each run has is absent.
    #[error("{}: missing; {advice}", .path.display())]
    Missing {
        /// The absent file.
        path: PathBuf,
        /// What to do about it.
        advice: &'static str,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's contents are not what its format says.
    #[error("{}{}: {found}", .path.display(), line_suffix(.line))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where the file is read line by line.
        line: Option<usize>,
        /// What was found and what was expected.
        found: String,
    },
    /// Two runs of one folder saw different data, so that their figures can't be compared.
    #[error("{}: trained on {found}, but {} on {expected}; keep runs on different data in different folders", .path.display(), .other.display())]
    DifferentData {
        /// The run folder that differs.
        path: PathBuf,
        /// The data it names.
        found: String,
        /// The first run folder.
        other: PathBuf,
        /// The data that one names.
        expected: String,
    },
    /// A file could not be read or written, or is not what its format says.
    #[error(transparent)]
    Record(#[from] kd_record::Error),
    /// The page's template failed: a defect of the program, not of the files.
    #[error("the report's template: {0}")]
    Template(#[from] minijinja::Error),
}

fn above(path: &Path) -> String {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.display().to_string(),
        _ => "..".to_owned(),
    }
}

fn line_suffix(line: &Option<usize>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}

/// Writes `report.html` and `summary.json` into each of `outs` and returns the terminal's table.
///
/// With several folders, `comparison.html` in the first one shows the runs of all side by side.
///
/// # Errors
/// A folder without runs, a missing or damaged file, runs on different data in one folder.
/// Nothing is written unless every folder could be read.
pub fn write(outs: &[PathBuf]) -> Result<String, Error> {
    let experiments = experiment::read_all(outs)?;
    for (out, experiment) in outs.iter().zip(&experiments) {
        write_whole(&out.join("report.html"), &page::render(std::slice::from_ref(experiment))?)?;
        write_whole(&out.join("summary.json"), &summary::to_json(experiment))?;
    }
    if let [first, _, ..] = outs {
        write_whole(&first.join("comparison.html"), &page::render(&experiments)?)?;
    }
    Ok(terminal::table(&experiments))
}

/// Whole or not at all.
fn write_whole(path: &Path, contents: &str) -> Result<(), Error> {
    Ok(kd_record::write::write_whole(path, contents.as_bytes())?)
}
