//! A recipe's `training.schedule`.

use serde::{Deserialize, Serialize};

/// How the learning rate goes; a recipe's `training.schedule`, one line:
///
/// ```toml
/// [training]
/// schedule = { name = "cosine", warmup_epochs = 5 }
/// ```
///
/// Every schedule but the one-cycle can begin with a linear warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LrSchedule {
    /// The optimiser's rate after the warm-up.
    Constant {
        /// Length of the warm-up.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the rate that it begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// Times `factor` at each milestone (`MultiStepLR`). Milestones are epochs of the whole run.
    Step {
        /// Epochs done when the rate falls.
        milestones: Vec<f64>,
        /// What it is multiplied with.
        #[serde(default = "factor")]
        factor: f64,
        /// Length of the warm-up.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the rate that it begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// Half a cosine from the rate down to a share of it, over what follows the warm-up
    /// (`CosineAnnealingLR`; Loshchilov and Hutter, 2017, without restarts).
    Cosine {
        /// The share of the rate that it ends with.
        #[serde(default)]
        down_to: f64,
        /// Length of the warm-up.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the rate that it begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// From a share of the rate up to it and down to nearly nothing (`OneCycleLR` with `cycle_momentum=False`,
    /// whose defaults these are otherwise; Smith and Topin, 2018). The rise is its warm-up: linear with `anneal = "linear"`.
    OneCycle {
        /// The share of the run's steps that it rises.
        #[serde(default = "rise")]
        rise: f64,
        /// The rate is this many times what it begins with.
        #[serde(default = "div_factor")]
        div_factor: f64,
        /// What it begins with is this many times what it ends with.
        #[serde(default = "final_div_factor")]
        final_div_factor: f64,
        /// The curve between.
        #[serde(default)]
        anneal: Anneal,
    },
}

/// The curve between two rates.
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
