//! Several teachers' logits as those of one, which every loss of logits then takes.

mod choice;
mod confidence;
mod logits;
mod probabilities;

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::logits::log_softmax;
use crate::{Error, Result, check};

/// How several teachers' logits become those of one: a run's `combine` in a recipe, which is one line:
///
/// ```toml
/// [[run]]
/// teacher = ["resnet20", "resnet56"]
/// combine = { name = "probabilities", temperature = 4.0 }
/// ```
///
/// In the formulas z_k are the logits of teacher k of K for one image, y is its label, and T the temperature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Combination {
    /// The mean of the logits, `(1 / K) Σ_k z_k`. At every temperature its softmax is the normalised geometric mean of the teachers'
    /// softened probabilities (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 1, name the
    /// arithmetic and the geometric mean as an ensemble's soft targets). A class that one teacher rules out is ruled out.
    Logits {},
    /// The arithmetic mean of the probabilities softened at T, as logits: `T log((1 / K) Σ_k softmax(z_k / T))`, whose softmax at T is
    /// that mean (Hinton et al. 2015, section 1; You et al., "Learning from Multiple Teacher Networks", 2017, section 3.2).
    Probabilities {
        /// T. Where a recipe does not say it, the temperature at which the run's methods soften the teacher's logits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        temperature: Option<f64>,
    },
    /// The same mean with weights that fall with a teacher's error on the image: `T log Σ_k w_k softmax(z_k / T)` with
    /// `w_k = (1 - exp(L_k) / Σ_j exp(L_j)) / (K - 1)`, where `L_k` is the cross-entropy of teacher k with the label at temperature 1
    /// (Zhang, Chen and Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", 2022, equations 2 and 3).
    Confidence {
        /// T. Where a recipe does not say it, the temperature at which the run's methods soften the teacher's logits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        temperature: Option<f64>,
    },
    /// For each image the logits of the one teacher whose cross-entropy with the label is smallest, the first of equal ones. Fukuda
    /// et al., "Efficient Knowledge Distillation from an Ensemble of Teachers", 2017, choose one teacher a step by chance; this
    /// rule is the limit of [`Combination::Confidence`] in which the best teacher has all the weight.
    Choice {},
}

impl Default for Combination {
    /// The mean of the logits, which needs neither a temperature nor labels.
    fn default() -> Self {
        Self::Logits {}
    }
}

impl Combination {
    /// The names in recipes.
    pub const NAMES: [&str; 4] = ["logits", "probabilities", "confidence", "choice"];

    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Logits {} => "logits",
            Self::Probabilities { .. } => "probabilities",
            Self::Confidence { .. } => "confidence",
            Self::Choice {} => "choice",
        }
    }

    /// The combination of this name, with the methods' temperature.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn from_name(name: &str) -> Result<Self> {
        let temperature = None;
        match name {
            "logits" => Ok(Self::Logits {}),
            "probabilities" => Ok(Self::Probabilities { temperature }),
            "confidence" => Ok(Self::Confidence { temperature }),
            "choice" => Ok(Self::Choice {}),
            _ => Err(Error::Option {
                field: "combine",
                found: format!("{name:?}"),
                expected: "logits, probabilities, confidence or choice",
            }),
        }
    }

    /// Whether it looks at the labels of the images that the teachers are asked about.
    pub fn uses_labels(&self) -> bool {
        matches!(self, Self::Confidence { .. } | Self::Choice {})
    }

    /// The place of the temperature, where it takes one.
    pub fn temperature_mut(&mut self) -> Option<&mut Option<f64>> {
        match self {
            Self::Probabilities { temperature } | Self::Confidence { temperature } => {
                Some(temperature)
            }
            Self::Logits {} | Self::Choice {} => None,
        }
    }

    /// Checks the temperature.
    ///
    /// # Errors
    /// When it is not a number above 0.
    pub fn validate(mut self) -> Result<()> {
        let temperature = self.temperature_mut().and_then(|temperature| *temperature);
        check::temperature(temperature.unwrap_or(1.0))
    }

    /// The logits `[B, C]` that stand for all teachers' `logits`, each `[B, C]`. `labels` is u32 `[B]`. A temperature that is not
    /// given is 1.
    ///
    /// # Errors
    /// When there are no teachers, shapes differ, or a label is no class.
    pub fn combine(&self, logits: &[Tensor], labels: &Tensor) -> Result<Tensor> {
        let [first, others @ ..] = logits else { return Err(Error::MissingTeacherLogits) };
        check::logits_shape("the teacher's logits", first)?;
        for other in others {
            check::same_logits(first, other)?;
        }
        if self.uses_labels() {
            check::labels(first, labels)?;
        }
        self.validate()?;
        Ok(match *self {
            Self::Logits {} => logits::mean(logits)?,
            Self::Probabilities { temperature } => {
                probabilities::mean(logits, temperature.unwrap_or(1.0))?
            }
            Self::Confidence { temperature } => {
                confidence::weighted(logits, labels, temperature.unwrap_or(1.0))?
            }
            Self::Choice {} => choice::of_smallest_error(logits, labels)?,
        })
    }
}

/// The cross-entropy of each teacher with the labels, `[K, B]`.
fn errors(logits: &[Tensor], labels: &Tensor) -> candle_core::Result<Tensor> {
    let of =
        |logits: &Tensor| log_softmax(logits)?.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?.neg();
    let errors = logits.iter().map(of).collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::stack(&errors, 0)
}

/// `T log Σ_k exp(log_weights_k) softmax(z_k / T)`, `[B, C]`; `log_weights` is `[K, B]`.
fn log_mixture(
    logits: &[Tensor],
    log_weights: &Tensor,
    temperature: f64,
) -> candle_core::Result<Tensor> {
    let softened = logits.iter().map(|logits| log_softmax(&(logits / temperature)?));
    let softened = softened.collect::<candle_core::Result<Vec<_>>>()?;
    let weights = log_weights.unsqueeze(D::Minus1)?;
    let exponents = Tensor::stack(&softened, 0)?.broadcast_add(&weights)?;
    log_sum_exp(&exponents)?.squeeze(0)? * temperature
}

/// `log Σ_k exp(x_k)` over the first dimension, which stays as one. The largest exponent is taken out of the sum, so that no share of
/// it rounds to 0 alone.
fn log_sum_exp(x: &Tensor) -> candle_core::Result<Tensor> {
    let largest = x.max_keepdim(0)?;
    x.broadcast_sub(&largest)?.exp()?.sum_keepdim(0)?.log()? + largest
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn agrees_with_the_papers_formulas() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ensembles.safetensors");
        let fixture = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let labels = fixture["labels"].to_dtype(DType::U32).unwrap();
        let at = |name: &str, temperature: f64| {
            let mut found = Combination::from_name(name).unwrap();
            if let Some(place) = found.temperature_mut() {
                *place = Some(temperature);
            }
            found
        };
        for size in ["small", "large"] {
            for (name, temperature) in [
                ("logits", 1.0),
                ("probabilities", 1.0),
                ("probabilities", 4.0),
                ("confidence", 1.0),
                ("confidence", 4.0),
                ("choice", 1.0),
            ] {
                for (dtype, slack) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
                    let teachers: Vec<Tensor> = (0..3)
                        .map(|k| fixture[&format!("{size}.{k}")].to_dtype(dtype).unwrap())
                        .collect();
                    let found = at(name, temperature).combine(&teachers, &labels).unwrap();
                    // Only the differences within a row mean anything: probabilities at the temperature are compared.
                    let softened = log_softmax(&(found / temperature).unwrap()).unwrap();
                    let softened = softened.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
                    let expected = &fixture[&format!("{size}.{name}_{temperature}")];
                    let expected = expected.to_vec2::<f64>().unwrap();
                    for (ours, theirs) in softened.concat().iter().zip(expected.concat()) {
                        let near = (ours - theirs).abs() <= slack * theirs.abs().max(1.0);
                        assert!(near, "{size} {name} {dtype:?}: {ours}, PyTorch has {theirs}");
                    }
                }
            }
        }
    }

    #[test]
    fn equal_teachers_are_one() {
        let logits = crate::testing::numbers(4, 5, 3).unwrap().to_dtype(DType::F32).unwrap();
        let labels = Tensor::new(&[0u32, 4, 2, 2], &Device::Cpu).unwrap();
        for name in ["logits", "choice"] {
            let combination = Combination::from_name(name).unwrap();
            let found = combination.combine(&[logits.clone(), logits.clone()], &labels).unwrap();
            assert_eq!(found.to_vec2::<f32>().unwrap(), logits.to_vec2::<f32>().unwrap(), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let logits = |classes| Tensor::zeros((2, classes), DType::F32, &Device::Cpu).unwrap();
        let labels = |values: &[u32]| Tensor::new(values, &Device::Cpu).unwrap();
        let combine = |name: &str, logits: &[Tensor], labels: &Tensor| {
            Combination::from_name(name).unwrap().combine(logits, labels)
        };
        assert!(combine("logits", &[], &labels(&[0, 1])).is_err());
        assert!(combine("logits", &[logits(3), logits(4)], &labels(&[0, 1])).is_err());
        assert!(combine("logits", &[logits(3), logits(3)], &labels(&[7, 1])).is_ok());
        for name in ["confidence", "choice"] {
            assert!(combine(name, &[logits(3), logits(3)], &labels(&[3, 1])).is_err(), "{name}");
        }
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let wrong = Combination::Probabilities { temperature: Some(temperature) };
            assert!(wrong.validate().is_err(), "{temperature}");
        }
        assert!(Combination::from_name("median").is_err());
        for name in Combination::NAMES {
            assert_eq!(Combination::from_name(name).unwrap().name(), name);
        }
    }
}
