//! The optimiser: its table in a recipe, and its state in a run.

use std::collections::BTreeMap;

use anyhow::ensure;
use candle_core::backprop::GradStore;
use kd_models::Parameters;
use kd_ops::adam::{Adam, AdamConfig, Moments};
use kd_ops::sgd::{Sgd, SgdConfig};
use serde::{Deserialize, Serialize};

use crate::recipe::{Invalid, Step, require};

/// Which optimiser, with its settings; a recipe's table `[optimizer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub enum OptimizerConfig {
    /// `name = "adam"`.
    Adam(AdamConfig),
    /// `name = "sgd"`.
    Sgd(SgdConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adam(AdamConfig::default())
    }
}

/// All that the table can hold; what is left out has the optimiser's default.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    name: Name,
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nesterov: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta1: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta2: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    #[default]
    Adam,
    Sgd,
}

impl TryFrom<Table> for OptimizerConfig {
    type Error = String;

    fn try_from(table: Table) -> Result<Self, String> {
        let Table { name, lr, momentum, nesterov, beta1, beta2, eps, weight_decay } = table;
        let foreign = |settings: &[(&str, bool)], other: &str, own: &str| match settings
            .iter()
            .find(|(_, set)| *set)
        {
            Some((key, _)) => {
                Err(format!("optimizer.{key} is a setting of {other}; this one has {own}"))
            }
            None => Ok(()),
        };
        match name {
            Name::Adam => {
                let settings = [("momentum", momentum.is_some()), ("nesterov", nesterov.is_some())];
                foreign(&settings, "sgd", "lr, beta1, beta2, eps and weight_decay")?;
                let default = AdamConfig::default();
                Ok(Self::Adam(AdamConfig {
                    lr: lr.unwrap_or(default.lr),
                    beta1: beta1.unwrap_or(default.beta1),
                    beta2: beta2.unwrap_or(default.beta2),
                    eps: eps.unwrap_or(default.eps),
                    weight_decay: weight_decay.unwrap_or(default.weight_decay),
                }))
            }
            Name::Sgd => {
                let settings = [("beta1", beta1), ("beta2", beta2), ("eps", eps)];
                let settings = settings.map(|(key, value)| (key, value.is_some()));
                foreign(&settings, "adam", "lr, momentum, nesterov and weight_decay")?;
                let default = SgdConfig::default();
                Ok(Self::Sgd(SgdConfig {
                    lr: lr.unwrap_or(default.lr),
                    momentum: momentum.unwrap_or(default.momentum),
                    nesterov: nesterov.unwrap_or(default.nesterov),
                    weight_decay: weight_decay.unwrap_or(default.weight_decay),
                }))
            }
        }
    }
}

impl From<OptimizerConfig> for Table {
    fn from(config: OptimizerConfig) -> Self {
        match config {
            OptimizerConfig::Adam(AdamConfig { lr, beta1, beta2, eps, weight_decay }) => Self {
                name: Name::Adam,
                lr: Some(lr),
                beta1: Some(beta1),
                beta2: Some(beta2),
                eps: Some(eps),
                weight_decay: Some(weight_decay),
                ..Self::default()
            },
            OptimizerConfig::Sgd(SgdConfig { lr, momentum, nesterov, weight_decay }) => Self {
                name: Name::Sgd,
                lr: Some(lr),
                momentum: Some(momentum),
                nesterov: Some(nesterov),
                weight_decay: Some(weight_decay),
                ..Self::default()
            },
        }
    }
}

impl OptimizerConfig {
    /// The learning rate, which a schedule changes.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Adam(config) => config.lr,
            Self::Sgd(config) => config.lr,
        }
    }

    /// The learning rate to change.
    pub fn lr_mut(&mut self) -> &mut f64 {
        match self {
            Self::Adam(config) => &mut config.lr,
            Self::Sgd(config) => &mut config.lr,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Invalid> {
        let above_0 = |key: &'static str, value: f64| {
            require(value > 0.0 && value.is_finite(), &[Step::Key(key)], value, "a number above 0")
        };
        let below_1 = |key: &'static str, value: f64| {
            let expected = "a number from 0 to below 1";
            require((0.0..1.0).contains(&value), &[Step::Key(key)], value, expected)
        };
        let decay = |value: f64| {
            let good = value >= 0.0 && value.is_finite();
            require(good, &[Step::Key("weight_decay")], value, "a number that is not negative")
        };
        above_0("lr", self.lr())?;
        match *self {
            Self::Adam(AdamConfig { beta1, beta2, eps, weight_decay, .. }) => {
                above_0("eps", eps)?;
                below_1("beta1", beta1)?;
                below_1("beta2", beta2)?;
                decay(weight_decay)
            }
            Self::Sgd(SgdConfig { momentum, nesterov, weight_decay, .. }) => {
                below_1("momentum", momentum)?;
                let good = !nesterov || momentum > 0.0;
                require(good, &[Step::Key("nesterov")], nesterov, "false without a momentum")?;
                decay(weight_decay)
            }
        }
    }
}

/// An optimiser with its state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Optimizer {
    Adam(Adam),
    Sgd(Sgd),
}

impl Optimizer {
    pub(crate) fn new(config: &OptimizerConfig) -> Self {
        match *config {
            OptimizerConfig::Adam(config) => Self::Adam(Adam::new(config)),
            OptimizerConfig::Sgd(config) => Self::Sgd(Sgd::new(config)),
        }
    }

    /// One step at this learning rate.
    pub(crate) fn step(
        &mut self,
        lr: f64,
        parameters: &Parameters,
        gradients: &GradStore,
    ) -> candle_core::Result<()> {
        match self {
            Self::Adam(adam) => {
                adam.config.lr = lr;
                adam.step(parameters, gradients)
            }
            Self::Sgd(sgd) => {
                sgd.config.lr = lr;
                sgd.step(parameters, gradients)
            }
        }
    }

    /// For a step at this learning rate that a captured graph takes.
    #[cfg(feature = "cuda")]
    pub(crate) fn next_step_size(&mut self, lr: f64) -> kd_ops::cuda::graph::StepSize {
        match self {
            Self::Adam(adam) => {
                adam.config.lr = lr;
                adam.next_step_size()
            }
            Self::Sgd(sgd) => {
                sgd.config.lr = lr;
                sgd.next_step_size()
            }
        }
    }

    /// Brings what it remembers from a GPU, for [`state`](Self::state).
    pub(crate) fn fetch(&mut self) -> candle_core::Result<()> {
        match self {
            Self::Adam(adam) => adam.fetch(),
            Self::Sgd(sgd) => sgd.fetch(),
        }
    }

    /// What it remembers of each parameter, as `<kind>/<parameter>`, one of [`KINDS`] first.
    pub(crate) fn state(&self) -> BTreeMap<String, &[f32]> {
        let mut state = BTreeMap::new();
        match self {
            Self::Adam(adam) => {
                for (name, Moments { first, second }) in &adam.moments {
                    state.insert(format!("adam.first/{name}"), first.as_slice());
                    state.insert(format!("adam.second/{name}"), second.as_slice());
                }
            }
            Self::Sgd(sgd) => {
                for (name, sum) in &sgd.momentum {
                    state.insert(format!("sgd.momentum/{name}"), sum.as_slice());
                }
            }
        }
        state
    }

    /// Takes over a [`state`](Self::state) after `steps` steps.
    ///
    /// # Errors
    /// When it is another optimiser's.
    pub(crate) fn restore(
        &mut self,
        steps: u64,
        state: BTreeMap<String, Vec<f32>>,
    ) -> anyhow::Result<()> {
        let kinds: &[&str] = match self {
            Self::Adam(_) => &["adam.first", "adam.second"],
            Self::Sgd(_) => &["sgd.momentum"],
        };
        for (full_name, values) in state {
            let (kind, name) = full_name.split_once('/').unwrap_or((&full_name, ""));
            ensure!(kinds.contains(&kind), "{full_name} is not this optimiser's");
            match self {
                Self::Adam(adam) => {
                    let moments = adam.moments.entry(name.to_string()).or_default();
                    *(if kind == "adam.first" {
                        &mut moments.first
                    } else {
                        &mut moments.second
                    }) = values;
                }
                Self::Sgd(sgd) => _ = sgd.momentum.insert(name.to_string(), values),
            }
        }
        if let Self::Adam(adam) = self {
            adam.steps = steps;
        }
        Ok(())
    }
}

/// The first part of the names in a [`state`](Optimizer::state).
pub(crate) const KINDS: [&str; 3] = ["adam.first", "adam.second", "sgd.momentum"];
