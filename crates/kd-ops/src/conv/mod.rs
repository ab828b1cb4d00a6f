//! 2-D convolution, forward and backward, with bias, ReLU and 2x2 max-pool fused in.
//!
//! Tensors are NCHW outside. Inside, one image at a time is turned into NHWC in scratch memory
//! that stays in the cache, worked on there (vectors run over channels), and turned back.

mod direct;
mod geometry;
mod kernels;
mod passes;
mod transforms;
mod winograd;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use candle_nn::Module;

use crate::cpu;
use crate::simd::Isa;
use geometry::Geometry;
use passes::{Ask, Fused, Passes};

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
    let fused = Fused { relu: config.relu, max_pool2: config.max_pool2 };
    let op = Conv2dOp {
        geometry,
        passes: Passes::new(Isa::detect(), geometry, fused),
        winners: OnceLock::new(),
    };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
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
    passes: Passes,
    /// The pool's winners, kept from the forward pass for the backward pass.
    winners: OnceLock<Vec<u8>>,
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
        let forward = self.passes.forward(x, weight, bias);
        // The forward pass of an operation runs once, so the cell is empty.
        let _ = self.winners.set(forward.winners);
        let size = self.passes.result_size();
        let shape = (self.geometry.batch, size.channels, size.height, size.width);
        Ok((CpuStorage::F32(forward.y), Shape::from(shape)))
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
        let Some(winners) = self.winners.get() else { bail!("conv2d: backward before forward") };
        let ask = Ask { data: x.track_op(), weight: weight.track_op() };
        let (x_data, weight_data) = (x.contiguous()?, weight.contiguous()?);
        let gradients = cpu::with_slice(name, &x_data, |x| {
            cpu::with_slice(name, &weight_data, |weight| {
                cpu::with_slice(name, y, |y| {
                    cpu::with_slice(name, dy, |dy| {
                        Ok(self.passes.backward(x, weight, (y, winners), dy, ask))
                    })
                })
            })
        })?;
        let tensor = |wanted: bool, values: Vec<f32>, like: &Tensor| match wanted {
            true => cpu::tensor(values, like.shape()).map(Some),
            false => Ok(None),
        };
        Ok((
            tensor(ask.data, gradients.data, x)?,
            tensor(ask.weight, gradients.weight, weight)?,
            tensor(bias.track_op(), gradients.bias, bias)?,
        ))
    }
}

/// Which gradients a backward pass over one image is to compute, and where they go.
struct Wanted<'a> {
    /// The packed weight, and the NHWC image of the data's gradient.
    data: Option<(&'a [f32], &'a mut [f32])>,
    /// The padded NHWC input, and the sums of the weight's gradient.
    weight: Option<(&'a [f32], &'a mut [f32])>,
}

/// Cuts the first `len` numbers off `memory`.
fn carve<'a>(memory: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (piece, rest) = std::mem::take(memory).split_at_mut(len);
    *memory = rest;
    piece
}
