//! Attention transfer: where the networks look.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, Kind, Options};
use crate::places::{self, PLACE_LISTS, Pair, PairShapes, match_size, normalized};
use crate::{Inputs, Method, Needs, Result, Setup};

/// `mean over all values of (Q(student) - Q(teacher))²`, a scalar.
///
/// Maps are `[B, C, H, W]`, with any numbers of channels; the larger one is averaged over windows down to the other's height and width.
/// Q(F) is the mean over channels of F², flattened to `[B, HW]` and divided by its Euclidean length: an image's
/// attention map. The teacher gets no gradient.
///
/// Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), equation 2 with p = 2. The paper writes the length of the
/// difference; this mean of squares is the authors' published code, to which the customary weight of 1000 belongs.
///
/// # Errors
/// When the maps don't fit.
pub fn attention_transfer(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = match_size("attention-transfer", student, &teacher.detach())?;
    let attention = |map: &Tensor| normalized(&map.sqr()?.mean(1)?.flatten_from(1)?);
    Ok((attention(&student)? - attention(&teacher)?)?.sqr()?.mean_all()?)
}

/// Options of [`attention_transfer`] as a [`Method`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionConfig {
    /// The student's feature places; its last feature map when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub student: Vec<String>,
    /// The teacher's, one for each of the student's; its last feature map when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teacher: Vec<String>,
}

impl AttentionConfig {
    fn places(&self, shapes: &Setup) -> Result<Vec<PairShapes>> {
        let found = places::pairs("attention-transfer", shapes, &self.student, &self.teacher)?;
        for places in &found {
            places.channels_of_maps("attention-transfer")?;
        }
        Ok(found)
    }
}

impl Options for AttentionConfig {
    const ABOUT: About = About {
        kind: Kind::Feature,
        summary: "difference of attention maps: squared activations, averaged over channels",
        paper: "Zagoruyko, Komodakis 2017",
        weight: 1000.0,
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
        Ok(Box::new(Attention { places }))
    }
}

/// The sum over pairs of places.
struct Attention {
    places: Vec<Pair>,
}

impl Method for Attention {
    fn needs(&self) -> Needs {
        Pair::needs(&self.places)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        places::sum(&self.places, |pair| {
            let (student, teacher) = pair.features("attention-transfer", inputs)?;
            attention_transfer(&student, &teacher)
        })
    }
}
