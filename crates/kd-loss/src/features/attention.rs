//! Attention transfer: where the networks look.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::matching::match_size;
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::normalized;
use crate::pairs::{MAP_PAIRS, PairListConfig, compare};
use crate::{Result, Setup};

/// `mean over all values of (Q(student) - Q(teacher))²`, a scalar.
///
/// Maps are `[B, C, H, W]`, with any numbers of channels; the larger one is averaged over windows down to the other's height and width.
/// Q(F) is the mean over channels of F², flattened to `[B, HW]` and divided by its Euclidean length: an image's
/// attention map. The teacher gets no gradient.
///
/// Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), equation 2 with p = 2. The paper writes the length of the
/// difference; this mean of squares is from the authors' published code, to which the weight of 1000 belongs.
///
/// # Errors
/// When the maps don't fit.
pub fn attention_transfer(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = match_size(student, &teacher.detach())?;
    let attention = |map: &Tensor| normalized(&map.sqr()?.mean(1)?.flatten_from(1)?);
    Ok((attention(&student)? - attention(&teacher)?)?.sqr()?.mean_all()?)
}

/// The sum of [`attention_transfer`] over pairs of places.
pub(crate) struct AttentionTransfer;

impl Definition for AttentionTransfer {
    type Options = PairListConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: false,
        summary: "difference of attention maps: squared activations, averaged over channels",
        paper: "Zagoruyko, Komodakis 2017",
        weight: 1000.0,
        labels: 1.0,
        source: "the authors' szagoruyko/attention-transfer, README.md: cifar.py --beta 1e+3; cifar.py: opt.beta * sum(loss_groups), over the three stages of the network. The default here is the last map alone, as two networks need not have equally many; name the places of all stages to have their sum",
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
        Ok(compare(options.find_maps(setup)?, attention_transfer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        let names =
            ["attention_transfer", "smaller.attention_transfer", "larger.attention_transfer"];
        agree(&names, 1, |s, t| attention_transfer(&s[0], &t[0]));
    }
}
