//! VID: a bound on the information that the maps share.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::matching::{check_types, match_size};
use crate::method::{About, Definition, HelperInit, HelperParameter, Kind, Method};
use crate::numeric::{relu, widened_both};
use crate::pairs::{MAP_PAIR, PairConfig, compare};
use crate::projection::Projection;
use crate::setup::DefaultPlace;
use crate::{Error, Result, Setup};

/// `mean over all values of ½ (log σ² + (teacher - mean)² / σ²)`, a scalar: up to a constant the negative log-likelihood of the teacher's
/// map under a Gaussian whose mean is predicted from the student's map.
///
/// `mean` and `teacher` are `[B, C, H, W]`, `alpha` is `[C]`; each channel's variance is σ² = log(1 + exp(alpha)) + 1e-5. The teacher gets no gradient.
///
/// Ahn et al., "Variational Information Distillation for Knowledge Transfer" (2019), equations 5 and 6.
///
/// # Errors
/// When the shapes differ.
pub fn vid(mean: &Tensor, alpha: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let fits =
        mean.dims() == teacher.dims() && mean.rank() == 4 && alpha.dims() == [mean.dims()[1]];
    if !fits {
        return Err(Error::ShapeMismatch {
            what: "predicted mean".into(),
            student: mean.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be [B, C, H, W], and alpha [C]",
        });
    }
    if mean.elem_count() == 0 {
        return Err(Error::EmptyBatch);
    }
    check_types(mean, teacher)?;
    let (mean, teacher) = widened_both(mean, &teacher.detach())?;
    let alpha = alpha.to_dtype(mean.dtype())?;
    // log(1 + exp(a)) = max(a, 0) + log(1 + exp(-|a|)), finite for any a.
    let softplus = (alpha.relu()? + (alpha.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    let variance = (softplus + EPSILON)?.reshape((1, mean.dims()[1], 1, 1))?;
    let error = (teacher - &mean)?.sqr()?.broadcast_div(&variance)?;
    Ok((error.broadcast_add(&variance.log()?)?.mean_all()? * 0.5)?)
}

/// Added to each variance, so that none is 0.
const EPSILON: f64 = 1e-5;
/// The variance that each channel starts from. It is that of HobbitLong/RepDistiller (distiller_zoo/VID.py); the paper gives none.
const FIRST_VARIANCE: f64 = 5.0;

/// [`vid`] with the mean predicted from the student's map by three learned 1x1 convolutions with ReLU between, as wide as the
/// teacher's map. The larger map is averaged over windows down to the other's size first.
pub(crate) struct Vid;

impl Definition for Vid {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: false,
        summary: "likelihood of the teacher's map under a Gaussian predicted from the student's",
        paper: "Ahn et al. 2019",
        weight: 1.0,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: --distill vid -a 0 -b 1, for the sum over all stages; distiller_zoo/VID.py, which names the authors' code: init_pred_var=5.0, eps=1e-5. The default here is the last map alone, and the convolutions have biases",
        options: &MAP_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = options.find(setup, DefaultPlace::Map)?.into();
        Ok(())
    }

    fn helper_parameters(options: &PairConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let (student, teacher) = options.find(setup, DefaultPlace::Map)?.channels()?;
        let layers = [("mean.0", student), ("mean.1", teacher), ("mean.2", teacher)];
        let mut parameters: Vec<_> = layers
            .into_iter()
            .flat_map(|(name, inputs)| Projection::parameters(name, inputs, teacher))
            .collect();
        // softplus(alpha) + EPSILON = FIRST_VARIANCE
        let alpha = ((FIRST_VARIANCE - EPSILON).exp() - 1.0).ln();
        parameters.push(HelperParameter {
            name: "alpha".into(),
            shape: vec![teacher],
            init: HelperInit::Constant(alpha),
        });
        Ok(parameters)
    }

    fn build(options: &PairConfig, setup: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let pair = options.find(setup, DefaultPlace::Map)?;
        let (student, teacher) = pair.channels()?;
        let layer =
            |i: usize, inputs| Projection::new(inputs, teacher, &vb.pp(format!("mean.{i}")));
        let mean = [layer(0, student)?, layer(1, teacher)?, layer(2, teacher)?];
        let alpha = vb.get(teacher, "alpha")?;
        Ok(compare(vec![pair], move |student, teacher| {
            let (student, teacher) = match_size(student, teacher)?;
            let hidden = relu(&mean[0].map(&student)?)?;
            let hidden = relu(&mean[1].map(&hidden)?)?;
            vid(&mean[2].map(&hidden)?, &alpha, &teacher)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["vid"], 2, |s, t| vid(&s[0], &s[1], &t[0]));
    }
}
