//! The mean of the logits.

use candle_core::{Result, Tensor};

/// `(1 / K) Σ_k z_k`, added in the teachers' order.
pub(super) fn mean(logits: &[Tensor]) -> Result<Tensor> {
    let mut sum = logits[0].clone();
    for other in &logits[1..] {
        sum = (sum + other)?;
    }
    sum / logits.len() as f64
}
