//! Relational knowledge distillation: distances and angles between images.

mod cpu;

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;

use crate::matching::rows;
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::{normalized, or_one, root};
use crate::pairs::{PairConfig, VECTOR_PAIR, compare};
use crate::setup::DefaultPlace;
use crate::{Result, Setup};

/// `mean over pairs of images of huber(d(student) - d(teacher))`, a scalar.
///
/// Features are `[B, ...]`, flattened; their sizes may differ. d is the Euclidean distance of two images, divided by the
/// mean distance of the batch's pairs; huber(x) = x²/2 up to |x| = 1 and |x| - ½ beyond. The mean is over all B² entries, including the
/// zeros of the diagonal. The teacher gets no gradient.
///
/// Park et al., "Relational Knowledge Distillation" (2019), equations 4 to 7. The paper's weight is 25, beside 50 of [`rkd_angle`].
///
/// # Errors
/// When the batches differ in size.
pub fn rkd_distance(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows(student, teacher)?;
    Ok(huber(&(distances(&student)? - distances(&teacher)?)?)?.to_dtype(student.dtype())?)
}

/// The distances between all images, `[B, B]`, divided by their mean over pairs of different images; where all images are equal, zeros.
///
/// They come from differences of features. From products, as in the authors' code, nothing is left in f32 of the distances of images
/// that are far from the origin and near each other.
fn distances(x: &Tensor) -> candle_core::Result<Tensor> {
    let batch = x.dims()[0];
    let squared = match x.device().is_cpu() {
        true => cpu::squared_distances(x)?,
        false => x.unsqueeze(0)?.broadcast_sub(&x.unsqueeze(1)?)?.sqr()?.sum(D::Minus1)?,
    };
    let distances = root(&squared)?;
    let pairs = (batch * (batch - 1)).max(1) as f64;
    let mean = (distances.sum_all()? / pairs)?;
    let apart = mean.gt(&mean.zeros_like()?)?;
    distances.broadcast_div(&or_one(&mean, &apart)?)
}

/// `mean over triples of images of huber(cos(student) - cos(teacher))`, a scalar.
///
/// Features are `[B, ...]`, flattened; their sizes may differ. cos is the cosine of the angle at image j between
/// the directions to images i and k. The mean is over all B³ triples, in which the direction of an image to itself counts as 0. The teacher gets no gradient.
///
/// Park et al., "Relational Knowledge Distillation" (2019), equations 8 and 9. The paper's weight is 50, beside 25 of [`rkd_distance`].
///
/// # Errors
/// When the batches differ in size.
pub fn rkd_angle(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows(student, teacher)?;
    if student.device().is_cpu() && teacher.device().is_cpu() {
        return Ok(cpu::angle(&student, &teacher)?);
    }
    Ok(by_directions(&student, &teacher)?)
}

/// [`rkd_angle`] by candle's operations, on any device.
fn by_directions(student: &Tensor, teacher: &Tensor) -> candle_core::Result<Tensor> {
    huber(&(angles(student)? - angles(teacher)?)?)
}

/// `[B, B, B]`: at each image the cosines of the angles between the directions to all pairs of images.
fn angles(x: &Tensor) -> candle_core::Result<Tensor> {
    let directions = normalized(&x.unsqueeze(0)?.broadcast_sub(&x.unsqueeze(1)?)?)?.contiguous()?;
    directions.matmul(&directions.transpose(1, 2)?.contiguous()?)
}

/// Mean of `x²/2` up to |x| = 1 and |x| - ½ beyond: with m = min(|x|, 1), m²/2 + |x| - m.
fn huber(x: &Tensor) -> candle_core::Result<Tensor> {
    let x = x.abs()?;
    let m = x.minimum(1.0)?;
    ((m.sqr()? * 0.5)? + (x - m)?)?.mean_all()
}

pub(crate) struct RkdDistance;

impl Definition for RkdDistance {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Relation,
        across_images: true,
        summary: "distances between the images of a batch",
        paper: "Park et al. 2019",
        weight: 25.0,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, distiller_zoo/RKD.py: w_d=25, w_a=50, with scripts/run_cifar_distill.sh: --distill rkd -a 0 -b 1, for both losses together as in recipes/methods/rkd.toml. The authors' lenscloth/RKD has the same ratio for embeddings, without labels (README.md: --dist_ratio 1 --angle_ratio 2)",
        options: &VECTOR_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = options.find(setup, DefaultPlace::Vector)?.into();
        Ok(())
    }

    fn build(options: &PairConfig, setup: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(compare(vec![options.find(setup, DefaultPlace::Vector)?], rkd_distance))
    }
}

pub(crate) struct RkdAngle;

impl Definition for RkdAngle {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Relation,
        across_images: true,
        summary: "angles between the images of a batch",
        paper: "Park et al. 2019",
        weight: 50.0,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, distiller_zoo/RKD.py: w_d=25, w_a=50, with scripts/run_cifar_distill.sh: --distill rkd -a 0 -b 1, for both losses together as in recipes/methods/rkd.toml. The authors' lenscloth/RKD has the same ratio for embeddings, without labels (README.md: --dist_ratio 1 --angle_ratio 2)",
        options: &VECTOR_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = options.find(setup, DefaultPlace::Vector)?.into();
        Ok(())
    }

    fn build(options: &PairConfig, setup: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(compare(vec![options.find(setup, DefaultPlace::Vector)?], rkd_angle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, numbers};
    use candle_core::{DType, Var};

    /// Batches below, at and above what a thread adds up, one with two equal images.
    #[test]
    fn angles_from_distances_are_those_of_directions() -> Result<()> {
        for (batch, width) in [(1, 3), (2, 1), (5, 8), (16, 9), (37, 20)] {
            let teacher = numbers(batch, width + 4, 3)?;
            let mut student = numbers(batch, width, 7)?;
            if batch == 16 {
                student = Tensor::cat(&[&student.narrow(0, 0, 15)?, &student.narrow(0, 3, 1)?], 0)?;
            }
            let student = Var::from_tensor(&student)?;
            let found = rkd_angle(&student, &teacher)?;
            let expected = by_directions(&student, &teacher)?;
            let distance = (&found - &expected)?.to_scalar::<f64>()?.abs();
            assert!(distance < 1e-12, "{batch} images: {found} and {expected}");
            // Twice, so that the gradient from above counts.
            let gradient = |loss: &Tensor| {
                Ok::<_, candle_core::Error>((loss * 2.0)?.backward()?.get(&student).cloned())
            };
            let (Some(found), Some(expected)) = (gradient(&found)?, gradient(&expected)?) else {
                panic!("no gradient")
            };
            // The equal images' directions to each other have no meaning; those of the others do.
            let rows = if batch == 16 { 3 } else { batch };
            let distance = (found.narrow(0, 0, rows)? - expected.narrow(0, 0, rows)?)?;
            let distance = distance.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(distance < 1e-10, "{batch} images of {width}: {distance}");
            let all = found.flatten_all()?.to_vec1::<f64>()?;
            assert!(all.iter().all(|value| value.is_finite()), "{batch} images: {all:?}");
        }
        Ok(())
    }

    #[test]
    fn angles_of_bf16_are_those_of_its_numbers() -> Result<()> {
        let (student, teacher) = (numbers(4, 6, 7)?, numbers(4, 5, 3)?);
        let (student, teacher) = (student.to_dtype(DType::BF16)?, teacher.to_dtype(DType::BF16)?);
        let found = rkd_angle(&student, &teacher)?;
        let expected =
            by_directions(&student.to_dtype(DType::F64)?, &teacher.to_dtype(DType::F64)?)?;
        // Summed in f32 at least, and given back as that.
        assert_eq!(found.dtype(), DType::F32);
        let distance = (found.to_dtype(DType::F64)? - &expected)?.to_scalar::<f64>()?.abs();
        assert!(distance <= expected.to_scalar::<f64>()? * 1e-6, "{found} and {expected}");
        Ok(())
    }

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["rkd_distance", "positive.rkd_distance"], 1, |s, t| rkd_distance(&s[0], &t[0]));
        agree(&["rkd_angle", "positive.rkd_angle"], 1, |s, t| rkd_angle(&s[0], &t[0]));
    }
}
