//! KL divergence at a temperature: the soft targets of Hinton et al.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::fused::{self, Terms, fused};
use crate::log_softmax::log_softmax;
use crate::method::{About, Kind, Options};
use crate::{
    Error, Inputs, Method, Needs, Result, Setup, alpha_weights, check, cross_entropy, standardize,
};

/// `T² · mean over images of KL(softmax(teacher / T) ‖ softmax(student / T))`, a scalar.
///
/// Both logits are `[B, C]`. With q the teacher's and p the student's probabilities at temperature T,
/// KL = Σ_j q_j (log q_j - log p_j): summed over classes, averaged over the batch. T² keeps the size
/// of the gradient the same as T changes. The teacher gets no gradient. Value and gradient are
/// finite for any finite logits. One operation with its gradient for f32, bf16 and f16 logits of the student, on the CPU
/// and, with the feature `cuda`, on a GPU; the loss is f32 then.
///
/// Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2. PyTorch:
/// `T*T * kl_div(log_softmax(s/T), log_softmax(t/T), reduction="batchmean", log_target=True)`.
///
/// # Errors
/// When `temperature` is not a number above 0, or the shapes differ.
pub fn kd(student_logits: &Tensor, teacher_logits: &Tensor, temperature: f64) -> Result<Tensor> {
    check::temperature("kd", temperature)?;
    check::same_logits("kd", student_logits, teacher_logits)?;
    if fused::takes(student_logits) {
        let terms = Terms::kd(temperature);
        return Ok(fused("kd", student_logits, Some(teacher_logits), None, terms)?.total);
    }
    Ok(with_candle_ops(student_logits, teacher_logits, temperature)?)
}

/// The same by candle's operations, for any float type and device.
fn with_candle_ops(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f64,
) -> candle_core::Result<Tensor> {
    let log_p = log_softmax(&(student / temperature)?)?;
    let log_q = log_softmax(&(teacher.detach() / temperature)?)?;
    let kl = (log_q.exp()? * (log_q - log_p)?)?.sum(D::Minus1)?;
    kl.mean_all()? * (temperature * temperature)
}

/// `alpha · CE(labels) + (1 - alpha) · kd`: the tutorial's loss for `alpha` 0.75 and temperature 2. Like
/// [`kd`] one operation: both softmaxes, both terms, their sum and its gradient.
///
/// # Errors
/// As [`kd`] and [`cross_entropy`], and when `alpha` is not in [0, 1].
pub fn kd_with_labels(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    labels: &Tensor,
    temperature: f64,
    alpha: f64,
) -> Result<Tensor> {
    let (labels_weight, kd_weight) = alpha_weights(alpha)?;
    let terms = Terms { labels_weight, smoothing: 0.0, kd_weight, temperature };
    if let Some(value) = with_labels(student_logits, teacher_logits, labels, terms)? {
        return Ok(value.total);
    }
    let kd = kd(student_logits, teacher_logits, temperature)?;
    let labels = cross_entropy(student_logits, labels)?;
    Ok(((labels * labels_weight)? + (kd * kd_weight)?)?)
}

/// The weighted sum of cross-entropy and [`kd`] with both of its terms, if one operation can do it.
pub(crate) fn with_labels(
    student: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    terms: Terms,
) -> Result<Option<fused::Value>> {
    check::temperature("kd", terms.temperature)?;
    check::same_logits("kd", student, teacher)?;
    check::labels("cross-entropy", student, labels)?;
    if !fused::takes(student) {
        return Ok(None);
    }
    Ok(Some(fused("kd with labels", student, Some(teacher), Some(labels), terms)?))
}

/// Options of [`kd`] as a [`Method`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdConfig {
    /// What both logits are divided by, above 0: the higher, the softer the targets.
    pub temperature: f64,
    /// Whether both logits are [standardised](crate::standardize) first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub standardize: bool,
}

impl Default for KdConfig {
    /// The tutorial's temperature of 2.
    fn default() -> Self {
        Self { temperature: 2.0, standardize: false }
    }
}

impl Options for KdConfig {
    const ABOUT: About = About {
        kind: Kind::Response,
        summary: "KL divergence to the teacher's softmax at a temperature",
        paper: "Hinton, Vinyals, Dean 2015; standardize: Sun et al. 2024",
        weight: 0.9,
        labels: 0.1,
        options: &[
            ("temperature", "what both logits are divided by, above 0"),
            (
                "standardize",
                "whether each image's logits are brought to mean 0 and deviation 1 first",
            ),
        ],
    };

    fn validate(&self) -> Result<()> {
        check::temperature("kd", self.temperature)
    }

    fn build(&self, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(Kd { config: self.clone() }))
    }
}

struct Kd {
    config: KdConfig,
}

impl Method for Kd {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn plain_kd(&self) -> Option<f64> {
        (!self.config.standardize).then_some(self.config.temperature)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = logits("kd", inputs, self.config.standardize)?;
        kd(&student, &teacher, self.config.temperature)
    }
}

/// Both networks' logits, the teacher's without a gradient, standardised if asked for.
pub(crate) fn logits(
    method: &'static str,
    inputs: &Inputs<'_>,
    standardized: bool,
) -> Result<(Tensor, Tensor)> {
    let teacher = inputs.teacher_logits.ok_or(Error::MissingTeacherLogits { method })?;
    if standardized {
        return Ok((standardize(inputs.student_logits)?, standardize(&teacher.detach())?));
    }
    Ok((inputs.student_logits.clone(), teacher.detach()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_fused_operation_agrees_with_candles() -> Result<()> {
        let s = Tensor::new(&[[0.3f32, -1.2, 4.0], [2.0, 2.0, -7.5]], &Device::Cpu)?;
        let t = Tensor::new(&[[1.3f32, 1.2, -3.0], [0.0, 12.0, 7.5]], &Device::Cpu)?;
        for temperature in [0.5, 1.0, 2.0, 10.0] {
            let (fused, ops) = (Var::from_tensor(&s)?, Var::from_tensor(&s)?);
            let (a, b) = (kd(&fused, &t, temperature)?, with_candle_ops(&ops, &t, temperature)?);
            assert!((a.to_scalar::<f32>()? / b.to_scalar::<f32>()? - 1.0).abs() < 1e-5);
            let (a, b) = (a.backward()?, b.backward()?);
            let (Some(a), Some(b)) = (a.get(&fused), b.get(&ops)) else { panic!("no gradient") };
            let difference = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 2e-6, "temperature {temperature}: {difference}");
        }
        Ok(())
    }
}
