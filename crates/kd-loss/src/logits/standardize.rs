//! Logit standardisation: the same mean and deviation for every image's logits.

use candle_core::{D, Tensor};

use crate::inputs::Inputs;
use crate::numeric::{centred, root, widened};
use crate::{Result, check};

/// `(z - mean(z)) / (std(z) + 1e-7)` for each row of `[B, C]` logits, with the unbiased deviation (divided by C - 1).
///
/// Applied before [`kd`](crate::kd) or [`dkd`](crate::dkd), it frees the student from matching the size of the teacher's logits: only their
/// order and proportions count. A row of equal logits becomes zeros, with gradient 0.
///
/// Sun et al., "Logit Standardization in Knowledge Distillation" (2024), algorithm 1.
///
/// # Errors
/// When the logits are not `[B, C]` with at least two classes.
pub fn standardize(logits: &Tensor) -> Result<Tensor> {
    let (_, classes) = check::logits_shape("logits", logits)?;
    check::two_classes(logits, classes)?;
    let centred = centred(&widened(logits)?)?;
    let variance = (centred.sqr()?.sum_keepdim(D::Minus1)? / (classes - 1) as f64)?;
    let deviation = (root(&variance)? + EPSILON)?;
    Ok(centred.broadcast_div(&deviation)?)
}

/// Added to the deviation, as in the authors' code.
const EPSILON: f64 = 1e-7;

/// Both networks' logits, the teacher's without a gradient; standardised if a method's option says so.
pub(super) fn both_logits(inputs: &Inputs<'_>, standardized: bool) -> Result<(Tensor, Tensor)> {
    let (student, teacher) = (inputs.student_logits, inputs.require_teacher_logits()?);
    check::float("the student's logits", student)?;
    check::float("the teacher's logits", &teacher)?;
    if standardized {
        return Ok((standardize(student)?, standardize(&teacher)?));
    }
    Ok((student.clone(), teacher))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kd;
    use crate::testing::agree;

    #[test]
    fn kd_of_standardized_logits_agrees_with_the_papers_formula() {
        agree(&["kd_standardized", "large.kd_standardized"], 1, |s, t| {
            kd(&standardize(&s[0])?, &standardize(&t[0])?, 2.0)
        });
    }
}
