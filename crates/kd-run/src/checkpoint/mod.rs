//! Checkpoints: everything that a run needs to go on exactly where it was.

mod folder;
mod format;
mod state;
#[cfg(test)]
mod tests;

pub use format::{Checkpoint, Expected, Unusable, parse};
pub use state::State;

pub(crate) use folder::{latest, prune, save};
