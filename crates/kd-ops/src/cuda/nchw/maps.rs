//! Operations without parameters, value by value or plane by plane.

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::cudarc::driver::result::{memcpy_dtod_async, memset_d8_async};

use super::super::dropout::{Before, Dropout};
use super::super::{blocks_over, int, kernel, kernel_of, launch, over_planes, ptx, threads_over};
use super::{Gpu, Span, code};
use crate::DropoutKey;
use crate::nhwc::{Activation, Windows};

/// The name under which the driver keeps the kernels of kernels/planned.cu.
pub(super) const FILE: &str = "kd-ops planned";

/// The size of a batch's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// How many images the batch has.
    pub batch: usize,
    /// How many channels an image has.
    pub channels: usize,
    /// How many rows of pixels a plane has.
    pub height: usize,
    /// How many pixels a row of a plane has.
    pub width: usize,
}

impl Size {
    /// How many pixels a plane has.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// How many planes the batch has, one a channel of each image.
    pub fn planes(&self) -> usize {
        self.batch * self.channels
    }

    /// How many numbers the batch has.
    pub fn len(&self) -> usize {
        self.planes() * self.pixels()
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Gpu {
    /// Copies all of a span to another.
    ///
    /// # Errors
    /// When memory is too small or the GPU refuses; so for all functions here.
    pub fn copy(&self, from: Span<'_>, to: Span<'_>) -> Result<()> {
        let (bytes, to) = (from.len * size_of::<f32>(), to.at("copy", from.len)?);
        // SAFETY: both have so many bytes on the device of the stream.
        unsafe { memcpy_dtod_async(to, from.address, bytes, self.device.cuda_stream().cu_stream()) }
            .w()
    }

    /// Writes zeros to all of a span.
    pub fn zero(&self, to: Span<'_>) -> Result<()> {
        let bytes = to.len * size_of::<f32>();
        // SAFETY: it has so many bytes on the device of the stream.
        unsafe { memset_d8_async(to.address, 0, bytes, self.device.cuda_stream().cu_stream()) }.w()
    }

    /// `to += from`, all of `from`.
    pub fn add(&self, from: Span<'_>, to: Span<'_>) -> Result<()> {
        let (count, to) = (from.len, to.at("add", from.len)?);
        let function = kernel(&self.device, FILE, "map_add", ptx::PLANNED)?;
        let mut args = function.builder();
        args.arg(&count).arg(&from.address).arg(&to);
        // SAFETY: both have `count` numbers.
        unsafe { launch(args, (blocks_over(count), 1), (256, 1)) }
    }

    /// All of a gradient, in place, through the activation that gave `y`.
    pub fn mask(&self, y: Span<'_>, activation: Activation, gradient: Span<'_>) -> Result<()> {
        let (count, y) = (gradient.len, y.at("mask", gradient.len)?);
        let activation = code(activation);
        let function = kernel(&self.device, FILE, "map_mask", ptx::PLANNED)?;
        let mut args = function.builder();
        args.arg(&count).arg(&y).arg(&activation).arg(&gradient.address);
        // SAFETY: both have `count` numbers.
        unsafe { launch(args, (blocks_over(count), 1), (256, 1)) }
    }

    /// The maximum of each window and its activation. `winners` are positions in a plane, a number each.
    pub fn max_pool(
        &self,
        (x, from): (Span<'_>, Size),
        windows: Windows,
        activation: Activation,
        (y, to): (Span<'_>, Size),
        winners: Span<'_>,
    ) -> Result<()> {
        let name = "max_pool2d";
        let (x, y) = (x.at(name, from.len())?, y.at(name, to.len())?);
        let winners = winners.at(name, to.len())?;
        let activation = code(activation);
        let [height, width, out_h, out_w] = planes(from, to)?;
        let [kernel_size, stride, padding] = sizes(windows)?;
        let function =
            kernel_of::<f32>(&self.device, "kd-ops max_pool", "max_pool_forward", ptx::MAX_POOL)?;
        let mut args = function.builder();
        args.arg(&x).arg(&y).arg(&winners).arg(&height).arg(&width).arg(&out_h).arg(&out_w);
        args.arg(&kernel_size).arg(&stride).arg(&padding).arg(&activation);
        // SAFETY: the memory has the sizes that are passed; a block is a plane.
        unsafe { launch(args, (to.planes(), 1), (threads_over(to.pixels()), 1)) }
    }

    /// The gradient before a max-pool from that of its maxima.
    pub fn max_pool_gradient(
        &self,
        (dy, from): (Span<'_>, Size),
        winners: Span<'_>,
        windows: Windows,
        (dx, to): (Span<'_>, Size),
    ) -> Result<()> {
        let name = "max_pool2d";
        let (dy, dx) = (dy.at(name, from.len())?, dx.at(name, to.len())?);
        let winners = winners.at(name, from.len())?;
        let [height, width, out_h, out_w] = planes(to, from)?;
        let [kernel_size, stride, padding] = sizes(windows)?;
        let function =
            kernel_of::<f32>(&self.device, "kd-ops max_pool", "max_pool_backward", ptx::MAX_POOL)?;
        let mut args = function.builder();
        args.arg(&dy).arg(&winners).arg(&dx).arg(&height).arg(&width).arg(&out_h).arg(&out_w);
        args.arg(&kernel_size).arg(&stride).arg(&padding);
        // SAFETY: the memory has the sizes that are passed; a block is a plane.
        unsafe { launch(args, (to.planes(), 1), (threads_over(to.pixels()), 1)) }
    }

    /// The mean of each plane.
    pub fn global_average(&self, (x, size): (Span<'_>, Size), y: Span<'_>) -> Result<()> {
        let (x, y) = (x.at("average", size.len())?, y.at("average", size.planes())?);
        let (planes, pixels) = (int(size.planes())?, int(size.pixels())?);
        let function = kernel(&self.device, FILE, "plane_means", ptx::PLANNED)?;
        let mut args = function.builder();
        args.arg(&x).arg(&planes).arg(&pixels).arg(&y);
        // SAFETY: the memory has the sizes that are passed; a warp is a plane.
        unsafe { launch(args, (size.planes().div_ceil(8), 1), (32, 8)) }
    }

    /// The gradient before the means.
    pub fn global_average_gradient(
        &self,
        dy: Span<'_>,
        (dx, size): (Span<'_>, Size),
    ) -> Result<()> {
        let (dy, dx) = (dy.at("average", size.planes())?, dx.at("average", size.len())?);
        let pixels = int(size.pixels())?;
        let function = kernel(&self.device, FILE, "plane_means_gradient", ptx::PLANNED)?;
        let mut args = function.builder();
        args.arg(&dy).arg(&pixels).arg(&dx);
        let (grid, threads) = over_planes::<f32>(size.planes(), size.pixels());
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, grid, threads) }
    }

    /// Every second pixel, with channels of zeros around.
    pub fn subsample(&self, (x, from): (Span<'_>, Size), (y, to): (Span<'_>, Size)) -> Result<()> {
        let addresses = [x.at("subsample", from.len())?, y.at("subsample", to.len())?];
        self.between_planes("subsample_pad_forward", addresses, (from, to), to)
    }

    /// The gradient before that.
    pub fn subsample_gradient(
        &self,
        (dy, from): (Span<'_>, Size),
        (dx, to): (Span<'_>, Size),
    ) -> Result<()> {
        let addresses = [dy.at("subsample", from.len())?, dx.at("subsample", to.len())?];
        self.between_planes("subsample_pad_backward", addresses, (to, from), to)
    }

    /// Runs a kernel of kernels/shortcut.cu, a block a plane of what is `written`.
    fn between_planes(
        &self,
        name: &str,
        [from, to]: [u64; 2],
        (before, after): (Size, Size),
        written: Size,
    ) -> Result<()> {
        let [height, width, out_h, out_w] = planes(before, after)?;
        let (channels, outputs) = (int(before.channels)?, int(after.channels)?);
        let function = kernel_of::<f32>(&self.device, "kd-ops shortcut", name, ptx::SHORTCUT)?;
        let mut args = function.builder();
        args.arg(&from).arg(&to).arg(&channels).arg(&height).arg(&width);
        args.arg(&outputs).arg(&out_h).arg(&out_w);
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, (written.planes(), 1), (threads_over(written.pixels()), 1)) }
    }
}

/// A layer's dropout in a step of training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutLayer {
    /// The share of the numbers that become zero.
    pub share: f64,
    /// The key of the step, from which the mask follows.
    pub key: DropoutKey,
    /// The number of the layer in its network, from which the mask follows, too.
    pub layer: u64,
}

impl DropoutLayer {
    /// Values times the mask, divided by 1 - share, or their gradient: all of x. A gradient goes on through the activation that gave
    /// `before`.
    ///
    /// # Errors
    /// As for [`Gpu::copy`].
    pub fn apply(
        &self,
        gpu: &Gpu,
        x: Span<'_>,
        y: Span<'_>,
        before: Option<(Span<'_>, Activation)>,
    ) -> Result<()> {
        let (count, y) = (x.len, y.at("dropout", x.len)?);
        let before = match before {
            Some((result, activation)) => {
                Before { activation: code(activation), result: result.at("dropout", count)? }
            }
            None => Before::default(),
        };
        let DropoutKey { seed, step } = self.key;
        let dropout = Dropout { p: self.share, seed, step, layer: self.layer };
        dropout.apply_at::<f32>(&gpu.device, count, [x.address, y], before)
    }
}

/// Rows and columns of a map and of what is made of it.
fn planes(before: Size, after: Size) -> Result<[i32; 4]> {
    Ok([int(before.height)?, int(before.width)?, int(after.height)?, int(after.width)?])
}

fn sizes(windows: Windows) -> Result<[i32; 3]> {
    let Windows { kernel, stride, padding } = windows;
    Ok([int(kernel)?, int(stride)?, int(padding)?])
}
