//! What is learned: the seam between the step, which is always the same, and the loss.

mod learner;
mod supervised;

use std::collections::BTreeMap;

use candle_core::Tensor;
use kd_data::Batch;
use kd_loss::Needs;
use kd_models::Tape;

pub use learner::Learner;
pub(crate) use learner::{AVERAGE, PARAMETER};
pub use supervised::Supervised;

use crate::Result;
use crate::at::At;
use crate::teacher::Answers;

/// Something to learn: it holds the networks in training, the learners, and says what their loss is on a batch.
pub trait Task: Send {
    /// What the loss needs of the learners and of the teacher.
    fn needs(&self) -> &Needs;

    /// The networks in training.
    fn learners(&self) -> &[Learner];

    /// The networks in training, to be changed by a step.
    fn learners_mut(&mut self) -> &mut [Learner];

    /// Gets ready for the steps of epoch `epoch`, counted from 0, the first of a process among them: layers that are trained from it on
    /// get their gradients.
    ///
    /// # Errors
    /// When the network can't be built.
    fn begin_epoch(&mut self, epoch: usize) -> Result<()>;

    /// The loss of a batch. The images may be bf16; the loss is f32.
    ///
    /// # Errors
    /// When the shapes don't fit, or `taught` lacks what the task needs.
    fn loss(&self, at: &At, batch: &Batch, taught: &Answers) -> Result<TaskLoss>;

    /// Factors of the loss that the host computes for each step: a captured graph stays valid only while these factors are
    /// unchanged.
    ///
    /// # Errors
    /// When `at` is past the end of the run.
    fn factors(&self, at: &At) -> Result<Vec<f64>>;

    /// Why the task's step can't be captured as a CUDA graph, in a few words.
    fn not_to_be_captured(&self) -> Option<String>;

    /// Everything of the task that a checkpoint must keep, on the CPU: each learner's values as `parameter/<name>`, an
    /// average of them as `average/<name>`, and what its optimiser remembers as `<kind>/<name>`.
    ///
    /// # Errors
    /// When the device fails.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Takes over a [`state`](Self::state) from after `steps` steps.
    ///
    /// # Errors
    /// When it is another task's or another optimiser's.
    fn restore(&mut self, steps: u64, state: &BTreeMap<String, Tensor>) -> Result<()>;
}

/// The loss of a batch.
#[derive(Debug)]
pub struct TaskLoss {
    /// What is minimised, a scalar.
    pub total: Tensor,
    /// The loss's parts by name, each a scalar before its weight.
    pub parts: Vec<(&'static str, Tensor)>,
    /// The number of correct predictions, a scalar.
    pub correct: Tensor,
    /// What each learner's forward pass left for its backward pass, in the learners' order.
    pub tapes: Vec<Tape>,
}
