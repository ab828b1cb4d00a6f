//! Where a run is.

use kd_loss::RunStep;
use kd_ops::DropoutKey;

/// Where a run is, and the learning rate there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// The run's seed: with `step` it is the key of every random draw of a step.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: usize,
    /// Epochs of the whole run.
    pub epochs: usize,
    /// Steps taken before this one.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// The part of the step's batch, from 0, where it is computed in parts.
    pub part: usize,
}

impl At {
    /// The key of the step's dropout masks; each part of a batch has masks of its own.
    pub fn dropout_key(&self) -> DropoutKey {
        // Any odd factor gives each part another seed, and the first one the run's.
        let part = (self.part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        DropoutKey { seed: self.seed ^ part, step: self.step }
    }

    /// The step's place in the run, by which the methods' weights follow their schedules.
    pub fn run_step(&self) -> RunStep {
        RunStep { step: self.step, steps: self.steps }
    }
}
