//! OFD: the teacher's map before its ReLU, where it matters to the ReLU.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::matching::same_maps;
use crate::method::{About, Definition, HelperParameter, Kind, Method};
use crate::numeric::{only, or_one, relu, widened_both};
use crate::pairs::{MAP_PAIRS, PairListConfig};
use crate::stages::{parameters, stages};
use crate::{Result, Setup};

/// `mean over images of the sum over values of (s - σ(t))²`, without the values where `s ≤ σ(t)` and `t ≤ 0`; a scalar.
///
/// Both are maps `[B, C, H, W]` of the same shape. σ(t) = max(t, m) is the margin ReLU; the margin m of a channel is the mean of the teacher's negative values in it, over the batch. A map that has
/// none, such as one behind a ReLU, has margin 0. The teacher gets no gradient.
///
/// Heo et al., "A Comprehensive Overhaul of Feature Distillation" (2019), equations 1 to 5; the margin is "calculated directly in the training process", the first of the two ways of section 3.2.
///
/// # Errors
/// When the shapes differ.
pub fn ofd(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let images = same_maps(student, teacher)?;
    let (student, teacher) = widened_both(student, &teacher.detach())?;
    let margin = margins(&teacher)?;
    let target = relu(&teacher.broadcast_sub(&margin)?)?.broadcast_add(&margin)?;
    let difference = (&student - &target)?;
    let zeros = difference.zeros_like()?;
    let counts = (difference.gt(&zeros)? + teacher.gt(&zeros)?)?;
    Ok((only(&difference, &counts)?.sqr()?.sum_all()? / images as f64)?)
}

/// The mean of each channel's negative values over the batch, `[1, C, 1, 1]`; 0 where there are none.
fn margins(teacher: &Tensor) -> candle_core::Result<Tensor> {
    let channels = teacher.dims()[1];
    let rows = teacher.transpose(0, 1)?.flatten_from(1)?.contiguous()?;
    let negative = rows.lt(&rows.zeros_like()?)?;
    let count = negative.to_dtype(rows.dtype())?.sum_keepdim(1)?;
    let some = count.gt(&count.zeros_like()?)?;
    let mean = (only(&rows, &negative)?.sum_keepdim(1)? / or_one(&count, &some)?)?;
    mean.reshape((1, channels, 1, 1))
}

/// The sum of [`ofd`] over pairs of places, each but the last with half the weight of the one behind it, through a learned 1x1 convolution with batch normalisation of the student's map.
pub(crate) struct Ofd;

impl Definition for Ofd {
    type Options = PairListConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: true,
        summary: "the teacher's maps above a margin below 0, through a learned 1x1 convolution",
        paper: "Heo et al. 2019 (overhaul)",
        weight: 0.001,
        labels: 1.0,
        source: "the authors' clovaai/overhaul-distillation, CIFAR-100/train_with_distillation.py: loss_CE + loss_distill.sum() / batch_size / 1000; CIFAR-100/distiller.py: a 1x1 convolution without bias and batch normalisation, / 2 ** (feat_num - i - 1). Departures: the margin is the mean of the batch's own negative values, where theirs comes from the batch normalisation before the map by the formula of a Gaussian; the larger map is averaged down; the default is the last map alone: name the places of all stages, before their ReLU, to have their sum",
        options: &MAP_PAIRS,
    };

    fn resolve(options: &mut PairListConfig, setup: &Setup) -> Result<()> {
        *options = options.find_maps(setup)?.into_iter().collect();
        Ok(())
    }

    fn helper_parameters(options: &PairListConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        parameters(options, setup)
    }

    fn build(
        options: &PairListConfig,
        setup: &Setup,
        vb: VarBuilder<'_>,
    ) -> Result<Box<dyn Method>> {
        stages(options, setup, &vb, ofd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["ofd", "ofd_behind_relu"], 1, |s, t| ofd(&s[0], &t[0]));
    }
}
