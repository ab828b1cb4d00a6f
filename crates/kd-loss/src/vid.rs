//! VID: a bound on the information that the maps share.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, HelperInit, HelperParameter, Kind, Linear, Options, linear_parameters};
use crate::places::{Fallback, PLACES, Pair, PairShapes, match_size};
use crate::{Error, Inputs, Method, Needs, Result, Setup};

/// `mean over all values of ½ (log σ² + (teacher - mean)² / σ²)`, a scalar: the negative log-likelihood, but for a constant, of the teacher's map
/// under a Gaussian whose mean the student's map predicts.
///
/// `mean` and `teacher` are `[B, C, H, W]`, `alpha` is `[C]`; each channel's variance is σ² = log(1 + exp(alpha)) + 1e-5. The teacher gets no gradient.
///
/// Ahn et al., "Variational Information Distillation for Knowledge Transfer" (2019), equations 5 and 6; customary weight 1.
///
/// # Errors
/// When the shapes differ.
pub fn vid(mean: &Tensor, alpha: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let fits =
        mean.dims() == teacher.dims() && mean.rank() == 4 && alpha.dims() == [mean.dims()[1]];
    if !fits {
        return Err(Error::ShapeMismatch {
            method: "vid",
            what: "predicted mean".into(),
            student: mean.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be [B, C, H, W], and alpha [C]",
        });
    }
    if mean.elem_count() == 0 {
        return Err(Error::EmptyBatch);
    }
    // log(1 + exp(a)) = max(a, 0) + log(1 + exp(-|a|)), finite for any a.
    let softplus = (alpha.relu()? + (alpha.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    let variance = (softplus + EPSILON)?.reshape((1, mean.dims()[1], 1, 1))?;
    let error = (teacher.detach() - mean)?.sqr()?.broadcast_div(&variance)?;
    Ok((error.broadcast_add(&variance.log()?)?.mean_all()? * 0.5)?)
}

/// Bounds a variance below.
const EPSILON: f64 = 1e-5;
/// What variances start from, as is customary; the paper does not say.
const FIRST_VARIANCE: f64 = 5.0;

/// Options of the method "vid": [`vid`] with the mean predicted from the student's map by three learned 1x1 convolutions
/// with ReLU between, as wide as the teacher's map. The larger map is averaged over windows down to the other's size first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VidConfig {
    /// The student's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl VidConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("vid", shapes, student, teacher, Fallback::Map)
    }
}

impl Options for VidConfig {
    const ABOUT: About = About {
        kind: Kind::Feature,
        summary: "likelihood of the teacher's map under a Gaussian predicted from the student's",
        paper: "Ahn et al. 2019",
        weight: 1.0,
        labels: 1.0,
        options: &PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn helper_parameters(&self, shapes: &Setup) -> Result<Vec<HelperParameter>> {
        let (student, teacher) = self.places(shapes)?.channels_of_maps("vid")?;
        let layers = [("mean.0", student), ("mean.1", teacher), ("mean.2", teacher)];
        let mut parameters: Vec<_> = layers
            .into_iter()
            .flat_map(|(name, inputs)| linear_parameters(name, inputs, teacher))
            .collect();
        // softplus(alpha) + EPSILON = FIRST_VARIANCE
        let alpha = ((FIRST_VARIANCE - EPSILON).exp() - 1.0).ln();
        parameters.push(HelperParameter {
            name: "alpha".into(),
            shape: vec![teacher],
            init: HelperInit::Constant(alpha),
        });
        Ok(parameters)
    }

    fn build(&self, shapes: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let places = self.places(shapes)?;
        let (student, teacher) = places.channels_of_maps("vid")?;
        let layer = |i: usize, inputs| Linear::new(inputs, teacher, &vb.pp(format!("mean.{i}")));
        Ok(Box::new(Vid {
            places: places.pair,
            mean: [layer(0, student)?, layer(1, teacher)?, layer(2, teacher)?],
            alpha: vb.get(teacher, "alpha")?,
        }))
    }
}

struct Vid {
    places: Pair,
    mean: [Linear; 3],
    alpha: Tensor,
}

impl Method for Vid {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("vid", inputs)?;
        let (student, teacher) = match_size("vid", &student, &teacher)?;
        let hidden = self.mean[0].map(&student)?.relu()?;
        let hidden = self.mean[1].map(&hidden)?.relu()?;
        vid(&self.mean[2].map(&hidden)?, &self.alpha, &teacher)
    }
}
