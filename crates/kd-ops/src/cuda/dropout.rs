//! Dropout on a GPU, with the CPU's masks.

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DevicePtr, DevicePtrMut, PushKernelArg,
};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{
    Array, Number, device, graph, hold, kernel_of, launch, memory, not_on_cpu, ptx, with_number,
};

const NAME: &str = "dropout";

/// As [`crate::dropout()`], which has checked `p`; `seed` and `step` are those of its key.
pub(crate) fn dropout(x: &Tensor, p: f64, seed: u64, step: u64, layer: u64) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Dropout { p, seed, step, layer })
}

/// A layer's dropout in a step.
pub(super) struct Dropout {
    /// The share of the numbers that become zero.
    pub(super) p: f64,
    pub(super) seed: u64,
    pub(super) step: u64,
    pub(super) layer: u64,
}

/// The activation before a dropout, whose gradient the dropout's goes on through: its code for kernels, and the address of its
/// result, or 0 where there is none.
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    pub(super) activation: i32,
    pub(super) result: u64,
}

impl Dropout {
    /// `x` times the mask, divided by `1 - p`: the same in the forward and in the backward pass.
    fn apply<T: Number>(&self, device: &CudaDevice, x: &CudaView<'_, T>) -> Result<CudaSlice<T>> {
        let count = x.len();
        let mut y = memory::<T>(device, count)?;
        {
            let stream = device.cuda_stream();
            let (x, _x) = x.device_ptr(&stream);
            let (y, _y) = y.device_ptr_mut(&stream);
            self.apply_at::<T>(device, count, [x, y], Before::default())?;
        }
        Ok(y)
    }

    /// The same of `count` numbers from one address to another.
    pub(super) fn apply_at<T: Number>(
        &self,
        device: &CudaDevice,
        count: usize,
        [x, y]: [u64; 2],
        before: Before,
    ) -> Result<()> {
        let scale = (1.0 / (1.0 - self.p)) as f32;
        let dropped_below = (self.p * (1u64 << 32) as f64) as u32;
        let function = kernel_of::<T>(device, "kd-ops dropout", "dropout", ptx::DROPOUT)?;
        let mut args = function.builder();
        args.arg(&count).arg(&x).arg(&y).arg(&self.seed).arg(&self.step);
        let now = graph::address_of_step();
        args.arg(&self.layer).arg(&dropped_below).arg(&scale).arg(&now);
        args.arg(&before.result).arg(&before.activation);
        // SAFETY: each address has `count` numbers, or is null; a thread takes 16.
        unsafe { launch(args, (count.div_ceil(16 * 128), 1), (128, 1)) }
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(NAME)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = Array { storage, layout };
        let y = with_number!(NAME, x.dtype(), T => {
            super::storage(self.apply::<T>(x.device(), &x.values(NAME)?)?, x.device())
        });
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let device = device(NAME, y)?;
        let dx = with_number!(NAME, dy.dtype(), T => {
            super::tensor(self.apply::<T>(&device, &hold(&dy).values(NAME)?)?, &device, y.shape())
        });
        Ok(Some(dx))
    }
}
