//! DIST: correlations of probabilities instead of their equality.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::log_softmax::log_softmax;
use crate::method::{About, Kind, Options};
use crate::{Inputs, Method, Needs, Result, Setup, check, kd};

/// `T² · (beta · inter + gamma · intra)`, a scalar.
///
/// Logits are `[B, C]`; with P and Q the softmaxes of student and teacher at temperature T (tau in the paper) and ρ Pearson's correlation:
/// - inter = mean over images of 1 - ρ(row of P, row of Q);
/// - intra = mean over classes of 1 - ρ(column of P, column of Q).
///
/// The teacher gets no gradient. A row or column without variation correlates with nothing, ρ = 0.
///
/// Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), equations 8 to 10; beta, gamma and tau 1. The factor T² is the authors' code's.
///
/// # Errors
/// When an option makes no sense or the shapes differ.
pub fn dist(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    config: &DistConfig,
) -> Result<Tensor> {
    config.validate()?;
    check::same_logits("dist", student_logits, teacher_logits)?;
    let temperature = config.temperature;
    let p = log_softmax(&(student_logits / temperature)?)?.exp()?;
    let q = log_softmax(&(teacher_logits.detach() / temperature)?)?.exp()?;
    let inter = distance(&p, &q)?;
    let intra = distance(&p.t()?.contiguous()?, &q.t()?.contiguous()?)?;
    let sum = ((inter * config.beta)? + (intra * config.gamma)?)?;
    Ok((sum * (temperature * temperature))?)
}

/// Mean over rows of 1 - Pearson's correlation.
fn distance(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let centred = |x: &Tensor| x.broadcast_sub(&x.mean_keepdim(D::Minus1)?);
    let (a, b) = (centred(a)?, centred(b)?);
    let length = |x: &Tensor| (x.sqr()?.sum(D::Minus1)? + TINY)?.sqrt();
    let correlation = ((&a * &b)?.sum(D::Minus1)? / ((length(&a)? * length(&b)?)? + EPSILON)?)?;
    correlation.mean_all()?.affine(-1.0, 1.0)
}

/// The authors' code adds it to the product of lengths.
const EPSILON: f64 = 1e-8;
/// Added to squared lengths, for a gradient at 0.
const TINY: f64 = 1e-30;

/// Options of [`dist`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistConfig {
    /// What both logits are divided by, above 0; tau in the paper.
    pub temperature: f64,
    /// Weight of the correlation within each image.
    pub beta: f64,
    /// Weight of the correlation within each class.
    pub gamma: f64,
}

impl Default for DistConfig {
    /// The paper's.
    fn default() -> Self {
        Self { temperature: 1.0, beta: 1.0, gamma: 1.0 }
    }
}

impl Options for DistConfig {
    const ABOUT: About = About {
        kind: Kind::Response,
        summary: "Pearson correlation of probabilities, within images and within classes",
        paper: "Huang et al. 2022",
        weight: 1.0,
        labels: 1.0,
        options: &[
            ("temperature", "what both logits are divided by, above 0 (tau)"),
            ("beta", "weight of the correlation within each image"),
            ("gamma", "weight of the correlation within each class"),
        ],
    };

    fn validate(&self) -> Result<()> {
        check::temperature("dist", self.temperature)?;
        check::weight("dist", "beta", self.beta)?;
        check::weight("dist", "gamma", self.gamma)
    }

    fn build(&self, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(Dist { config: self.clone() }))
    }
}

struct Dist {
    config: DistConfig,
}

impl Method for Dist {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = kd::logits("dist", inputs, false)?;
        dist(&student, &teacher, &self.config)
    }
}
