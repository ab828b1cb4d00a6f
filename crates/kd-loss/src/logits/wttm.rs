//! WTTM: TTM in which an image counts the more, the less sure the teacher is of it.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::log_softmax::log_softmax;
use crate::inputs::{Inputs, Needs};
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::{finest, widened_both};
use crate::{Result, Setup, check};

/// `mean over images of U · KL(q^γ / Σ q^γ ‖ p)` with `U = Σ q^γ`, a scalar; p is the student's softmax, q the teacher's, both at temperature 1.
///
/// Both logits are `[B, C]`. U, the power sum of the teacher's probabilities, is 1 for a teacher that is sure and, with γ below 1, up to C^(1-γ) for one
/// that is not: images whose soft targets are smooth count for more than in [`ttm`](crate::ttm). The teacher gets no gradient.
///
/// Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching" (2024), section 4; the authors' code: zkxufo/TTM,
/// distiller_zoo/wttm.py.
///
/// # Errors
/// When `gamma` is not a number above 0, or the shapes differ.
pub fn wttm(student_logits: &Tensor, teacher_logits: &Tensor, gamma: f64) -> Result<Tensor> {
    check::positive("gamma", gamma)?;
    check::same_logits(student_logits, teacher_logits)?;
    let (student, teacher) = widened_both(student_logits, &teacher_logits.detach())?;
    let log_p = log_softmax(&finest(&student)?)?;
    let powers = (log_softmax(&finest(&teacher)?)? * gamma)?;
    let power_sum = powers.exp()?.sum(D::Minus1)?;
    let log_q = log_softmax(&powers)?;
    let kl = (log_q.exp()? * (log_q - log_p)?)?.sum(D::Minus1)?;
    Ok((power_sum * kl)?.mean_all()?.to_dtype(student.dtype())?)
}

/// Options of the method "wttm": [`wttm`] of the two networks' logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WttmConfig {
    /// The power of the teacher's probabilities, above 0: one divided by a temperature of the teacher's.
    pub gamma: f64,
}

impl Default for WttmConfig {
    /// 0.2, as the authors' example beside CRD has it.
    fn default() -> Self {
        Self { gamma: 0.2 }
    }
}

pub(crate) struct Wttm;

impl Definition for Wttm {
    type Options = WttmConfig;

    const ABOUT: About = About {
        kind: Kind::Response,
        across_images: false,
        summary: "KL divergence of the student's softmax to a power of the teacher's, images weighted by the power's sum",
        paper: "Zheng, Yang 2024",
        weight: 4.0,
        labels: 1.0,
        source: "zkxufo/TTM, README.md: --distill crd --add wttm --ttm_l 0.2 -b 0.8 -a 4, beside CRD with a VGG-13 on CIFAR-100 (-r, the labels' weight: default 1); no example has it alone",
        options: &[("gamma", "power of the teacher's probabilities, above 0")],
    };

    fn validate(options: &WttmConfig) -> Result<()> {
        check::positive("gamma", options.gamma)
    }

    fn build(options: &WttmConfig, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(options.clone()))
    }
}

impl Method for WttmConfig {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        wttm(inputs.student_logits, &inputs.require_teacher_logits()?, self.gamma)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["wttm", "large.wttm"], 1, |s, t| wttm(&s[0], &t[0], 0.2));
        agree(&["wttm_other", "large.wttm_other"], 1, |s, t| wttm(&s[0], &t[0], 0.7));
    }
}
