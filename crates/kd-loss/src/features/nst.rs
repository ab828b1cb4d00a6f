//! Neuron selectivity transfer: the distribution of what channels respond to.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::matching::match_size;
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::normalized;
use crate::pairs::{MAP_PAIRS, PairListConfig, compare};
use crate::{Result, Setup};

/// The squared maximum mean discrepancy between the channels of student and teacher, mean over the batch, a scalar.
///
/// Maps are `[B, C, H, W]`, with any numbers of channels; the larger one is averaged over windows down to the other's height and width. Each
/// channel, flattened and divided by its Euclidean length, is a sample. With the kernel k(x, y) = (x·y)²,
/// MMD² = mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over all pairs of channels. The teacher gets no gradient.
///
/// Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (2017), equation 4 with
/// the polynomial kernel d = 2, c = 0 of section 4.2. The weight of 50 is the authors' (TuSimple/neuron-selectivity-transfer, config/cfgs.py).
///
/// # Errors
/// When the maps don't fit.
pub fn nst(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = match_size(student, &teacher.detach())?;
    let channels = |map: &Tensor| normalized(&map.flatten_from(2)?);
    let (s, t) = (channels(&student)?.contiguous()?, channels(&teacher)?.contiguous()?);
    let kernel =
        |a: &Tensor, b: &Tensor| a.matmul(&b.transpose(1, 2)?.contiguous()?)?.sqr()?.mean_all();
    Ok(((kernel(&t, &t)? + kernel(&s, &s)?)? - (kernel(&s, &t)? * 2.0)?)?)
}

/// The sum of [`nst`] over pairs of places.
pub(crate) struct Nst;

impl Definition for Nst {
    type Options = PairListConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: false,
        summary: "maximum mean discrepancy between the channels of feature maps",
        paper: "Huang, Wang 2017",
        weight: 50.0,
        labels: 1.0,
        source: "the authors' TuSimple/neuron-selectivity-transfer, config/cfgs.py: mmd_kernel = 'poly', kt_weight 50, at the last map as here. HobbitLong/RepDistiller has the same weight for the sum over all stages (scripts/run_cifar_distill.sh: --distill nst -a 0 -b 50)",
        options: &MAP_PAIRS,
    };

    fn resolve(options: &mut PairListConfig, setup: &Setup) -> Result<()> {
        *options = options.find_maps(setup)?.into_iter().collect();
        Ok(())
    }

    fn build(
        options: &PairListConfig,
        setup: &Setup,
        _: VarBuilder<'_>,
    ) -> Result<Box<dyn Method>> {
        Ok(compare(options.find_maps(setup)?, nst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["nst", "smaller.nst", "larger.nst"], 1, |s, t| nst(&s[0], &t[0]));
    }
}
