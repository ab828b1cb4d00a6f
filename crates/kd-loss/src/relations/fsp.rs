//! FSP: the flow between two layers.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::inputs::{Inputs, Needs};
use crate::matching::{check_types, match_size};
use crate::method::{About, Definition, HelperParameter, Kind, Method};
use crate::numeric::widened_both;
use crate::pairs::{Pair, PairListConfig};
use crate::projection::Projection;
use crate::{Error, Result, Setup};

/// `mean over all values of (G(student) - G(teacher))²`, a scalar.
///
/// Each network gives an earlier map `[B, C1, H1, W1]` and a later one `[B, C2, H2, W2]`; the larger of the two is averaged over windows
/// down to the other's size. G `[B, C1, C2]` holds the mean over pixels of the products of an earlier with a later channel. Student
/// and teacher must have the same numbers of channels. The teacher gets no gradient.
///
/// Yim et al., "A Gift from Knowledge Distillation" (2017), equations 1 and 2. The paper trains with it in a stage of its own, before
/// the labels; here it is added to them.
///
/// # Errors
/// When the maps don't fit.
pub fn fsp(student: (&Tensor, &Tensor), teacher: (&Tensor, &Tensor)) -> Result<Tensor> {
    check_types(student.0, teacher.0)?;
    check_types(student.1, teacher.1)?;
    let s = flow(student.0, student.1)?;
    let t = flow(&teacher.0.detach(), &teacher.1.detach())?;
    if s.dims() != t.dims() {
        return Err(Error::ShapeMismatch {
            what: "flow matrix".into(),
            student: s.dims().to_vec(),
            other: t.dims().to_vec(),
            expected: "both must be [B, C1, C2]",
        });
    }
    let (s, t) = widened_both(&s, &t)?;
    Ok((s - t)?.sqr()?.mean_all()?)
}

/// One network's flow matrix, `[B, C1, C2]`.
fn flow(earlier: &Tensor, later: &Tensor) -> Result<Tensor> {
    let (earlier, later) = match_size(earlier, later)?;
    let (a, b) = (earlier.flatten_from(2)?.contiguous()?, later.flatten_from(2)?.contiguous()?);
    let pixels = a.dims()[2] as f64;
    Ok((a.matmul(&b.transpose(1, 2)?.contiguous()?)? / pixels)?)
}

/// [`fsp`] between two places of each network. Where the student has another number of channels than the teacher, a learned 1x1
/// convolution, `first` or `last`, gives it the teacher's.
pub(crate) struct Fsp;

/// The convolutions' names, of the earlier and of the later place.
const HELPERS: [&str; 2] = ["first", "last"];

impl Definition for Fsp {
    type Options = PairListConfig;

    const ABOUT: About = About {
        kind: Kind::Relation,
        across_images: false,
        summary: "difference of flow matrices: products of an earlier with a later map",
        paper: "Yim et al. 2017",
        weight: 50.0,
        labels: 1.0,
        source: "nobody's: the paper and HobbitLong/RepDistiller train with it in a stage of its own, where no labels are beside it (helper/pretrain.py: loss = sum(loss_group); --distill fsp -b 50 of scripts/run_cifar_distill.sh multiplies a loss_kd = 0 of helper/loops.py). Here it is added to the labels, with that number",
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

    fn resolve(options: &mut PairListConfig, setup: &Setup) -> Result<()> {
        *options = places(options, setup)?.into_iter().collect();
        Ok(())
    }

    fn helper_parameters(options: &PairListConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let pairs = places(options, setup)?;
        let channels = pairs.iter().map(|pair| (pair.student_shape[0], pair.teacher_shape[0]));
        let different = channels.zip(HELPERS).filter(|((student, teacher), _)| student != teacher);
        Ok(different
            .flat_map(|((student, teacher), name)| Projection::parameters(name, student, teacher))
            .collect())
    }

    fn build(
        options: &PairListConfig,
        setup: &Setup,
        vb: VarBuilder<'_>,
    ) -> Result<Box<dyn Method>> {
        let pairs = places(options, setup)?;
        let adapter = |pair: &Pair, name| {
            let (student, teacher) = (pair.student_shape[0], pair.teacher_shape[0]);
            (student != teacher)
                .then(|| Projection::new(student, teacher, &vb.pp(name)))
                .transpose()
        };
        let adapters = [adapter(&pairs[0], HELPERS[0])?, adapter(&pairs[1], HELPERS[1])?];
        Ok(Box::new(Flows { pairs, adapters }))
    }
}

/// The earlier and the later pair of places, by default the first and the last map of each network.
fn places(options: &PairListConfig, setup: &Setup) -> Result<[Pair; 2]> {
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
    let student = list(&options.student, &setup.student);
    let teacher = list(&options.teacher, &setup.teacher);
    let found = format!("a list of {} places", student.len());
    let pairs = PairListConfig { student, teacher }.find(setup)?;
    let Ok([first, last]) = <[Pair; 2]>::try_from(pairs) else {
        return Err(Error::Option {
            field: "student",
            found,
            expected: "an earlier and a later feature map of each network",
        });
    };
    for pair in [&first, &last] {
        // Between the two networks only the channels are compared.
        let (&[_, _, _], &[_, _, _]) = (&pair.student_shape[..], &pair.teacher_shape[..]) else {
            return Err(pair.mismatch("both must be maps [C, H, W]"));
        };
    }
    let sizes =
        [(&first.student_shape, &last.student_shape), (&first.teacher_shape, &last.teacher_shape)];
    for (earlier, later) in sizes {
        let within_one_network =
            Pair { student_shape: earlier.clone(), teacher_shape: later.clone(), ..first.clone() };
        within_one_network.channels()?;
    }
    Ok([first, last])
}

struct Flows {
    pairs: [Pair; 2],
    adapters: [Option<Projection>; 2],
}

impl Method for Flows {
    fn needs(&self) -> Needs {
        Pair::needs(&self.pairs)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let features = |i: usize| {
            let (student, teacher) = self.pairs[i].features(inputs)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["fsp"], 2, |s, t| fsp((&s[0], &s[1]), (&t[0], &t[1])));
    }
}
