//! Batch normalisation on a GPU.

use candle_core::cuda_backend::cudarc::driver::{CudaView, PushKernelArg};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::{
    Array, Number, device, hold, int, kernel, kernel_of, launch, memory, not_on_cpu, over_planes,
    parts, ptx, with_number,
};
use crate::batch_norm::layer::{BatchNorm, Statistics};

const NAME: &str = "batch_norm";
const FILE: &str = "kd-ops batch_norm";

/// As [`BatchNorm::forward`], which has checked the shapes.
pub(crate) fn forward(
    layer: &BatchNorm,
    x: &Tensor,
    residual: Option<&Tensor>,
    statistics: Statistics,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let sizes = Sizes::new(x.shape())?;
    let (mean, inv_std) = match statistics {
        Statistics::Batch => {
            with_number!(NAME, x.dtype(), T => batch_statistics::<T>(layer, &x, &sizes)?)
        }
        Statistics::Running => running_statistics(layer, &sizes)?,
    };
    let op = |affine_in_one| BatchNormOp {
        statistics,
        relu: layer.config.relu,
        affine_in_one,
        mean,
        inv_std,
    };
    let parameter = |parameter: &Tensor| parameter.to_dtype(DType::F32)?.contiguous();
    let (weight, bias) = (parameter(&layer.weight)?, parameter(&layer.bias)?);
    match residual {
        None => x.apply_op3(&weight, &bias, op(false)),
        // One tensor, so that the residual finds room among the three arguments.
        Some(residual) => {
            let affine = Tensor::cat(&[&weight, &bias], 0)?;
            x.apply_op3(&affine, &residual.to_dtype(x.dtype())?.contiguous()?, op(true))
        }
    }
}

struct Sizes {
    images: usize,
    channels: usize,
    plane: usize,
    /// The same two as kernels take them.
    channel_count: i32,
    pixels: i32,
}

impl Sizes {
    fn new(x: &Shape) -> Result<Self> {
        let (images, channels, height, width) = x.dims4()?;
        let plane = height * width;
        Ok(Self { images, channels, plane, channel_count: int(channels)?, pixels: int(plane)? })
    }

    /// Values of a channel.
    fn count(&self) -> usize {
        self.images * self.plane
    }
}

/// The batch's mean (f32) and 1 / standard deviation (f64) of each channel; the running statistics take their
/// share.
fn batch_statistics<T: Number>(
    layer: &BatchNorm,
    x: &Tensor,
    sizes: &Sizes,
) -> Result<(Tensor, Tensor)> {
    let device = device(NAME, x)?;
    let (part_count, threads) = parts(sizes.images, sizes.plane);
    let mut partial = memory::<f64>(&device, 2 * sizes.channels * part_count)?;
    let mut mean = memory::<f32>(&device, sizes.channels)?;
    let mut inv_std = memory::<f64>(&device, sizes.channels)?;
    let (images, channels, plane) = (int(sizes.images)?, sizes.channel_count, sizes.pixels);
    let x = hold(x);
    let x = x.values::<T>(NAME)?;

    let function = kernel_of::<T>(&device, FILE, "batch_norm_moments", ptx::BATCH_NORM)?;
    let mut args = function.builder();
    args.arg(&x).arg(&images).arg(&channels).arg(&plane).arg(&mut partial);
    // SAFETY: the memory has the sizes that are passed; a block for each of the pairs in `partial`.
    unsafe { launch(args, (sizes.channels, part_count), threads) }?;

    // The kernel writes to the running statistics, as an operation in place would: nothing on the host reads
    // this memory, and what reads it on the GPU comes later on the stream.
    let (running_mean, running_var) = (hold(&layer.running_mean), hold(&layer.running_var));
    let running_mean = running_mean.values::<f32>(NAME)?;
    let running_var = running_var.values::<f32>(NAME)?;
    let (part_count, count) = (int(part_count)?, sizes.count() as f64);
    let (momentum, eps) = (layer.config.momentum, layer.config.eps);
    let function = kernel_of::<T>(&device, FILE, "batch_norm_statistics", ptx::BATCH_NORM)?;
    let mut args = function.builder();
    args.arg(&partial).arg(&part_count).arg(&x).arg(&plane).arg(&count).arg(&momentum).arg(&eps);
    args.arg(&running_mean).arg(&running_var).arg(&mut mean).arg(&mut inv_std);
    // SAFETY: the memory has the sizes that are passed; a warp a channel.
    unsafe { launch(args, (sizes.channels, 1), (32, 1)) }?;
    Ok((
        super::tensor(mean, &device, sizes.channels),
        super::tensor(inv_std, &device, sizes.channels),
    ))
}

fn running_statistics(layer: &BatchNorm, sizes: &Sizes) -> Result<(Tensor, Tensor)> {
    let device = device(NAME, &layer.running_mean)?;
    let mut mean = memory::<f32>(&device, sizes.channels)?;
    let mut inv_std = memory::<f64>(&device, sizes.channels)?;
    let (running_mean, running_var) =
        (layer.running_mean.contiguous()?, layer.running_var.contiguous()?);
    let (running_mean, running_var) = (hold(&running_mean), hold(&running_var));
    let running_mean = running_mean.values::<f32>(NAME)?;
    let running_var = running_var.values::<f32>(NAME)?;
    let eps = layer.config.eps;
    let function = kernel(&device, FILE, "batch_norm_running", ptx::BATCH_NORM)?;
    let mut args = function.builder();
    args.arg(&running_mean).arg(&running_var).arg(&sizes.channel_count).arg(&eps);
    args.arg(&mut mean).arg(&mut inv_std);
    // SAFETY: all have a number a channel.
    unsafe { launch(args, (sizes.channels.div_ceil(128), 1), (128, 1)) }?;
    Ok((
        super::tensor(mean, &device, sizes.channels),
        super::tensor(inv_std, &device, sizes.channels),
    ))
}

/// Of x, and of weight and bias, or of both in one tensor and the residual.
struct BatchNormOp {
    statistics: Statistics,
    relu: bool,
    affine_in_one: bool,
    /// What was subtracted, f32 by channel.
    mean: Tensor,
    /// What was multiplied with, f64 by channel.
    inv_std: Tensor,
}

impl BatchNormOp {
    fn forward<T: Number>(
        &self,
        x: Array<'_>,
        second: Array<'_>,
        third: Array<'_>,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, shape) = (x.device(), x.layout.shape());
        let sizes = Sizes::new(shape)?;
        let x = x.values::<T>(NAME)?;
        let second = second.values::<f32>(NAME)?;
        let (weight, bias, residual): (CudaView<'_, f32>, _, _) = match self.affine_in_one {
            true => {
                let residual = third.values::<T>(NAME)?;
                (second.slice(..sizes.channels), second.slice(sizes.channels..), Some(residual))
            }
            false => (second, third.values::<f32>(NAME)?, None),
        };
        let (mean, inv_std) = (hold(&self.mean), hold(&self.inv_std));
        let (mean, inv_std) = (mean.values::<f32>(NAME)?, inv_std.values::<f64>(NAME)?);
        let mut y = memory::<T>(device, x.len())?;
        let (none, relu) = (0u64, i32::from(self.relu));
        let function = kernel_of::<T>(device, FILE, "batch_norm_forward", ptx::BATCH_NORM)?;
        let mut args = function.builder();
        args.arg(&x).arg(&mean).arg(&inv_std).arg(&weight).arg(&bias);
        match &residual {
            Some(residual) => args.arg(residual),
            None => args.arg(&none),
        };
        args.arg(&sizes.channel_count).arg(&sizes.pixels).arg(&relu).arg(&mut y);
        // SAFETY: the memory has the sizes that are passed; a null pointer stands for no residual.
        let (grid, threads) = over_planes::<T>(sizes.images * sizes.channels, sizes.plane);
        unsafe { launch(args, grid, threads) }?;
        Ok((super::storage(y, device), shape.clone()))
    }

    fn backward<T: Number>(
        &self,
        x: &Tensor,
        second: &Tensor,
        third: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let device = device(NAME, x)?;
        let sizes = Sizes::new(x.shape())?;
        let dy = dy.contiguous()?;
        let (part_count, threads) = parts(sizes.images, sizes.plane);
        let mut partial = memory::<f64>(&device, 2 * sizes.channels * part_count)?;
        let mut affine = memory::<f32>(&device, 2 * sizes.channels)?;
        let mut through_mean = memory::<f32>(&device, sizes.channels)?;
        let mut through_var = memory::<f32>(&device, sizes.channels)?;
        let mut dx = match x.track_op() {
            true => Some(memory::<T>(&device, x.elem_count())?),
            false => None,
        };
        let mut dresidual = match self.affine_in_one && third.track_op() {
            true => Some(memory::<T>(&device, x.elem_count())?),
            false => None,
        };
        {
            let (x, y, dy, weight) = (hold(x), hold(y), hold(&dy), hold(second));
            let (x, y) = (x.values::<T>(NAME)?, y.values::<T>(NAME)?);
            let (dy, weight) = (dy.values::<T>(NAME)?, weight.values::<f32>(NAME)?);
            let (mean, inv_std) = (hold(&self.mean), hold(&self.inv_std));
            let (mean, inv_std) = (mean.values::<f32>(NAME)?, inv_std.values::<f64>(NAME)?);
            let (images, channels, plane) = (int(sizes.images)?, sizes.channel_count, sizes.pixels);
            let relu = i32::from(self.relu);

            let function =
                kernel_of::<T>(&device, FILE, "batch_norm_gradient_sums", ptx::BATCH_NORM)?;
            let mut args = function.builder();
            args.arg(&x).arg(&y).arg(&dy).arg(&mean).arg(&images).arg(&channels).arg(&plane);
            args.arg(&relu).arg(&mut partial);
            // SAFETY: the memory has the sizes that are passed; a block for each pair in `partial`.
            unsafe { launch(args, (sizes.channels, part_count), threads) }?;

            // Through the batch's mean and variance; the running ones are constants.
            let count = match self.statistics {
                Statistics::Batch => sizes.count() as f64,
                Statistics::Running => f64::INFINITY,
            };
            let part_count = int(part_count)?;
            let (mut dweight, mut dbias) = affine.split_at_mut(sizes.channels);
            let function = kernel(&device, FILE, "batch_norm_gradient_totals", ptx::BATCH_NORM)?;
            let mut args = function.builder();
            args.arg(&partial).arg(&part_count).arg(&inv_std).arg(&count);
            args.arg(&mut dweight).arg(&mut dbias).arg(&mut through_mean).arg(&mut through_var);
            // SAFETY: all have a number a channel; a warp a channel.
            unsafe { launch(args, (sizes.channels, 1), (32, 1)) }?;

            if dx.is_some() || dresidual.is_some() {
                let none = 0u64;
                let function =
                    kernel_of::<T>(&device, FILE, "batch_norm_backward", ptx::BATCH_NORM)?;
                let mut args = function.builder();
                args.arg(&x).arg(&y).arg(&dy).arg(&mean).arg(&inv_std).arg(&weight);
                args.arg(&through_mean).arg(&through_var).arg(&channels).arg(&plane).arg(&relu);
                for wanted in [&mut dx, &mut dresidual] {
                    match wanted {
                        Some(values) => args.arg(values),
                        None => args.arg(&none),
                    };
                }
                let (grid, threads) = over_planes::<T>(sizes.images * sizes.channels, sizes.plane);
                // SAFETY: as above; a null pointer stands for a gradient that nobody wants.
                unsafe { launch(args, grid, threads) }?;
            }
        }
        let map = |values| super::tensor(values, &device, x.shape());
        let affine = super::tensor(affine, &device, 2 * sizes.channels);
        Ok(match self.affine_in_one {
            true => (dx.map(map), Some(affine), dresidual.map(map)),
            false => {
                let part = |from| affine.narrow(0, from, sizes.channels);
                (dx.map(map), Some(part(0)?), Some(part(sizes.channels)?))
            }
        })
    }
}

impl CustomOp3 for BatchNormOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(NAME)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        second: &CudaStorage,
        second_layout: &Layout,
        third: &CudaStorage,
        third_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let x = Array { storage: x, layout: x_layout };
        let second = Array { storage: second, layout: second_layout };
        let third = Array { storage: third, layout: third_layout };
        with_number!(NAME, x.dtype(), T => self.forward::<T>(x, second, third))
    }

    fn bwd(
        &self,
        x: &Tensor,
        second: &Tensor,
        third: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with_number!(NAME, x.dtype(), T => self.backward::<T>(x, second, third, y, dy))
    }
}
