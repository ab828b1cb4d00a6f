//! Max-pooling on a GPU.

use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{
    Array, Number, device, hold, int, kernel_of, launch, memory, not_on_cpu, ptx, threads_over,
    with_number,
};

const NAME: &str = "max_pool2d";

/// As [`crate::max_pool2d_padded`], which has checked the sizes.
pub(crate) fn max_pool2d(
    x: &Tensor,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    x.contiguous()?.apply_op1(MaxPool2d { kernel, stride, padding, winners: OnceLock::new() })
}

struct MaxPool2d {
    kernel: usize,
    stride: usize,
    padding: usize,
    /// For each output element its input's position in the plane, u32.
    winners: OnceLock<Tensor>,
}

impl MaxPool2d {
    fn forward<T: Number>(&self, x: Array<'_>) -> Result<(CudaStorage, Shape)> {
        let (images, channels, height, width) = x.layout.shape().dims4()?;
        // That all of a window lies around the map is refused before.
        let windows = |side: usize| (side + 2 * self.padding - self.kernel) / self.stride + 1;
        let (out_height, out_width) = (windows(height), windows(width));
        let shape = Shape::from((images, channels, out_height, out_width));
        let device = x.device();
        let mut y = memory::<T>(device, shape.elem_count())?;
        let mut winners = memory::<u32>(device, shape.elem_count())?;
        let x = x.values::<T>(NAME)?;
        let sizes = [height, width, out_height, out_width, self.kernel, self.stride];
        let [height, width, out_h, out_w, size, stride] = sizes.map(int);
        let (height, width, out_h, out_w) = (height?, width?, out_h?, out_w?);
        let (size, stride) = (size?, stride?);
        let (padding, activation) = (int(self.padding)?, 0i32);
        let function =
            kernel_of::<T>(device, "kd-ops max_pool", "max_pool_forward", ptx::MAX_POOL)?;
        let mut args = function.builder();
        args.arg(&x).arg(&mut y).arg(&mut winners).arg(&height).arg(&width);
        args.arg(&out_h).arg(&out_w).arg(&size).arg(&stride).arg(&padding).arg(&activation);
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, (images * channels, 1), (threads_over(out_height * out_width), 1)) }?;
        // `cuda_fwd` runs once for each operation that is built, so the cell is empty here.
        let _ = self.winners.set(super::tensor(winners, device, shape.clone()));
        Ok((super::storage(y, device), shape))
    }

    fn backward<T: Number>(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let Some(winners) = self.winners.get() else { bail!("{NAME}: backward before forward") };
        let (images, channels, height, width) = x.dims4()?;
        let (_, _, out_height, out_width) = y.dims4()?;
        let dy = dy.contiguous()?;
        let device = device(NAME, x)?;
        let mut dx = memory::<T>(&device, x.elem_count())?;
        let threads = threads_over(height * width);
        {
            let (dy, winners) = (hold(&dy), hold(winners));
            let (dy, winners) = (dy.values::<T>(NAME)?, winners.values::<u32>(NAME)?);
            let (height, width) = (int(height)?, int(width)?);
            let (out_h, out_w) = (int(out_height)?, int(out_width)?);
            let (size, stride) = (int(self.kernel)?, int(self.stride)?);
            let padding = int(self.padding)?;
            let function =
                kernel_of::<T>(&device, "kd-ops max_pool", "max_pool_backward", ptx::MAX_POOL)?;
            let mut args = function.builder();
            args.arg(&dy).arg(&winners).arg(&mut dx).arg(&height).arg(&width);
            args.arg(&out_h).arg(&out_w).arg(&size).arg(&stride).arg(&padding);
            // SAFETY: the memory has the sizes that are passed.
            unsafe { launch(args, (images * channels, 1), (threads, 1)) }?;
        }
        Ok(super::tensor(dx, &device, x.shape()))
    }
}

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(NAME)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = Array { storage, layout };
        with_number!(NAME, x.dtype(), T => self.forward::<T>(x))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(with_number!(NAME, x.dtype(), T => self.backward::<T>(x, y, dy)?)))
    }
}
