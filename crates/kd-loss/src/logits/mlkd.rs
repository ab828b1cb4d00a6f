//! MLKD: soft targets at several temperatures, of images, of the batch and of classes.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::kd::kd;
use super::log_softmax::log_softmax;
use crate::inputs::{Inputs, Needs};
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::{finest, widened_both};
use crate::{Error, Result, Setup, check};

/// The sum over temperatures T of `instance · kd + batch · B⁻¹ ‖P Pᵀ - Q Qᵀ‖² + class · C⁻¹ ‖Pᵀ P - Qᵀ Q‖²`, a scalar.
///
/// Logits are `[B, C]`; P and Q are the softmaxes of student and teacher at T, both `[B, C]`, and the norms are Frobenius's: P Pᵀ says which images of the batch are answered alike,
/// Pᵀ P which classes are taken for each other. [`kd`] has its factor T², the other two have none. The teacher gets no gradient.
///
/// Jin, Wang, Lin, "Multi-Level Logit Distillation" (2023), equations 3 to 11; the authors' code: Jin-Ying/Multi-Level-Logit-Distillation,
/// mdistiller/distillers/KD_ours.py, `kd_loss`, `bc_loss`, `cc_loss`. There each picture is seen twice, weakly and strongly augmented, and of the weak one the loss is multiplied by the share of
/// images that the teacher is less sure of; this is the loss of one view, with all images.
///
/// # Errors
/// When an option makes no sense or the shapes differ.
pub fn mlkd(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    config: &MlkdConfig,
) -> Result<Tensor> {
    Mlkd::validate(config)?;
    let (images, classes) = check::same_logits(student_logits, teacher_logits)?;
    let (student, teacher) = widened_both(student_logits, &teacher_logits.detach())?;
    let (exact_student, exact_teacher) = (finest(&student)?, finest(&teacher)?);
    let mut total = Tensor::zeros((), student.dtype(), student.device())?;
    for &temperature in &config.temperatures {
        let p = log_softmax(&(&exact_student / temperature)?)?.exp()?;
        let q = log_softmax(&(&exact_teacher / temperature)?)?.exp()?;
        let of_images = (products(&p)? - products(&q)?)?.sqr()?.sum_all()?;
        let (p, q) = (p.t()?.contiguous()?, q.t()?.contiguous()?);
        let of_classes = (products(&p)? - products(&q)?)?.sqr()?.sum_all()?;
        let relations = ((of_images * (config.batch / images as f64))?
            + (of_classes * (config.class / classes as f64))?)?;
        let sum = ((kd(&student, &teacher, temperature)? * config.instance)?
            + relations.to_dtype(student.dtype())?)?;
        total = (total + sum)?;
    }
    Ok(total)
}

/// The products of the rows of `x` with each other.
fn products(x: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&x.t()?)
}

/// Options of the method "mlkd": [`mlkd`] of the two networks' logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlkdConfig {
    /// What both logits are divided by, one after another, each above 0; at least one.
    pub temperatures: Vec<f64>,
    /// The weight of the soft targets of each image.
    pub instance: f64,
    /// The weight of the likeness of the batch's images.
    pub batch: f64,
    /// The weight of the likeness of the classes.
    pub class: f64,
}

impl Default for MlkdConfig {
    /// The authors' five temperatures, all three terms with the same weight.
    fn default() -> Self {
        Self { temperatures: vec![4.0, 3.0, 5.0, 2.0, 6.0], instance: 1.0, batch: 1.0, class: 1.0 }
    }
}

pub(crate) struct Mlkd;

impl Definition for Mlkd {
    type Options = MlkdConfig;

    const ABOUT: About = About {
        kind: Kind::Response,
        across_images: true,
        summary: "soft targets at several temperatures: of images, of the batch and of classes",
        paper: "Jin, Wang, Lin 2023",
        weight: 0.9,
        labels: 0.1,
        source: "Jin-Ying/Multi-Level-Logit-Distillation, mdistiller/engine/cfg.py: CFG.KD.TEMPERATURE = 4, CFG.KD.LOSS.CE_WEIGHT = 0.1, CFG.KD.LOSS.KD_WEIGHT = 0.9; mdistiller/distillers/KD_ours.py: temperatures 3, 5, 2 and 6 beside it. Departure: they show each picture twice and mask images by the teacher's confidence; here a picture has one view, and all images count",
        options: &[
            ("temperatures", "what both logits are divided by, one after another, each above 0"),
            ("instance", "weight of each image's soft targets"),
            ("batch", "weight of the likeness of images in the batch"),
            ("class", "weight of the likeness of classes"),
        ],
    };

    fn validate(options: &MlkdConfig) -> Result<()> {
        if options.temperatures.is_empty() {
            let expected = "at least one temperature";
            return Err(Error::Option { field: "temperatures", found: "empty".into(), expected });
        }
        options.temperatures.iter().try_for_each(|&t| check::positive("temperatures", t))?;
        check::weight("instance", options.instance)?;
        check::weight("batch", options.batch)?;
        check::weight("class", options.class)
    }

    fn build(options: &MlkdConfig, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(options.clone()))
    }
}

impl Method for MlkdConfig {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        mlkd(inputs.student_logits, &inputs.require_teacher_logits()?, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        let config = MlkdConfig::default();
        agree(&["mlkd", "large.mlkd"], 1, |s, t| mlkd(&s[0], &t[0], &config));
        let other =
            MlkdConfig { temperatures: vec![1.0, 2.5], instance: 0.5, batch: 2.0, class: 3.0 };
        agree(&["mlkd_other", "large.mlkd_other"], 1, |s, t| mlkd(&s[0], &t[0], &other));
    }

    #[test]
    fn no_temperature_is_an_error() {
        let logits = Tensor::new(&[[0f32, 1.0]], &candle_core::Device::Cpu).unwrap();
        let config = MlkdConfig { temperatures: Vec::new(), ..MlkdConfig::default() };
        let error = mlkd(&logits, &logits, &config).unwrap_err().to_string();
        assert!(error.contains("temperatures"), "{error}");
    }
}
