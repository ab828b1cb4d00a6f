//! KL divergence at a temperature: the soft targets of Hinton et al.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::cross_entropy::cross_entropy;
use super::fused::{self, FusedLoss, FusedTerms, fused};
use super::log_softmax::log_softmax;
use super::standardize::both_logits;
use crate::inputs::{Inputs, Needs};
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::{in_one_type, widened, widened_both};
use crate::{Result, Setup, check};

/// `T² · mean over images of KL(softmax(teacher / T) ‖ softmax(student / T))`, a scalar.
///
/// Both logits are `[B, C]`. With q the teacher's and p the student's probabilities at temperature T,
/// KL = Σ_j q_j (log q_j - log p_j): summed over classes, averaged over the batch. T² keeps the size
/// of the gradient the same as T changes. The teacher gets no gradient. Value and gradient are
/// finite for any finite logits. For f32, bf16 and f16 logits of the student it is one operation with its gradient and the loss is
/// f32, on the CPU and, with the feature `cuda`, on a GPU. Logits of two types are both widened to f32, or to f64 where one is f64: a teacher
/// in f32 is not rounded to a student in half precision.
///
/// Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2. PyTorch:
/// `T*T * kl_div(log_softmax(s/T), log_softmax(t/T), reduction="batchmean", log_target=True)`.
///
/// # Errors
/// When `temperature` is not a number above 0, or the shapes differ.
pub fn kd(student_logits: &Tensor, teacher_logits: &Tensor, temperature: f64) -> Result<Tensor> {
    check::temperature(temperature)?;
    check::same_logits(student_logits, teacher_logits)?;
    let (student, teacher) = in_one_type(student_logits, teacher_logits)?;
    if fused::takes(&student) {
        let terms = FusedTerms::kd(temperature);
        return Ok(fused(&student, Some(&teacher), None, terms)?.total);
    }
    Ok(with_candle_ops(&student, &teacher, temperature)?)
}

/// The same loss by candle's operations, for any float type and device.
fn with_candle_ops(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f64,
) -> candle_core::Result<Tensor> {
    let (student, teacher) = widened_both(student, &teacher.detach())?;
    let log_p = log_softmax(&(student / temperature)?)?;
    let log_q = log_softmax(&(teacher / temperature)?)?;
    let kl = (log_q.exp()? * (log_q - log_p)?)?.sum(D::Minus1)?;
    kl.mean_all()? * (temperature * temperature)
}

/// `alpha · CE(labels) + (1 - alpha) · kd`, a scalar; `alpha` 0.75 and temperature 2 give the loss of the PyTorch tutorial on knowledge
/// distillation.
///
/// Both logits are `[B, C]`, `labels` u32 `[B]`. Like [`kd`] it is one operation: both softmaxes, both terms, their sum and its
/// gradient.
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
    check::share("alpha", alpha)?;
    let (labels_weight, kd_weight) = (alpha, 1.0 - alpha);
    let terms = FusedTerms { labels_weight, smoothing: 0.0, kd_weight, temperature };
    if let Some(value) = fused_with_labels(student_logits, teacher_logits, labels, terms)? {
        return Ok(value.total);
    }
    let (student, teacher) = widened_both(student_logits, teacher_logits)?;
    let kd = kd(&student, &teacher, temperature)?;
    let labels = cross_entropy(&student, labels)?;
    Ok(((labels * labels_weight)? + (kd * kd_weight)?)?)
}

/// The weighted sum of cross-entropy and [`kd`] with both of its terms; `None` where no single operation takes the logits' type and
/// device.
pub(crate) fn fused_with_labels(
    student: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    terms: FusedTerms,
) -> Result<Option<FusedLoss>> {
    check::temperature(terms.temperature)?;
    check::same_logits(student, teacher)?;
    check::labels(student, labels)?;
    let (student, teacher) = in_one_type(student, teacher)?;
    if !fused::takes(&student) {
        return Ok(None);
    }
    Ok(Some(fused(&student, Some(&teacher), Some(labels), terms)?))
}

/// Options of the method "kd": [`kd`] of the two networks' logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdConfig {
    /// What both logits are divided by, above 0. The higher it is, the softer are the targets.
    pub temperature: f64,
    /// What the teacher's logits are divided by instead; absent where it is the same. The loss is then
    /// `T² · KL(softmax(teacher / teacher_temperature) ‖ softmax(student / T))` with the student's T, whose gradient is
    /// `T (p - q)` for each image: its size is that of `temperature`, whatever this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_temperature: Option<f64>,
    /// Whether both logits are [standardised](crate::standardize) first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub standardize: bool,
}

impl Default for KdConfig {
    /// The temperature of the PyTorch tutorial on knowledge distillation, 2, to which the weights 0.25 and 0.75 belong; 0.9 and 0.1 belong to 4.
    fn default() -> Self {
        Self { temperature: 2.0, teacher_temperature: None, standardize: false }
    }
}

pub(crate) struct Kd;

impl Definition for Kd {
    type Options = KdConfig;

    const ABOUT: About = About {
        kind: Kind::Response,
        across_images: false,
        summary: "KL divergence to the teacher's softmax at a temperature",
        paper: "Hinton, Vinyals, Dean 2015; standardize: Sun et al. 2024",
        weight: 0.25,
        labels: 0.75,
        source: "pytorch/tutorials, beginner_source/knowledge_distillation_tutorial.py: T=2, soft_target_loss_weight=0.25, ce_loss_weight=0.75. On CIFAR-100 others take 0.9, 0.1 and T 4 (HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: --distill kd -r 0.1 -a 0.9; train_student.py: --kd_T, default=4). With standardize: T 2, weight 9, labels 0.1 (sunshangquan/logit-standardization-KD, README.md: --logit-stand --base-temp 2 --kd-weight 9; mdistiller/engine/cfg.py: CFG.KD.LOSS.CE_WEIGHT = 0.1)",
        options: &[
            ("temperature", "what both logits are divided by, above 0"),
            (
                "teacher_temperature",
                "what the teacher's logits are divided by instead, above 0; the loss is still multiplied by the square of `temperature`",
            ),
            (
                "standardize",
                "whether each image's logits are brought to mean 0 and deviation 1 first; its authors then take temperature 2, weight 9 and labels 0.1",
            ),
        ],
    };

    fn validate(options: &KdConfig) -> Result<()> {
        check::temperature(options.temperature)?;
        match options.teacher_temperature {
            Some(temperature) => check::positive("teacher_temperature", temperature),
            None => Ok(()),
        }
    }

    fn build(options: &KdConfig, _: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(options.clone()))
    }
}

impl Method for KdConfig {
    fn needs(&self) -> Needs {
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn plain_kd(&self) -> Option<f64> {
        let plain = !self.standardize && self.teacher_temperature.is_none();
        plain.then_some(self.temperature)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, mut teacher) = both_logits(inputs, self.standardize)?;
        if let Some(temperature) = self.teacher_temperature {
            // Divided by the student's temperature, it is divided by its own.
            teacher = (widened(&teacher)? * (self.temperature / temperature))?;
        }
        kd(&student, &teacher, self.temperature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        any_rows, assert_agrees, check_formula, for_each_logits, labels, softmax, tensor,
    };
    use candle_core::{Device, Var};
    use proptest::prelude::*;

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

    #[test]
    fn kd_agrees_with_pytorch() {
        for_each_logits(|fixture, name, student, teacher| {
            for temperature in [0.5, 1.0, 2.0, 4.0, 20.0] {
                let loss = kd(student, teacher, temperature).unwrap();
                assert_agrees(fixture, &format!("{name}.kd_{temperature:.1}"), &loss, &[student]);
            }
        });
    }

    #[test]
    fn kd_with_labels_agrees_with_pytorch() {
        for_each_logits(|fixture, name, student, teacher| {
            let loss = kd_with_labels(student, teacher, &labels(fixture), 2.0, 0.75).unwrap();
            assert_agrees(fixture, &format!("{name}.kd_with_labels"), &loss, &[student]);
        });
    }

    fn kd_formula(student: &[Vec<f64>], teacher: &[Vec<f64>], t: f64) -> f64 {
        let row = |(s, z): (&Vec<f64>, &Vec<f64>)| {
            let (p, q) = (softmax(s, t), softmax(z, t));
            p.iter().zip(&q).map(|(p, q)| q * (q / p).ln()).sum::<f64>()
        };
        t * t * student.iter().zip(teacher).map(row).sum::<f64>() / student.len() as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn kd_has_the_formulas_value_and_gradient(
            student in any_rows(3, 5, 8.0), teacher in any_rows(3, 5, 8.0), temperature in 0.7..20.0,
        ) {
            check_formula(
                &student,
                |student| kd(student, &tensor(&teacher), temperature).unwrap(),
                |student| kd_formula(student, &teacher, temperature),
            );
        }
    }

    #[test]
    fn a_temperature_of_the_teachers_own_agrees_with_pytorch() {
        for_each_logits(|fixture, name, student, teacher| {
            for (own, teachers) in [(1.0, 4.0), (4.0, 1.0), (2.0, 2.0)] {
                let config = KdConfig {
                    temperature: own,
                    teacher_temperature: Some(teachers),
                    standardize: false,
                };
                let labels = labels(fixture);
                let inputs = Inputs {
                    teacher_logits: Some(teacher),
                    ..Inputs::new(student.as_tensor(), &labels)
                };
                let loss = config.loss(&inputs).unwrap();
                let case = format!("{name}.kd_{own:.1}_{teachers:.1}");
                assert_agrees(fixture, &case, &loss, &[student]);
            }
        });
    }

    /// KL(teacher ‖ student), not the other way round: a teacher that is sure makes it cross-entropy.
    #[test]
    fn kl_has_the_teacher_first() {
        let student = Tensor::new(&[[0f32, 0.0]], &Device::Cpu).unwrap();
        let teacher = Tensor::new(&[[0f32, 1e4]], &Device::Cpu).unwrap();
        let value = kd(&student, &teacher, 1.0).unwrap().to_scalar::<f32>().unwrap();
        assert!((value - 2f32.ln()).abs() < 1e-6, "{value}");
    }

    /// T² keeps the gradient's size: at a high temperature it is (z_s - z_t) / C per image, whatever T.
    #[test]
    fn the_gradient_at_a_high_temperature_does_not_depend_on_it() {
        for temperature in [100.0, 1000.0] {
            let student = Var::new(&[[1f32, -1.0]], &Device::Cpu).unwrap();
            let teacher = Tensor::new(&[[-0.5f32, 0.5]], &Device::Cpu).unwrap();
            let grads = kd(&student, &teacher, temperature).unwrap().backward().unwrap();
            let grad = grads.get(&student).unwrap().to_vec2::<f32>().unwrap();
            assert!((grad[0][0] - 0.75).abs() < 1e-3, "{grad:?}");
        }
    }
}
