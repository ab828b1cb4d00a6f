//! What can go wrong in this crate.

use std::path::PathBuf;

use crate::one_line::shown;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one sentence that says where, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of the data set does not exist.
    #[error("{}: not found; expected {expected}; {advice}", shown(path))]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What to do.
        advice: String,
    },
    /// A file can't be read.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The path of the file that can't be used.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name promises.
    #[error("{}: at byte {offset}: found {found}, expected {expected}; {advice}", shown(path))]
    Malformed {
        /// The path of the file that can't be used.
        path: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
        /// What to do.
        advice: String,
    },
    /// A file can't be read as a picture.
    #[error("{}: expected a whole PNG, JPEG, WebP, BMP or GIF file, but {reason}", shown(path))]
    Picture {
        /// The path of the file that can't be used.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Several files of a folder can't be read as pictures.
    #[error("{}: {} pictures can't be read; repair them or take them out:{}", shown(dir), broken.len(), listed(broken))]
    Pictures {
        /// The data set's folder, with `train` and `test` in it.
        dir: PathBuf,
        /// What is wrong with each.
        broken: Vec<Error>,
    },
    /// A folder of pictures is not laid out as it should be.
    #[error("{}: found {found}, expected {expected}", shown(path))]
    Folder {
        /// The path of the folder that can't be used.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A setting makes no sense.
    #[error("data setting {field} is {found}; expected {expected}")]
    Config {
        /// The setting's name.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A [`Split`](crate::Split) whose parts don't fit together.
    #[error("split of images of shape {shape:?}: found {found}, expected {expected}")]
    Split {
        /// Channels, height and width of an image.
        shape: [usize; 3],
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A setting that goes by labels, of pictures that have none.
    #[error(
        "{setting} goes by the classes of the training pictures, and these have none; leave it out, or give pictures in folders of their classes (in shards KEY.cls or KEY.json beside each)"
    )]
    Unlabelled {
        /// What was asked for.
        setting: String,
    },
    /// There are too few images for the [`Portions`](crate::Portions) that are asked for.
    #[error("{reason}")]
    TooFew {
        /// What is asked for, what there is, and what is expected.
        reason: String,
    },
    /// A picture that its [`Source`](crate::Source) does not give as it should.
    #[error("picture {index} of the source: found {found}, expected {expected}")]
    Source {
        /// The picture's number in its source, from 0.
        index: u32,
        /// What the source gave.
        found: String,
        /// What it should have given.
        expected: String,
    },
    /// The thread that prepares batches ended early, or could not be started.
    #[error("the thread that prepares batches {reason}")]
    Thread {
        /// What happened to it.
        reason: String,
    },
    /// The hub's data set could not be fetched or is not what it should be.
    #[error("CIFAR-10 from the hub: {reason}")]
    Hub {
        /// What happened.
        reason: String,
    },
    /// A file can't be written, or a folder is in use.
    #[error(transparent)]
    Record(#[from] kd_record::Error),
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// The error of a picture without a label where there has to be one.
    pub(crate) fn no_label(index: u32) -> Self {
        let (found, expected) = ("no label".into(), "the picture's class".into());
        Self::Source { index, found, expected }
    }
}

/// The most pictures that an error lists; of more, the number is given.
const LISTED: usize = 20;

/// A line for each error.
fn listed(errors: &[Error]) -> String {
    let mut lines: String =
        errors.iter().take(LISTED).map(|error| format!("\n  {error}")).collect();
    if errors.len() > LISTED {
        lines += &format!("\n  and {} more", errors.len() - LISTED);
    }
    lines
}
