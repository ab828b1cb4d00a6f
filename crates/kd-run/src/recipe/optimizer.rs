//! A recipe's table `[optimizer]`: the settings of each optimiser, and how they are read and written.

use kd_ops::adam::{Adam, AdamConfig, WeightDecay};
use kd_ops::optimizer::Optimizer;
use kd_ops::sgd::{Sgd, SgdConfig};
use serde::{Deserialize, Serialize};

/// An optimiser with its settings: a recipe's table `[optimizer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub enum OptimizerConfig {
    /// Adam, `name = "adam"`, or AdamW, `name = "adamw"`: the [`WeightDecay`] tells them apart.
    Adam(AdamConfig),
    /// Stochastic gradient descent with momentum, `name = "sgd"`.
    Sgd(SgdConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adam(AdamConfig::default())
    }
}

/// All settings that the table can hold. One that is left out has the optimiser's default; one of another optimiser is an error.
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
    /// Whether AdamW's weight decay also holds for biases and the weights of batch normalisations.
    #[serde(skip_serializing_if = "Option::is_none")]
    decay_all: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    #[default]
    Adam,
    AdamW,
    Sgd,
}

/// The weight decay that `torch.optim.AdamW` has where none is given.
const ADAMW_DECAY: f64 = 0.01;

impl TryFrom<Table> for OptimizerConfig {
    type Error = String;

    fn try_from(table: Table) -> Result<Self, String> {
        let Table { name, lr, momentum, nesterov, beta1, beta2, eps, weight_decay, decay_all } =
            table;
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
            Name::Adam | Name::AdamW => {
                let settings = [("momentum", momentum.is_some()), ("nesterov", nesterov.is_some())];
                foreign(&settings, "sgd", "lr, beta1, beta2, eps and weight_decay")?;
                let decoupled = matches!(name, Name::AdamW);
                let default = match (decoupled, decay_all) {
                    (false, None) => AdamConfig::default(),
                    (false, Some(_)) => return Err(adamw_alone()),
                    (true, all) => AdamConfig {
                        weight_decay: ADAMW_DECAY,
                        decay: match all.unwrap_or(false) {
                            true => WeightDecay::DecoupledForAll,
                            false => WeightDecay::Decoupled,
                        },
                        ..AdamConfig::default()
                    },
                };
                Ok(Self::Adam(AdamConfig {
                    lr: lr.unwrap_or(default.lr),
                    beta1: beta1.unwrap_or(default.beta1),
                    beta2: beta2.unwrap_or(default.beta2),
                    eps: eps.unwrap_or(default.eps),
                    weight_decay: weight_decay.unwrap_or(default.weight_decay),
                    decay: default.decay,
                }))
            }
            Name::Sgd => {
                if decay_all.is_some() {
                    return Err(adamw_alone());
                }
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

/// Why an optimiser without a decoupled weight decay is not told what that holds for.
fn adamw_alone() -> String {
    "optimizer.decay_all is a setting of adamw; the weight decay of the others holds for every parameter".into()
}

impl From<OptimizerConfig> for Table {
    fn from(config: OptimizerConfig) -> Self {
        match config {
            OptimizerConfig::Adam(AdamConfig { lr, beta1, beta2, eps, weight_decay, decay }) => {
                Self {
                    name: if decay == WeightDecay::L2 { Name::Adam } else { Name::AdamW },
                    decay_all: (decay == WeightDecay::DecoupledForAll).then_some(true),
                    lr: Some(lr),
                    beta1: Some(beta1),
                    beta2: Some(beta2),
                    eps: Some(eps),
                    weight_decay: Some(weight_decay),
                    ..Self::default()
                }
            }
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
    /// An optimiser of these settings that has not taken a step.
    pub fn optimizer(&self) -> Optimizer {
        match *self {
            Self::Adam(config) => Optimizer::Adam(Adam::new(config)),
            Self::Sgd(config) => Optimizer::Sgd(Sgd::new(config)),
        }
    }

    /// The learning rate, before a schedule changes it.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Adam(config) => config.lr,
            Self::Sgd(config) => config.lr,
        }
    }

    /// The learning rate, to be set.
    pub fn lr_mut(&mut self) -> &mut f64 {
        match self {
            Self::Adam(config) => &mut config.lr,
            Self::Sgd(config) => &mut config.lr,
        }
    }
}
