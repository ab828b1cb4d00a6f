//! Linear layers on a GPU: cuBLAS multiplies, through candle.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::{
    Array, Number, device, hold, int, kernel_of, launch, memory, not_on_cpu, ptx, relu,
    threads_over, with_number,
};

const NAME: &str = "linear";

/// As [`crate::linear()`], which has checked the shapes. An f32 weight beside a bf16 x is multiplied as bf16 and has an
/// f32 gradient.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
    let weight = weight.to_dtype(x.dtype())?.contiguous()?;
    let bias = bias.to_dtype(DType::F32)?.contiguous()?;
    x.contiguous()?.apply_op3(&weight, &bias, Linear { relu })
}

struct Linear {
    relu: bool,
}

impl CustomOp3 for Linear {
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
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (batch, inputs) = x_layout.shape().dims2()?;
        let (outputs, _) = weight_layout.shape().dims2()?;
        let transposed = weight_layout.transpose(0, 1)?;
        let mut y = x.matmul(weight, (1, batch, outputs, inputs), x_layout, &transposed)?;
        let device = x.device.clone();
        let bias = Array { storage: bias, layout: bias_layout }.values::<f32>(NAME)?;
        let (columns, relu) = (int(outputs)?, i32::from(self.relu));
        with_number!(NAME, y.dtype(), T => {
            let name = "linear_bias_forward";
            let function = kernel_of::<T>(&device, "kd-ops linear", name, ptx::LINEAR)?;
            let mut args = function.builder();
            args.arg(y.as_cuda_slice_mut::<T>()?).arg(&bias).arg(&columns).arg(&relu);
            // SAFETY: y has `batch` rows of `outputs` numbers, the bias one.
            unsafe { launch(args, (batch, 1), (threads_over(outputs), 1)) }?;
        });
        Ok((y, Shape::from((batch, outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // Detached, so that candle keeps no graph of the gradients.
        let dz = if self.relu { relu::backward(y, dy)? } else { dy.detach().contiguous()? };
        let dx = match x.track_op() {
            true => Some(dz.matmul(&weight.detach())?),
            false => None,
        };
        let dweight = match weight.track_op() {
            true => Some(dz.t()?.matmul(&x.detach())?),
            false => None,
        };
        let dbias = match bias.track_op() {
            true => Some(with_number!(NAME, dz.dtype(), T => column_sums::<T>(&dz)?)),
            false => None,
        };
        Ok((dx, dweight, dbias))
    }
}

/// The sum of each column of a matrix, f32.
fn column_sums<T: Number>(dz: &Tensor) -> Result<Tensor> {
    let (rows, columns) = dz.dims2()?;
    let device = device(NAME, dz)?;
    let mut sums = memory::<f32>(&device, columns)?;
    let held = hold(dz);
    let values = held.values::<T>(NAME)?;
    let (row_count, column_count) = (int(rows)?, int(columns)?);
    let function = kernel_of::<T>(&device, "kd-ops linear", "linear_bias_backward", ptx::LINEAR)?;
    let mut args = function.builder();
    args.arg(&values).arg(&row_count).arg(&column_count).arg(&mut sums);
    // SAFETY: the memory has the sizes that are passed.
    unsafe { launch(args, (columns.div_ceil(32), 1), (32, 8)) }?;
    Ok(super::tensor(sums, &device, columns))
}
