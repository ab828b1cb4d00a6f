//! How a command can fail, and the exit code that says so.

use std::fmt;

use crate::signals::Interrupted;

/// Why a command did not do all that it was asked for.
///
/// It is no [`std::error::Error`], so that `?` turns every error that is one into [`Failure::Failed`].
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line can't be right. Exit code 2, as for what clap refuses.
    Usage(String),
    /// Some of what was asked for is done and some could not be. Exit code 3.
    Partly(String),
    /// A signal stopped a run, which can go on. Exit code 128 plus the signal's number, as a shell reports it.
    Interrupted(Interrupted),
    /// A signal stopped a run that the command had started, and which can go on. The run has said so; the exit code is its own.
    Stopped(u8),
    /// Anything else. Exit code 1.
    Failed(anyhow::Error),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Partly(_) => 3,
            Self::Interrupted(interrupted) => interrupted.exit_code(),
            Self::Stopped(code) => *code,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Partly(message) => write!(f, "error: {message}"),
            // Somebody asked for it, so it is no error.
            Self::Interrupted(interrupted) => write!(f, "{interrupted}"),
            Self::Stopped(_) => f.write_str("stopped; the same command goes on from here"),
            Self::Failed(error) => write!(f, "error: {error:#}"),
        }
    }
}
