//! TTM: the student's own softmax against a power of the teacher's.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::kd::kd;
use crate::inputs::{Inputs, Needs};
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::widened;
use crate::{Result, Setup, check};

/// `mean over images of KL(q^γ / Σ q^γ ‖ p)`, a scalar; p is the student's softmax, q the teacher's, both at temperature 1.
///
/// Both logits are `[B, C]`. The power γ softens the teacher as a temperature of 1/γ does, since q^γ / Σ q^γ is the softmax of γ times its logits; the
/// student is not softened, which is what tells TTM from [`kd`]: the entropy of the student's tempered answers, which soft targets at one
/// temperature for both leave free, is held down. The teacher gets no gradient. It is [`kd`]'s fused operation.
///
/// Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching" (2024), section 3; the authors' code: zkxufo/TTM,
/// distiller_zoo/ttm.py.
///
/// # Errors
/// When `gamma` is not a number above 0, or the shapes differ.
pub fn ttm(student_logits: &Tensor, teacher_logits: &Tensor, gamma: f64) -> Result<Tensor> {
    check::positive("gamma", gamma)?;
    check::same_logits(student_logits, teacher_logits)?;
    kd(student_logits, &(widened(teacher_logits)? * gamma)?, 1.0)
}

/// Options of the method "ttm": [`ttm`] of the two networks' logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TtmConfig {
    /// The power of the teacher's probabilities, above 0: one divided by a temperature of the teacher's.
    pub gamma: f64,
}

impl Default for TtmConfig {
    /// 0.1, as the authors' example for VGG-13 and VGG-8 on CIFAR-100 has it.
    fn default() -> Self {
        Self { gamma: 0.1 }
    }
}

pub(crate) struct Ttm;

impl Definition for Ttm {
    type Options = TtmConfig;

    const ABOUT: About = About {
        kind: Kind::Response,
        across_images: false,
        summary: "KL divergence of the student's softmax to a power of the teacher's",
        paper: "Zheng, Yang 2024",
        weight: 45.0,
        labels: 1.0,
        source: "zkxufo/TTM, README.md: --model_s vgg8 --distill ttm --ttm_l 0.1 -r 1 -b 45 -a 0, with a VGG-13 on CIFAR-100; power and weight are another pair's for each pair in the paper",
        options: &[("gamma", "power of the teacher's probabilities, above 0")],
    };

    fn validate(options: &TtmConfig) -> Result<()> {
        check::positive("gamma", options.gamma)
    }

    fn build(options: &TtmConfig, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(options.clone()))
    }
}

impl Method for TtmConfig {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        ttm(inputs.student_logits, &inputs.require_teacher_logits()?, self.gamma)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["ttm", "large.ttm"], 1, |s, t| ttm(&s[0], &t[0], 0.1));
        agree(&["ttm_other", "large.ttm_other"], 1, |s, t| ttm(&s[0], &t[0], 0.7));
    }
}
