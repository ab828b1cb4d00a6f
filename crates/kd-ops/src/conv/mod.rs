//! 2-D convolution, forward and backward, with bias, ReLU and 2x2 max-pool fused in.
//!
//! Tensors are NCHW outside. Inside, one image at a time is turned into NHWC in scratch memory
//! that stays in the cache, worked on there (vectors run over channels), and turned back.

mod general;
mod geometry;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use candle_nn::Module;

use crate::{cpu, max_pool2d};
use geometry::Geometry;

/// How a convolution moves over the image, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Pixels between neighbouring windows, in both directions.
    pub stride: usize,
    /// Zeros added on each of the four sides, in pixels.
    pub padding: usize,
    /// Pixels between neighbouring entries of a window.
    pub dilation: usize,
    /// Whether `max(y, 0)` follows, fused in; its derivative at zero is 0.
    pub relu: bool,
    /// Whether a 2x2 max-pool of stride 2 follows (after the ReLU), fused in: the full-size map
    /// is then never stored. Gradients as in [`max_pool2d`].
    pub max_pool2: bool,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, relu: false, max_pool2: false }
    }
}

/// Cross-correlation of `x` `[N, I, H, W]` with `weight` `[O, I, kh, kw]`, plus `bias` `[O]`, as
/// `torch.nn.functional.conv2d` computes it; all f32, the result `[N, O, H', W']`.
///
/// # Errors
/// When the shapes don't fit together, the window is larger than the padded image, stride or
/// dilation is zero, or a tensor is not f32.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<Tensor> {
    let geometry = Geometry::new(x.dims(), weight.dims(), config)?;
    let bias = match bias {
        Some(bias) if bias.dims() != [geometry.out_channels] => bail!(
            "conv2d: expected a bias of shape [{}], got {:?}",
            geometry.out_channels,
            bias.shape()
        ),
        Some(bias) => bias.clone(),
        None => Tensor::zeros(geometry.out_channels, x.dtype(), x.device())?,
    };
    let op = Conv2dOp { geometry, relu: config.relu };
    let y = x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
    if config.max_pool2 { max_pool2d(&y, 2, 2) } else { Ok(y) }
}

/// A convolution layer; drops in for `candle_nn::Conv2d`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[O, I, kh, kw]`.
    pub weight: Tensor,
    /// `[O]`.
    pub bias: Option<Tensor>,
    /// Stride, padding, dilation and what is fused in.
    pub config: Conv2dConfig,
}

impl Module for Conv2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv2d(x, &self.weight, self.bias.as_ref(), &self.config)
    }
}

struct Conv2dOp {
    geometry: Geometry,
    relu: bool,
}

impl CustomOp3 for Conv2dOp {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), x, x_layout)?;
        let weight = cpu::slice(self.name(), weight, weight_layout)?;
        let bias = cpu::slice(self.name(), bias, bias_layout)?;
        let g = &self.geometry;
        let y = general::forward(g, x, weight, bias, self.relu);
        Ok((CpuStorage::F32(y), Shape::from((g.batch, g.out_channels, g.out_height, g.out_width))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let name = self.name();
        let g = &self.geometry;
        let dy = if self.relu {
            cpu::with_slice(name, y, |y| {
                cpu::with_slice(name, dy, |dy| Ok(crate::relu::masked(y, dy)))
            })?
        } else {
            cpu::with_slice(name, dy, |dy| Ok(dy.to_vec()))?
        };
        let dx = match x.track_op() {
            true => cpu::with_slice(name, weight, |weight| {
                Ok(Some(cpu::tensor(general::data_gradient(g, weight, &dy), x.shape())?))
            })?,
            false => None,
        };
        let dweight = match weight.track_op() {
            true => cpu::with_slice(name, x, |x| {
                Ok(Some(cpu::tensor(general::weight_gradient(g, x, &dy), weight.shape())?))
            })?,
            false => None,
        };
        let dbias = match bias.track_op() {
            true => Some(cpu::tensor(general::bias_gradient(g, &dy), bias.shape())?),
            false => None,
        };
        Ok((dx, dweight, dbias))
    }
}

/// How many images a partial sum of the weight gradient covers: it depends on the batch alone, so
/// the gradient is the same, bit for bit, for any number of threads.
fn images_per_part(batch: usize) -> usize {
    const PARTS: usize = 16;
    batch.div_ceil(PARTS).max(1)
}

/// The sum of `parts`, in their order.
fn sum_parts(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![0.0; len]);
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sum
}
