//! Forward and backward pass of a step: of its batch as a whole, or in parts.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use kd_data::Batch;
use kd_record::Precision;

use crate::Result;
use crate::at::At;
use crate::error::other;
use crate::precision::{begin, in_precision};
use crate::task::{Learner, Task, TaskLoss};
use crate::teacher::{Answers, Teacher};

/// What a pass computes with.
pub(crate) struct Pass<'a> {
    pub(crate) task: &'a dyn Task,
    pub(crate) teacher: Option<&'a dyn Teacher>,
    pub(crate) precision: Precision,
}

impl Pass<'_> {
    /// The loss of a batch, and `share` of the gradients of all learners' parameters.
    pub(crate) fn of(&self, batch: &Batch, at: &At, share: f64) -> Result<(TaskLoss, GradStore)> {
        let Self { task, teacher, precision } = *self;
        // A teacher answers in f32, whatever the precision of training is.
        let taught = match teacher {
            Some(teacher) => teacher.answer(batch, task.needs())?,
            None => Answers::default(),
        };
        let _products = begin(precision);
        let mut loss = task.loss(at, &in_precision(batch, precision)?, &taught)?;
        let total = if share == 1.0 { loss.total.clone() } else { (&loss.total * share)? };
        let mut gradients = total.backward()?;
        for (learner, tape) in task.learners().iter().zip(std::mem::take(&mut loss.tapes)) {
            learner.network.backward(tape, &mut gradients)?;
        }
        Ok((loss, gradients))
    }

    /// The same of a batch that is computed in so many parts, one after the other: the mean over all its images of a loss that is a
    /// mean over images, and the gradients of that.
    pub(crate) fn in_parts(
        &self,
        batch: &Batch,
        at: &At,
        parts: usize,
    ) -> Result<(TaskLoss, GradStore)> {
        let images = batch.indices.len();
        let mut sum: Option<(TaskLoss, GradStore)> = None;
        for part in 0..parts {
            let (from, to) = (part * images / parts, (part + 1) * images / parts);
            if from == to {
                continue;
            }
            let share = (to - from) as f64 / images as f64;
            let at = At { part, ..*at };
            let (loss, gradients) = self.of(&batch.part(from, to - from)?, &at, share)?;
            let loss = scaled(loss, share)?;
            sum = Some(match sum {
                None => (loss, gradients),
                Some((so_far, sums)) => {
                    (added(so_far, loss)?, with(sums, gradients, self.task.learners())?)
                }
            });
        }
        sum.ok_or_else(|| other!("a batch without images has no step"))
    }
}

/// A part's share of the whole batch's loss, without its operations.
fn scaled(loss: TaskLoss, share: f64) -> candle_core::Result<TaskLoss> {
    let scale = |value: &Tensor| value.detach() * share;
    let parts = loss.parts.iter().map(|(name, value)| Ok((*name, scale(value)?)));
    Ok(TaskLoss {
        total: scale(&loss.total)?,
        parts: parts.collect::<candle_core::Result<_>>()?,
        correct: loss.correct,
        tapes: Vec::new(),
    })
}

fn added(a: TaskLoss, b: TaskLoss) -> candle_core::Result<TaskLoss> {
    let parts = a.parts.iter().zip(&b.parts).map(|((name, a), (_, b))| Ok((*name, (a + b)?)));
    Ok(TaskLoss {
        total: (a.total + b.total)?,
        parts: parts.collect::<candle_core::Result<_>>()?,
        correct: (a.correct + b.correct)?,
        tapes: Vec::new(),
    })
}

/// The sums with another part's gradients added.
fn with(mut sums: GradStore, mut part: GradStore, learners: &[Learner]) -> Result<GradStore> {
    for parameter in learners.iter().flat_map(|learner| learner.parameters.values()) {
        let parameter = parameter.as_tensor();
        let Some(more) = part.remove(parameter) else { continue };
        let sum = match sums.remove(parameter) {
            Some(sum) => (sum + more)?,
            None => more,
        };
        sums.insert(parameter, sum);
    }
    Ok(sums)
}
