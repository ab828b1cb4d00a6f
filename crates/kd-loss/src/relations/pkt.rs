//! Probabilistic knowledge transfer: which images are each other's neighbours.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::matching::rows;
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::normalized;
use crate::pairs::{PairConfig, VECTOR_PAIR, compare};
use crate::setup::DefaultPlace;
use crate::{Result, Setup};

/// `mean over all pairs of images of q (log q - log p)`, a scalar.
///
/// Features are `[B, ...]`, flattened to rows; their sizes may differ. With K = (cos + 1) / 2 of two images, q and p
/// are the rows of teacher's and student's K divided by their sums. The teacher gets no gradient.
///
/// Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer" (2018), equations 3, 4 and 9 with the cosine
/// kernel of equation 6. Taking the mean over B² entries and counting an image's similarity with itself are from the authors' published
/// code, to which HobbitLong/RepDistiller's weight of 30000 belongs.
///
/// # Errors
/// When the batches differ in size.
pub fn pkt(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (student, teacher) = rows(student, teacher)?;
    let (log_p, log_q) = (log_neighbours(&student)?, log_neighbours(&teacher)?);
    Ok((log_q.exp()? * (log_q - log_p)?)?.mean_all()?)
}

/// The logarithms of each image's similarities, as probabilities: rows of `[B, B]`.
fn log_neighbours(x: &Tensor) -> candle_core::Result<Tensor> {
    let x = normalized(x)?;
    // Opposite images have similarity 0, or by rounding less; its logarithm must be finite.
    let similarity = x.matmul(&x.t()?.contiguous()?)?.affine(0.5, 0.5)?.maximum(EPSILON)?;
    similarity.broadcast_div(&similarity.sum_keepdim(1)?)?.log()
}

/// The lower bound of similarities.
const EPSILON: f64 = 1e-7;

pub(crate) struct Pkt;

impl Definition for Pkt {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Relation,
        across_images: true,
        summary: "neighbourhoods of the images of a batch, as probabilities",
        paper: "Passalis, Tefas 2018",
        weight: 30000.0,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: --distill pkt -a 0 -b 30000. The authors' passalis/probabilistic_kt trains on this loss alone (nn/pkt.py: supervised_weight=0), where no weight is needed",
        options: &VECTOR_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = options.find(setup, DefaultPlace::Vector)?.into();
        Ok(())
    }

    fn build(options: &PairConfig, setup: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(compare(vec![options.find(setup, DefaultPlace::Vector)?], pkt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["pkt", "positive.pkt"], 1, |s, t| pkt(&s[0], &t[0]));
    }
}
