//! Similarity-preserving distillation: which images of a batch look alike.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, Kind, Options};
use crate::places::{Fallback, PLACES, Pair, PairShapes, normalized, rows};
use crate::{Inputs, Method, Needs, Result, Setup};

/// `mean over all pairs of images of (G(student) - G(teacher))²`, a scalar.
///
/// Features are `[B, ...]`, flattened to rows; their sizes may differ. G `[B, B]` holds the products of the rows,
/// each row of G divided by its Euclidean length. The teacher gets no gradient.
///
/// Tung and Mori, "Similarity-Preserving Knowledge Distillation" (2019), equations 2 to 4; weight 3000.
///
/// # Errors
/// When the batches differ in size.
pub fn similarity_preserving(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows("similarity-preserving", student, teacher)?;
    let similarity = |x: &Tensor| normalized(&x.matmul(&x.t()?.contiguous()?)?);
    Ok((similarity(&student)? - similarity(&teacher)?)?.sqr()?.mean_all()?)
}

/// Options of [`similarity_preserving`] as a [`Method`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimilarityConfig {
    /// The student's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl SimilarityConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("similarity-preserving", shapes, student, teacher, Fallback::Map)
    }
}

impl Options for SimilarityConfig {
    const ABOUT: About = About {
        kind: Kind::Relation,
        summary: "similarities between the images of a batch",
        paper: "Tung, Mori 2019",
        weight: 3000.0,
        labels: 1.0,
        options: &PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn build(&self, shapes: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(Similarity { places: self.places(shapes)?.pair }))
    }
}

struct Similarity {
    places: Pair,
}

impl Method for Similarity {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("similarity-preserving", inputs)?;
        similarity_preserving(&student, &teacher)
    }
}
