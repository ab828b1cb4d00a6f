//! Which networks there are, and how to get one.

use std::fmt;
use std::str::FromStr;

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::cnn::Plan;
use crate::{Classifier, Error, Place, Result, StudentCnn, TeacherCnn, student, teacher};

/// A network's name, as recipes and weights files give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// [`TeacherCnn`], "teacher".
    Teacher,
    /// [`StudentCnn`], "student".
    Student,
}

impl Architecture {
    /// Every network.
    pub const ALL: [Self; 2] = [Self::Teacher, Self::Student];

    /// The name that [`Architecture::from_str`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
        }
    }

    fn plan(self) -> &'static Plan {
        match self {
            Self::Teacher => &teacher::PLAN,
            Self::Student => &student::PLAN,
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
    /// The share of the hidden layer that dropout sets to zero in training, in [0, 1).
    pub dropout: f64,
}

impl ModelConfig {
    /// A network with the reference's dropout of 0.1.
    pub fn new(architecture: Architecture, classes: usize) -> Self {
        Self { architecture, classes, dropout: 0.1 }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// When there are no classes or too many, or dropout is not in [0, 1).
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
    })
}

/// The names and shapes of the network's weights, from the input to the output, under the
/// reference's names: a convolution's weight is `[O, I, kh, kw]`, a linear layer's `[O, I]`.
pub fn parameter_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    config.architecture.plan().parameter_shapes(config.classes)
}

/// The number of trained values.
pub fn parameter_count(config: &ModelConfig) -> usize {
    parameter_shapes(config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// [`Classifier::places`] without weights.
pub fn places(config: &ModelConfig) -> Vec<Place> {
    config.architecture.plan().places()
}

/// [`Classifier::multiply_adds`] without weights.
pub fn multiply_adds(config: &ModelConfig) -> u64 {
    config.architecture.plan().multiply_adds(config.classes)
}
