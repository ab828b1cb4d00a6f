//! A learned convolution with batch normalisation, which brings a student's map to the teacher's channels.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use kd_ops::{Conv2dConfig, conv2d};

use crate::Result;
use crate::method::{HelperInit, HelperParameter};
use crate::numeric::{centred, widened_both};

/// A convolution of stride 1 that keeps a map's height and width, without bias, then batch normalisation over the batch at hand. Weight
/// `[outputs, inputs, kernel, kernel]`, scale and shift `[outputs]` are helper parameters of a method, trained with the student and no part of it. There are no running
/// statistics: nothing is normalised with them outside of training. Features of another type than the parameters are widened, and so are the parameters.
pub(crate) struct ConvNorm {
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
}

/// Added to each channel's variance, as by PyTorch's `BatchNorm2d`.
const EPSILON: f64 = 1e-5;

impl ConvNorm {
    /// The helper parameters `NAME.weight`, uniform in ± `gain` / √(inputs · kernel²), `NAME.scale`, ones, and `NAME.shift`, zeros.
    pub(crate) fn parameters(
        name: &str,
        (inputs, outputs): (usize, usize),
        kernel: usize,
        gain: f64,
    ) -> [HelperParameter; 3] {
        let bound = gain / ((inputs * kernel * kernel) as f64).sqrt();
        let parameter = |what: &str, shape, init| HelperParameter {
            name: format!("{name}.{what}"),
            shape,
            init,
        };
        [
            parameter("weight", vec![outputs, inputs, kernel, kernel], HelperInit::Uniform(bound)),
            parameter("scale", vec![outputs], HelperInit::Constant(1.0)),
            parameter("shift", vec![outputs], HelperInit::Constant(0.0)),
        ]
    }

    /// The layer whose tensors `vb` holds.
    ///
    /// # Errors
    /// When `vb` lacks one of them or its shape is another.
    pub(crate) fn new(
        (inputs, outputs): (usize, usize),
        kernel: usize,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        Ok(Self {
            weight: vb.get((outputs, inputs, kernel, kernel), "weight")?,
            scale: vb.get(outputs, "scale")?,
            shift: vb.get(outputs, "shift")?,
        })
    }

    /// `[B, inputs, H, W]` to `[B, outputs, H, W]`.
    pub(crate) fn map(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (outputs, inputs, kernel, _) = self.weight.dims4()?;
        let (batch, _, height, width) = x.dims4()?;
        // A row for each channel: its values in all images.
        let rows = |x: &Tensor| x.transpose(0, 1)?.flatten_from(1)?.contiguous();
        let y = if kernel == 1 {
            let (x, weight) = widened_both(x, &self.weight)?;
            weight.reshape((outputs, inputs))?.matmul(&rows(&x)?)?
        } else {
            rows(&convolution(x, &self.weight, None)?)?
        };
        let y = centred(&y)?;
        let deviation = (y.sqr()?.mean_keepdim(1)? + EPSILON)?.sqrt()?;
        let column = |x: &Tensor| x.to_dtype(y.dtype())?.reshape((outputs, 1));
        let y = y.broadcast_div(&deviation)?.broadcast_mul(&column(&self.scale)?)?;
        let y = y.broadcast_add(&column(&self.shift)?)?;
        y.reshape((outputs, batch, height, width))?.transpose(0, 1)?.contiguous()
    }
}

/// A 3x3 convolution with padding 1 of `[B, inputs, H, W]`. kd-ops' own is for f32; f64 goes through candle's.
pub(crate) fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> candle_core::Result<Tensor> {
    let (x, weight) = &widened_both(x, weight)?;
    let bias = bias.map(|bias| bias.to_dtype(x.dtype())).transpose()?;
    if x.dtype() == DType::F32 {
        let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        return conv2d(x, weight, bias.as_ref(), &config);
    }
    let y = x.conv2d(weight, 1, 1, 1, 1)?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_pytorchs_convolution_and_batch_normalisation() {
        agree(&["conv_norm_1", "conv_norm_3"], 4, |s, t| {
            let layer = ConvNorm {
                weight: s[1].as_tensor().clone(),
                scale: s[2].as_tensor().clone(),
                shift: s[3].as_tensor().clone(),
            };
            Ok((layer.map(&s[0])? * &t[0])?.sum_all()?)
        });
    }
}
