//! Activation boundaries: a neuron of the student should be active where the teacher's is.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::matching::same_maps;
use crate::method::{About, Definition, HelperParameter, Kind, Method};
use crate::numeric::{only, relu, widened_both};
use crate::pairs::{MAP_PAIRS, PairListConfig};
use crate::stages::{parameters, stages};
use crate::{Result, Setup, check};

/// `mean over images of the sum over values of max(0, margin - s)²` where the teacher's value is above 0, and of `max(0, margin + s)²` where it is not; a scalar.
///
/// Both are maps `[B, C, H, W]` of the same shape, s the student's value before its activation. Of the teacher only the sign counts, so that its map may be one before a ReLU or behind it. The
/// teacher gets no gradient.
///
/// Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons" (2019), equation 4, with the sum over neurons as its norm.
///
/// # Errors
/// When the margin is not a number above 0, or the shapes differ.
pub fn activation_boundaries(student: &Tensor, teacher: &Tensor, margin: f64) -> Result<Tensor> {
    check::positive("margin", margin)?;
    let images = same_maps(student, teacher)?;
    let (student, teacher) = widened_both(student, &teacher.detach())?;
    let active = teacher.gt(&teacher.zeros_like()?)?;
    // s where the teacher is not active, -s where it is.
    let wrong = (&student - (only(&student, &active)? * 2.0)?)?;
    Ok((relu(&(wrong + margin)?)?.sqr()?.sum_all()? / images as f64)?)
}

/// Options of the method "activation-boundaries".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoundariesConfig {
    /// How far beyond 0 the student's value is to lie, above 0.
    pub margin: f64,
    /// The student's feature places; when empty its last feature map.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub student: Vec<String>,
    /// The teacher's feature places, one for each of the student's, with the same default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teacher: Vec<String>,
}

impl Default for BoundariesConfig {
    /// A margin of 1, as in RepDistiller.
    fn default() -> Self {
        Self { margin: 1.0, student: Vec::new(), teacher: Vec::new() }
    }
}

impl BoundariesConfig {
    fn places(&self) -> PairListConfig {
        PairListConfig { student: self.student.clone(), teacher: self.teacher.clone() }
    }
}

/// The sum of [`activation_boundaries`] over pairs of places, each but the last with half the weight of the one behind it, through a learned 1x1 convolution with batch normalisation of the student's map.
pub(crate) struct ActivationBoundaries;

impl Definition for ActivationBoundaries {
    type Options = BoundariesConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: true,
        summary: "where the teacher's neurons are active and where not, through a learned 1x1 convolution",
        paper: "Heo et al. 2019",
        weight: 0.003,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, distiller_zoo/AB.py, which names the authors' bhheo/AB_distillation: margin=1.0, w = 2**(i-feat_num+1), l / bsz, l / 1000 * 3. Departures: there the loss trains alone in a stage of its own (helper/pretrain.py), of which the labels' stage has a loss_kd = 0 (helper/loops.py), and here it is added to the labels with the same factor; the maps go through a 1x1 convolution with batch normalisation also where their shapes are equal, and the larger one is averaged down; the default is the last map alone: name the places of all stages, of the student before their ReLU, to have their sum",
        options: &[
            ("margin", "how far beyond 0 the student's value is to lie, above 0"),
            MAP_PAIRS[0],
            MAP_PAIRS[1],
        ],
    };

    fn validate(options: &BoundariesConfig) -> Result<()> {
        check::positive("margin", options.margin)
    }

    fn resolve(options: &mut BoundariesConfig, setup: &Setup) -> Result<()> {
        let places: PairListConfig = options.places().find_maps(setup)?.into_iter().collect();
        (options.student, options.teacher) = (places.student, places.teacher);
        Ok(())
    }

    fn helper_parameters(
        options: &BoundariesConfig,
        setup: &Setup,
    ) -> Result<Vec<HelperParameter>> {
        parameters(&options.places(), setup)
    }

    fn build(
        options: &BoundariesConfig,
        setup: &Setup,
        vb: VarBuilder<'_>,
    ) -> Result<Box<dyn Method>> {
        let margin = options.margin;
        stages(&options.places(), setup, &vb, move |student, teacher| {
            activation_boundaries(student, teacher, margin)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["activation_boundaries"], 1, |s, t| activation_boundaries(&s[0], &t[0], 1.0));
        agree(&["activation_boundaries_other"], 1, |s, t| activation_boundaries(&s[0], &t[0], 0.4));
    }
}
