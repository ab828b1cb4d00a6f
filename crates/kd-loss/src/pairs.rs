//! Methods that compare feature places of the two networks pair by pair: their options, and the method itself, made of a plain
//! function of two tensors.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::inputs::{Inputs, Needs};
use crate::matching::{check_types, common_size};
use crate::method::Method;
use crate::numeric::in_one_type;
use crate::setup::{DefaultPlace, Setup, Side, unknown_place};
use crate::{Error, Result};

/// Options of a method that compares one feature place of each network.
///
/// A place that is left out is the network's last feature map, or for methods that compare the images of a batch its last vector,
/// and in a network without vectors its last feature map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairConfig {
    /// The student's feature place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

/// Options of a method that compares several feature places of each network, position by position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairListConfig {
    /// The student's feature places; when empty the method's default, its last feature map ("fsp": first and last).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub student: Vec<String>,
    /// The teacher's feature places, one for each of the student's, with the same default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teacher: Vec<String>,
}

/// The list's text about the options of a method that compares one feature map of each network.
pub(crate) const MAP_PAIR: [(&str, &str); 2] = [
    ("student", "the student's feature place [default: its last feature map]"),
    ("teacher", "the teacher's feature place [default: its last feature map]"),
];

/// The same for methods whose default is a vector.
pub(crate) const VECTOR_PAIR: [(&str, &str); 2] = [
    ("student", "the student's feature place [default: its last vector, or else feature map]"),
    ("teacher", "the teacher's feature place [default: its last vector, or else feature map]"),
];

/// The same for methods that compare several feature maps of each network.
pub(crate) const MAP_PAIRS: [(&str, &str); 2] = [
    ("student", "list of the student's feature places [default: its last feature map]"),
    (
        "teacher",
        "list of the teacher's, one for each of the student's [default: its last feature map]",
    ),
];

/// A feature place of the student and the teacher's that it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) student: String,
    pub(crate) teacher: String,
    /// The shape of one image's values at the student's place.
    pub(crate) student_shape: Vec<usize>,
    /// The shape of one image's values at the teacher's place.
    pub(crate) teacher_shape: Vec<usize>,
}

impl Pair {
    /// The places of these names, or where there is no name the default's.
    ///
    /// # Errors
    /// When a network lacks the place.
    pub(crate) fn find(
        setup: &Setup,
        student: Option<&str>,
        teacher: Option<&str>,
        default: DefaultPlace,
    ) -> Result<Self> {
        let (student, student_shape) = setup.place(Side::Student, student, default)?;
        let (teacher, teacher_shape) = setup.place(Side::Teacher, teacher, default)?;
        Ok(Self {
            student: student.into(),
            teacher: teacher.into(),
            student_shape: student_shape.to_vec(),
            teacher_shape: teacher_shape.to_vec(),
        })
    }

    /// The error of shapes that the method can't compare.
    pub(crate) fn mismatch(&self, expected: &'static str) -> Error {
        Error::ShapeMismatch {
            what: format!("{} (teacher's {})", self.student, self.teacher),
            student: self.student_shape.clone(),
            other: self.teacher_shape.clone(),
            expected,
        }
    }

    /// The channels of the two maps, student's first.
    ///
    /// # Errors
    /// When the places don't hold maps that [`match_size`](crate::matching::match_size) takes.
    pub(crate) fn channels(&self) -> Result<(usize, usize)> {
        match (&self.student_shape[..], &self.teacher_shape[..]) {
            (&[cs, hs, ws], &[ct, ht, wt]) if common_size((hs, ws), (ht, wt)).is_some() => {
                Ok((cs, ct))
            }
            _ => Err(self.mismatch(
                "both must be maps [C, H, W], the height and width of one multiples of the other's",
            )),
        }
    }

    /// What a method needs that compares these pairs.
    pub(crate) fn needs(pairs: &[Self]) -> Needs {
        Needs {
            student: pairs.iter().map(|pair| pair.student.clone()).collect(),
            teacher: pairs.iter().map(|pair| pair.teacher.clone()).collect(),
            ..Needs::default()
        }
    }

    /// The values `[B, ...]` of both networks, the teacher's without a gradient.
    ///
    /// # Errors
    /// When the inputs lack one of the places, or hold other numbers than floats there.
    pub(crate) fn features(&self, inputs: &Inputs<'_>) -> Result<(Tensor, Tensor)> {
        let (ours, theirs) = (inputs.student_features, inputs.teacher_features);
        let student = ours.get(&self.student);
        let student =
            student.ok_or_else(|| unknown_place(Side::Student, &self.student, ours.keys()))?;
        let teacher = theirs.get(&self.teacher);
        let teacher =
            teacher.ok_or_else(|| unknown_place(Side::Teacher, &self.teacher, theirs.keys()))?;
        check_types(student, teacher)?;
        Ok((student.clone(), teacher.detach()))
    }
}

impl PairConfig {
    /// The places of these options.
    pub(crate) fn find(&self, setup: &Setup, default: DefaultPlace) -> Result<Pair> {
        Pair::find(setup, self.student.as_deref(), self.teacher.as_deref(), default)
    }
}

impl From<Pair> for PairConfig {
    /// The options that name these places.
    fn from(pair: Pair) -> Self {
        Self { student: Some(pair.student), teacher: Some(pair.teacher) }
    }
}

impl PairListConfig {
    /// The places of these options, by default the last feature map of each network.
    ///
    /// # Errors
    /// When the lists differ in length or a network lacks a place.
    pub(crate) fn find(&self, setup: &Setup) -> Result<Vec<Pair>> {
        let (student, teacher) = (&self.student, &self.teacher);
        if student.len() != teacher.len() {
            return Err(Error::Option {
                field: "student",
                found: format!(
                    "a list of {} places with {} of the teacher",
                    student.len(),
                    teacher.len()
                ),
                expected: "as many places as `teacher` has",
            });
        }
        let map = DefaultPlace::Map;
        if student.is_empty() {
            return Ok(vec![Pair::find(setup, None, None, map)?]);
        }
        let pairs = student.iter().zip(teacher);
        pairs.map(|(s, t)| Pair::find(setup, Some(s), Some(t), map)).collect()
    }

    /// The places of these options, which must be maps that [`match_size`](crate::matching::match_size) takes.
    ///
    /// # Errors
    /// As [`find`](Self::find), and when a pair's maps don't fit.
    pub(crate) fn find_maps(&self, setup: &Setup) -> Result<Vec<Pair>> {
        let pairs = self.find(setup)?;
        for pair in &pairs {
            pair.channels()?;
        }
        Ok(pairs)
    }
}

impl FromIterator<Pair> for PairListConfig {
    /// The options that name these places.
    fn from_iter<I: IntoIterator<Item = Pair>>(pairs: I) -> Self {
        let (student, teacher) = pairs.into_iter().map(|pair| (pair.student, pair.teacher)).unzip();
        Self { student, teacher }
    }
}

/// The method whose loss is the sum over `pairs`, at least one, of `loss(student's values, teacher's values)`, both `[B, ...]`, the
/// teacher's without a gradient.
pub(crate) fn compare<F>(pairs: Vec<Pair>, loss: F) -> Box<dyn Method>
where
    F: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    Box::new(Comparison { pairs, loss })
}

struct Comparison<F> {
    pairs: Vec<Pair>,
    loss: F,
}

impl<F> Method for Comparison<F>
where
    F: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync,
{
    fn needs(&self) -> Needs {
        Pair::needs(&self.pairs)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let loss = |pair: &Pair| {
            let (student, teacher) = pair.features(inputs)?;
            (self.loss)(&student, &teacher)
        };
        let Some((first, others)) = self.pairs.split_first() else {
            unreachable!("a method has at least one pair of places")
        };
        let mut total = loss(first)?;
        for pair in others {
            let (sum, loss) = in_one_type(&total, &loss(pair)?)?;
            total = (sum + loss)?;
        }
        Ok(total)
    }
}
