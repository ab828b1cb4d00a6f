//! Hints: the student's feature map, through a learned regressor, should equal the teacher's.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use kd_ops::{Conv2dConfig, conv2d};
use serde::{Deserialize, Serialize};

use crate::method::{About, HelperInit, HelperParameter, Kind, Options};
use crate::places::{Fallback, PLACES, Pair, PairShapes};
use crate::{Error, Inputs, Method, Needs, Result, Setup};

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

/// Options of the method "regressor": [`mse`] to the teacher's feature map after a learned 3x3 convolution of the student's.
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

impl RegressorConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("regressor", shapes, student, teacher, Fallback::Map)
    }
}

/// The maps' channels; heights and widths must be equal.
fn channels(places: &PairShapes) -> Result<(usize, usize)> {
    match (&places.student[..], &places.teacher[..]) {
        (&[student, h, w], &[teacher, ht, wt]) if (h, w) == (ht, wt) => Ok((student, teacher)),
        _ => Err(places.mismatch("regressor", "both must be [C, H, W] with the same H and W")),
    }
}

impl Options for RegressorConfig {
    const ABOUT: About = About {
        kind: Kind::Feature,
        summary: "mean squared error to the teacher's feature map through a learned 3x3 convolution",
        paper: "PyTorch tutorial on knowledge distillation; Romero et al. 2015",
        weight: 0.25,
        labels: 0.75,
        options: &PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn helper_parameters(&self, shapes: &Setup) -> Result<Vec<HelperParameter>> {
        let (student, teacher) = channels(&self.places(shapes)?)?;
        let init = HelperInit::Uniform(1.0 / ((student * 9) as f64).sqrt());
        let parameter =
            |name: &str, shape: Vec<usize>| HelperParameter { name: name.to_string(), shape, init };
        Ok(vec![
            parameter("regressor.0.weight", vec![teacher, student, 3, 3]),
            parameter("regressor.0.bias", vec![teacher]),
        ])
    }

    fn build(&self, shapes: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let places = self.places(shapes)?;
        let (inputs, outputs) = channels(&places)?;
        Ok(Box::new(Regressor {
            places: places.pair,
            weight: vb.get((outputs, inputs, 3, 3), "regressor.0.weight")?,
            bias: vb.get(outputs, "regressor.0.bias")?,
        }))
    }
}

/// Mean squared error between the teacher's feature map `[B, Ct, H, W]` and a 3x3 convolution
/// (padding 1, bias, no activation) of the student's `[B, Cs, H, W]`.
///
/// The convolution is trained along with the student and is not part of it. Its weights are
/// `regressor.0.weight` `[Ct, Cs, 3, 3]` and `regressor.0.bias` `[Ct]`, the names of the PyTorch
/// tutorial on knowledge distillation (`ModifiedLightNNRegressor`, `train_mse_loss`).
///
/// Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3; theirs is trained in a
/// stage of its own, the tutorial's along with the labels.
struct Regressor {
    places: Pair,
    weight: Tensor,
    bias: Tensor,
}

impl Method for Regressor {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("regressor", inputs)?;
        let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        mse(&conv2d(&student, &self.weight, Some(&self.bias), &config)?, &teacher)
    }
}
