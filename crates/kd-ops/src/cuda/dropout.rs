//! Dropout on a GPU, with the CPU's masks.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{Array, device, hold, kernel, launch, memory, not_on_cpu, ptx};
use crate::DropoutKey;

const NAME: &str = "dropout";

/// As [`crate::dropout()`], which has checked `p`.
pub(crate) fn dropout(x: &Tensor, p: f64, key: DropoutKey, layer: u64) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Dropout { p, key, layer })
}

struct Dropout {
    p: f64,
    key: DropoutKey,
    layer: u64,
}

impl Dropout {
    /// `x` times mask: the same in both directions.
    fn apply(&self, device: &CudaDevice, x: &CudaView<'_, f32>) -> Result<CudaSlice<f32>> {
        let count = x.len();
        let mut y = memory::<f32>(device, count)?;
        let scale = (1.0 / (1.0 - self.p)) as f32;
        let dropped_below = (self.p * (1u64 << 32) as f64) as u32;
        let function = kernel(device, "kd-ops dropout", "dropout", ptx::DROPOUT)?;
        let mut args = function.builder();
        args.arg(&count).arg(x).arg(&mut y).arg(&self.key.seed).arg(&self.key.step);
        args.arg(&self.layer).arg(&dropped_below).arg(&scale);
        // SAFETY: both have `count` numbers; a thread takes 16.
        unsafe { launch(args, (count.div_ceil(16 * 128), 1), (128, 1)) }?;
        Ok(y)
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
        let y = self.apply(x.device(), &x.values(NAME)?)?;
        Ok((super::storage(y, x.device()), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let device = device(NAME, y)?;
        let dx = self.apply(&device, &hold(&dy).values(NAME)?)?;
        Ok(Some(super::tensor(dx, &device, y.shape())))
    }
}
