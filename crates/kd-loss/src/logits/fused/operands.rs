//! What the kernels take: the losses' weights and options, and the tensors beside the student's logits.

use candle_core::Tensor;

/// The operation's name in candle's errors.
pub(super) const NAME: &str = "fused softmax losses";

/// The two terms' weights and options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedTerms {
    /// What the cross-entropy is multiplied with.
    pub(crate) labels_weight: f64,
    /// The share of each label that is spread over all classes.
    pub(crate) smoothing: f64,
    /// What the divergence from the teacher is multiplied with.
    pub(crate) kd_weight: f64,
    /// What both logits are divided by in the divergence.
    pub(crate) temperature: f64,
}

impl FusedTerms {
    /// The cross-entropy alone.
    pub(crate) fn labels(smoothing: f64) -> Self {
        Self { labels_weight: 1.0, smoothing, kd_weight: 0.0, temperature: 1.0 }
    }

    /// The divergence alone.
    pub(crate) fn kd(temperature: f64) -> Self {
        Self { labels_weight: 0.0, smoothing: 0.0, kd_weight: 1.0, temperature }
    }
}

/// What the kernels take besides the student's logits.
pub(super) struct Operands {
    pub(super) terms: FusedTerms,
    /// The teacher's logits: contiguous, of the student's type and shape, on its device.
    pub(super) teacher: Option<Tensor>,
    /// u32 `[B]`, contiguous, on the student's device.
    pub(super) labels: Option<Tensor>,
    /// Whether the student's logits need a gradient.
    pub(super) with_gradient: bool,
}
