//! Where a run is.

use kd_loss::RunStep;

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
}

impl At {
    /// The step's place in the run, by which the methods' weights follow their schedules.
    pub fn run_step(&self) -> RunStep {
        RunStep { step: self.step, steps: self.steps }
    }
}
