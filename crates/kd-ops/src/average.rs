//! Averages of a network's weights over training, which are evaluated and saved in the weights' place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Which average is kept: a recipe's `training.average`, which is one line:
///
/// ```toml
/// [training]
/// average = { name = "ema", decay = 0.999 }
/// ```
///
/// Running statistics of batch normalisations are averaged like the weights, as timm's `ModelEmaV3` and PyTorch's
/// `AveragedModel(use_buffers=True)` do it; they are not computed anew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AverageConfig {
    /// Exponential moving average: after each step `average = decay * average + (1 - decay) * weights`, as timm's `ModelEmaV3`
    /// computes it where it is told the step's number. After the first step it is a copy of the weights.
    Ema {
        /// The share of the average that is kept in each step, from 0 to below 1.
        decay: f64,
        /// Whether the decay rises to this value: in step n, counted from 1, it is at most `1 - n^(-2/3)` (timm's `use_warmup`), so that
        /// the average does not hang on the first weights of a short run.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        warmup: bool,
    },
    /// The mean of the weights at the end of each of the last epochs (Izmailov et al., "Averaging Weights Leads to Wider Optima and
    /// Better Generalization", 2018; PyTorch's `AveragedModel`). Before these epochs the weights themselves count.
    LastEpochs {
        /// How many epochs' weights, at least 1; of a run of fewer epochs all.
        epochs: usize,
    },
}

impl AverageConfig {
    /// How far the average moves to the weights after step `step`, counted from 1: 1 makes it a copy, 0 leaves it.
    pub fn weight_after_step(&self, step: u64) -> f64 {
        match *self {
            Self::Ema { decay, warmup } => {
                let before = step.saturating_sub(1) as f64;
                match (before > 0.0, warmup) {
                    (false, _) => 1.0,
                    (true, false) => 1.0 - decay,
                    (true, true) => 1.0 - decay.min(1.0 - (1.0 + before).powf(-2.0 / 3.0)).max(0.0),
                }
            }
            Self::LastEpochs { .. } => 0.0,
        }
    }

    /// The same after epoch `epoch`, counted from 1, of `epochs`.
    pub fn weight_after_epoch(&self, epoch: usize, epochs: usize) -> f64 {
        match self.epochs_averaged(epoch, epochs) {
            Some(averaged @ 1..) => 1.0 / averaged as f64,
            _ => 0.0,
        }
    }

    /// Whether the average is evaluated and saved after epoch `epoch` of `epochs` in the weights' place.
    pub fn counts(&self, epoch: usize, epochs: usize) -> bool {
        self.epochs_averaged(epoch, epochs).is_none_or(|averaged| averaged > 0)
    }

    /// How many epochs' weights are in the mean after this one; `None` where it is not a mean over epochs.
    fn epochs_averaged(&self, epoch: usize, epochs: usize) -> Option<usize> {
        match *self {
            Self::Ema { .. } => None,
            Self::LastEpochs { epochs: last } => {
                Some(epoch.saturating_sub(epochs.saturating_sub(last)))
            }
        }
    }

    /// Whether what is averaged depends on the number of epochs of the whole run.
    pub fn is_tied_to_length(&self) -> bool {
        matches!(self, Self::LastEpochs { .. })
    }
}

/// An average of weights.
#[derive(Clone, Debug)]
pub struct Average {
    /// How the average follows the weights.
    pub config: AverageConfig,
    /// The averages, by the names of the parameters and running statistics that they are of.
    pub values: BTreeMap<String, Var>,
}

impl Average {
    /// An average that begins as a copy of these tensors.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new<'a>(
        config: AverageConfig,
        tensors: impl IntoIterator<Item = (&'a String, &'a Var)>,
    ) -> Result<Self> {
        let copy =
            |(name, var): (&String, &Var)| Ok((name.clone(), Var::from_tensor(&var.copy()?)?));
        let values = tensors.into_iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { config, values })
    }

    /// Moves the average by `weight` of the way to `parameters`, as `torch.lerp` does: 1 makes it a copy, 0 leaves it.
    ///
    /// # Errors
    /// When a tensor of the average is not among the parameters, or of another shape or type.
    pub fn approach(&mut self, parameters: &BTreeMap<String, Var>, weight: f64) -> Result<()> {
        if weight == 0.0 {
            return Ok(());
        }
        for (name, average) in &self.values {
            let Some(parameter) = parameters.get(name) else {
                bail!("average: there is no parameter {name} to average")
            };
            lerp(average, parameter.as_tensor(), weight as f32)?;
        }
        Ok(())
    }

    /// Takes over the values of one tensor.
    ///
    /// # Errors
    /// When the average has no tensor of that name, or one of another shape.
    pub fn restore(&mut self, name: &str, values: &Tensor) -> Result<()> {
        match self.values.entry(name.to_string()) {
            Entry::Occupied(var) => {
                let var = var.get();
                var.set(&values.to_device(var.device())?)
            }
            Entry::Vacant(_) => bail!("average: {name} is not averaged"),
        }
    }
}

/// `torch.lerp` in place.
fn lerp(average: &Var, values: &Tensor, weight: f32) -> Result<()> {
    if average.device().is_cpu() {
        return average.inplace_op2(&values.contiguous()?, &Lerp(weight));
    }
    let moved = (average.as_tensor() + ((values - average.as_tensor())? * f64::from(weight))?)?;
    average.set(if weight == 1.0 { values } else { &moved })
}

struct Lerp(f32);

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

impl InplaceOp2 for Lerp {
    fn name(&self) -> &'static str {
        "average"
    }

    fn cpu_fwd(
        &self,
        average: &mut CpuStorage,
        average_layout: &Layout,
        values: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(average), CpuStorage::F32(values)) = (average, values) else {
            bail!("average: expected f32 tensors")
        };
        let (Some(to), Some(from)) =
            (average_layout.contiguous_offsets(), layout.contiguous_offsets())
        else {
            bail!("average: expected contiguous tensors")
        };
        let (average, values) = (&mut average[to.0..to.1], &values[from.0..from.1]);
        if average.len() != values.len() {
            bail!("average: {} values for an average of {}", values.len(), average.len())
        }
        let weight = self.0;
        let chunks = average.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
        chunks.for_each(|(average, values)| {
            for (average, &value) in average.iter_mut().zip(values) {
                let difference = value - *average;
                // As PyTorch computes it: exact at both ends.
                *average = match weight < 0.5 {
                    true => *average + weight * difference,
                    false => value - difference * (1.0 - weight),
                };
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_epochs_alone_are_in_a_mean_over_epochs() {
        let mean = AverageConfig::LastEpochs { epochs: 3 };
        let weights: Vec<f64> = (1..=5).map(|epoch| mean.weight_after_epoch(epoch, 5)).collect();
        assert_eq!(weights, [0.0, 0.0, 1.0, 0.5, 1.0 / 3.0]);
        let counts: Vec<bool> = (1..=5).map(|epoch| mean.counts(epoch, 5)).collect();
        assert_eq!(counts, [false, false, true, true, true]);
        assert_eq!(mean.weight_after_step(7), 0.0);
        // Of fewer epochs than that, all.
        let weights: Vec<f64> = (1..=2).map(|epoch| mean.weight_after_epoch(epoch, 2)).collect();
        assert_eq!(weights, [1.0, 0.5]);
    }
}
