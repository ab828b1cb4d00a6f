//! The parameter-free shortcut on a GPU.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{
    Array, Number, device, hold, int, kernel_of, launch, memory, not_on_cpu, ptx, threads_over,
    with_number,
};

const NAME: &str = "subsample_pad";

/// As [`crate::subsample_pad`], which has checked `channels`.
pub(crate) fn subsample_pad(x: &Tensor, channels: usize) -> Result<Tensor> {
    x.contiguous()?.apply_op1(SubsamplePad { channels })
}

struct SubsamplePad {
    channels: usize,
}

/// Images, and the maps before and after.
struct Sizes {
    images: usize,
    before: [usize; 3],
    after: [usize; 3],
}

impl Sizes {
    fn new(x: &Shape, channels: usize) -> Result<Self> {
        let (images, inputs, height, width) = x.dims4()?;
        let after = [channels, height.div_ceil(2), width.div_ceil(2)];
        Ok(Self { images, before: [inputs, height, width], after })
    }

    /// Runs the kernel `name` from one map to the other, a block a plane of the latter.
    fn run<T: Number>(
        &self,
        device: &CudaDevice,
        name: &str,
        from: &CudaView<'_, T>,
        [channels, height, width]: [usize; 3],
    ) -> Result<CudaSlice<T>> {
        let mut to = memory::<T>(device, self.images * channels * height * width)?;
        let [c, h, w] = self.before;
        let [out_c, out_h, out_w] = self.after;
        let (c, h, w) = (int(c)?, int(h)?, int(w)?);
        let (out_c, out_h, out_w) = (int(out_c)?, int(out_h)?, int(out_w)?);
        let function = kernel_of::<T>(device, "kd-ops shortcut", name, ptx::SHORTCUT)?;
        let mut args = function.builder();
        args.arg(from).arg(&mut to).arg(&c).arg(&h).arg(&w).arg(&out_c).arg(&out_h).arg(&out_w);
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, (self.images * channels, 1), (threads_over(height * width), 1)) }?;
        Ok(to)
    }
}

impl CustomOp1 for SubsamplePad {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(NAME)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = Array { storage, layout };
        let sizes = Sizes::new(layout.shape(), self.channels)?;
        let [channels, height, width] = sizes.after;
        let y = with_number!(NAME, x.dtype(), T => {
            let x_values = x.values::<T>(NAME)?;
            let y = sizes.run(x.device(), "subsample_pad_forward", &x_values, sizes.after)?;
            super::storage(y, x.device())
        });
        Ok((y, Shape::from((sizes.images, channels, height, width))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let device = device(NAME, x)?;
        let sizes = Sizes::new(x.shape(), self.channels)?;
        let held = hold(&dy);
        let dx = with_number!(NAME, dy.dtype(), T => {
            let dy = held.values::<T>(NAME)?;
            let dx = sizes.run(&device, "subsample_pad_backward", &dy, sizes.before)?;
            super::tensor(dx, &device, x.shape())
        });
        Ok(Some(dx))
    }
}
