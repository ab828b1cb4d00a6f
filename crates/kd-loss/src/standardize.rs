//! Logit standardisation: the same mean and deviation for every image's logits.

use candle_core::{D, Tensor};

use crate::{Result, check};

/// `(z - mean(z)) / (std(z) + 1e-7)` for each row of `[B, C]` logits, with the unbiased deviation (divided by C - 1).
///
/// The student need not match the size of the teacher's logits then, only their order and proportions. Goes
/// before [`kd`](crate::kd) and [`dkd`](crate::dkd). A row of equal logits becomes zeros, with a finite gradient.
///
/// Sun et al., "Logit Standardization in Knowledge Distillation" (2024), algorithm 1.
///
/// # Errors
/// When the logits are not `[B, C]` with at least two classes.
pub fn standardize(logits: &Tensor) -> Result<Tensor> {
    let (_, classes) = check::logits_shape("logits", logits)?;
    check::two_classes(logits, classes)?;
    let centred = logits.broadcast_sub(&logits.mean_keepdim(D::Minus1)?)?;
    let variance = (centred.sqr()?.sum_keepdim(D::Minus1)? / (classes - 1) as f64)?;
    let deviation = (variance.maximum(SMALLEST)?.sqrt()? + EPSILON)?;
    Ok(centred.broadcast_div(&deviation)?)
}

/// The authors' code adds it to the deviation.
const EPSILON: f64 = 1e-7;
/// Bounds the variance below, where its root has no gradient.
const SMALLEST: f64 = 1e-14;
