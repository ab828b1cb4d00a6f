//! DIST: correlations of probabilities instead of their equality.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::log_softmax::log_softmax;
use crate::inputs::{Inputs, Needs};
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::{centred, finest, root, widened_both};
use crate::{Result, Setup, check};

/// `T² · (beta · inter + gamma · intra)`, a scalar.
///
/// Logits are `[B, C]`; with P and Q the softmaxes of student and teacher at temperature T (tau in the paper) and ρ Pearson's correlation:
/// - inter = mean over images of 1 - ρ(row of P, row of Q);
/// - intra = mean over classes of 1 - ρ(column of P, column of Q).
///
/// The teacher gets no gradient. For a row or column without variation ρ and its gradient are 0.
///
/// Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), equations 8 to 10. The factor T² is from the authors' code
/// (hunto/image_classification_sota, lib/models/losses/dist_kd.py). Their configurations have beta and gamma 1 and a loss weight of 2, with tau 4 for CIFAR-100
/// and tau 1 for ImageNet.
///
/// # Errors
/// When an option makes no sense or the shapes differ.
pub fn dist(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    config: &DistConfig,
) -> Result<Tensor> {
    Dist::validate(config)?;
    check::same_logits(student_logits, teacher_logits)?;
    let temperature = config.temperature;
    let (student, teacher) = widened_both(student_logits, &teacher_logits.detach())?;
    let probabilities = |z: &Tensor| log_softmax(&(finest(z)? / temperature)?)?.exp();
    let (p, q) = (probabilities(&student)?, probabilities(&teacher)?);
    let inter = distance(&p, &q)?;
    let intra = distance(&p.t()?.contiguous()?, &q.t()?.contiguous()?)?;
    let sum = ((inter * config.beta)? + (intra * config.gamma)?)?;
    Ok((sum * (temperature * temperature))?.to_dtype(student.dtype())?)
}

/// The mean over rows of 1 - ρ, ρ being Pearson's correlation of a row of `a` with the same row of `b`.
fn distance(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let (a, b) = (centred(a)?, centred(b)?);
    let length = |x: &Tensor| root(&x.sqr()?.sum(D::Minus1)?);
    let correlation = ((&a * &b)?.sum(D::Minus1)? / ((length(&a)? * length(&b)?)? + EPSILON)?)?;
    correlation.mean_all()?.affine(-1.0, 1.0)
}

/// Added to the product of the two lengths, as in the authors' code.
const EPSILON: f64 = 1e-8;

/// Options of the method "dist": [`dist`] of the two networks' logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistConfig {
    /// What both logits are divided by, above 0; tau in the paper.
    pub temperature: f64,
    /// The weight of the correlation over the classes of each image (inter).
    pub beta: f64,
    /// The weight of the correlation over the images of each class (intra).
    pub gamma: f64,
}

impl Default for DistConfig {
    /// The authors' configuration for CIFAR-100: tau 4, beta and gamma 1.
    fn default() -> Self {
        Self { temperature: 4.0, beta: 1.0, gamma: 1.0 }
    }
}

pub(crate) struct Dist;

impl Definition for Dist {
    type Options = DistConfig;

    const ABOUT: About = About {
        kind: Kind::Response,
        across_images: true,
        summary: "Pearson correlation of probabilities, within images and within classes",
        paper: "Huang et al. 2022",
        weight: 2.0,
        labels: 1.0,
        source: "hunto/image_classification_sota (classification of hunto/DIST_KD), configs/strategies/distill/dist_cifar.yaml: kd: dist_t4, kd_loss_weight: 2., ori_loss_weight: 1.; lib/models/losses/kd_loss.py: DIST(beta=1, gamma=1, tau=tau). On ImageNet tau is 1 (resnet_dist.yaml: kd: 'dist', kd_loss_weight: 2.)",
        options: &[
            ("temperature", "what both logits are divided by, above 0 (tau)"),
            ("beta", "weight of the correlation within each image"),
            ("gamma", "weight of the correlation within each class"),
        ],
    };

    fn validate(options: &DistConfig) -> Result<()> {
        check::temperature(options.temperature)?;
        check::weight("beta", options.beta)?;
        check::weight("gamma", options.gamma)
    }

    fn build(options: &DistConfig, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(options.clone()))
    }
}

impl Method for DistConfig {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        dist(inputs.student_logits, &inputs.require_teacher_logits()?, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        let one = DistConfig { temperature: 1.0, beta: 1.0, gamma: 1.0 };
        agree(&["dist", "large.dist"], 1, |s, t| dist(&s[0], &t[0], &one));
        let other = DistConfig { temperature: 4.0, beta: 2.0, gamma: 0.5 };
        agree(&["dist_other", "large.dist_other"], 1, |s, t| dist(&s[0], &t[0], &other));
    }
}
