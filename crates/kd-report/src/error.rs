//! Why a report could not be made.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a report or a comparison could not be made, in one sentence that names the file or folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no run folder below the given folder.
    #[error(
        "{}: no run folder here (a run folder holds events.jsonl); give the folder that `kd train`, `kd distill` or `cargo xtask reproduce` wrote with --out",
        .0.display()
    )]
    NoRuns(PathBuf),
    /// The folder of one run was given, and not the one above it.
    #[error("{}: this is the folder of one run; give the folder above it: {}", .0.display(), above(.0))]
    RunFolder(PathBuf),
    /// Nothing was measured on test images in a run.
    #[error("{}: this run was not tested, since its test pictures have no labels or there are none: there is nothing to report but its losses, which events.jsonl beside its recipe has; give a test set with labels, or look at the network with `kd predict`", .0.display())]
    NotTested(PathBuf),
    /// Two runs of one folder saw different data, so that their figures can't be compared.
    #[error("{}: trained on {found}, but {} on {expected}; keep runs on different data in different folders", .path.display(), .other.display())]
    DifferentData {
        /// The run folder that differs.
        path: PathBuf,
        /// The data that it names.
        found: String,
        /// The first run folder.
        other: PathBuf,
        /// The data that the first one names.
        expected: String,
    },
    /// A file could not be read or written, or is not what its format says.
    #[error(transparent)]
    Record(#[from] kd_record::Error),
    /// A comparison can't be planned or made; the message says what is in the way.
    #[error("{0}")]
    Comparison(String),
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
