//! What a step measures: kept on the device, and read when somebody asks.

use std::collections::BTreeMap;

use candle_core::Tensor;
use kd_ops::GradNorms;
use kd_ops::figures::join_f64;
use serde::{Deserialize, Serialize};

use crate::task::TaskLoss;

/// What one step measured, on its device.
#[derive(Clone, Debug)]
pub struct Figures {
    /// What the values are.
    pub(crate) names: Names,
    /// f64 `[2 + parts + gradients]`: the loss, the number of correct predictions, the loss's parts, and the norm of each
    /// parameter's gradient before clipping.
    pub(crate) values: Tensor,
}

/// Names of a step's figures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// The loss's parts.
    pub(crate) parts: Vec<&'static str>,
    /// The parameters that have a gradient.
    pub(crate) gradients: Vec<String>,
}

impl Names {
    /// How many figures there are.
    #[cfg(feature = "cuda")]
    pub(crate) fn count(&self) -> usize {
        2 + self.parts.len() + self.gradients.len()
    }
}

impl Figures {
    pub(crate) fn new(loss: &TaskLoss, norms: Vec<GradNorms>) -> candle_core::Result<Self> {
        let parts = loss.parts.iter().map(|(_, part)| part);
        let scalars = [&loss.total, &loss.correct].into_iter().chain(parts);
        // f32 turns into f64 and back without loss, and no norm is too large for f64.
        let mut values: Vec<Tensor> = scalars.map(Tensor::detach).collect();
        let mut names = Names {
            parts: loss.parts.iter().map(|(name, _)| *name).collect(),
            gradients: Vec::new(),
        };
        for norms in norms {
            names.gradients.extend(norms.names);
            values.push(norms.each);
        }
        Ok(Self { names, values: join_f64(&values)? })
    }
}

/// Sums over the images of an epoch's steps. A step's loss is a mean over its images, so it counts as often as the step has images:
/// a small last batch weighs less than a whole one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    /// The sum of the steps' losses, each times the step's images.
    pub loss: f64,
    /// The same sum for each part of the loss, by name, before its weight.
    pub parts: BTreeMap<String, f64>,
    /// Images trained on.
    pub images: usize,
    /// Correct predictions among them.
    // The name in checkpoints of format 1.
    #[serde(rename = "right")]
    pub correct: usize,
    /// Wall-clock seconds spent on the steps.
    pub seconds: f64,
    /// Whether loss and parts are summed over images. In checkpoints of versions 0.1 and 0.2, which lack this field, they are
    /// summed over steps.
    #[serde(default)]
    pub over_images: bool,
}

impl Sums {
    /// Turns sums over steps, each of `batch_size` images, into sums over images; such sums stay as they are.
    pub(crate) fn turn_over_images(&mut self, batch_size: usize) {
        if !self.over_images {
            for sum in self.parts.values_mut().chain([&mut self.loss]) {
                *sum *= batch_size as f64;
            }
            self.over_images = true;
        }
    }

    /// The loss, mean over the images.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.images as f64
    }

    /// Each part of the loss by name, mean over the images.
    pub(crate) fn mean_parts(&self) -> BTreeMap<String, f64> {
        let mean = |(name, sum): (&String, &f64)| (name.clone(), sum / self.images as f64);
        self.parts.iter().map(mean).collect()
    }
}

/// Steps whose figures have not been read yet.
#[derive(Debug, Default)]
pub struct Unread {
    steps: Vec<UnreadStep>,
}

#[derive(Debug)]
struct UnreadStep {
    step: u64,
    indices: Vec<u32>,
    figures: Figures,
}

/// A loss or a gradient that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// Steps before the one in which it was found.
    pub step: u64,
    /// The step's images, by their positions in the training set.
    pub images: Vec<u32>,
    /// Which number it is, and its value.
    pub found: String,
}

impl Unread {
    /// Keeps a step's figures; `step` counts the steps before it, `indices` are its images' positions in the training set.
    pub fn push(&mut self, step: u64, indices: &[u32], figures: Figures) {
        self.steps.push(UnreadStep { step, indices: indices.to_vec(), figures });
    }

    /// Adds the figures of all steps since the last look to `sums` and returns the last step's loss. It waits for the device
    /// once and copies once, however many steps there are.
    ///
    /// # Errors
    /// The inner error is the first number that is not finite: a loss, or the norm of a parameter's gradient. The outer one
    /// is the device's.
    pub fn read(&mut self, sums: &mut Sums) -> candle_core::Result<Result<f64, NotFinite>> {
        let steps = std::mem::take(&mut self.steps);
        let values: Vec<&Tensor> = steps.iter().map(|step| &step.figures.values).collect();
        let values = Tensor::cat(&values, 0)?.to_vec1::<f64>()?;
        let mut rest = values.as_slice();
        let mut last = f64::NAN;
        sums.over_images = true;
        for UnreadStep { step, indices, figures } in steps {
            let (own, behind) = rest.split_at(figures.values.elem_count());
            rest = behind;
            let [loss, correct, own @ ..] = own else {
                unreachable!("a loss and correct predictions")
            };
            let (parts, norms) = own.split_at(figures.names.parts.len());
            let parts = numbered(&figures.names.parts).into_iter().zip(parts);
            if let Some(found) = not_finite(*loss, parts.clone(), &figures.names.gradients, norms) {
                return Ok(Err(NotFinite { step, images: indices, found }));
            }
            let images = indices.len() as f64;
            sums.loss += loss * images;
            sums.correct += *correct as usize;
            sums.images += indices.len();
            for (name, value) in parts {
                *sums.parts.entry(name).or_default() += value * images;
            }
            last = *loss;
        }
        Ok(Ok(last))
    }
}

/// Of two parts of one name the second gets a number: `kd`, `kd 2`.
fn numbered(parts: &[&'static str]) -> Vec<String> {
    let name = |(index, name): (usize, &&'static str)| match parts[..index]
        .iter()
        .filter(|earlier| *earlier == name)
        .count()
    {
        0 => name.to_string(),
        earlier => format!("{name} {}", earlier + 1),
    };
    parts.iter().enumerate().map(name).collect()
}

/// Which of a step's figures is not finite, if one is.
fn not_finite<'a>(
    loss: f64,
    parts: impl Iterator<Item = (String, &'a f64)>,
    gradients: &[String],
    norms: &[f64],
) -> Option<String> {
    if !loss.is_finite() {
        let parts: Vec<String> = parts.map(|(name, value)| format!("{name} {value}")).collect();
        return Some(format!("the loss is {loss} ({})", parts.join(", ")));
    }
    let (name, norm) = gradients.iter().zip(norms).find(|(_, norm)| !norm.is_finite())?;
    Some(format!("the norm of the gradient of {name} is {norm}"))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn figures(values: &[f64]) -> Figures {
        let names =
            Names { parts: vec!["labels", "kd", "kd"], gradients: vec!["a".into(), "b".into()] };
        let values = Tensor::new(values, &Device::Cpu).unwrap();
        Figures { names, values }
    }

    #[test]
    fn figures_of_several_steps_are_summed_over_their_images() {
        let mut unread = Unread::default();
        unread.push(4, &[7, 8], figures(&[2.0, 1.0, 0.5, 0.25, 0.125, 3.0, 4.0]));
        unread.push(5, &[9], figures(&[1.0, 1.0, 0.5, 0.25, 0.25, 3.0, 4.0]));
        let mut sums = Sums::default();
        assert_eq!(unread.read(&mut sums).unwrap(), Ok(1.0));
        assert_eq!((sums.loss, sums.correct, sums.images), (2.0 * 2.0 + 1.0, 2, 3));
        let parts: Vec<_> = sums.parts.iter().map(|(name, sum)| (name.as_str(), *sum)).collect();
        assert_eq!(parts, [("kd", 0.75), ("kd 2", 0.5), ("labels", 1.5)]);
        assert_eq!((sums.mean_loss(), sums.mean_parts()["labels"]), (5.0 / 3.0, 0.5));
    }

    #[test]
    fn sums_over_steps_of_an_old_checkpoint_go_on_as_sums_over_images() {
        let old = r#"{"loss":3.0,"parts":{"kd":0.5},"images":4,"right":1,"seconds":1.0}"#;
        let mut sums: Sums = serde_json::from_str(old).unwrap();
        for _ in 0..2 {
            sums.turn_over_images(2);
            assert_eq!((sums.loss, sums.parts["kd"], sums.mean_loss()), (6.0, 1.0, 1.5));
        }
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_named() {
        let finite = [2.0, 1.0, 0.5, 0.25, 0.125, 3.0, 4.0];
        for (index, value, expected) in [
            (0, f64::NAN, "the loss is NaN (labels 0.5, kd 0.25, kd 2 0.125)"),
            (6, f64::INFINITY, "the norm of the gradient of b is inf"),
        ] {
            let mut values = finite;
            values[index] = value;
            let mut unread = Unread::default();
            unread.push(4, &[7, 8], figures(&finite));
            unread.push(5, &[9], figures(&values));
            let found = unread.read(&mut Sums::default()).unwrap().unwrap_err();
            assert_eq!(found, NotFinite { step: 5, images: vec![9], found: expected.into() });
        }
    }
}
