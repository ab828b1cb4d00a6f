//! What a distillation method is, and the list of them.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::{
    Cosine, CosineConfig, Error, Kd, KdConfig, LabelSmoothing, LabelSmoothingConfig, Regressor,
    RegressorConfig, Result, check,
};

/// What a method sees of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[B, C]`.
    pub student_logits: &'a Tensor,
    /// `[B, C]`; there when a method [needs](Needs) them.
    pub teacher_logits: Option<&'a Tensor>,
    /// u32 `[B]`.
    pub labels: &'a Tensor,
    /// The student's values at the places that the methods need, by place.
    pub student_features: &'a BTreeMap<String, Tensor>,
    /// The teacher's values at the places that the methods need, by place.
    pub teacher_features: &'a BTreeMap<String, Tensor>,
    /// The epoch, from 0.
    pub epoch: usize,
    /// The images' positions in the training set, `B` of them.
    pub indices: &'a [u32],
}

/// What a method needs of the two networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Feature places of the student.
    pub student: Vec<String>,
    /// Feature places of the teacher.
    pub teacher: Vec<String>,
    /// Whether the teacher's logits are needed.
    pub teacher_logits: bool,
}

impl Needs {
    /// Whether a teacher is needed at all.
    pub fn any_teacher(&self) -> bool {
        self.teacher_logits || !self.teacher.is_empty()
    }
}

/// A loss that is added to the cross-entropy with the labels.
///
/// It holds what it learns (helper parameters) and gets the rest with each batch.
pub trait Method: Send + Sync {
    /// The name in recipes.
    fn name(&self) -> &'static str;
    /// What the trainer must provide in [`Inputs`].
    fn needs(&self) -> Needs;
    /// The loss of a batch, a scalar, before its weight. The teacher gets no gradient.
    ///
    /// # Errors
    /// When shapes don't fit, or something that the method needs is missing.
    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor>;
}

/// A method and its options, as a recipe's table gives them; `name` chooses the variant.
///
/// Options that are left out have the defaults of their struct; an unknown option is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum MethodConfig {
    /// "kd": [`Kd`].
    Kd(KdConfig),
    /// "cosine": [`Cosine`].
    Cosine(CosineConfig),
    /// "regressor": [`Regressor`].
    Regressor(RegressorConfig),
    /// "label-smoothing": [`LabelSmoothing`].
    LabelSmoothing(LabelSmoothingConfig),
}

/// One line of the list of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodInfo {
    /// The name in recipes.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
}

/// Every method.
pub const METHODS: [MethodInfo; 4] = [
    MethodInfo {
        name: "kd",
        summary: "KL divergence to the teacher's softmax at a temperature (Hinton et al. 2015)",
    },
    MethodInfo {
        name: "cosine",
        summary: "1 - cosine between flattened feature maps (PyTorch tutorial)",
    },
    MethodInfo {
        name: "regressor",
        summary: "mean squared error to the teacher's feature map through a learned 3x3 convolution (PyTorch tutorial; FitNets, Romero et al. 2015)",
    },
    MethodInfo {
        name: "label-smoothing",
        summary: "cross-entropy with smoothed labels, a control without a teacher (Szegedy et al. 2016)",
    },
];

impl MethodConfig {
    /// The method's default options.
    ///
    /// # Errors
    /// When there is no method of this name; the error lists those that there are.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "kd" => Self::Kd(KdConfig::default()),
            "cosine" => Self::Cosine(CosineConfig::default()),
            "regressor" => Self::Regressor(RegressorConfig::default()),
            "label-smoothing" => Self::LabelSmoothing(LabelSmoothingConfig::default()),
            _ => {
                return Err(Error::UnknownMethod {
                    name: name.to_string(),
                    known: METHODS.map(|method| method.name).join(", "),
                });
            }
        })
    }

    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kd(_) => "kd",
            Self::Cosine(_) => "cosine",
            Self::Regressor(_) => "regressor",
            Self::LabelSmoothing(_) => "label-smoothing",
        }
    }

    /// Checks the options that don't depend on the networks.
    ///
    /// # Errors
    /// When one makes no sense.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Kd(config) => check::temperature("kd", config.temperature),
            Self::LabelSmoothing(config) => {
                check::share("label-smoothing", "smoothing", config.smoothing)
            }
            Self::Cosine(_) | Self::Regressor(_) => Ok(()),
        }
    }

    /// The same with feature places that were left out filled in, so that a record of a run
    /// says all of it.
    ///
    /// # Errors
    /// When a place does not exist.
    pub fn resolve(&self, shapes: &Shapes) -> Result<Self> {
        let mut resolved = self.clone();
        if let Self::Cosine(CosineConfig { student, teacher })
        | Self::Regressor(RegressorConfig { student, teacher }) = &mut resolved
        {
            for (network, place) in [(Network::Student, student), (Network::Teacher, teacher)] {
                let (name, _) = shapes.place(self.name(), network, place.as_deref())?;
                *place = Some(name.to_string());
            }
        }
        Ok(resolved)
    }
}

/// What the two networks look like from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shapes {
    /// The student's feature places from input to output, each with the shape of one image's
    /// values: `[C, H, W]` or `[F]`.
    pub student: Vec<(String, Vec<usize>)>,
    /// The teacher's.
    pub teacher: Vec<(String, Vec<usize>)>,
    /// The number of classes, the same for both.
    pub classes: usize,
}

/// Which of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Student,
    Teacher,
}

impl Network {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Student => "student",
            Self::Teacher => "teacher",
        }
    }
}

impl Shapes {
    /// The place of this name, or without a name the last feature map `[C, H, W]`.
    pub(crate) fn place(
        &self,
        method: &'static str,
        network: Network,
        name: Option<&str>,
    ) -> Result<(&str, &[usize])> {
        let places = match network {
            Network::Student => &self.student,
            Network::Teacher => &self.teacher,
        };
        let place = match name {
            Some(name) => places.iter().find(|(known, _)| known == name).ok_or_else(|| {
                unknown_place(method, network, name, places.iter().map(|(known, _)| known))
            })?,
            None => places
                .iter()
                .rfind(|(_, shape)| shape.len() == 3)
                .ok_or(Error::NoFeatureMap { method, network: network.name() })?,
        };
        Ok((&place.0, &place.1))
    }
}

fn unknown_place<'a>(
    method: &'static str,
    network: Network,
    place: &str,
    known: impl Iterator<Item = &'a String>,
) -> Error {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
    Error::UnknownPlace { method, network: network.name(), place: place.to_string(), known }
}

/// A feature map that a method has asked for.
pub(crate) fn feature<'a>(
    method: &'static str,
    network: Network,
    inputs: &Inputs<'a>,
    place: &str,
) -> Result<&'a Tensor> {
    let features = match network {
        Network::Student => inputs.student_features,
        Network::Teacher => inputs.teacher_features,
    };
    features.get(place).ok_or_else(|| unknown_place(method, network, place, features.keys()))
}

/// A weight that a method trains along with the student, and that is no part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct HelperParameter {
    /// The name that [`build`] asks its `VarBuilder` for.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// It starts uniform in ±`bound`, as PyTorch's layers do.
    pub bound: f64,
}

/// The weights that a method trains; most have none.
///
/// # Errors
/// When a place does not exist or shapes don't fit.
pub fn helper_parameters(config: &MethodConfig, shapes: &Shapes) -> Result<Vec<HelperParameter>> {
    match config {
        MethodConfig::Regressor(config) => config.helper_parameters(shapes),
        MethodConfig::Kd(_) | MethodConfig::Cosine(_) | MethodConfig::LabelSmoothing(_) => {
            Ok(Vec::new())
        }
    }
}

/// Makes a method. `vb` gives its [helper parameters](helper_parameters); with several methods,
/// give each a prefix of its own.
///
/// # Errors
/// When an option makes no sense, a place does not exist, shapes don't fit, or `vb` lacks a weight.
pub fn build(
    config: &MethodConfig,
    shapes: &Shapes,
    vb: VarBuilder<'_>,
) -> Result<Box<dyn Method>> {
    config.validate()?;
    Ok(match config {
        MethodConfig::Kd(config) => Box::new(Kd { config: config.clone() }),
        MethodConfig::Cosine(config) => Box::new(Cosine::new(config, shapes)?),
        MethodConfig::Regressor(config) => Box::new(Regressor::new(config, shapes, vb)?),
        MethodConfig::LabelSmoothing(config) => Box::new(LabelSmoothing { config: config.clone() }),
    })
}
