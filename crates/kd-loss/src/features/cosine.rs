//! The angle between student's and teacher's features.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;

use crate::matching::check_types;
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::{widened_both, without_zero_rows};
use crate::pairs::{MAP_PAIR, Pair, PairConfig, compare};
use crate::setup::DefaultPlace;
use crate::{Error, Result, Setup};

/// Added to each squared length, as in PyTorch, so that a vector of zeros gives a finite loss.
const EPSILON: f64 = 1e-12;

/// `mean over images of 1 - cos(student, teacher)`, a scalar.
///
/// Both are `[B, ...]` and are flattened to `[B, F]` in row-major order. A teacher with `k` times
/// the student's values is average-pooled over `k` neighbours first. The teacher gets no gradient.
///
/// It is `torch.nn.CosineEmbeddingLoss` with targets of 1 (after `avg_pool1d(teacher, k)`), as in the
/// PyTorch tutorial on knowledge distillation, where features of 1024 and 2048 meet. As there, 1e-12 is added to each squared length: from
/// lengths of about 1e-5 down the cosine becomes smaller than that of the directions. PyTorch's value is kept, as it is the tutorial's; the gradient
/// departs from it at the student's rows up to 1e-16 long alone: it is 0, where PyTorch's reaches 1e6.
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
    check_types(student, teacher)?;
    let (student, teacher) = widened_both(student, &teacher.detach())?;
    // At a student's row of zeros there is no derivative: its gradient is 0, where PyTorch's grows to 1e6.
    let student = without_zero_rows(&student.flatten_from(1)?)?;
    let pool = pooling(student.dims()[1], teacher.dims()[1..].iter().product());
    let pool = pool.ok_or_else(mismatch)?;
    let mut teacher = teacher.flatten_from(1)?;
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
        across_images: false,
        summary: "1 - cosine between flattened feature maps",
        paper: "PyTorch tutorial on knowledge distillation",
        weight: 0.25,
        labels: 0.75,
        source: "pytorch/tutorials, beginner_source/knowledge_distillation_tutorial.py: train_cosine_loss, hidden_rep_loss_weight=0.25, ce_loss_weight=0.75",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{any_rows, assert_agrees, check_formula, fixture, tensor};
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    #[test]
    fn cosine_agrees_with_pytorch() {
        let fixture = fixture();
        for name in ["cosine_equal", "cosine_pooled", "cosine_pooled3", "cosine_same"] {
            let student = Var::from_tensor(&fixture[&format!("{name}.student")]).unwrap();
            let loss = cosine(&student, &fixture[&format!("{name}.teacher")]).unwrap();
            assert_agrees(&fixture, name, &loss, &[&student]);
        }
    }

    fn cosine_formula(student: &[Vec<f64>], teacher: &[Vec<f64>]) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let row = |(s, t): (&Vec<f64>, &Vec<f64>)| {
            let pool = t.len() / s.len();
            let t: Vec<f64> =
                t.chunks(pool).map(|group| group.iter().sum::<f64>() / pool as f64).collect();
            1.0 - dot(s, &t) / (dot(s, s).sqrt() * dot(&t, &t).sqrt())
        };
        student.iter().zip(teacher).map(row).sum::<f64>() / student.len() as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn cosine_has_the_formulas_value_and_gradient(student in any_rows(3, 4, 2.0), teacher in any_rows(3, 12, 2.0)) {
            // Near zero the direction changes too fast for differences.
            prop_assume!(student.iter().all(|row| row.iter().any(|x| x.abs() > 0.5)));
            // Three numbers are averaged to one: where the means nearly cancel, so does what f32 knows of their direction.
            let mut means = teacher.iter().map(|row| row.chunks(3).map(|x| x.iter().sum::<f64>() / 3.0));
            prop_assume!(means.all(|mut row| row.any(|x| x.abs() > 0.05)));
            check_formula(
                &student,
                |student| cosine(student, &tensor(&teacher)).unwrap(),
                |student| cosine_formula(student, &teacher),
            );
        }
    }

    #[test]
    fn a_feature_vector_of_zeros_has_a_finite_gradient() {
        let student = Var::new(&[[0f32, 0.0], [1.0, 2.0]], &Device::Cpu).unwrap();
        let teacher = Tensor::new(&[[1f32, 2.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let loss = cosine(&student, &teacher).unwrap();
        assert!((loss.to_scalar::<f32>().unwrap() - 1.0).abs() < 1e-6);
        let grads = loss.backward().unwrap();
        let grad = grads.get(&student).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(grad.iter().all(|x| x.is_finite()), "{grad:?}");
    }
}
