//! The layer: its parameters, running statistics and settings.

use candle_core::Tensor;

/// How a batch normalisation computes, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormConfig {
    /// The share of a batch's statistics in the new running statistics, from 0 to 1.
    pub momentum: f64,
    /// Added to the variance before its root is taken.
    pub eps: f64,
    /// Whether `max(y, 0)` follows (after the addition), fused in; its derivative at zero is 0.
    pub relu: bool,
}

impl Default for BatchNormConfig {
    /// PyTorch's: momentum 0.1, eps 1e-5, no ReLU.
    fn default() -> Self {
        Self { momentum: 0.1, eps: 1e-5, relu: false }
    }
}

/// Which mean and variance a batch normalisation subtracts and divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Those of the batch at hand, as in training. The running statistics then take their share of them, and the gradient
    /// flows through them as well.
    Batch,
    /// The running ones, as in evaluation and in frozen layers. They are constants here and stay unchanged.
    Running,
}

/// Batch normalisation of each channel (Ioffe and Szegedy, "Batch Normalization", 2015), as `torch.nn.BatchNorm2d`
/// computes it.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// The scale, f32 `[C]`.
    pub weight: Tensor,
    /// The shift, f32 `[C]`.
    pub bias: Tensor,
    /// Running mean of the inputs in training, f32 `[C]`. A forward pass with [`Statistics::Batch`] changes it in place, so
    /// every tensor that shares its memory (a `Var` and the tensors taken from it) sees the change.
    pub running_mean: Tensor,
    /// Running variance of the same, unbiased, f32 `[C]`; changed in place as well.
    pub running_var: Tensor,
    /// Momentum, eps and what is fused in.
    pub config: BatchNormConfig,
}
