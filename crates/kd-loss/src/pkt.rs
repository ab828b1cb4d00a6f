//! Probabilistic knowledge transfer: which images are each other's neighbours.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, Kind, Options};
use crate::places::{Fallback, Pair, PairShapes, VECTOR_PLACES, normalized, rows};
use crate::{Inputs, Method, Needs, Result, Setup};

/// `mean over all pairs of images of q (log q - log p)`, a scalar.
///
/// Features are `[B, ...]`, flattened to rows; their sizes may differ. With K = (cos + 1) / 2 of two images, q and p
/// are the rows of teacher's and student's K divided by their sums. The teacher gets no gradient.
///
/// Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer" (2018), equations 3, 4 and 9 with the cosine
/// kernel of equation 6. The mean over B² entries, and an image's similarity with itself among them, are the authors' code's, to which
/// the customary weight of 30000 belongs.
///
/// # Errors
/// When the batches differ in size.
pub fn pkt(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows("pkt", student, teacher)?;
    let (log_p, log_q) = (log_neighbours(&student)?, log_neighbours(&teacher)?);
    Ok((log_q.exp()? * (log_q - log_p)?)?.mean_all()?)
}

fn log_neighbours(x: &Tensor) -> candle_core::Result<Tensor> {
    let x = normalized(x)?;
    // Opposite images have similarity 0, whose logarithm must be finite; rounding can pass below.
    let similarity = x.matmul(&x.t()?.contiguous()?)?.affine(0.5, 0.5)?.maximum(EPSILON)?;
    similarity.broadcast_div(&similarity.sum_keepdim(1)?)?.log()
}

const EPSILON: f64 = 1e-7;

/// Options of [`pkt`] as a [`Method`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PktConfig {
    /// The student's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl PktConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("pkt", shapes, student, teacher, Fallback::Vector)
    }
}

impl Options for PktConfig {
    const ABOUT: About = About {
        kind: Kind::Relation,
        summary: "neighbourhoods of the images of a batch, as probabilities",
        paper: "Passalis, Tefas 2018",
        weight: 30000.0,
        labels: 1.0,
        options: &VECTOR_PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn build(&self, shapes: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(Pkt { places: self.places(shapes)?.pair }))
    }
}

struct Pkt {
    places: Pair,
}

impl Method for Pkt {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("pkt", inputs)?;
        pkt(&student, &teacher)
    }
}
