//! Decoupled knowledge distillation: the target class and the others, weighted apart.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::log_softmax::log_softmax;
use super::standardize::both_logits;
use crate::inputs::{Inputs, Needs};
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::{finest, widened_both};
use crate::{Error, Result, Setup, check};

/// `T² · (alpha · TCKD + beta · NCKD)`, averaged over the batch, a scalar.
///
/// Logits are `[B, C]`, labels u32 `[B]`. With p_t the probability of the label at temperature T:
/// - TCKD = KL between teacher's and student's (p_t, 1 - p_t);
/// - NCKD = KL between their softmaxes over the classes that are not the label.
///
/// Plain KD is TCKD + (1 - p_t of the teacher) · NCKD: there, the more certain the teacher is of the label, the less its other
/// classes count. The teacher gets no gradient.
///
/// Zhao et al., "Decoupled Knowledge Distillation" (2022), equation 7. The paper takes T 4, alpha 1 and beta 8 on CIFAR-100.
///
/// # Errors
/// When an option makes no sense, shapes don't fit, there is one class only, or a label is out of range.
pub fn dkd(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    labels: &Tensor,
    config: &DkdConfig,
) -> Result<Tensor> {
    Dkd::validate(config)?;
    let (_, classes) = check::same_logits(student_logits, teacher_logits)?;
    check::two_classes(student_logits, classes)?;
    check::labels(student_logits, labels)?;
    let (student_logits, teacher_logits) = widened_both(student_logits, &teacher_logits.detach())?;
    let temperature = config.temperature;
    let is_label = Tensor::arange(0u32, classes as u32, labels.device())?
        .broadcast_eq(&labels.unsqueeze(1)?)?
        .to_dtype(finest(&student_logits)?.dtype())?;
    let split = |z: &Tensor| Split::new(&(finest(z)? / temperature)?, &is_label);
    let (s, t) = (split(&student_logits)?, split(&teacher_logits)?);

    let kl = |log_q: &Tensor, log_p: &Tensor| log_q.exp()? * (log_q - log_p)?;
    let target = (kl(&t.log_label, &s.log_label)? + kl(&t.log_rest, &s.log_rest)?)?.mean_all()?;
    let others = kl(&t.log_others, &s.log_others)?.sum(D::Minus1)?.mean_all()?;
    let sum = ((target * config.alpha)? + (others * config.beta)?)?;
    Ok((sum * (temperature * temperature))?.to_dtype(student_logits.dtype())?)
}

/// The logarithms of a softmax, split into the label and the other classes.
struct Split {
    /// The logarithm of the label's probability, `[B, 1]`.
    log_label: Tensor,
    /// The logarithm of the other classes' probabilities together, `[B, 1]`.
    log_rest: Tensor,
    /// The logarithm of the softmax over the other classes, `[B, C]`; at the label it is far below zero.
    log_others: Tensor,
}

/// Subtracted from the label's logit, so that the label has no share in a softmax.
const FAR: f64 = 1e30;

impl Split {
    fn new(z: &Tensor, is_label: &Tensor) -> candle_core::Result<Self> {
        // Nothing below depends on what all of an image's logits have in common, and without it nothing is rounded at its size.
        let z = &z.broadcast_sub(&z.max_keepdim(D::Minus1)?.detach())?;
        let others = (z - (is_label * FAR)?)?;
        let log_others = log_softmax(&others)?;
        let log_p = log_softmax(z)?;
        let log_label = (&log_p * is_label)?.sum_keepdim(D::Minus1)?;
        // log(1 - p) = logsumexp of the others - logsumexp of all, exact however small 1 - p is.
        let sum = |z: &Tensor| {
            let max = z.max_keepdim(D::Minus1)?.detach();
            z.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max
        };
        let log_rest = (sum(&others)? - sum(z)?)?;
        Ok(Self { log_label, log_rest, log_others })
    }
}

/// Options of the method "dkd": [`dkd`] of the two networks' logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DkdConfig {
    /// What both logits are divided by, above 0.
    pub temperature: f64,
    /// The weight of TCKD, the label's part.
    pub alpha: f64,
    /// The weight of NCKD, the other classes' part.
    pub beta: f64,
    /// Whether both logits are [standardised](crate::standardize) first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub standardize: bool,
}

impl Default for DkdConfig {
    /// The paper's options for CIFAR-100.
    fn default() -> Self {
        Self { temperature: 4.0, alpha: 1.0, beta: 8.0, standardize: false }
    }
}

pub(crate) struct Dkd;

impl Definition for Dkd {
    type Options = DkdConfig;

    const ABOUT: About = About {
        kind: Kind::Response,
        across_images: false,
        summary: "KD with the label's probability and the other classes weighted apart",
        paper: "Zhao et al. 2022",
        weight: 1.0,
        labels: 1.0,
        source: "megvii-research/mdistiller, mdistiller/engine/cfg.py: CFG.DKD.CE_WEIGHT = 1.0, ALPHA = 1.0, BETA = 8.0, T = 4.0; some pairs have beta 2 or 6 (configs/cifar100/dkd), ImageNet has T 1 and beta 0.5 or 2. Their WARMUP = 20 of 240 epochs is the recipe's (warmup), as for every method. With standardize: T 2, alpha 9, beta 72 (sunshangquan/logit-standardization-KD, README.md: --logit-stand --base-temp 2 --kd-weight 9; tools/train.py: cfg.DKD.ALPHA * args.kd_weight, cfg.DKD.BETA * args.kd_weight)",
        options: &[
            ("temperature", "what both logits are divided by, above 0"),
            ("alpha", "weight of the label's probability"),
            ("beta", "weight of the other classes"),
            (
                "standardize",
                "whether each image's logits are brought to mean 0 and deviation 1 first; its authors then take temperature 2, alpha 9 and beta 72",
            ),
        ],
    };
    const NEEDS_LABELS: bool = true;

    fn validate(options: &DkdConfig) -> Result<()> {
        check::temperature(options.temperature)?;
        check::weight("alpha", options.alpha)?;
        check::weight("beta", options.beta)
    }

    fn build(options: &DkdConfig, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(options.clone()))
    }
}

impl Method for DkdConfig {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        if inputs.mixed.is_some() {
            return Err(Error::Mixed { what: "dkd splits the loss by" });
        }
        let (student, teacher) = both_logits(inputs, self.standardize)?;
        dkd(&student, &teacher, inputs.labels, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standardize;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["dkd", "large.dkd"], 1, |s, t| dkd(&s[0], &t[0], &t[1], &DkdConfig::default()));
        let other = DkdConfig { temperature: 1.5, alpha: 0.5, beta: 2.0, standardize: false };
        agree(&["dkd_other", "large.dkd_other"], 1, |s, t| dkd(&s[0], &t[0], &t[1], &other));
        let two = DkdConfig { temperature: 2.0, ..DkdConfig::default() };
        agree(&["dkd_standardized", "large.dkd_standardized"], 1, |s, t| {
            dkd(&standardize(&s[0])?, &standardize(&t[0])?, &t[1], &two)
        });
    }
}
