//! ReLU with PyTorch's derivative at zero.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu;

/// Elements that a thread takes at a time. With fewer, handing out the work costs more than it gains.
const CHUNK: usize = 1 << 16;

/// `max(x, 0)`, element by element, for an f32 tensor of any shape.
///
/// The derivative at zero is 0, as in PyTorch (candle's own `relu` has 1 there). NaN stays NaN.
///
/// # Errors
/// When `x` is not f32.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::relu::relu(x);
    }
    x.contiguous()?.apply_op1(Relu)
}

/// The gradient before a ReLU whose output was `y`: `dy` where `y > 0`, else zero.
pub(crate) fn masked(y: &[f32], dy: &[f32]) -> Vec<f32> {
    y.iter().zip(dy).map(|(&y, &dy)| if y > 0.0 { dy } else { 0.0 }).collect()
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), storage, layout)?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = if x < 0.0 { 0.0 } else { x };
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = cpu::with_slice(self.name(), y, |y_values| {
            cpu::with_slice(self.name(), dy, |dy| Ok(masked(y_values, dy)))
        })?;
        Ok(Some(cpu::tensor(dx, y.shape())?))
    }
}
