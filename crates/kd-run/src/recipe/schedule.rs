//! A recipe's `training.schedule`: the settings of each schedule. [`crate::schedule`] computes with them.

use serde::{Deserialize, Serialize};

/// How the learning rate changes over a run: a recipe's `training.schedule`, which is one line:
///
/// ```toml
/// [training]
/// schedule = { name = "cosine", warmup_epochs = 5 }
/// ```
///
/// Every schedule but the one-cycle can begin with a linear warm-up. Learning rates are given as shares of the optimiser's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LrSchedule {
    /// After the warm-up, the optimiser's learning rate throughout.
    Constant {
        /// Length of the warm-up in epochs; 0 for none.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the learning rate that the warm-up begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// The learning rate is multiplied by `factor` at each milestone (PyTorch's `MultiStepLR`). Milestones count the epochs of the
    /// whole run, warm-up included.
    Step {
        /// The numbers of finished epochs after which the learning rate falls.
        milestones: Vec<f64>,
        /// What it is multiplied by.
        #[serde(default = "factor")]
        factor: f64,
        /// Length of the warm-up in epochs; 0 for none.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the learning rate that the warm-up begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// After the warm-up, half a cosine from the learning rate down to a share of it (PyTorch's `CosineAnnealingLR`; Loshchilov and
    /// Hutter, 2017, without restarts).
    Cosine {
        /// The share of the learning rate at the end.
        #[serde(default)]
        down_to: f64,
        /// Length of the warm-up in epochs; 0 for none.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the learning rate that the warm-up begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// From a share of the learning rate up to all of it, and down to nearly nothing (PyTorch's `OneCycleLR` with
    /// `cycle_momentum=False` and otherwise its defaults; Smith and Topin, 2018). The rise is its warm-up.
    OneCycle {
        /// The share of the run's steps in which the learning rate rises.
        #[serde(default = "rise")]
        rise: f64,
        /// The learning rate is this many times the one at the start.
        #[serde(default = "div_factor")]
        div_factor: f64,
        /// The learning rate at the start is this many times the one at the end.
        #[serde(default = "final_div_factor")]
        final_div_factor: f64,
        /// The curve of rise and fall.
        #[serde(default)]
        anneal: Anneal,
    },
}

/// The curve between two learning rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cos,
    /// A straight line.
    Linear,
}

fn warmup_from() -> f64 {
    0.01
}

fn factor() -> f64 {
    0.1
}

fn rise() -> f64 {
    0.3
}

fn div_factor() -> f64 {
    25.0
}

fn final_div_factor() -> f64 {
    1e4
}

impl Default for LrSchedule {
    fn default() -> Self {
        Self::Constant { warmup_epochs: 0.0, warmup_from: warmup_from() }
    }
}

impl LrSchedule {
    pub(crate) fn is_constant(&self) -> bool {
        matches!(self, Self::Constant { warmup_epochs: 0.0, .. })
    }
}
