//! What can go wrong in this library.

use std::fmt::Display;
use std::path::PathBuf;

use kd_models::Error as Models;
use kd_report::format::memory as memory_size;

/// The result of this library's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong: a variant for each case that a caller may want to act on, and [`Other`](Self::Other) for the rest.
///
/// Every message is one sentence that names the file or field, what was found, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process trains in the run's folder.
    #[error(
        "{}: another kd process is using this folder; wait for it to end, or choose another --out",
        folder.display()
    )]
    FolderInUse {
        /// The run's folder.
        folder: PathBuf,
    },
    /// The run's folder holds a run of another recipe.
    #[error(
        "{}: this {what} is of another recipe; it differs in {differences}; choose another --out or --name, or remove the folder",
        path.display()
    )]
    AnotherRecipe {
        /// The file that says so.
        path: PathBuf,
        /// `folder`, or `checkpoint`.
        what: &'static str,
        /// The keys that differ, each with both values.
        differences: String,
    },
    /// The run's folder holds the same run with more epochs.
    #[error(
        "{}: this run has {from} epochs and {to} are asked for; a run is trained on, never back: ask for {from} epochs or more, or choose another --out or --name",
        path.display()
    )]
    FewerEpochs {
        /// The recipe in the folder.
        path: PathBuf,
        /// The number of epochs that it says.
        from: usize,
        /// The number of epochs asked for.
        to: usize,
    },
    /// The run's folder holds the same run with fewer epochs, and it can't be trained on to more with the result of a run that had
    /// them from the start.
    #[error(
        "{}: this run has {from} epochs and {to} are asked for, but {reason}: choose another --out or --name for a run from the start, or {}",
        path.display(), other_cure(*from, weights.is_some())
    )]
    NotExtended {
        /// The recipe in the folder.
        path: PathBuf,
        /// The number of epochs that it says.
        from: usize,
        /// The number of epochs asked for.
        to: usize,
        /// What stands against it.
        reason: String,
        /// The weights after `from` epochs, from which a run of another name can start; `None` where the run has not written any.
        weights: Option<PathBuf>,
    },
    /// The data or a weights file does not fit the run. The message names the file, what was found and what was expected.
    #[error(transparent)]
    DoesNotFit(anyhow::Error),
    /// The run needs more memory than there is.
    #[error(
        "run {run} needs about {} of memory with batches of {batch_size} images, and {} can be had; {}; --memory SIZE states another limit",
        memory_size(*needed), memory_size(*limit), memory_cure(*batch_that_fits)
    )]
    Memory {
        /// The run's name.
        run: String,
        /// Images of a batch.
        batch_size: usize,
        /// The bytes that the run takes at its peak, as far as it can be said beforehand.
        needed: u64,
        /// The bytes that the process may take.
        limit: u64,
        /// The largest batch size with which the run fits; `None` where not even one image does.
        batch_that_fits: Option<usize>,
    },
    /// A choice beside the recipe makes no sense for the run; the message names it.
    #[error("{0}")]
    Choice(String),
    /// A loss or a gradient is not finite. The run has ended; its last good checkpoint is kept.
    #[error(
        "run {run}, epoch {epoch}, step {step}: {found} on training images {images:?}; expected a finite number: {}; the last good checkpoint is kept in {}",
        cure(*step), checkpoints.display()
    )]
    NotFinite {
        /// The run's name.
        run: String,
        /// The epoch, from 1.
        epoch: usize,
        /// The step, from 1, counted from the start of the run.
        step: u64,
        /// Which number it is, and its value.
        found: String,
        /// The step's images, by their positions in the training set.
        images: Vec<u32>,
        /// The folder with the run's checkpoints.
        checkpoints: PathBuf,
    },
    /// Anything else, such as a file that can't be read or a device that fails.
    #[error(transparent)]
    Other(anyhow::Error),
}

/// What to do with a run of `from` epochs that can't become one of more.
fn other_cure(from: usize, finished: bool) -> String {
    match finished {
        true => "train on from its weights, as a run of another name".into(),
        false => format!("finish it with {from} epochs first"),
    }
}

/// What to do about a run that does not fit into memory.
fn memory_cure(batch_that_fits: Option<usize>) -> String {
    match batch_that_fits {
        Some(size) => format!("expected training.batch_size at most {size}: --batch-size {size}"),
        None => "not even batches of one image fit: take a smaller network, or fewer images".into(),
    }
}

/// What to do about a figure that is not finite at this step, counted from 1.
fn cure(step: u64) -> &'static str {
    match step {
        // No weight has been changed yet.
        1 => {
            "at the first step the learning rate is not the cause: look at the data's mean and std, at the weights of labels and methods, and with `kd eval` at the teacher's weights and those to start from"
        }
        _ => "a lower learning rate or --clip-grad-norm often helps",
    }
}

impl Error {
    /// A [`DoesNotFit`](Self::DoesNotFit) of this message.
    pub(crate) fn unfit(message: String) -> Self {
        Self::DoesNotFit(anyhow::Error::msg(message))
    }

    /// The same error with `what` before its message, where the message does not already name the run or folder.
    pub(crate) fn context(self, what: impl Display + Send + Sync + 'static) -> Self {
        match self {
            Self::DoesNotFit(error) => Self::DoesNotFit(error.context(what)),
            Self::Other(error) => Self::Other(error.context(what)),
            named => named,
        }
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<Models> for Error {
    fn from(error: Models) -> Self {
        match error {
            Models::WrongArchitecture { .. }
            | Models::MissingTensor { .. }
            | Models::ExtraTensor { .. }
            | Models::TensorShape { .. }
            | Models::ClassCount { .. }
            | Models::Classes { .. }
            | Models::InputShape { .. }
            | Models::Normalization { .. } => Self::DoesNotFit(error.into()),
            other => Self::Other(other.into()),
        }
    }
}

impl From<kd_data::Error> for Error {
    fn from(error: kd_data::Error) -> Self {
        match error {
            kd_data::Error::TooFew { .. } => Self::DoesNotFit(error.into()),
            other => Self::Other(other.into()),
        }
    }
}

impl From<kd_record::Error> for Error {
    fn from(error: kd_record::Error) -> Self {
        match error {
            kd_record::Error::InUse { folder } => Self::FolderInUse { folder },
            other => Self::Other(other.into()),
        }
    }
}

/// These errors are reported as they are.
macro_rules! others {
    ($($error:ty),*) => {
        $(
            impl From<$error> for Error {
                fn from(error: $error) -> Self {
                    Self::Other(error.into())
                }
            }
        )*
    };
}

others!(candle_core::Error, kd_loss::Error, crate::recipe::RecipeError);

/// An [`Error::Other`] of a format string.
macro_rules! other {
    ($($arg:tt)*) => {
        $crate::Error::Other(anyhow::anyhow!($($arg)*))
    };
}
pub(crate) use other;
