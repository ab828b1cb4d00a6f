//! ReviewKD: each stage of the teacher reviews what the student has in this stage and in all behind it.

use candle_core::{D, Tensor};
use candle_nn::{VarBuilder, ops::sigmoid};

use super::mse::mse;
use crate::conv_norm::ConvNorm;
use crate::inputs::{Inputs, Needs};
use crate::matching::{common_size, same_maps};
use crate::method::{About, Definition, HelperParameter, Kind, Method};
use crate::numeric::{in_one_type, widened, widened_both};
use crate::pairs::{Pair, PairListConfig};
use crate::projection::Projection;
use crate::{Error, Result, Setup};

/// Hierarchical context loss: the mean of the [`mse`] of two maps and of the same maps averaged to 4x4, 2x2 and 1x1 windows, where the maps are larger than that; each counts half as much as the
/// one before it. A scalar.
///
/// Both are maps `[B, C, H, W]` of the same shape. The teacher gets no gradient.
///
/// Chen et al., "Distilling Knowledge via Knowledge Review" (2021), section 3.3; the weights are those of the authors' code: dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py, `hcl`.
///
/// # Errors
/// When the shapes differ.
pub fn hierarchical_context(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    same_maps(student, teacher)?;
    let (student, teacher) = widened_both(student, &teacher.detach())?;
    let smaller = student.dims()[2].min(student.dims()[3]);
    let mut loss = mse(&student, &teacher)?;
    let (mut weight, mut sum) = (1.0, 1.0);
    for windows in [4, 2, 1].into_iter().filter(|&windows| windows < smaller) {
        weight *= 0.5;
        sum += weight;
        let error = mse(&averaged(&student, windows)?, &averaged(&teacher, windows)?)?;
        loss = (loss + (error * weight)?)?;
    }
    Ok((loss / sum)?)
}

/// `[B, C, H, W]` to `[B, C, windows, windows]` as PyTorch's `adaptive_avg_pool2d`: where the windows don't divide the map, they overlap.
fn averaged(x: &Tensor, windows: usize) -> candle_core::Result<Tensor> {
    let along = |x: &Tensor, dim: usize| {
        let size = x.dim(dim)?;
        let window = |i: usize| {
            let (start, end) = (i * size / windows, ((i + 1) * size).div_ceil(windows));
            x.narrow(dim, start, end - start)?.mean_keepdim(dim)
        };
        Tensor::cat(&(0..windows).map(window).collect::<candle_core::Result<Vec<_>>>()?, dim)
    };
    along(&along(x, 2)?, 3)
}

/// `[B, C, H, W]` to another height and width, each a multiple or a divisor of the map's, by the nearest pixel as PyTorch's `interpolate` finds it.
fn nearest(x: &Tensor, (height, width): (usize, usize)) -> candle_core::Result<Tensor> {
    let along = |x: &Tensor, dim: usize, size: usize| {
        let mut dims = x.dims().to_vec();
        let from = dims[dim];
        if from == size {
            return Ok(x.clone());
        }
        let (pixels, repeats) = if size > from { (from, size / from) } else { (size, from / size) };
        dims.splice(dim..=dim, [pixels, if size > from { 1 } else { repeats }]);
        let x = x.reshape(&*dims)?;
        let x = if size > from {
            dims[dim + 1] = repeats;
            x.broadcast_as(&*dims)?.contiguous()?
        } else {
            x.narrow(dim + 1, 0, 1)?.contiguous()?
        };
        dims.splice(dim..dim + 2, [size]);
        x.reshape(&*dims)
    };
    along(&along(x, 2, height)?, 3, width)
}

/// [`hierarchical_context`] between each stage of the teacher and what the student makes of the stage and of all behind it. From the last stage on, a 1x1 convolution gives the student's map `min(512, channels of
/// the last)` channels, two attention maps (a 1x1 convolution and a sigmoid of both) weigh it and what came from behind, their sum goes on to the stage before, and a 3x3 convolution makes the teacher's
/// channels of it. Both convolutions have batch normalisation. Maps of other sizes are brought to the student's, then to the teacher's, by the nearest pixel. A vector is a map of one pixel.
pub(crate) struct ReviewKd;

impl Definition for ReviewKd {
    type Options = PairListConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: true,
        summary: "the teacher's stages beside a learned fusion of the student's same and later stages",
        paper: "Chen et al. 2021",
        weight: 1.0,
        labels: 1.0,
        source: "the authors' dvlab-research/ReviewKD, CIFAR-100/train.py: --kd-loss-weight default 1.0, --ce-loss-weight default 1.0; CIFAR-100/script/reviewKD.sh has 0.6 to 8 for its pairs, 1.0 for ResNet-110 and -32. Departures: their weight rises over 20 epochs (--kd-warm-up 20), for which a recipe has `warmup`; the default here is the last map alone: name the places of all stages and, last, of the vector before the classifier to have the review",
        options: &[
            (
                "student",
                "list of the student's feature places, maps from early to late, or last a vector [default: its last feature map]",
            ),
            (
                "teacher",
                "list of the teacher's, one for each of the student's [default: its last feature map]",
            ),
        ],
    };

    fn resolve(options: &mut PairListConfig, setup: &Setup) -> Result<()> {
        *options = find(options, setup)?.into_iter().map(|maps| maps.pair).collect();
        Ok(())
    }

    fn helper_parameters(options: &PairListConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let stages = find(options, setup)?;
        let middle = middle(&stages);
        let mut all = Vec::new();
        for (i, Maps { student, teacher, .. }) in stages.iter().enumerate() {
            // The authors' first values, Kaiming's uniform ones with a = 1, are in ±√3 / √inputs.
            let gain = 3f64.sqrt();
            let (first, last) = ((student[0], middle), (middle, teacher[0]));
            all.extend(ConvNorm::parameters(&format!("stage{i}.first"), first, 1, gain));
            all.extend(ConvNorm::parameters(&format!("stage{i}.last"), last, 3, gain));
            if i + 1 < stages.len() {
                all.extend(Projection::parameters(&format!("stage{i}.attention"), 2 * middle, 2));
            }
        }
        Ok(all)
    }

    fn build(
        options: &PairListConfig,
        setup: &Setup,
        vb: VarBuilder<'_>,
    ) -> Result<Box<dyn Method>> {
        let found = find(options, setup)?;
        let middle = middle(&found);
        let count = found.len();
        let stage = |(i, Maps { pair, student, teacher }): (usize, Maps)| {
            let vb = vb.pp(format!("stage{i}"));
            let attention = (i + 1 < count)
                .then(|| Projection::new(2 * middle, 2, &vb.pp("attention")))
                .transpose()?;
            Ok(Stage {
                first: ConvNorm::new((student[0], middle), 1, &vb.pp("first"))?,
                last: ConvNorm::new((middle, teacher[0]), 3, &vb.pp("last"))?,
                attention,
                pair,
            })
        };
        let stages = found.into_iter().enumerate().map(stage).collect::<Result<_>>()?;
        Ok(Box::new(Review { stages }))
    }
}

/// A pair of places with the student's and the teacher's shape as maps.
struct Maps {
    pair: Pair,
    student: [usize; 3],
    teacher: [usize; 3],
}

/// The pairs of places, from early to late.
///
/// # Errors
/// When a place does not exist or is no map or vector, or one size is no multiple of the one that it is brought to.
fn find(options: &PairListConfig, setup: &Setup) -> Result<Vec<Maps>> {
    let map = |pair: &Pair, shape: &[usize]| match *shape {
        [channels] => Ok([channels, 1, 1]),
        [channels, height, width] => Ok([channels, height, width]),
        _ => Err(pair.mismatch("both must be maps [C, H, W] or vectors [F]")),
    };
    let mut stages = Vec::new();
    for pair in options.find(setup)? {
        let (student, teacher) =
            (map(&pair, &pair.student_shape)?, map(&pair, &pair.teacher_shape)?);
        stages.push(Maps { pair, student, teacher });
    }
    let fit = |a: [usize; 3], b: [usize; 3]| common_size((a[1], a[2]), (b[1], b[2])).is_some();
    let mut behind: Option<[usize; 3]> = None;
    for Maps { pair, student, teacher } in stages.iter().rev() {
        if !fit(*student, *teacher) {
            return Err(
                pair.mismatch("the height and width of one must be multiples of the other's")
            );
        }
        if let Some(behind) = behind.filter(|behind| !fit(*behind, *student)) {
            return Err(Error::ShapeMismatch {
                what: format!("{} (the teacher's next stage)", pair.student),
                student: student.to_vec(),
                other: behind.to_vec(),
                expected: "the height and width of one must be multiples of the other's",
            });
        }
        behind = Some(*teacher);
    }
    Ok(stages)
}

/// The channels of what goes from stage to stage.
fn middle(stages: &[Maps]) -> usize {
    stages.last().map_or(1, |last| last.student[0].min(512))
}

struct Review {
    /// From early to late.
    stages: Vec<Stage>,
}

struct Stage {
    pair: Pair,
    first: ConvNorm,
    last: ConvNorm,
    /// Two maps of the fused ones' 2 x channels; the last stage has nothing behind it.
    attention: Option<Projection>,
}

impl Method for Review {
    fn needs(&self) -> Needs {
        Pair::needs(&self.stages.iter().map(|stage| stage.pair.clone()).collect::<Vec<_>>())
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        let mut behind: Option<Tensor> = None;
        for stage in self.stages.iter().rev() {
            let (student, teacher) = stage.pair.features(inputs)?;
            let as_map = |x: Tensor| match x.rank() {
                2 => x.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1),
                _ => Ok(x),
            };
            let (student, teacher) = (as_map(student)?, as_map(teacher)?);
            let mut x = stage.first.map(&widened(&student)?)?;
            let (_, _, height, width) = x.dims4()?;
            if let (Some(attention), Some(behind)) = (&stage.attention, behind) {
                let y = nearest(&behind, (height, width))?;
                let (own, y) = widened_both(&x, &y)?;
                let z = sigmoid(&attention.map(&Tensor::cat(&[&own, &y], 1)?)?)?;
                let (own, z) = widened_both(&own, &z)?;
                x = (own.broadcast_mul(&z.narrow(1, 0, 1)?)?
                    + y.to_dtype(z.dtype())?.broadcast_mul(&z.narrow(1, 1, 1)?)?)?;
            }
            let (_, _, height, width) = teacher.dims4()?;
            x = nearest(&x, (height, width))?;
            let loss = hierarchical_context(&stage.last.map(&x)?, &teacher)?;
            total = Some(match total {
                Some(total) => {
                    let (total, loss) = in_one_type(&total, &loss)?;
                    (total + loss)?
                }
                None => loss,
            });
            behind = Some(x);
        }
        let Some(total) = total else { unreachable!("a method has at least one pair of places") };
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, agree_whole, place};

    #[test]
    fn agrees_with_the_papers_formula() {
        let names = ["hierarchical_context", "hierarchical_context_5", "hierarchical_context_1"];
        agree(&names, 1, |s, t| hierarchical_context(&s[0], &t[0]));
    }

    /// Three stages, the last of them vectors; one is made larger and one smaller for the teacher's.
    #[test]
    fn the_whole_method_agrees_with_pytorch() {
        let setup = Setup {
            student: vec![place("a", &[2, 4, 4]), place("b", &[3, 4, 4]), place("c", &[4])],
            teacher: vec![place("a", &[3, 8, 8]), place("b", &[2, 2, 2]), place("c", &[5])],
            classes: 2,
            ..Setup::default()
        };
        let config = "name = 'reviewkd'\nstudent = ['a', 'b', 'c']\nteacher = ['a', 'b', 'c']";
        agree_whole("reviewkd_whole", config, &setup);
    }

    #[test]
    fn sizes_that_no_pixel_fits_are_an_error_with_both_shapes() {
        let setup = Setup {
            student: vec![place("a", &[2, 4, 4]), place("b", &[3, 2, 2])],
            teacher: vec![place("a", &[2, 4, 4]), place("b", &[3, 6, 6])],
            classes: 2,
            ..Setup::default()
        };
        let both = |place: &str| PairListConfig {
            student: vec!["a".into(), place.into()],
            teacher: vec!["a".into(), place.into()],
        };
        let error = ReviewKd::helper_parameters(&both("b"), &setup).unwrap_err().to_string();
        assert!(error.contains("[2, 4, 4]") && error.contains("[3, 6, 6]"), "{error}");
    }
}
