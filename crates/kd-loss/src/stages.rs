//! Methods that compare several stages of the two networks through a learned 1x1 convolution each, earlier stages counting for less.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::conv_norm::ConvNorm;
use crate::inputs::{Inputs, Needs};
use crate::matching::match_size;
use crate::method::{HelperParameter, Method};
use crate::numeric::in_one_type;
use crate::pairs::{Pair, PairListConfig};
use crate::{Result, Setup};

/// The helper parameters of [`stages`]: `stageI` for the I-th pair, a 1x1 convolution with batch normalisation from the student's to the teacher's channels.
///
/// # Errors
/// When a place does not exist or a pair's maps don't fit.
pub(crate) fn parameters(options: &PairListConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
    let mut all = Vec::new();
    for (i, pair) in options.find_maps(setup)?.iter().enumerate() {
        all.extend(ConvNorm::parameters(&format!("stage{i}"), pair.channels()?, 1, 1.0));
    }
    Ok(all)
}

/// The method whose loss is the sum over the L pairs i = 1, ..., L of `2^(i - L) · loss(student's map, teacher's map)`, both `[B, Ct, H, W]`: the student's has gone through
/// its convolution, the teacher's has no gradient. The larger map is averaged over windows down to the other's size first.
///
/// # Errors
/// When a place does not exist, a pair's maps don't fit, or `vb` lacks a helper parameter.
pub(crate) fn stages<F>(
    options: &PairListConfig,
    setup: &Setup,
    vb: &VarBuilder<'_>,
    loss: F,
) -> Result<Box<dyn Method>>
where
    F: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    let pairs = options.find_maps(setup)?;
    let connector =
        |(i, pair): (usize, &Pair)| ConvNorm::new(pair.channels()?, 1, &vb.pp(format!("stage{i}")));
    let connectors = pairs.iter().enumerate().map(connector).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Stages { pairs, connectors, loss }))
}

struct Stages<F> {
    pairs: Vec<Pair>,
    connectors: Vec<ConvNorm>,
    loss: F,
}

impl<F> Method for Stages<F>
where
    F: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync,
{
    fn needs(&self) -> Needs {
        Pair::needs(&self.pairs)
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for (pair, connector) in self.pairs.iter().zip(&self.connectors) {
            let (student, teacher) = pair.features(inputs)?;
            let (student, teacher) = match_size(&student, &teacher)?;
            let stage = (self.loss)(&connector.map(&student)?, &teacher)?;
            total = Some(match total {
                // Each stage that follows halves what the ones before it count.
                Some(before) => {
                    let (before, stage) = in_one_type(&before, &stage)?;
                    ((before * 0.5)? + stage)?
                }
                None => stage,
            });
        }
        let Some(total) = total else { unreachable!("a method has at least one pair of places") };
        Ok(total)
    }
}
