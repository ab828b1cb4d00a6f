//! ReLU and ReLU6 with PyTorch's derivatives at their corners.

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

/// `min(max(x, 0), 6)`, element by element, for an f32 tensor of any shape.
///
/// The derivative is 1 between 0 and 6 and 0 elsewhere, at 0 and at 6 as well, as `torch.nn.functional.hardtanh(x, 0, 6)` has
/// it. NaN stays NaN. On a GPU it is a composition of ReLU and candle's own operations.
///
/// # Errors
/// When `x` is not f32.
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cuda() {
        let rectified = relu(x)?;
        let most = (rectified.zeros_like()? + f64::from(MOST))?;
        return x.ge(f64::from(MOST))?.where_cond(&most, &rectified);
    }
    x.contiguous()?.apply_op1(Relu6)
}

/// The largest value of a ReLU6.
const MOST: f32 = 6.0;

struct Relu6;

impl CustomOp1 for Relu6 {
    fn name(&self) -> &'static str {
        "relu6"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), storage, layout)?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            for (y, &x) in y.iter_mut().zip(x) {
                let rectified = if x < 0.0 { 0.0 } else { x };
                *y = if rectified > MOST { MOST } else { rectified };
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; y.elem_count()];
        cpu::with_slice(self.name(), y, |y| {
            cpu::with_slice(self.name(), dy, |dy| {
                let chunks = dx.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK));
                chunks.zip(dy.par_chunks(CHUNK)).for_each(|((dx, y), dy)| {
                    for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
                        *dx = if y > 0.0 && y < MOST { dy } else { 0.0 };
                    }
                });
                Ok(())
            })
        })?;
        Ok(Some(cpu::tensor(dx, y.shape())?))
    }
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
