//! A learned linear map from one network's features towards the other's.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::Result;
use crate::method::{HelperInit, HelperParameter};
use crate::numeric::widened_both;

/// A linear layer of rows, which is also a 1x1 convolution of maps: weight `[outputs, inputs]` and bias `[outputs]`. Both are
/// helper parameters of a method, trained with the student and no part of it. Features of another type than theirs are widened, and so are they.
pub(crate) struct Projection {
    weight: Tensor,
    bias: Tensor,
}

impl Projection {
    /// The helper parameters `NAME.weight` and `NAME.bias`, initialised as PyTorch's layers are: uniform in ±1/√inputs.
    pub(crate) fn parameters(name: &str, inputs: usize, outputs: usize) -> [HelperParameter; 2] {
        let init = HelperInit::Uniform(1.0 / (inputs as f64).sqrt());
        [
            HelperParameter { name: format!("{name}.weight"), shape: vec![outputs, inputs], init },
            HelperParameter { name: format!("{name}.bias"), shape: vec![outputs], init },
        ]
    }

    /// The projection whose weight and bias `vb` holds.
    ///
    /// # Errors
    /// When `vb` lacks one of them or its shape is another.
    pub(crate) fn new(inputs: usize, outputs: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((outputs, inputs), "weight")?;
        Ok(Self { weight, bias: vb.get(outputs, "bias")? })
    }

    /// `[B, inputs]` to `[B, outputs]`.
    pub(crate) fn rows(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (x, weight) = widened_both(x, &self.weight)?;
        x.matmul(&weight.t()?)?.broadcast_add(&self.bias.to_dtype(x.dtype())?)
    }

    /// The 1x1 convolution: `[B, inputs, H, W]` to `[B, outputs, H, W]`.
    pub(crate) fn map(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (x, weight) = widened_both(x, &self.weight)?;
        let bias = self.bias.to_dtype(x.dtype())?;
        let (batch, _, height, width) = x.dims4()?;
        let outputs = bias.dims1()?;
        // One matrix product an image, on the map as it lies in memory: reordering it to pixels and back takes longer than the
        // products.
        let weight = weight.broadcast_left(batch)?.contiguous()?;
        let y = weight.matmul(&x.flatten_from(2)?.contiguous()?)?;
        let y = y.broadcast_add(&bias.reshape((1, outputs, 1))?)?;
        y.reshape((batch, outputs, height, width))
    }
}
