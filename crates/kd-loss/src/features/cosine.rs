//! The angle between student's and teacher's features.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;

use crate::method::{About, Definition, Kind, Method};
use crate::pairs::{MAP_PAIR, Pair, PairConfig, compare};
use crate::setup::DefaultPlace;
use crate::{Error, Result, Setup};

/// Added to each squared length, as in PyTorch, so that a vector of zeros gives a finite loss and gradient.
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
    // A root of each, not of the product: the product of the squares overflows sooner.
    let length = |x: &Tensor| (x.sqr()?.sum(D::Minus1)? + EPSILON)?.sqrt();
    let cosine = (dot / (length(&student)? * length(&teacher)?)?)?;
    Ok(cosine.mean_all()?.affine(-1.0, 1.0)?)
}

const FITS: &str = "the batches must be equal and the teacher's values a multiple of the student's";

/// How many of the teacher's values are averaged to one of the student's; `None` if they don't divide.
fn pooling(student: usize, teacher: usize) -> Option<usize> {
    (student > 0 && teacher > 0 && teacher.is_multiple_of(student)).then(|| teacher / student)
}

pub(crate) struct Cosine;

impl Definition for Cosine {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        summary: "1 - cosine between flattened feature maps",
        paper: "PyTorch tutorial on knowledge distillation",
        weight: 0.25,
        labels: 0.75,
        options: &MAP_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = places(options, setup)?.into();
        Ok(())
    }

    fn build(options: &PairConfig, setup: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(compare(vec![places(options, setup)?], cosine))
    }
}

/// The two places, of which the teacher's must have a multiple of the student's values.
fn places(options: &PairConfig, setup: &Setup) -> Result<Pair> {
    let pair = options.find(setup, DefaultPlace::Map)?;
    let values = |shape: &[usize]| shape.iter().product();
    match pooling(values(&pair.student_shape), values(&pair.teacher_shape)) {
        Some(_) => Ok(pair),
        None => Err(pair.mismatch(FITS)),
    }
}
