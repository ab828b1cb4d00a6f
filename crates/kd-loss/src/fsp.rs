//! FSP: the flow between two layers.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, HelperParameter, Kind, Linear, Options, linear_parameters};
use crate::places::{self, Pair, PairShapes, match_size};
use crate::{Error, Inputs, Method, Needs, Result, Setup};

/// `mean over all values of (G(student) - G(teacher))²`, a scalar.
///
/// Each network gives an earlier map `[B, C1, H1, W1]` and a later one `[B, C2, H2, W2]`; the larger of the two is averaged over windows
/// down to the other's size. G `[B, C1, C2]` holds the mean over pixels of the products of an earlier with a later channel. Student
/// and teacher must have the same numbers of channels. The teacher gets no gradient.
///
/// Yim et al., "A Gift from Knowledge Distillation" (2017), equations 1 and 2; customary weight 50. The paper trains with it in a stage of its own, before
/// the labels; here it is added to them.
///
/// # Errors
/// When the maps don't fit.
pub fn fsp(student: (&Tensor, &Tensor), teacher: (&Tensor, &Tensor)) -> Result<Tensor> {
    let s = flow(student.0, student.1)?;
    let t = flow(&teacher.0.detach(), &teacher.1.detach())?;
    if s.dims() != t.dims() {
        return Err(Error::ShapeMismatch {
            method: "fsp",
            what: "flow matrix".into(),
            student: s.dims().to_vec(),
            other: t.dims().to_vec(),
            expected: "both must be [B, C1, C2]",
        });
    }
    Ok((s - t)?.sqr()?.mean_all()?)
}

/// `[B, C1, C2]`.
fn flow(earlier: &Tensor, later: &Tensor) -> Result<Tensor> {
    let (earlier, later) = match_size("fsp", earlier, later)?;
    let (a, b) = (earlier.flatten_from(2)?.contiguous()?, later.flatten_from(2)?.contiguous()?);
    let pixels = a.dims()[2] as f64;
    Ok((a.matmul(&b.transpose(1, 2)?.contiguous()?)? / pixels)?)
}

/// Options of the method "fsp": [`fsp`] between two places of each network. Where the student has other numbers
/// of channels than the teacher, a learned 1x1 convolution, `first` or `last`, gives it the teacher's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FspConfig {
    /// An earlier and a later feature place of the student; its first and last feature map when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub student: Vec<String>,
    /// An earlier and a later feature place of the teacher; its first and last feature map when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teacher: Vec<String>,
}

impl FspConfig {
    fn places(&self, shapes: &Setup) -> Result<[PairShapes; 2]> {
        let list = |own: &[String], all: &[(String, Vec<usize>)]| {
            if !own.is_empty() {
                return own.to_vec();
            }
            let maps: Vec<_> = all.iter().filter(|(_, shape)| shape.len() == 3).collect();
            match (maps.first(), maps.last()) {
                (Some(first), Some(last)) => vec![first.0.clone(), last.0.clone()],
                _ => Vec::new(),
            }
        };
        let student = list(&self.student, &shapes.student);
        let teacher = list(&self.teacher, &shapes.teacher);
        let found = places::pairs("fsp", shapes, &student, &teacher)?;
        let Ok([first, last]) = <[PairShapes; 2]>::try_from(found) else {
            return Err(Error::Config {
                method: "fsp",
                field: "student",
                found: format!("a list of {} places", student.len()),
                expected: "an earlier and a later feature map of each network",
            });
        };
        for places in [&first, &last] {
            // Of the two networks only the channels are compared.
            let (&[_, _, _], &[_, _, _]) = (&places.student[..], &places.teacher[..]) else {
                return Err(places.mismatch("fsp", "both must be maps [C, H, W]"));
            };
        }
        for (a, b) in [(&first.student, &last.student), (&first.teacher, &last.teacher)] {
            let both =
                PairShapes { pair: first.pair.clone(), student: a.clone(), teacher: b.clone() };
            both.channels_of_maps("fsp")?;
        }
        Ok([first, last])
    }
}

const HELPERS: [&str; 2] = ["first", "last"];

impl Options for FspConfig {
    const ABOUT: About = About {
        kind: Kind::Relation,
        summary: "difference of flow matrices: products of an earlier with a later map",
        paper: "Yim et al. 2017",
        weight: 50.0,
        labels: 1.0,
        options: &[
            (
                "student",
                "an earlier and a later place of the student [default: first and last map]",
            ),
            (
                "teacher",
                "an earlier and a later place of the teacher [default: first and last map]",
            ),
        ],
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let found = self.places(shapes)?.map(|found| (found.pair.student, found.pair.teacher));
        (self.student, self.teacher) = found.into_iter().unzip();
        Ok(())
    }

    fn helper_parameters(&self, shapes: &Setup) -> Result<Vec<HelperParameter>> {
        let places = self.places(shapes)?;
        let different = places.iter().zip(HELPERS).filter(|(p, _)| p.student[0] != p.teacher[0]);
        Ok(different
            .flat_map(|(p, name)| linear_parameters(name, p.student[0], p.teacher[0]))
            .collect())
    }

    fn build(&self, shapes: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let [first, last] = self.places(shapes)?;
        let adapter = |places: &PairShapes, name| {
            let (student, teacher) = (places.student[0], places.teacher[0]);
            (student != teacher).then(|| Linear::new(student, teacher, &vb.pp(name))).transpose()
        };
        let adapters = [adapter(&first, HELPERS[0])?, adapter(&last, HELPERS[1])?];
        Ok(Box::new(Fsp { places: [first.pair, last.pair], adapters }))
    }
}

struct Fsp {
    places: [Pair; 2],
    adapters: [Option<Linear>; 2],
}

impl Method for Fsp {
    fn needs(&self) -> Needs {
        Pair::needs(&self.places)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let features = |i: usize| {
            let (student, teacher) = self.places[i].features("fsp", inputs)?;
            let student = match &self.adapters[i] {
                Some(adapter) => adapter.map(&student)?,
                None => student,
            };
            Ok::<_, Error>((student, teacher))
        };
        let (first, last) = (features(0)?, features(1)?);
        fsp((&first.0, &last.0), (&first.1, &last.1))
    }
}
