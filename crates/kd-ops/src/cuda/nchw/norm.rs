//! Batch normalisation, and sums of what is read through it.

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, PushKernelArg};
use candle_core::{Result, bail};

use super::super::{int, kernel, kernel_of, launch, over_planes, parts, ptx};
use super::maps::FILE as PLANNED;
use super::{Gpu, Size, Span, code};
use crate::nhwc::Activation;

const NAME: &str = "batch_norm";
const FILE: &str = "kd-ops batch_norm";

/// A batch normalisation of a batch's map.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// The size of the map that it normalises.
    pub size: Size,
    /// What is added to the variance.
    pub eps: f64,
}

/// The tensors of a batch normalisation, a number a channel each.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// What each normalised value is multiplied by.
    pub weight: Span<'a>,
    /// What is added to each product.
    pub bias: Span<'a>,
    /// The running mean of what is normalised.
    pub mean: Span<'a>,
    /// The running variance of what is normalised.
    pub var: Span<'a>,
}

/// What a pass knows of a batch normalisation, a number a channel each.
#[derive(Clone, Copy, Debug)]
pub struct NormState<'a> {
    mean: Span<'a>,
    /// 1 / standard deviation, f64: two f32 each.
    inv_std: Span<'a>,
    through_mean: Span<'a>,
    through_var: Span<'a>,
}

impl<'a> NormState<'a> {
    /// Numbers that so many channels need.
    pub fn len(channels: usize) -> usize {
        5 * channels.next_multiple_of(4)
    }

    /// The state in memory of that size, which begins where 16 bytes do.
    pub fn at(memory: Span<'a>, channels: usize) -> Self {
        let room = channels.next_multiple_of(4);
        Self {
            inv_std: memory.part(0, 2 * channels),
            mean: memory.part(2 * room, channels),
            through_mean: memory.part(3 * room, channels),
            through_var: memory.part(4 * room, channels),
        }
    }
}

/// `struct Normed` of kernels/planned.cu: addresses of x, mean, 1 / standard deviation, weight and bias.
#[repr(C)]
#[derive(Clone, Copy)]
struct Normed([u64; 5]);

// SAFETY: five pointers, which are 64 bits wide on every GPU.
unsafe impl DeviceRepr for Normed {}

/// An input of a sum: what is read, and the normalisation that it is read through.
pub type Input<'a> = (Span<'a>, Option<(NormState<'a>, Parameters<'a>)>);

impl Norm {
    /// Numbers of f64 sums, two f32 each, that its passes need.
    pub fn sums_len(&self) -> usize {
        4 * self.size.channels * parts(self.size.batch, self.size.pixels()).0
    }

    fn count(&self) -> usize {
        self.size.batch * self.size.pixels()
    }

    /// Takes the batch's statistics; the running ones take `momentum` of them. `sums` is scratch memory.
    ///
    /// # Errors
    /// When the batch has fewer than two values in a channel, memory is too small, or the GPU refuses.
    pub fn batch_statistics(
        &self,
        gpu: &Gpu,
        x: Span<'_>,
        (parameters, momentum): (Parameters<'_>, f64),
        sums: Span<'_>,
        state: NormState<'_>,
    ) -> Result<()> {
        let Size { batch, channels, height, width } = self.size;
        let count = self.count();
        if count < 2 {
            bail!(
                "batch_norm: a batch of {batch} images of {height}x{width} pixels has {count} values in each channel; its variance needs at least 2"
            );
        }
        let (x, sums) = (x.at(NAME, self.size.len())?, sums.at(NAME, self.sums_len())?);
        let (running_mean, running_var) =
            (parameters.mean.at(NAME, channels)?, parameters.var.at(NAME, channels)?);
        let (mean, inv_std) = (state.mean.address, state.inv_std.address);
        let (part_count, threads) = parts(batch, self.size.pixels());
        let (images, channel_count, plane) =
            (int(batch)?, int(channels)?, int(self.size.pixels())?);
        let function = kernel_of::<f32>(&gpu.device, FILE, "batch_norm_moments", ptx::BATCH_NORM)?;
        let mut args = function.builder();
        args.arg(&x).arg(&images).arg(&channel_count).arg(&plane).arg(&sums);
        // SAFETY: the memory has the sizes that are passed; a block for each pair of sums.
        unsafe { launch(args, (channels, part_count), threads) }?;
        let (part_count, count, eps) = (int(part_count)?, count as f64, self.eps);
        let function =
            kernel_of::<f32>(&gpu.device, FILE, "batch_norm_statistics", ptx::BATCH_NORM)?;
        let mut args = function.builder();
        args.arg(&sums).arg(&part_count).arg(&x).arg(&plane).arg(&count).arg(&momentum).arg(&eps);
        args.arg(&running_mean).arg(&running_var).arg(&mean).arg(&inv_std);
        // SAFETY: the memory has the sizes that are passed; a warp a channel.
        unsafe { launch(args, (channels, 1), (32, 1)) }
    }

    /// Takes the running statistics.
    ///
    /// # Errors
    /// As for [`batch_statistics`](Self::batch_statistics), whatever the batch; so for all functions here.
    pub fn running_statistics(
        &self,
        gpu: &Gpu,
        parameters: Parameters<'_>,
        state: NormState<'_>,
    ) -> Result<()> {
        let channels = self.size.channels;
        let (running_mean, running_var) =
            (parameters.mean.at(NAME, channels)?, parameters.var.at(NAME, channels)?);
        let (mean, inv_std) = (state.mean.address, state.inv_std.address);
        let (count, eps) = (int(channels)?, self.eps);
        let function = kernel(&gpu.device, FILE, "batch_norm_running", ptx::BATCH_NORM)?;
        let mut args = function.builder();
        args.arg(&running_mean).arg(&running_var).arg(&count).arg(&eps).arg(&mean).arg(&inv_std);
        // SAFETY: all have a number a channel.
        unsafe { launch(args, (channels.div_ceil(128), 1), (128, 1)) }
    }

    /// The gradients of weight and bias, to those two spans, from the gradient `dy` of `y`, which an activation gave behind the
    /// normalisation of x; y is not read without an activation. With `batch` the state takes what flows back through the batch's
    /// statistics.
    pub fn parameter_gradients(
        &self,
        gpu: &Gpu,
        (x, state, batch): (Span<'_>, NormState<'_>, bool),
        (y, activation): (Span<'_>, Activation),
        dy: Span<'_>,
        sums: Span<'_>,
        (dweight, dbias): (Span<'_>, Span<'_>),
    ) -> Result<()> {
        let (len, channels) = (self.size.len(), self.size.channels);
        let (x, y, dy) = (x.at(NAME, len)?, y.at(NAME, len)?, dy.at(NAME, len)?);
        let sums = sums.at(NAME, self.sums_len())?;
        let (dweight, dbias) = (dweight.at(NAME, channels)?, dbias.at(NAME, channels)?);
        let NormState { mean, inv_std, through_mean, through_var } = state;
        let (part_count, threads) = parts(self.size.batch, self.size.pixels());
        let (images, channel_count) = (int(self.size.batch)?, int(channels)?);
        let (plane, activation) = (int(self.size.pixels())?, code(activation));
        let name = "batch_norm_gradient_sums";
        let function = kernel_of::<f32>(&gpu.device, FILE, name, ptx::BATCH_NORM)?;
        let mut args = function.builder();
        args.arg(&x).arg(&y).arg(&dy).arg(&mean.address).arg(&images).arg(&channel_count);
        args.arg(&plane).arg(&activation).arg(&sums);
        // SAFETY: the memory has the sizes that are passed; a block for each pair of sums.
        unsafe { launch(args, (channels, part_count), threads) }?;
        let count = if batch { self.count() as f64 } else { f64::INFINITY };
        let part_count = int(part_count)?;
        let function = kernel(&gpu.device, FILE, "batch_norm_gradient_totals", ptx::BATCH_NORM)?;
        let mut args = function.builder();
        args.arg(&sums).arg(&part_count).arg(&inv_std.address).arg(&count);
        args.arg(&dweight).arg(&dbias).arg(&through_mean.address).arg(&through_var.address);
        // SAFETY: all have a number a channel; a warp a channel.
        unsafe { launch(args, (channels, 1), (32, 1)) }
    }

    /// The gradient of x from that of `y`, once [`parameter_gradients`](Self::parameter_gradients) has been called. With
    /// `dy_through` the gradient behind the normalisation, that is before the activation, is written over `dy`.
    pub fn data_gradient(
        &self,
        gpu: &Gpu,
        (x, state, parameters): (Span<'_>, NormState<'_>, Parameters<'_>),
        (y, activation): (Span<'_>, Activation),
        (dy, dy_through): (Span<'_>, bool),
        dx: Span<'_>,
    ) -> Result<()> {
        let (len, channels) = (self.size.len(), self.size.channels);
        let (x, y, dy, dx) =
            (x.at(NAME, len)?, y.at(NAME, len)?, dy.at(NAME, len)?, dx.at(NAME, len)?);
        let weight = parameters.weight.at(NAME, channels)?;
        let NormState { mean, inv_std, through_mean, through_var } = state;
        let (channel_count, plane) = (int(channels)?, int(self.size.pixels())?);
        let (activation, behind) = (code(activation), if dy_through { dy } else { 0 });
        let function = kernel_of::<f32>(&gpu.device, FILE, "batch_norm_backward", ptx::BATCH_NORM)?;
        let mut args = function.builder();
        args.arg(&x).arg(&y).arg(&dy).arg(&mean.address).arg(&inv_std.address).arg(&weight);
        args.arg(&through_mean.address).arg(&through_var.address).arg(&channel_count).arg(&plane);
        args.arg(&activation).arg(&dx).arg(&behind);
        let (grid, threads) = over_planes::<f32>(self.size.planes(), self.size.pixels());
        // SAFETY: the memory has the sizes that are passed; a null pointer stands for a gradient that nobody wants, and a thread
        // reads the gradient that it writes over.
        unsafe { launch(args, grid, threads) }
    }

    /// The weight and bias of a convolution with this normalisation, by its running statistics, behind it; `weight` has `window`
    /// numbers an output channel.
    pub fn fold(
        &self,
        gpu: &Gpu,
        (weight, bias, window): (Span<'_>, Option<Span<'_>>, usize),
        parameters: Parameters<'_>,
        (folded, folded_bias): (Span<'_>, Span<'_>),
    ) -> Result<()> {
        let channels = self.size.channels;
        let len = channels * window;
        let (weight, folded) = (weight.at(NAME, len)?, folded.at(NAME, len)?);
        let before = super::address_or_null(bias, NAME, channels)?;
        let folded_bias = folded_bias.at(NAME, channels)?;
        let [norm_weight, norm_bias, mean, var] = addresses(parameters, channels)?;
        let (eps, window) = (self.eps, int(window)?);
        let function = kernel(&gpu.device, PLANNED, "fold_norm", ptx::PLANNED)?;
        let mut args = function.builder();
        args.arg(&weight).arg(&before).arg(&norm_weight).arg(&norm_bias).arg(&mean).arg(&var);
        args.arg(&eps).arg(&window).arg(&folded).arg(&folded_bias);
        // SAFETY: the memory has the sizes that are passed; a block a channel.
        unsafe { launch(args, (channels, 1), (128, 1)) }
    }
}

fn addresses(parameters: Parameters<'_>, channels: usize) -> Result<[u64; 4]> {
    let Parameters { weight, bias, mean, var } = parameters;
    Ok([
        weight.at(NAME, channels)?,
        bias.at(NAME, channels)?,
        mean.at(NAME, channels)?,
        var.at(NAME, channels)?,
    ])
}

impl Gpu {
    /// The activation of a sum of one or two inputs, each read through its normalisation.
    ///
    /// # Errors
    /// When memory is too small or the GPU refuses.
    pub fn sum(
        &self,
        size: Size,
        first: Input<'_>,
        second: Option<Input<'_>>,
        activation: Activation,
        y: Span<'_>,
    ) -> Result<()> {
        let normed = |(x, norm): Input<'_>| -> Result<Normed> {
            let x = x.at("sum", size.len())?;
            let Some((state, parameters)) = norm else { return Ok(Normed([x, 0, 0, 0, 0])) };
            let [weight, bias, ..] = addresses(parameters, size.channels)?;
            Ok(Normed([x, state.mean.address, state.inv_std.address, weight, bias]))
        };
        let first = normed(first)?;
        let second = second.map(normed).transpose()?.unwrap_or(Normed([0; 5]));
        let y = y.at("sum", size.len())?;
        let (channels, pixels) = (int(size.channels)?, int(size.pixels())?);
        let activation = code(activation);
        let function = kernel(&self.device, PLANNED, "map_sum", ptx::PLANNED)?;
        let mut args = function.builder();
        args.arg(&first).arg(&second).arg(&channels).arg(&pixels).arg(&activation).arg(&y);
        let (grid, threads) = over_planes::<f32>(size.planes(), size.pixels());
        // SAFETY: the memory has the sizes that are passed; null pointers stand for no normalisation and no second input.
        unsafe { launch(args, grid, threads) }
    }
}
