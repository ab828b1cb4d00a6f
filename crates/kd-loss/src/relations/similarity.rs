//! Similarity-preserving distillation: which images of a batch look alike.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::matching::rows;
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::normalized;
use crate::pairs::{MAP_PAIR, PairConfig, compare};
use crate::setup::DefaultPlace;
use crate::{Result, Setup};

/// `mean over all pairs of images of (G(student) - G(teacher))²`, a scalar.
///
/// Features are `[B, ...]`, flattened to rows; their sizes may differ. G `[B, B]` holds the products of the rows,
/// each row of G divided by its Euclidean length. The teacher gets no gradient.
///
/// Tung and Mori, "Similarity-Preserving Knowledge Distillation" (2019), equations 2 to 4. The weight of 3000 is HobbitLong/RepDistiller's.
///
/// # Errors
/// When the batches differ in size.
pub fn similarity_preserving(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows(student, teacher)?;
    let similarity = |x: &Tensor| normalized(&x.matmul(&x.t()?.contiguous()?)?);
    Ok((similarity(&student)? - similarity(&teacher)?)?.sqr()?.mean_all()?)
}

pub(crate) struct Similarity;

impl Definition for Similarity {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Relation,
        across_images: true,
        summary: "similarities between the images of a batch",
        paper: "Tung, Mori 2019",
        weight: 3000.0,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: --distill similarity -a 0 -b 3000, an implementation that README.md says an author of the paper verified; at the last map, as here",
        options: &MAP_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = options.find(setup, DefaultPlace::Map)?.into();
        Ok(())
    }

    fn build(options: &PairConfig, setup: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(compare(vec![options.find(setup, DefaultPlace::Map)?], similarity_preserving))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        let names = [
            "similarity_preserving",
            "smaller.similarity_preserving",
            "larger.similarity_preserving",
        ];
        agree(&names, 1, |s, t| similarity_preserving(&s[0], &t[0]));
    }
}
