//! The mean of the softened probabilities, weighted by how well each teacher knows an image's label.

use candle_core::{Result, Tensor};

use super::{errors, log_mixture, log_sum_exp};

/// `T log Σ_k w_k softmax(z_k / T)` with `w_k = (1 - exp(L_k) / Σ_j exp(L_j)) / (K - 1)`, where `L_k` is the cross-entropy of teacher k
/// with the label. One teacher alone has all the weight.
pub(super) fn weighted(logits: &[Tensor], labels: &Tensor, temperature: f64) -> Result<Tensor> {
    let teachers = logits.len();
    if teachers == 1 {
        return Ok(logits[0].clone());
    }
    let errors = errors(logits, labels)?;
    // `1 - exp(L_k) / Σ_j exp(L_j)` is the share of all teachers but k. A sum over these keeps a small weight's digits, which the
    // difference from 1 would lose.
    let all = log_sum_exp(&errors)?;
    let without = |k: usize| {
        let others = [errors.narrow(0, 0, k)?, errors.narrow(0, k + 1, teachers - k - 1)?];
        let others: Vec<&Tensor> = others.iter().filter(|part| part.elem_count() > 0).collect();
        log_sum_exp(&Tensor::cat(&others, 0)?)?.broadcast_sub(&all)
    };
    let weights = Tensor::cat(&(0..teachers).map(without).collect::<Result<Vec<_>>>()?, 0)?;
    log_mixture(logits, &(weights - ((teachers - 1) as f64).ln())?, temperature)
}
