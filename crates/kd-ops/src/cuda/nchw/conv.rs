//! Convolutions with what lies behind them. The products lie in an order of their library's, NCHW or CNHW.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{DType, Result};

use super::super::columns::{columns_at, columns_len, from_columns_at};
use super::super::conv::Order;
use super::super::products::Products;
use super::super::{int, kernel, kernel_of, launch, over_planes, parts, ptx};
use super::gemm::{Factor, product};
use super::{Gpu, Span, address_or_null, code};
use crate::conv::Pads;
use crate::conv::geometry::{Conv2dConfig, Geometry};
use crate::nhwc::{Activation, ConvSizes};

const NAME: &str = "conv2d";
const FILE: &str = "kd-ops conv";

/// A convolution of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    geometry: Geometry,
    products: Products,
}

impl Conv {
    /// Whether there is one of such sizes: of one group, with as many zeros on each side.
    pub fn knows(sizes: &ConvSizes) -> bool {
        let Pads { top, bottom, left, right } = sizes.pads;
        sizes.groups == 1 && [bottom, left, right] == [top; 3]
    }

    /// A convolution of `batch` images.
    ///
    /// # Errors
    /// When the window doesn't fit in the map.
    pub fn new(gpu: &Gpu, sizes: &ConvSizes, batch: usize) -> Result<Self> {
        let ConvSizes { inputs, outputs, height, width, kernel, stride, pads, .. } = *sizes;
        let config = Conv2dConfig { stride, padding: pads.top, ..Conv2dConfig::default() };
        let weight = [outputs, inputs, kernel, kernel];
        let geometry = Geometry::new(&[batch, inputs, height, width], &weight, &config)?;
        Ok(Self { geometry, products: gpu.products })
    }

    /// Numbers of scratch memory that its passes need.
    pub fn columns_len(&self) -> usize {
        match self.products {
            #[cfg(feature = "cudnn")]
            Products::Cudnn => 0,
            Products::Cublas => columns_len(&self.geometry),
        }
    }

    /// Numbers of a batch of outputs.
    pub fn output_len(&self) -> usize {
        self.geometry.batch * self.geometry.out_channels * self.geometry.out_pixels()
    }

    /// Numbers of f64 sums, two f32 each, that the bias's gradient needs.
    pub fn sums_len(&self) -> usize {
        let Geometry { batch, out_channels, .. } = self.geometry;
        4 * out_channels * parts(batch, self.geometry.out_pixels()).0
    }

    /// Whether the products come as NCHW.
    pub fn is_nchw(&self) -> bool {
        self.products.is_nchw()
    }

    /// The products, in their own order, without a bias.
    ///
    /// # Errors
    /// When memory is too small or the GPU refuses; so for all functions here.
    pub fn products(
        &self,
        gpu: &Gpu,
        x: Span<'_>,
        weight: Span<'_>,
        columns: Span<'_>,
        z: Span<'_>,
    ) -> Result<()> {
        let g = &self.geometry;
        let (x, weight) = (x.at(NAME, g.input_len())?, weight.at(NAME, g.weight_len())?);
        let (columns, z) = (columns.at(NAME, self.columns_len())?, z.at(NAME, self.output_len())?);
        match self.products {
            #[cfg(feature = "cudnn")]
            Products::Cudnn => {
                super::super::cudnn::forward_at(&gpu.device, DType::F32, g, [x, weight, z])
            }
            Products::Cublas => {
                columns_at::<f32>(&gpu.device, x, g, columns)?;
                let sizes = (g.out_channels, g.batch * g.out_pixels(), g.window_len());
                // SAFETY: the memory has the sizes, as `at` has seen.
                unsafe { product(gpu, sizes, Factor::rows(weight), Factor::rows(columns), z) }
            }
        }
    }

    /// The gradient of the weight; `dz` lies in the products' order.
    pub fn weight_gradient(
        &self,
        gpu: &Gpu,
        x: Span<'_>,
        dz: Span<'_>,
        columns: Span<'_>,
        dweight: Span<'_>,
    ) -> Result<()> {
        let g = &self.geometry;
        let (x, dz) = (x.at(NAME, g.input_len())?, dz.at(NAME, self.output_len())?);
        let columns = columns.at(NAME, self.columns_len())?;
        let dweight = dweight.at(NAME, g.weight_len())?;
        match self.products {
            #[cfg(feature = "cudnn")]
            Products::Cudnn => super::super::cudnn::weight_gradient_at(
                &gpu.device,
                DType::F32,
                g,
                [x, dz, dweight],
            ),
            Products::Cublas => {
                columns_at::<f32>(&gpu.device, x, g, columns)?;
                let sizes = (g.out_channels, g.window_len(), g.batch * g.out_pixels());
                // SAFETY: as for the products.
                unsafe {
                    product(gpu, sizes, Factor::rows(dz), Factor::transposed(columns), dweight)
                }
            }
        }
    }

    /// The gradient of x, written or, with `add`, added to what is there; `dz` lies in the products' order.
    pub fn data_gradient(
        &self,
        gpu: &Gpu,
        weight: Span<'_>,
        dz: Span<'_>,
        columns: Span<'_>,
        (dx, add): (Span<'_>, bool),
    ) -> Result<()> {
        let g = &self.geometry;
        let (weight, dz) = (weight.at(NAME, g.weight_len())?, dz.at(NAME, self.output_len())?);
        let (columns, dx) = (columns.at(NAME, self.columns_len())?, dx.at(NAME, g.input_len())?);
        match self.products {
            #[cfg(feature = "cudnn")]
            Products::Cudnn => super::super::cudnn::data_gradient_at(
                &gpu.device,
                DType::F32,
                g,
                [weight, dz, dx],
                add,
            ),
            Products::Cublas => {
                let sizes = (g.window_len(), g.batch * g.out_pixels(), g.out_channels);
                // SAFETY: as for the products.
                unsafe {
                    product(gpu, sizes, Factor::transposed(weight), Factor::rows(dz), columns)
                }?;
                from_columns_at::<f32>(&gpu.device, columns, g, dx, add)
            }
        }
    }

    /// `y = activation(z + bias)`, NCHW; y may lie where z does if the products are NCHW, too.
    pub fn finish(
        &self,
        gpu: &Gpu,
        z: Span<'_>,
        bias: Option<Span<'_>>,
        activation: Activation,
        y: Span<'_>,
    ) -> Result<()> {
        let g = &self.geometry;
        let (z, y) = (z.at(NAME, self.output_len())?, y.at(NAME, self.output_len())?);
        let bias = address_or_null(bias, NAME, g.out_channels)?;
        let order = Order::new(g, self.products);
        let (channels, pixels, activation) =
            (int(g.out_channels)?, int(g.out_pixels())?, code(activation));
        let function = kernel_of::<f32>(&gpu.device, FILE, "conv_bias_forward", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&z).arg(&order.image).arg(&order.channel).arg(&bias).arg(&channels);
        args.arg(&pixels).arg(&activation).arg(&y);
        let (grid, threads) = over_planes::<f32>(g.batch * g.out_channels, g.out_pixels());
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, grid, threads) }
    }

    /// The gradient of the products, in their order, from that of `y`.
    pub fn before_activation(
        &self,
        gpu: &Gpu,
        (y, activation): (Span<'_>, Activation),
        dy: Span<'_>,
        dz: Span<'_>,
    ) -> Result<()> {
        let (g, len) = (&self.geometry, self.output_len());
        let (y, dy, dz) = (y.at(NAME, len)?, dy.at(NAME, len)?, dz.at(NAME, len)?);
        let order = Order::new(g, self.products);
        let (channels, pixels, activation) =
            (int(g.out_channels)?, int(g.out_pixels())?, code(activation));
        let function = kernel_of::<f32>(&gpu.device, FILE, "conv_bias_backward", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&y).arg(&dy).arg(&channels).arg(&pixels).arg(&activation).arg(&dz);
        args.arg(&order.image).arg(&order.channel);
        let (grid, threads) = over_planes::<f32>(g.batch * g.out_channels, g.out_pixels());
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, grid, threads) }
    }

    /// Numbers of the result of a 2x2 max-pool behind it.
    fn pooled_len(&self) -> usize {
        let Geometry { batch, out_channels, out_height, out_width, .. } = self.geometry;
        batch * out_channels * (out_height / 2) * (out_width / 2)
    }

    /// The maxima of 2x2 windows of `z + bias`, then the activation; `winners` are bytes, four in a number.
    pub fn pool(
        &self,
        gpu: &Gpu,
        z: Span<'_>,
        bias: Option<Span<'_>>,
        activation: Activation,
        (y, winners): (Span<'_>, Span<'_>),
    ) -> Result<()> {
        let (g, len) = (&self.geometry, self.pooled_len());
        let (z, y) = (z.at(NAME, self.output_len())?, y.at(NAME, len)?);
        let winners = winners.at(NAME, len.div_ceil(4))?;
        let bias = address_or_null(bias, NAME, g.out_channels)?;
        let order = Order::new(g, self.products);
        let (channels, activation) = (int(g.out_channels)?, code(activation));
        let (height, width) = (int(g.out_height)?, int(g.out_width)?);
        let function = kernel_of::<f32>(&gpu.device, FILE, "conv_pool_forward", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&z).arg(&order.image).arg(&order.channel).arg(&bias).arg(&channels);
        args.arg(&height).arg(&width).arg(&activation).arg(&y).arg(&winners);
        let (grid, threads) = over_planes::<f32>(g.batch * g.out_channels, g.out_pixels());
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, grid, threads) }
    }

    /// The gradient of the products, in their order, from that of the maxima.
    pub fn before_pool(
        &self,
        gpu: &Gpu,
        (y, winners, activation): (Span<'_>, Span<'_>, Activation),
        dy: Span<'_>,
        dz: Span<'_>,
    ) -> Result<()> {
        let (g, len) = (&self.geometry, self.pooled_len());
        let (y, dy, dz) = (y.at(NAME, len)?, dy.at(NAME, len)?, dz.at(NAME, self.output_len())?);
        let winners = winners.at(NAME, len.div_ceil(4))?;
        let order = Order::new(g, self.products);
        let (channels, activation) = (int(g.out_channels)?, code(activation));
        let (height, width) = (int(g.out_height)?, int(g.out_width)?);
        let function = kernel_of::<f32>(&gpu.device, FILE, "conv_pool_backward", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&y).arg(&winners).arg(&dy).arg(&channels).arg(&height).arg(&width);
        args.arg(&activation).arg(&dz).arg(&order.image).arg(&order.channel);
        let (grid, threads) = over_planes::<f32>(g.batch * g.out_channels, g.out_pixels());
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, grid, threads) }
    }

    /// The gradient of the bias: each channel's sum of `dz`, which lies in the products' order. `sums` is scratch memory.
    pub fn bias_gradient(
        &self,
        gpu: &Gpu,
        dz: Span<'_>,
        sums: Span<'_>,
        dbias: Span<'_>,
    ) -> Result<()> {
        let g = &self.geometry;
        let (dz, dbias) = (dz.at(NAME, self.output_len())?, dbias.at(NAME, g.out_channels)?);
        let sums = sums.at(NAME, self.sums_len())?;
        let order = Order::new(g, self.products);
        let (part_count, threads) = parts(g.batch, g.out_pixels());
        let (images, pixels) = (int(g.batch)?, int(g.out_pixels())?);
        let function = kernel_of::<f32>(&gpu.device, FILE, "conv_bias_sums", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&dz).arg(&order.image).arg(&order.channel).arg(&images).arg(&pixels).arg(&sums);
        // SAFETY: the memory has the sizes that are passed; a block for each pair of sums.
        unsafe { launch(args, (g.out_channels, part_count), threads) }?;
        let part_count = int(part_count)?;
        let function = kernel(&gpu.device, FILE, "conv_bias_totals", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&sums).arg(&part_count).arg(&dbias);
        // SAFETY: a warp a channel.
        unsafe { launch(args, (g.out_channels, 1), (32, 1)) }
    }
}
