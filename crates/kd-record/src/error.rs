//! What can go wrong in this crate.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one sentence that names the file or folder.
///
/// The sentence holds what the system said; no error has a source of its own that would repeat it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error("{}: {failed}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What could not be done: "can't be read".
        failed: &'static str,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file that has to be there is absent.
    #[error("{}: missing; {advice}", path.display())]
    Missing {
        /// The absent file.
        path: PathBuf,
        /// What to do about it.
        advice: &'static str,
    },
    /// The contents of a file are not what its format says.
    #[error("{}{}: {found}", path.display(), line_suffix(*line))]
    Corrupt {
        /// The path of the file that can't be used.
        path: PathBuf,
        /// The line, counted from 1, where the file is read line by line.
        line: Option<usize>,
        /// What was found and what was expected.
        found: String,
    },
    /// An output is a file that the same command reads or writes for another reason.
    #[error("{}: this is also the file of {flag}; choose another name for what is written", path.display())]
    OtherFile {
        /// The path of the output that was refused.
        path: PathBuf,
        /// The flag that names the same file.
        flag: String,
    },
    /// What lies where a file is to be written is somebody else's.
    #[error("{}: {found}; {cure}", path.display())]
    NotOurs {
        /// The file or folder.
        path: PathBuf,
        /// What it is: "exists and was not written by kd".
        found: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// Another process holds the folder's lock.
    #[error(
        "{}: another kd process is using this folder; wait for it to end, or choose another --out",
        folder.display()
    )]
    InUse {
        /// The path of the folder that can't be used.
        folder: PathBuf,
    },
}

impl Error {
    /// For `map_err`: the system refused to do something with `path`.
    pub fn io(path: &Path, failed: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Self::Io { path: path.to_owned(), failed, cause }
    }

    /// Whether the file or folder is not there at all.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Io { cause, .. } => cause.kind() == std::io::ErrorKind::NotFound,
            Self::Missing { .. } => true,
            Self::Corrupt { .. }
            | Self::OtherFile { .. }
            | Self::NotOurs { .. }
            | Self::InUse { .. } => false,
        }
    }

    /// A file whose contents are not what they should be; `line` counts from 1.
    pub fn corrupt(path: &Path, line: Option<usize>, found: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), line, found: found.into() }
    }
}

fn line_suffix(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}
