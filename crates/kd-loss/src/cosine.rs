//! The angle between student's and teacher's features.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, Kind, Options};
use crate::places::{Fallback, PLACES, Pair, PairShapes};
use crate::{Error, Inputs, Method, Needs, Result, Setup};

/// Added to each squared length, as in PyTorch, so that a zero vector has a direction.
const EPSILON: f64 = 1e-12;

/// `mean over images of 1 - cos(student, teacher)`, a scalar.
///
/// Both are `[B, ...]` and are flattened to `[B, F]` in row-major order. A teacher with `k` times
/// the student's values is average-pooled over `k` neighbours first. The teacher gets no gradient.
///
/// It is `torch.nn.CosineEmbeddingLoss` with targets of 1 (after `avg_pool1d(teacher, k)`), as in the
/// PyTorch tutorial on knowledge distillation, where features of 1024 and 2048 meet.
///
/// # Errors
/// When the batch sizes differ or the teacher's size is no multiple of the student's.
pub fn cosine(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let mismatch = || Error::ShapeMismatch {
        method: "cosine",
        what: "features".into(),
        student: student.dims().to_vec(),
        other: teacher.dims().to_vec(),
        expected: FITS,
    };
    if student.rank() < 2 || teacher.rank() < 2 || student.dims()[0] != teacher.dims()[0] {
        return Err(mismatch());
    }
    if student.dims()[0] == 0 {
        return Err(Error::EmptyBatch);
    }
    let student = student.flatten_from(1)?;
    let pool = pooling(student.dims()[1], teacher.dims()[1..].iter().product());
    let pool = pool.ok_or_else(mismatch)?;
    let mut teacher = teacher.detach().flatten_from(1)?;
    if pool > 1 {
        teacher = teacher.reshape((student.dims()[0], student.dims()[1], pool))?.mean(D::Minus1)?;
    }
    let dot = (&student * &teacher)?.sum(D::Minus1)?;
    // Each root for itself: the product of the squares would overflow sooner.
    let length = |x: &Tensor| (x.sqr()?.sum(D::Minus1)? + EPSILON)?.sqrt();
    let cosine = (dot / (length(&student)? * length(&teacher)?)?)?;
    Ok(cosine.mean_all()?.affine(-1.0, 1.0)?)
}

const FITS: &str = "the batches must be equal and the teacher's values a multiple of the student's";

/// How many of the teacher's values make one of the student's.
fn pooling(student: usize, teacher: usize) -> Option<usize> {
    (student > 0 && teacher > 0 && teacher.is_multiple_of(student)).then(|| teacher / student)
}

/// Options of [`cosine`] as a [`Method`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CosineConfig {
    /// The student's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl CosineConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        let found = PairShapes::find("cosine", shapes, student, teacher, Fallback::Map)?;
        let values = |shape: &[usize]| shape.iter().product();
        match pooling(values(&found.student), values(&found.teacher)) {
            Some(_) => Ok(found),
            None => Err(found.mismatch("cosine", FITS)),
        }
    }
}

impl Options for CosineConfig {
    const ABOUT: About = About {
        kind: Kind::Feature,
        summary: "1 - cosine between flattened feature maps",
        paper: "PyTorch tutorial on knowledge distillation",
        weight: 0.25,
        labels: 0.75,
        options: &PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn build(&self, shapes: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(Cosine { places: self.places(shapes)?.pair }))
    }
}

/// [`cosine`] between two feature places.
struct Cosine {
    places: Pair,
}

impl Method for Cosine {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("cosine", inputs)?;
        cosine(&student, &teacher)
    }
}
