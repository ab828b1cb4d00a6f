//! What a method sees of one training step, and what it must say that it needs.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{Error, Result};

/// For [`Inputs::new`].
static NO_FEATURES: BTreeMap<String, Tensor> = BTreeMap::new();

/// What a method sees of one batch of B images.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use kd_loss::Inputs;
/// # fn main() -> candle_core::Result<()> {
/// # let student = Tensor::new(&[[1.0f32, 0.0]], &Device::Cpu)?;
/// # let teacher = student.clone();
/// # let labels = Tensor::new(&[0u32], &Device::Cpu)?;
/// let inputs = Inputs { teacher_logits: Some(&teacher), ..Inputs::new(&student, &labels) };
/// # assert!(inputs.host.is_none() && inputs.student_features.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The student's logits `[B, C]`.
    pub student_logits: &'a Tensor,
    /// The images' classes, u32 `[B]`.
    pub labels: &'a Tensor,
    /// What each class counts in the labels' cross-entropy, a float tensor `[C]` of numbers above 0 on the logits' device; `None`
    /// where all count the same. See [`cross_entropy_weighted`](crate::cross_entropy_weighted).
    pub class_weights: Option<&'a Tensor>,
    /// The second class of each image and the share of its first one, where images are [mixed](MixedLabels) of two; the labels'
    /// cross-entropy then has both as its target.
    pub mixed: Option<MixedLabels<'a>>,
    /// The teacher's logits `[B, C]`, present when a method [needs](Needs::teacher_logits) them.
    pub teacher_logits: Option<&'a Tensor>,
    /// The student's values at the feature places that the methods [need](Needs::student), by place.
    pub student_features: &'a BTreeMap<String, Tensor>,
    /// The teacher's values at the feature places that the methods [need](Needs::teacher), by place.
    pub teacher_features: &'a BTreeMap<String, Tensor>,
    /// What the host knows of the step, present when a method [needs](Needs::host) it. A step that is captured as a CUDA
    /// graph never has it.
    pub host: Option<HostStep<'a>>,
}

impl<'a> Inputs<'a> {
    /// Logits and labels alone: no class weights, no mixed images, no teacher, no features, nothing from the host.
    pub fn new(student_logits: &'a Tensor, labels: &'a Tensor) -> Self {
        Self {
            student_logits,
            labels,
            class_weights: None,
            mixed: None,
            teacher_logits: None,
            student_features: &NO_FEATURES,
            teacher_features: &NO_FEATURES,
            host: None,
        }
    }

    /// The teacher's logits `[B, C]` without a gradient.
    ///
    /// # Errors
    /// When they were not given.
    pub fn require_teacher_logits(&self) -> Result<Tensor> {
        self.teacher_logits.map(Tensor::detach).ok_or(Error::MissingTeacherLogits)
    }

    /// What the host knows of the step.
    ///
    /// # Errors
    /// When it was not given: a method must ask for it by [`Needs::host`].
    pub fn require_host(&self) -> Result<HostStep<'a>> {
        self.host.ok_or(Error::MissingHostStep)
    }
}

/// The targets of images that are each mixed of two, by mixup or CutMix.
#[derive(Clone, Copy, Debug)]
pub struct MixedLabels<'a> {
    /// The class of the image that was mixed in, u32 `[B]`.
    pub labels: &'a Tensor,
    /// The share of the image's own class in its target, from 0 to 1, a float tensor `[B]`.
    pub shares: &'a Tensor,
}

/// What only the host knows of a training step.
///
/// None of it is in a tensor. A step that is captured as a CUDA graph is replayed with new numbers in its tensors, and whatever
/// its methods read here would stay as it was during the capture. So only a method whose [`Needs::host`] says so gets to see
/// it, and a step with such a method is never captured.
#[derive(Clone, Copy, Debug)]
pub struct HostStep<'a> {
    /// The images' positions in the training set, `B` of them.
    pub indices: &'a [u32],
    /// The run's seed: with the step's number the key of every random draw.
    pub seed: u64,
    /// The epoch, counted from 0.
    pub epoch: usize,
    /// Epochs of the whole run.
    pub epochs: usize,
    /// The step's number and the run's steps.
    pub at: RunStep,
}

/// A step's place in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunStep {
    /// Steps done before this one.
    pub step: u64,
    /// Steps of the whole run, more than `step`.
    pub steps: u64,
}

impl Default for RunStep {
    /// The only step of a run of one step, for loops whose weights follow no [schedule](crate::Schedule).
    fn default() -> Self {
        Self { step: 0, steps: 1 }
    }
}

/// What a method needs besides the student's logits and the labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Feature places of the student.
    pub student: Vec<String>,
    /// Feature places of the teacher.
    pub teacher: Vec<String>,
    /// Whether the method needs the teacher's logits.
    pub teacher_logits: bool,
    /// Whether the method needs [what only the host knows](HostStep). A step with such a method can't be captured as a CUDA
    /// graph.
    pub host: bool,
}

impl Needs {
    /// Whether the method needs a teacher at all.
    pub fn any_teacher(&self) -> bool {
        self.teacher_logits || !self.teacher.is_empty()
    }
}
