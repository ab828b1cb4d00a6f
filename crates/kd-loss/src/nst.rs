//! Neuron selectivity transfer: the distribution of what channels respond to.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, Kind, Options};
use crate::places::{self, PLACE_LISTS, Pair, PairShapes, match_size, normalized};
use crate::{Inputs, Method, Needs, Result, Setup};

/// The squared maximum mean discrepancy between the channels of student and teacher, mean over the batch, a scalar.
///
/// Maps are `[B, C, H, W]`, with any numbers of channels; the larger one is averaged over windows down to the other's height and width. Each
/// channel, flattened and divided by its Euclidean length, is a sample. With the kernel k(x, y) = (x·y)²,
/// MMD² = mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over all pairs of channels. The teacher gets no gradient.
///
/// Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (2017), equation 4 with
/// the polynomial kernel d = 2, c = 0 of section 4.2; customary weight 50.
///
/// # Errors
/// When the maps don't fit.
pub fn nst(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = match_size("nst", student, &teacher.detach())?;
    let channels = |map: &Tensor| normalized(&map.flatten_from(2)?);
    let (s, t) = (channels(&student)?.contiguous()?, channels(&teacher)?.contiguous()?);
    let kernel =
        |a: &Tensor, b: &Tensor| a.matmul(&b.transpose(1, 2)?.contiguous()?)?.sqr()?.mean_all();
    Ok(((kernel(&t, &t)? + kernel(&s, &s)?)? - (kernel(&s, &t)? * 2.0)?)?)
}

/// Options of [`nst`] as a [`Method`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NstConfig {
    /// The student's feature places; its last feature map when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub student: Vec<String>,
    /// The teacher's, one for each of the student's; its last feature map when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teacher: Vec<String>,
}

impl NstConfig {
    fn places(&self, shapes: &Setup) -> Result<Vec<PairShapes>> {
        let found = places::pairs("nst", shapes, &self.student, &self.teacher)?;
        for places in &found {
            places.channels_of_maps("nst")?;
        }
        Ok(found)
    }
}

impl Options for NstConfig {
    const ABOUT: About = About {
        kind: Kind::Feature,
        summary: "maximum mean discrepancy between the channels of feature maps",
        paper: "Huang, Wang 2017",
        weight: 50.0,
        labels: 1.0,
        options: &PLACE_LISTS,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let found =
            self.places(shapes)?.into_iter().map(|found| (found.pair.student, found.pair.teacher));
        (self.student, self.teacher) = found.unzip();
        Ok(())
    }

    fn build(&self, shapes: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let places = self.places(shapes)?.into_iter().map(|found| found.pair).collect();
        Ok(Box::new(Nst { places }))
    }
}

/// The sum over pairs of places.
struct Nst {
    places: Vec<Pair>,
}

impl Method for Nst {
    fn needs(&self) -> Needs {
        Pair::needs(&self.places)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        places::sum(&self.places, |pair| {
            let (student, teacher) = pair.features("nst", inputs)?;
            nst(&student, &teacher)
        })
    }
}
