//! Where a run is: what a checkpoint holds besides tensors.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use crate::evaluate::Evaluation;
use crate::figures::Sums;

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The run's resolved recipe, as TOML.
    pub recipe: String,
    /// Whole epochs done.
    pub epoch: usize,
    /// Steps done of the epoch after those.
    pub batch: usize,
    /// Steps done in all.
    pub step: u64,
    /// Sums over the steps of the epoch that is going on.
    pub sums: Sums,
    /// The evaluation on the test images after the last whole epoch, or after the best one where the run chooses it.
    pub evaluation: Option<Evaluation>,
    /// The best epoch so far, from 1, and its accuracy on the selection images, where the run chooses it.
    #[serde(default)]
    pub best: Option<(usize, f64)>,
    /// The step of the best checkpoint at an epoch's end and its accuracy: it is kept beside the newest ones.
    #[serde(default)]
    pub best_step: Option<(u64, f64)>,
    /// `events.jsonl` so far.
    pub events: String,
}

impl State {
    /// Notes that a checkpoint of this accuracy is about to be written at an epoch's end.
    pub(crate) fn count_best(&mut self, accuracy: f64) {
        // Of equal ones the first.
        if self.best_step.is_none_or(|(_, best)| accuracy > best) {
            self.best_step = Some((self.step, accuracy));
        }
    }

    /// Checks that a run of `epochs` epochs of `batches` steps can be where this says.
    pub(super) fn check(&self, epochs: usize, batches: usize) -> anyhow::Result<()> {
        let (epoch, batch, step) = (self.epoch, self.batch, self.step);
        let in_epoch = if epoch < epochs { batch < batches } else { epoch == epochs && batch == 0 };
        ensure!(
            in_epoch,
            "it is at batch {batch} of epoch {epoch}; the run has {epochs} epochs of {batches}"
        );
        let expected = epoch as u64 * batches as u64 + batch as u64;
        ensure!(step == expected, "it is at step {step}; expected {expected} in this epoch");
        let sums = &self.sums;
        let mut values = sums.parts.values().chain([&sums.loss, &sums.seconds]);
        ensure!(
            values.all(|sum| sum.is_finite()) && (sums.images > 0) == (batch > 0),
            "its sums over {batch} batches are of {} images, or not finite",
            sums.images
        );
        ensure!(self.evaluation.is_some() == (epoch > 0), "its evaluation is not of epoch {epoch}");
        Ok(())
    }
}
