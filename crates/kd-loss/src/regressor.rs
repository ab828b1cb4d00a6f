//! Hints: the student's feature map, through a learned regressor, should equal the teacher's.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use kd_ops::{Conv2dConfig, conv2d};
use serde::{Deserialize, Serialize};

use crate::method::{HelperParameter, Network, feature};
use crate::{Error, Inputs, Method, Needs, Result, Shapes};

/// `mean over all elements of (student - teacher)²`, a scalar. The teacher gets no gradient.
///
/// # Errors
/// When the shapes differ.
pub fn mse(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    if student.dims() != teacher.dims() {
        return Err(Error::ShapeMismatch {
            method: "mean squared error",
            what: "features".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be equal",
        });
    }
    if student.elem_count() == 0 {
        return Err(Error::EmptyBatch);
    }
    Ok((student - teacher.detach())?.sqr()?.mean_all()?)
}

/// Options of [`Regressor`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegressorConfig {
    /// The student's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

/// Mean squared error between the teacher's feature map `[B, Ct, H, W]` and a 3x3 convolution
/// (padding 1, bias, no activation) of the student's `[B, Cs, H, W]`, as a [`Method`].
///
/// The convolution is trained along with the student and is not part of it. Its weights are
/// `regressor.0.weight` `[Ct, Cs, 3, 3]` and `regressor.0.bias` `[Ct]`, the names of the PyTorch
/// tutorial on knowledge distillation (`ModifiedLightNNRegressor`, `train_mse_loss`).
///
/// Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3; theirs is trained in a
/// stage of its own, the tutorial's along with the labels.
pub struct Regressor {
    student: String,
    teacher: String,
    weight: Tensor,
    bias: Tensor,
}

/// The places that a config means, and their channels.
struct Places<'a> {
    student: &'a str,
    teacher: &'a str,
    student_channels: usize,
    teacher_channels: usize,
}

impl RegressorConfig {
    fn places<'a>(&self, shapes: &'a Shapes) -> Result<Places<'a>> {
        let (student, student_shape) =
            shapes.place("regressor", Network::Student, self.student.as_deref())?;
        let (teacher, teacher_shape) =
            shapes.place("regressor", Network::Teacher, self.teacher.as_deref())?;
        match (student_shape, teacher_shape) {
            (&[student_channels, h, w], &[teacher_channels, teacher_h, teacher_w])
                if (h, w) == (teacher_h, teacher_w) =>
            {
                Ok(Places { student, teacher, student_channels, teacher_channels })
            }
            _ => Err(Error::ShapeMismatch {
                method: "regressor",
                what: format!("{student} (teacher's {teacher})"),
                student: student_shape.to_vec(),
                other: teacher_shape.to_vec(),
                expected: "both must be [C, H, W] with the same H and W",
            }),
        }
    }

    pub(crate) fn helper_parameters(&self, shapes: &Shapes) -> Result<Vec<HelperParameter>> {
        let Places { student_channels, teacher_channels, .. } = self.places(shapes)?;
        let bound = 1.0 / ((student_channels * 9) as f64).sqrt();
        let parameter = |name: &str, shape: Vec<usize>| HelperParameter {
            name: name.to_string(),
            shape,
            bound,
        };
        Ok(vec![
            parameter("regressor.0.weight", vec![teacher_channels, student_channels, 3, 3]),
            parameter("regressor.0.bias", vec![teacher_channels]),
        ])
    }
}

impl Regressor {
    /// The regressor on the weights that `vb` gives; see [`helper_parameters`](crate::helper_parameters).
    ///
    /// # Errors
    /// When a place does not exist, the maps' heights or widths differ (both shapes are given), or
    /// `vb` lacks a weight.
    pub fn new(config: &RegressorConfig, shapes: &Shapes, vb: VarBuilder<'_>) -> Result<Self> {
        let places = config.places(shapes)?;
        let (inputs, outputs) = (places.student_channels, places.teacher_channels);
        Ok(Self {
            student: places.student.to_string(),
            teacher: places.teacher.to_string(),
            weight: vb.get((outputs, inputs, 3, 3), "regressor.0.weight")?,
            bias: vb.get(outputs, "regressor.0.bias")?,
        })
    }
}

impl Method for Regressor {
    fn name(&self) -> &'static str {
        "regressor"
    }

    fn needs(&self) -> Needs {
        Needs {
            student: vec![self.student.clone()],
            teacher: vec![self.teacher.clone()],
            teacher_logits: false,
        }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let student = feature("regressor", Network::Student, inputs, &self.student)?;
        let teacher = feature("regressor", Network::Teacher, inputs, &self.teacher)?;
        let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        mse(&conv2d(student, &self.weight, Some(&self.bias), &config)?, teacher)
    }
}
