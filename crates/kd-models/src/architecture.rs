//! Which networks there are, and how to get one.

use std::fmt;
use std::str::FromStr;

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::{
    Classifier, Error, Place, ResNet, Result, StudentCnn, TeacherCnn, cnn, resnet, student, teacher,
};

/// A network's name, as recipes and weights files give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// [`TeacherCnn`], "teacher".
    Teacher,
    /// [`StudentCnn`], "student".
    Student,
    /// [`ResNet`] with 8 layers.
    ResNet8,
    /// [`ResNet`] with 14 layers.
    ResNet14,
    /// [`ResNet`] with 20 layers.
    ResNet20,
    /// [`ResNet`] with 32 layers.
    ResNet32,
    /// [`ResNet`] with 44 layers.
    ResNet44,
    /// [`ResNet`] with 56 layers.
    ResNet56,
    /// [`ResNet`] with 110 layers.
    ResNet110,
}

/// What a network's layers are, without weights.
enum Plan {
    Cnn(&'static cnn::Plan),
    ResNet(resnet::Plan),
}

impl Architecture {
    /// Every network.
    pub const ALL: [Self; 9] = [
        Self::Teacher,
        Self::Student,
        Self::ResNet8,
        Self::ResNet14,
        Self::ResNet20,
        Self::ResNet32,
        Self::ResNet44,
        Self::ResNet56,
        Self::ResNet110,
    ];

    /// The name that [`Architecture::from_str`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
            Self::ResNet8 => "resnet8",
            Self::ResNet14 => "resnet14",
            Self::ResNet20 => "resnet20",
            Self::ResNet32 => "resnet32",
            Self::ResNet44 => "resnet44",
            Self::ResNet56 => "resnet56",
            Self::ResNet110 => "resnet110",
        }
    }

    /// The share that dropout sets to zero when nothing is said: 0.1 in the tutorial's networks;
    /// `None` in the ResNets, which have no dropout.
    pub fn default_dropout(self) -> Option<f64> {
        match self {
            Self::Teacher | Self::Student => Some(0.1),
            _ => None,
        }
    }

    /// Blocks in each stage: a ResNet has 6 n + 2 layers.
    pub(crate) fn resnet(self) -> Option<resnet::Plan> {
        let blocks = match self {
            Self::Teacher | Self::Student => return None,
            Self::ResNet8 => 1,
            Self::ResNet14 => 2,
            Self::ResNet20 => 3,
            Self::ResNet32 => 5,
            Self::ResNet44 => 7,
            Self::ResNet56 => 9,
            Self::ResNet110 => 18,
        };
        Some(resnet::Plan { architecture: self, blocks })
    }

    fn plan(self) -> Plan {
        match self.resnet() {
            Some(plan) => Plan::ResNet(plan),
            None if self == Self::Teacher => Plan::Cnn(&teacher::PLAN),
            None => Plan::Cnn(&student::PLAN),
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name).ok_or_else(|| {
            Error::UnknownArchitecture {
                name: name.to_string(),
                known: Self::ALL.map(Self::name).join(", "),
            }
        })
    }
}

/// What a network is, apart from its weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Which network.
    pub architecture: Architecture,
    /// The number of classes, 1 to 65536.
    pub classes: usize,
    /// The share of the hidden layer that dropout sets to zero in training, in [0, 1); 0 for a
    /// ResNet, which has no dropout.
    pub dropout: f64,
}

impl ModelConfig {
    /// A network with the dropout that its architecture has by default.
    pub fn new(architecture: Architecture, classes: usize) -> Self {
        let dropout = architecture.default_dropout().unwrap_or(0.0);
        Self { architecture, classes, dropout }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// When there are no classes or too many, or dropout is not in [0, 1) or set in a ResNet.
    pub fn validate(&self) -> Result<()> {
        if !(1..=65536).contains(&self.classes) {
            return Err(Error::Config {
                field: "classes",
                found: self.classes.to_string(),
                expected: "1 to 65536",
            });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Config {
                field: "dropout",
                found: self.dropout.to_string(),
                expected: "a share in [0, 1)",
            });
        }
        if self.dropout > 0.0 && self.architecture.default_dropout().is_none() {
            return Err(Error::Config {
                field: "dropout",
                found: self.dropout.to_string(),
                expected: "0: a ResNet has no dropout",
            });
        }
        Ok(())
    }
}

/// Builds the network on the weights that `vb` gives (see [`var_builder`](crate::var_builder)
/// for one that trains, [`frozen`](crate::frozen) for a teacher).
///
/// # Errors
/// When a setting makes no sense, or `vb` lacks a weight or has it with another shape.
pub fn build(
    config: &ModelConfig,
    vb: VarBuilder<'_>,
) -> Result<Box<dyn Classifier + Send + Sync>> {
    Ok(match config.architecture {
        Architecture::Teacher => Box::new(TeacherCnn::new(config.classes, config.dropout, vb)?),
        Architecture::Student => Box::new(StudentCnn::new(config.classes, config.dropout, vb)?),
        _ => Box::new(ResNet::new(config, vb)?),
    })
}

/// The names and shapes of what is trained, from the input to the output, under the reference's
/// names: a convolution's weight is `[O, I, kh, kw]`, a linear layer's `[O, I]`. The last two are
/// weight and bias of the layer that gives the logits.
pub fn parameter_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    match config.architecture.plan() {
        Plan::Cnn(plan) => plan.parameter_shapes(config.classes),
        Plan::ResNet(plan) => plan.parameter_shapes(config.classes),
    }
}

/// The names and shapes of what a network also remembers: the running means and variances of its
/// batch normalisations. A weights file holds them beside the parameters.
pub fn buffer_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    match config.architecture.plan() {
        Plan::Cnn(_) => Vec::new(),
        Plan::ResNet(plan) => plan.buffer_shapes(),
    }
}

/// The number of trained values.
pub fn parameter_count(config: &ModelConfig) -> usize {
    parameter_shapes(config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// [`Classifier::places`] without weights.
pub fn places(config: &ModelConfig) -> Vec<Place> {
    match config.architecture.plan() {
        Plan::Cnn(plan) => plan.places(),
        Plan::ResNet(plan) => plan.places(),
    }
}

/// [`Classifier::multiply_adds`] without weights.
pub fn multiply_adds(config: &ModelConfig) -> u64 {
    match config.architecture.plan() {
        Plan::Cnn(plan) => plan.multiply_adds(config.classes),
        Plan::ResNet(plan) => plan.multiply_adds(config.classes),
    }
}
