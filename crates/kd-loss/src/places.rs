//! Feature places: which values of the two networks a method looks at, and how their shapes are matched.

use candle_core::{D, Tensor};

use crate::{Error, Inputs, Needs, Result};

/// What a method is built for: the two networks as seen from outside, and the labels of the images that the run trains on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// The student's feature places from input to output, each with the shape of one image's
    /// values: `[C, H, W]` or `[F]`.
    pub student: Vec<(String, Vec<usize>)>,
    /// The teacher's.
    pub teacher: Vec<(String, Vec<usize>)>,
    /// The number of classes, the same for both.
    pub classes: usize,
    /// The labels of all training images, for methods that keep a memory of each.
    pub train_labels: Vec<u32>,
}

/// Which of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Student,
    Teacher,
}

impl Network {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Student => "student",
            Self::Teacher => "teacher",
        }
    }
}

/// What a method takes when a recipe names no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// The last feature map `[C, H, W]`.
    Map,
    /// The last vector `[F]`, or without one the last feature map, flattened.
    Vector,
}

impl Setup {
    fn of(&self, network: Network) -> &[(String, Vec<usize>)] {
        match network {
            Network::Student => &self.student,
            Network::Teacher => &self.teacher,
        }
    }

    /// The place of this name, or without a name the fallback's, and the shape of an image's values there.
    pub(crate) fn place(
        &self,
        method: &'static str,
        network: Network,
        name: Option<&str>,
        fallback: Fallback,
    ) -> Result<(&str, &[usize])> {
        let places = self.of(network);
        let last = |rank: usize| places.iter().rfind(|(_, shape)| shape.len() == rank);
        let place = match name {
            Some(name) => places.iter().find(|(known, _)| known == name).ok_or_else(|| {
                unknown_place(method, network, name, places.iter().map(|(known, _)| known))
            })?,
            None => match fallback {
                Fallback::Map => last(3),
                Fallback::Vector => last(1).or_else(|| last(3)),
            }
            .ok_or(Error::NoFeatureMap { method, network: network.name() })?,
        };
        Ok((&place.0, &place.1))
    }
}

fn unknown_place<'a>(
    method: &'static str,
    network: Network,
    place: &str,
    known: impl Iterator<Item = &'a String>,
) -> Error {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
    Error::UnknownPlace { method, network: network.name(), place: place.to_string(), known }
}

/// The values at a place that a method has asked for.
pub(crate) fn feature<'a>(
    method: &'static str,
    network: Network,
    inputs: &Inputs<'a>,
    place: &str,
) -> Result<&'a Tensor> {
    let features = match network {
        Network::Student => inputs.student_features,
        Network::Teacher => inputs.teacher_features,
    };
    features.get(place).ok_or_else(|| unknown_place(method, network, place, features.keys()))
}

/// The options of a method that compares one place of each network.
pub(crate) const PLACES: [(&str, &str); 2] = [
    ("student", "the student's feature place [default: its last feature map]"),
    ("teacher", "the teacher's feature place [default: its last feature map]"),
];

/// The same for methods that take vectors.
pub(crate) const VECTOR_PLACES: [(&str, &str); 2] = [
    ("student", "the student's feature place [default: its last vector, or else feature map]"),
    ("teacher", "the teacher's feature place [default: its last vector, or else feature map]"),
];

/// The options of a method that compares several places of each network.
pub(crate) const PLACE_LISTS: [(&str, &str); 2] = [
    ("student", "list of the student's feature places [default: its last feature map]"),
    (
        "teacher",
        "list of the teacher's, one for each of the student's [default: its last feature map]",
    ),
];

/// A place of the student and the place of the teacher that it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) student: String,
    pub(crate) teacher: String,
}

/// A [`Pair`] with its shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PairShapes {
    pub(crate) pair: Pair,
    pub(crate) student: Vec<usize>,
    pub(crate) teacher: Vec<usize>,
}

impl PairShapes {
    pub(crate) fn find(
        method: &'static str,
        shapes: &Setup,
        student: Option<&str>,
        teacher: Option<&str>,
        fallback: Fallback,
    ) -> Result<Self> {
        let (student, student_shape) = shapes.place(method, Network::Student, student, fallback)?;
        let (teacher, teacher_shape) = shapes.place(method, Network::Teacher, teacher, fallback)?;
        Ok(Self {
            pair: Pair { student: student.into(), teacher: teacher.into() },
            student: student_shape.to_vec(),
            teacher: teacher_shape.to_vec(),
        })
    }

    /// The error that these shapes are.
    pub(crate) fn mismatch(&self, method: &'static str, expected: &'static str) -> Error {
        Error::ShapeMismatch {
            method,
            what: format!("{} (teacher's {})", self.pair.student, self.pair.teacher),
            student: self.student.clone(),
            other: self.teacher.clone(),
            expected,
        }
    }

    /// Channels of two maps, of which one can be averaged down to the other's height and width.
    pub(crate) fn channels_of_maps(&self, method: &'static str) -> Result<(usize, usize)> {
        match (&self.student[..], &self.teacher[..]) {
            (&[cs, hs, ws], &[ct, ht, wt]) if common_size((hs, ws), (ht, wt)).is_some() => {
                Ok((cs, ct))
            }
            _ => Err(self.mismatch(method, MAPS_FIT)),
        }
    }
}

/// What [`match_size`] takes.
pub(crate) const MAPS_FIT: &str =
    "both must be maps [C, H, W], the heights and widths of one a multiple of the other's";

/// Two lists of places, one pair a position; both empty mean the default.
pub(crate) fn pairs(
    method: &'static str,
    shapes: &Setup,
    student: &[String],
    teacher: &[String],
) -> Result<Vec<PairShapes>> {
    if student.len() != teacher.len() {
        return Err(Error::Config {
            method,
            field: "student",
            found: format!(
                "a list of {} places with {} of the teacher",
                student.len(),
                teacher.len()
            ),
            expected: "as many places as `teacher` has",
        });
    }
    if student.is_empty() {
        return Ok(vec![PairShapes::find(method, shapes, None, None, Fallback::Map)?]);
    }
    let pairs = student.iter().zip(teacher);
    pairs.map(|(s, t)| PairShapes::find(method, shapes, Some(s), Some(t), Fallback::Map)).collect()
}

impl Pair {
    pub(crate) fn needs(pairs: &[Self]) -> Needs {
        Needs {
            student: pairs.iter().map(|pair| pair.student.clone()).collect(),
            teacher: pairs.iter().map(|pair| pair.teacher.clone()).collect(),
            ..Needs::default()
        }
    }

    /// The values of the two networks, the teacher's without a gradient.
    pub(crate) fn features(
        &self,
        method: &'static str,
        inputs: &Inputs<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let student = feature(method, Network::Student, inputs, &self.student)?.clone();
        let teacher = feature(method, Network::Teacher, inputs, &self.teacher)?.detach();
        Ok((student, teacher))
    }
}

/// The sum of a loss over pairs of places.
pub(crate) fn sum(pairs: &[Pair], loss: impl Fn(&Pair) -> Result<Tensor>) -> Result<Tensor> {
    let Some((first, others)) = pairs.split_first() else {
        unreachable!("a method has at least one pair of places")
    };
    let mut total = loss(first)?;
    for pair in others {
        total = (total + loss(pair)?)?;
    }
    Ok(total)
}

fn common_size(a: (usize, usize), b: (usize, usize)) -> Option<(usize, usize)> {
    let divides = |small: (usize, usize), large: (usize, usize)| {
        small.0 > 0
            && small.1 > 0
            && large.0.is_multiple_of(small.0)
            && large.1.is_multiple_of(small.1)
    };
    if divides(a, b) {
        Some(a)
    } else if divides(b, a) {
        Some(b)
    } else {
        None
    }
}

/// Two maps `[B, C, H, W]` of the same height and width: the larger one is averaged over windows.
pub(crate) fn match_size(
    method: &'static str,
    student: &Tensor,
    teacher: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mismatch = || Error::ShapeMismatch {
        method,
        what: "feature maps".into(),
        student: student.dims().to_vec(),
        other: teacher.dims().to_vec(),
        expected: "both must be [B, C, H, W] with the same B, the heights and widths of one a multiple of the other's",
    };
    let (&[batch, _, hs, ws], &[batch_t, _, ht, wt]) = (student.dims(), teacher.dims()) else {
        return Err(mismatch());
    };
    if batch != batch_t {
        return Err(mismatch());
    }
    if batch == 0 {
        return Err(Error::EmptyBatch);
    }
    let (h, w) = common_size((hs, ws), (ht, wt)).ok_or_else(mismatch)?;
    Ok((average_to(student, h, w)?, average_to(teacher, h, w)?))
}

fn average_to(map: &Tensor, h: usize, w: usize) -> candle_core::Result<Tensor> {
    let (_, _, height, width) = map.dims4()?;
    if (height, width) == (h, w) {
        return Ok(map.clone());
    }
    map.avg_pool2d((height / h, width / w))
}

/// Two batches as rows `[B, F]`, flattened; the numbers of columns may differ.
pub(crate) fn rows(
    method: &'static str,
    student: &Tensor,
    teacher: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let fits = student.rank() >= 2
        && teacher.rank() >= 2
        && student.dims()[0] == teacher.dims()[0]
        && student.dims()[1..].iter().chain(&teacher.dims()[1..]).all(|&dim| dim > 0);
    if !fits {
        return Err(Error::ShapeMismatch {
            method,
            what: "features".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be [B, ...] with the same B",
        });
    }
    if student.dims()[0] == 0 {
        return Err(Error::EmptyBatch);
    }
    Ok((student.flatten_from(1)?, teacher.detach().flatten_from(1)?))
}

/// Divided by its Euclidean length over the last dimension; zeros stay zeros, with a finite gradient.
pub(crate) fn normalized(x: &Tensor) -> candle_core::Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + TINY)?.sqrt()?)
}

/// Added to squared lengths: PyTorch bounds the length below by 1e-12; a root needs a gradient at 0 too.
pub(crate) const TINY: f64 = 1e-16;

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_larger_map_is_averaged() -> Result<()> {
        let small = Tensor::zeros((1, 2, 2, 1), DType::F32, &Device::Cpu)?;
        let large = Tensor::arange(0f32, 16.0, &Device::Cpu)?.reshape((1, 2, 4, 2))?;
        let (small, large) = match_size("test", &small, &large)?;
        assert_eq!(small.dims(), [1, 2, 2, 1]);
        assert_eq!(large.flatten_all()?.to_vec1::<f32>()?, [1.5, 5.5, 9.5, 13.5]);
        Ok(())
    }

    #[test]
    fn maps_whose_sizes_do_not_divide_are_an_error_with_both_shapes() -> Result<()> {
        let a = Tensor::zeros((1, 2, 4, 4), DType::F32, &Device::Cpu)?;
        let b = Tensor::zeros((1, 2, 6, 6), DType::F32, &Device::Cpu)?;
        let error = match_size("test", &a, &b).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("[1, 2, 4, 4]") && error.contains("[1, 2, 6, 6]"), "{error}");
        Ok(())
    }

    #[test]
    fn the_default_vector_is_the_last_one_or_else_the_last_map() -> Result<()> {
        let place = |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec());
        let mut shapes = Setup {
            student: vec![place("a", &[3]), place("b", &[4]), place("c", &[2, 2, 2])],
            ..Setup::default()
        };
        let find = |shapes: &Setup, fallback| {
            shapes.place("m", Network::Student, None, fallback).map(|(name, _)| name.to_string())
        };
        assert_eq!(find(&shapes, Fallback::Vector)?, "b");
        assert_eq!(find(&shapes, Fallback::Map)?, "c");
        shapes.student.drain(..2);
        assert_eq!(find(&shapes, Fallback::Vector)?, "c");
        Ok(())
    }
}
