//! ReLU on a GPU.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{
    Array, Number, blocks_over, device, hold, kernel_of, launch, memory, not_on_cpu, ptx,
    with_number,
};

const NAME: &str = "relu";

pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Relu)
}

/// `dy` where `y > 0`, else zero: the gradient before a ReLU whose result was `y`.
pub(crate) fn backward(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    with_number!(NAME, y.dtype(), T => backward_of::<T>(y, dy))
}

fn backward_of<T: Number>(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let dy = dy.contiguous()?;
    let device = device(NAME, y)?;
    let count = y.elem_count();
    let mut dx = memory::<T>(&device, count)?;
    {
        let (y, dy) = (hold(y), hold(&dy));
        let (y, dy) = (y.values::<T>(NAME)?, dy.values::<T>(NAME)?);
        let function = kernel_of::<T>(&device, "kd-ops relu", "relu_backward", ptx::RELU)?;
        let mut args = function.builder();
        args.arg(&count).arg(&y).arg(&dy).arg(&mut dx);
        // SAFETY: all three have `count` numbers.
        unsafe { launch(args, (blocks_over(count), 1), (256, 1)) }?;
    }
    Ok(super::tensor(dx, &device, y.shape()))
}

fn forward<T: Number>(x: Array<'_>) -> Result<(CudaStorage, Shape)> {
    let (device, shape) = (x.device(), x.layout.shape());
    let count = shape.elem_count();
    let mut y = memory::<T>(device, count)?;
    let x = x.values::<T>(NAME)?;
    let function = kernel_of::<T>(device, "kd-ops relu", "relu_forward", ptx::RELU)?;
    let mut args = function.builder();
    args.arg(&count).arg(&x).arg(&mut y);
    // SAFETY: both have `count` numbers.
    unsafe { launch(args, (blocks_over(count), 1), (256, 1)) }?;
    Ok((super::storage(y, device), shape.clone()))
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(NAME)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = Array { storage, layout };
        with_number!(NAME, x.dtype(), T => forward::<T>(x))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(backward(y, dy)?))
    }
}
