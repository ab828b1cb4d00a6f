//! Relational knowledge distillation: distances and angles between images.

mod cpu;

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, Kind, Options};
use crate::places::{Fallback, Pair, PairShapes, VECTOR_PLACES, normalized, rows};
use crate::{Inputs, Method, Needs, Result, Setup};

/// `mean over pairs of images of huber(d(student) - d(teacher))`, a scalar.
///
/// Features are `[B, ...]`, flattened; their sizes may differ. d is the Euclidean distance of two images, divided by the
/// mean distance of the batch's pairs; huber(x) = x²/2 up to |x| = 1 and |x| - ½ beyond. The mean is over all B² entries, the diagonal's zeros
/// among them. The teacher gets no gradient.
///
/// Park et al., "Relational Knowledge Distillation" (2019), equations 4 to 7; weight 25 beside 50 of [`rkd_angle`].
///
/// # Errors
/// When the batches differ in size.
pub fn rkd_distance(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows("rkd-distance", student, teacher)?;
    Ok(huber(&(distances(&student)? - distances(&teacher)?)?)?)
}

/// `[B, B]`, divided by the mean over different images.
fn distances(x: &Tensor) -> candle_core::Result<Tensor> {
    let batch = x.dims()[0];
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    let products = x.matmul(&x.t()?.contiguous()?)?;
    let squared = (squares.broadcast_add(&squares.t()?)? - (products * 2.0)?)?;
    // Rounding can bring equal images below 0; the root needs a gradient there.
    let others = (1.0 - Tensor::eye(batch, x.dtype(), x.device())?)?;
    let distances = (squared.maximum(CLOSEST)?.sqrt()? * others)?;
    let pairs = (batch * (batch - 1)).max(1) as f64;
    let mean = (distances.sum_all()? / pairs)?;
    distances.broadcast_div(&(mean + TINY)?)
}

/// Squared distances are bounded below by this.
const CLOSEST: f64 = 1e-12;
/// A batch of one image has no distance to divide by.
const TINY: f64 = 1e-12;

/// `mean over triples of images of huber(cos(student) - cos(teacher))`, a scalar.
///
/// Features are `[B, ...]`, flattened; their sizes may differ. cos is that of the angle at image j between the
/// directions to images i and k; over all B³ triples, where the directions of an image to itself count as 0. The teacher gets no gradient.
///
/// Park et al., "Relational Knowledge Distillation" (2019), equations 8 and 9; weight 50 beside 25 of [`rkd_distance`].
///
/// # Errors
/// When the batches differ in size.
pub fn rkd_angle(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows("rkd-angle", student, teacher)?;
    if student.device().is_cpu() && teacher.device().is_cpu() {
        return Ok(cpu::angle(&student, &teacher)?);
    }
    Ok(by_directions(&student, &teacher)?)
}

/// The loss of angles by candle's operations, on any device.
fn by_directions(student: &Tensor, teacher: &Tensor) -> candle_core::Result<Tensor> {
    huber(&(angles(student)? - angles(teacher)?)?)
}

/// `[B, B, B]`: for each image the cosines between the directions to all pairs of others.
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

/// Options of [`rkd_distance`] as a [`Method`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RkdDistanceConfig {
    /// The student's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl RkdDistanceConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("rkd-distance", shapes, student, teacher, Fallback::Vector)
    }
}

impl Options for RkdDistanceConfig {
    const ABOUT: About = About {
        kind: Kind::Relation,
        summary: "distances between the images of a batch",
        paper: "Park et al. 2019",
        weight: 25.0,
        labels: 1.0,
        options: &VECTOR_PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn build(&self, shapes: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(RkdDistance { places: self.places(shapes)?.pair }))
    }
}

struct RkdDistance {
    places: Pair,
}

impl Method for RkdDistance {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("rkd-distance", inputs)?;
        rkd_distance(&student, &teacher)
    }
}

/// Options of [`rkd_angle`] as a [`Method`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RkdAngleConfig {
    /// The student's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl RkdAngleConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("rkd-angle", shapes, student, teacher, Fallback::Vector)
    }
}

impl Options for RkdAngleConfig {
    const ABOUT: About = About {
        kind: Kind::Relation,
        summary: "angles between the images of a batch",
        paper: "Park et al. 2019",
        weight: 50.0,
        labels: 1.0,
        options: &VECTOR_PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn build(&self, shapes: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(RkdAngle { places: self.places(shapes)?.pair }))
    }
}

struct RkdAngle {
    places: Pair,
}

impl Method for RkdAngle {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("rkd-angle", inputs)?;
        rkd_angle(&student, &teacher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;
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
        assert_eq!(found.dtype(), DType::BF16);
        let distance = (found.to_dtype(DType::F64)? - &expected)?.to_scalar::<f64>()?.abs();
        assert!(distance <= expected.to_scalar::<f64>()? / 256.0, "{found} and {expected}");
        Ok(())
    }
}
