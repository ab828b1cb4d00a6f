//! Decoupled knowledge distillation: the target class and the others, weighted apart.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::log_softmax::log_softmax;
use crate::method::{About, Kind, Options};
use crate::{Inputs, Method, Needs, Result, Setup, check, kd};

/// `T² · (alpha · TCKD + beta · NCKD)`, means over the batch, a scalar.
///
/// Logits are `[B, C]`, labels u32 `[B]`. With p_t the probability of the label at temperature T:
/// - TCKD = KL between teacher's and student's (p_t, 1 - p_t);
/// - NCKD = KL between their softmaxes over the classes that are not the label.
///
/// Plain KD is TCKD + (1 - p_t of the teacher) · NCKD: the surer the teacher, the less its other classes
/// count there. The teacher gets no gradient.
///
/// Zhao et al., "Decoupled Knowledge Distillation" (2022), equation 7; T 4, alpha 1, beta 8 on CIFAR-100.
///
/// # Errors
/// When an option makes no sense, shapes don't fit, there is one class only, or a label is out of range.
pub fn dkd(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    labels: &Tensor,
    config: &DkdConfig,
) -> Result<Tensor> {
    config.validate()?;
    let (_, classes) = check::same_logits("dkd", student_logits, teacher_logits)?;
    check::two_classes(student_logits, classes)?;
    check::labels("dkd", student_logits, labels)?;
    let temperature = config.temperature;
    let is_label = Tensor::arange(0u32, classes as u32, labels.device())?
        .broadcast_eq(&labels.unsqueeze(1)?)?
        .to_dtype(student_logits.dtype())?;
    let s = Split::new(&(student_logits / temperature)?, &is_label)?;
    let t = Split::new(&(teacher_logits.detach() / temperature)?, &is_label)?;

    let kl = |log_q: &Tensor, log_p: &Tensor| log_q.exp()? * (log_q - log_p)?;
    let target = (kl(&t.log_label, &s.log_label)? + kl(&t.log_rest, &s.log_rest)?)?.mean_all()?;
    let others = kl(&t.log_others, &s.log_others)?.sum(D::Minus1)?.mean_all()?;
    let sum = ((target * config.alpha)? + (others * config.beta)?)?;
    Ok((sum * (temperature * temperature))?)
}

/// Logarithms of a softmax, split at the label.
struct Split {
    /// Of the label's probability, `[B, 1]`.
    log_label: Tensor,
    /// Of the others' sum, `[B, 1]`.
    log_rest: Tensor,
    /// Of the softmax over the others, `[B, C]`; far below zero at the label.
    log_others: Tensor,
}

/// Taken from the label's logit, so that nothing of it is left in a softmax.
const FAR: f64 = 1e30;

impl Split {
    fn new(z: &Tensor, is_label: &Tensor) -> candle_core::Result<Self> {
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

/// Options of [`dkd`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DkdConfig {
    /// What both logits are divided by, above 0.
    pub temperature: f64,
    /// Weight of the target class's part.
    pub alpha: f64,
    /// Weight of the other classes' part.
    pub beta: f64,
    /// Whether both logits are [standardised](crate::standardize) first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub standardize: bool,
}

impl Default for DkdConfig {
    /// The paper's for CIFAR-100.
    fn default() -> Self {
        Self { temperature: 4.0, alpha: 1.0, beta: 8.0, standardize: false }
    }
}

impl Options for DkdConfig {
    const ABOUT: About = About {
        kind: Kind::Response,
        summary: "KD with the label's probability and the other classes weighted apart",
        paper: "Zhao et al. 2022",
        weight: 1.0,
        labels: 1.0,
        options: &[
            ("temperature", "what both logits are divided by, above 0"),
            ("alpha", "weight of the label's probability"),
            ("beta", "weight of the other classes"),
            (
                "standardize",
                "whether each image's logits are brought to mean 0 and deviation 1 first",
            ),
        ],
    };

    fn validate(&self) -> Result<()> {
        check::temperature("dkd", self.temperature)?;
        check::weight("dkd", "alpha", self.alpha)?;
        check::weight("dkd", "beta", self.beta)
    }

    fn build(&self, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(Dkd { config: self.clone() }))
    }
}

struct Dkd {
    config: DkdConfig,
}

impl Method for Dkd {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = kd::logits("dkd", inputs, self.config.standardize)?;
        dkd(&student, &teacher, inputs.labels, &self.config)
    }
}
