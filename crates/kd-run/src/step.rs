//! One step of training.

use kd_data::Batch;
use kd_ops::clip_grad_norm_on_device;
use kd_record::Precision;

use crate::Result;
use crate::at::At;
use crate::figures::Figures;
use crate::pass::Pass;
use crate::task::Task;
use crate::teacher::Teacher;

/// What a run says that was to capture its steps and doesn't.
pub(crate) const PIECE_BY_PIECE: &str =
    "steps are submitted piece by piece, none is captured as a CUDA graph";

/// How every step of a run is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepConfig {
    /// The arithmetic of the learners' forward and backward passes.
    pub precision: Precision,
    /// The norm down to which a step's gradients are scaled where they have a larger one.
    pub clip_grad_norm: Option<f64>,
    /// The number of parts of equal size, as nearly as can be, that a step's batch is computed in, one after the other; their
    /// gradients are added. `None` computes it as one.
    pub parts: Option<usize>,
}

/// Takes one step of training: asks the teacher about the batch, computes the task's loss and its gradients, clips the
/// gradients, and changes each learner's parameters.
///
/// The CPU, a GPU, a captured graph and `kd-bench` all take this step. Nothing in it waits for a GPU: the figures that it
/// returns stay on the device until they are [read](crate::figures::Unread::read). A loss or a gradient that is not finite
/// shows there, after the parameters have changed.
///
/// # Errors
/// When the teacher or the task refuses the batch, or the device fails.
pub fn step(
    task: &mut dyn Task,
    teacher: Option<&dyn Teacher>,
    batch: &Batch,
    at: &At,
    config: &StepConfig,
) -> Result<Figures> {
    let pass = Pass { task, teacher, precision: config.precision };
    let (loss, mut gradients) = match config.parts {
        None => pass.of(batch, at, 1.0)?,
        Some(parts) => pass.in_parts(batch, at, parts)?,
    };
    let max_norm = config.clip_grad_norm.unwrap_or(f64::INFINITY);
    let mut norms = Vec::new();
    for learner in task.learners() {
        norms.push(clip_grad_norm_on_device(&learner.parameters, &mut gradients, max_norm)?);
    }
    for learner in task.learners_mut() {
        learner.optimizer.step(at.step, at.learning_rate, &gradients)?;
    }
    Ok(Figures::new(&loss, norms)?)
}
