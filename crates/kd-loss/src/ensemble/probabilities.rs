//! The arithmetic mean of the softened probabilities.

use candle_core::{Result, Tensor};

use super::log_mixture;

/// `T log((1 / K) Σ_k softmax(z_k / T))`.
pub(super) fn mean(logits: &[Tensor], temperature: f64) -> Result<Tensor> {
    let share = -(logits.len() as f64).ln();
    let weights = Tensor::full(share, (logits.len(), logits[0].dim(0)?), logits[0].device())?;
    log_mixture(logits, &weights.to_dtype(logits[0].dtype())?, temperature)
}
