//! 2-D convolution, forward and backward, with bias, ReLU and 2x2 max-pool fused in.
//!
//! Tensors are NCHW outside. Inside, one image at a time is turned into NHWC in scratch memory
//! that stays in the cache, worked on there (vectors run over channels), and turned back.
//!
//! From the outside in: this file has the public functions and candle's operations; `chain` runs a batch forward and
//! `backward` runs it backward; `layer` is one convolution of one image, by `winograd` (formulas in `transforms`) or
//! `direct`; both stand on the two matrix products of `products`. `groups` takes grouped convolutions apart, `depthwise` has
//! kernels of its own, and `pads` resolves "same" padding.

mod backward;
mod chain;
mod depthwise;
pub(crate) mod direct;
pub(crate) mod geometry;
mod groups;
pub(crate) mod images;
pub(crate) mod layer;
pub(crate) mod memory;
mod pads;
pub(crate) mod pointwise;
pub(crate) mod products;
mod transforms;
pub(crate) mod wanted;
mod winograd;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use candle_nn::Module;

use crate::cpu;
use crate::simd::Isa;
use backward::{Given, Gradients, ParameterGradients, backward};
use chain::{Chain, Forward, Parameters};
pub use geometry::Conv2dConfig;
use geometry::Geometry;
use layer::Layer;
pub use pads::Pads;

/// Cross-correlation of `x` `[N, I, H, W]` with `weight` `[O, I / groups, kh, kw]`, plus `bias` `[O]`, as
/// `torch.nn.functional.conv2d` computes it; all f32, the result `[N, O, H', W']`.
///
/// Depthwise convolutions have kernels of their own; other groups are computed one after the other. On a GPU more than one
/// group goes through candle's own operations, which are slow where there are many.
///
/// # Errors
/// When the shapes don't fit together, the window is larger than the padded image, stride or
/// dilation is zero, the groups don't divide the channels, or a tensor is not f32.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<Tensor> {
    if config.same_padding {
        let (x, config) = pads::resolve(x, weight.dims(), config)?;
        return conv2d(&x, weight, bias, &config);
    }
    if config.groups != 1 {
        return groups::conv2d(x, weight, bias, config);
    }
    let geometry = check(x.dims(), weight, bias, config)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::conv::conv2d(x, weight, bias, geometry, config);
    }
    let bias = bias_or_zeros(weight, bias)?;
    let chain = Chain::new(Isa::detect(), geometry.batch, vec![chain_layer(geometry, config)]);
    let op = Conv2dOp { chain, winners: OnceLock::new() };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

/// A convolution layer; drops in for `candle_nn::Conv2d` ([`Conv2d::from_candle`]).
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[O, I / groups, kh, kw]`.
    pub weight: Tensor,
    /// What is added to each output channel, `[O]`.
    pub bias: Option<Tensor>,
    /// Stride, padding, groups, dilation, and whether ReLU and max-pool are fused in.
    pub config: Conv2dConfig,
}

impl Conv2d {
    /// The same layer, on the same weights: `Conv2d::from_candle(&candle_nn::conv2d(in, out, kernel, config, vb)?)` stands
    /// where `candle_nn::conv2d(in, out, kernel, config, vb)?` stood.
    pub fn from_candle(layer: &candle_nn::Conv2d) -> Self {
        let candle_nn::Conv2dConfig { padding, stride, dilation, groups, .. } = *layer.config();
        let config = Conv2dConfig { stride, padding, groups, dilation, ..Conv2dConfig::default() };
        Self { weight: layer.weight().clone(), bias: layer.bias().cloned(), config }
    }
}

impl Module for Conv2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv2d(x, &self.weight, self.bias.as_ref(), &self.config)
    }
}

/// Several convolutions in a row, each layer's result the next one's input: the same values and
/// gradients as [`conv2d`] called for each of them.
///
/// What lies between the layers is not stored: each image goes through all of them while it is
/// in the cache, and the backward pass computes the maps in between again. That pays where all
/// layers but the last are cheap and their maps large: in the tutorial's teacher the second layer
/// costs 21 times the first, whose map of 64 MiB (batch 128) is then neither written nor read.
///
/// # Errors
/// As [`conv2d`], and when `layers` is empty.
pub fn conv2d_chain(x: &Tensor, layers: &[&Conv2d]) -> Result<Tensor> {
    if let [layer] = layers {
        return layer.forward(x);
    }
    // On a GPU a map in between is written and read faster than it is computed again.
    // A chain has no groups and as many zeros on each side.
    let alone = |layer: &&Conv2d| layer.config.groups != 1 || layer.config.same_padding;
    if !layers.is_empty() && (x.device().is_cuda() || layers.iter().any(alone)) {
        return layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x));
    }
    let mut dims = x.dims().to_vec();
    let mut chain = Vec::with_capacity(layers.len());
    let mut sizes = Vec::with_capacity(layers.len());
    let mut parameters = Vec::with_capacity(2 * layers.len());
    for layer in layers {
        let geometry = check(&dims, &layer.weight, layer.bias.as_ref(), &layer.config)?;
        let bias = bias_or_zeros(&layer.weight, layer.bias.as_ref())?;
        let layer_of_chain = chain_layer(geometry, &layer.config);
        let size = layer_of_chain.result_size();
        dims = vec![geometry.batch, size.channels, size.height, size.width];
        sizes.push((geometry.weight_len(), geometry.out_channels));
        parameters.extend([layer.weight.flatten_all()?, bias]);
        chain.push(layer_of_chain);
    }
    if chain.is_empty() {
        bail!("conv2d_chain: expected at least one layer, got none");
    }
    let chain = Chain::new(Isa::detect(), dims[0], chain);
    let op = ChainOp { chain, sizes, winners: OnceLock::new() };
    x.contiguous()?.apply_op2(&Tensor::cat(&parameters, 0)?, op)
}

/// Checks one convolution and gives its sizes; `x` is the shape of its input.
fn check(
    x: &[usize],
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<Geometry> {
    let geometry = Geometry::new(x, weight.dims(), config)?;
    match bias {
        Some(bias) if bias.dims() != [geometry.out_channels] => bail!(
            "conv2d: expected a bias of shape [{}], got {:?}",
            geometry.out_channels,
            bias.shape()
        ),
        _ => Ok(geometry),
    }
}

fn bias_or_zeros(weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => Ok(bias.clone()),
        None => Tensor::zeros(weight.dim(0)?, weight.dtype(), weight.device()),
    }
}

fn chain_layer(geometry: Geometry, config: &Conv2dConfig) -> Layer {
    Layer::new(Isa::detect(), geometry, config.relu, config.max_pool2)
}

/// One convolution as candle's operation on data, weight and bias.
struct Conv2dOp {
    chain: Chain,
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
        Ok(result(
            &self.chain,
            &self.winners,
            self.chain.forward(x, &[Parameters { weight, bias }]),
        ))
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
        let gradients = cpu::with_slice(name, weight, |weight| {
            cpu::with_slice(name, bias, |bias| {
                let parameters = [Parameters { weight, bias }];
                gradients(name, &self.chain, &self.winners, x, &parameters, y, dy)
            })
        })?;
        let data = match x.track_op() {
            true => Some(cpu::tensor(gradients.data, x.shape())?),
            false => None,
        };
        match gradients.parameters.into_iter().next() {
            Some(parameters) => Ok((
                data,
                Some(cpu::tensor(parameters.weight, weight.shape())?),
                Some(cpu::tensor(parameters.bias, bias.shape())?),
            )),
            None => bail!("conv2d: no gradient for the parameters"),
        }
    }
}

/// Convolutions in a row as candle's operation on the data and on all weights and biases in one flat tensor.
struct ChainOp {
    chain: Chain,
    /// How many numbers each layer's weight and bias have.
    sizes: Vec<(usize, usize)>,
    winners: OnceLock<Vec<u8>>,
}

impl ChainOp {
    /// Each layer's weight and bias out of the flat tensor.
    fn split<'a>(&self, mut flat: &'a [f32]) -> Vec<Parameters<'a>> {
        let mut take = |len: usize| {
            let (piece, rest) = flat.split_at(len);
            flat = rest;
            piece
        };
        let parameters = |&(weight, bias): &(usize, usize)| Parameters {
            weight: take(weight),
            bias: take(bias),
        };
        self.sizes.iter().map(parameters).collect()
    }
}

impl CustomOp2 for ChainOp {
    fn name(&self) -> &'static str {
        "conv2d_chain"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), x, x_layout)?;
        let parameters = cpu::slice(self.name(), parameters, parameters_layout)?;
        Ok(result(&self.chain, &self.winners, self.chain.forward(x, &self.split(parameters))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let name = self.name();
        let gradients = cpu::with_slice(name, parameters, |parameters| {
            let parameters = self.split(parameters);
            gradients(name, &self.chain, &self.winners, x, &parameters, y, dy)
        })?;
        let data = match x.track_op() {
            true => Some(cpu::tensor(gradients.data, x.shape())?),
            false => None,
        };
        let flat: Vec<f32> = gradients
            .parameters
            .into_iter()
            .flat_map(|ParameterGradients { weight, bias }| [weight, bias])
            .flatten()
            .collect();
        Ok((data, Some(cpu::tensor(flat, parameters.shape())?)))
    }
}

/// Keeps the pool's winners for the backward pass, and gives the result its shape.
fn result(chain: &Chain, winners: &OnceLock<Vec<u8>>, forward: Forward) -> (CpuStorage, Shape) {
    // The forward pass of an operation runs once, so the cell is empty.
    let _ = winners.set(forward.winners);
    let size = chain.result_size();
    let shape = (chain.batch, size.channels, size.height, size.width);
    (CpuStorage::F32(forward.y), Shape::from(shape))
}

/// The backward pass of an operation whose tensors lie on the CPU.
fn gradients(
    name: &str,
    chain: &Chain,
    winners: &OnceLock<Vec<u8>>,
    x: &Tensor,
    parameters: &[Parameters<'_>],
    y: &Tensor,
    dy: &Tensor,
) -> Result<Gradients> {
    let Some(winners) = winners.get() else { bail!("{name}: backward before forward") };
    let ask_data = x.track_op();
    cpu::with_slice(name, x, |x| {
        cpu::with_slice(name, y, |y| {
            cpu::with_slice(name, dy, |dy| {
                Ok(backward(chain, parameters, Given { x, y, winners, dy }, ask_data))
            })
        })
    })
}
