//! Max-pooling with PyTorch's gradient.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu;

/// The maximum of each `kernel` x `kernel` window, windows `stride` apart, no padding.
///
/// `x` is f32 `[N, C, H, W]`; the result is `[N, C, (H - kernel) / stride + 1, ...]`, rounded
/// down: rows and columns that fill no window are left out, as in PyTorch. The gradient of a
/// window goes whole to its first maximum in row-major order, as in PyTorch (candle 0.11's own
/// `max_pool2d` spreads it over all tied entries and divides it by `kernel`^2). A NaN counts as the maximum.
///
/// # Errors
/// When `kernel` or `stride` is zero, the window is larger than the image, or `x` is not f32.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    max_pool2d_padded(x, kernel, stride, 0)
}

/// [`max_pool2d`] with `padding` pixels around the image that no window takes for its maximum, as
/// `torch.nn.MaxPool2d(kernel, stride, padding)` has them.
///
/// # Errors
/// As [`max_pool2d`], and when `padding` is more than half of `kernel`.
pub fn max_pool2d_padded(
    x: &Tensor,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let Ok((_, _, height, width)) = x.dims4() else {
        bail!("max_pool2d: expected x [N, C, H, W], got {:?}", x.shape())
    };
    if kernel == 0 || stride == 0 {
        bail!("max_pool2d: kernel and stride must be at least 1, got {kernel} and {stride}");
    }
    if padding > kernel / 2 {
        bail!(
            "max_pool2d: expected a padding of at most half the {kernel}x{kernel} window, got {padding}"
        );
    }
    // Not more than `kernel`, as checked above.
    let least = kernel - 2 * padding;
    if least > height || least > width {
        let around = if padding > 0 { format!(" with padding {padding}") } else { String::new() };
        bail!("max_pool2d: a {kernel}x{kernel} window does not fit in {height}x{width}{around}");
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::max_pool::max_pool2d(x, kernel, stride, padding);
    }
    x.contiguous()?.apply_op1(MaxPool2d { kernel, stride, padding, argmax: OnceLock::new() })
}

/// The pixels of a side of `side` pixels that lie in the window which starts `padding` before pixel `start`.
fn inside(start: usize, kernel: usize, padding: usize, side: usize) -> std::ops::Range<usize> {
    start.saturating_sub(padding)..start.saturating_add(kernel - padding).min(side)
}

struct MaxPool2d {
    kernel: usize,
    stride: usize,
    padding: usize,
    /// For each output element the position of its maximum in the input's plane, kept for the gradient.
    argmax: OnceLock<Vec<u32>>,
}

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let x = cpu::slice(self.name(), storage, layout)?;
        let Self { kernel, stride, padding, .. } = *self;
        let windows = |side: usize| (side - (kernel - 2 * padding)) / stride + 1;
        let (out_height, out_width) = (windows(height), windows(width));
        let mut y = vec![0.0; batch * channels * out_height * out_width];
        let mut argmax = vec![0; y.len()];
        y.par_chunks_mut(out_height * out_width)
            .zip(argmax.par_chunks_mut(out_height * out_width))
            .zip(x.par_chunks(height * width))
            .with_min_len(16)
            .for_each(|((y, argmax), x)| {
                for row in 0..out_height {
                    let lines = inside(row * stride, kernel, padding, height);
                    for col in 0..out_width {
                        let columns = inside(col * stride, kernel, padding, width);
                        let mut best = lines.start * width + columns.start;
                        for line in lines.clone() {
                            for at in line * width + columns.start..line * width + columns.end {
                                // Written so that a NaN wins and the first of equals stays.
                                if x[at] > x[best] || (x[at].is_nan() && !x[best].is_nan()) {
                                    best = at;
                                }
                            }
                        }
                        y[row * out_width + col] = x[best];
                        argmax[row * out_width + col] = best as u32;
                    }
                }
            });
        // `cpu_fwd` runs once for each operation that is built, so the cell is empty here.
        let _ = self.argmax.set(argmax);
        Ok((CpuStorage::F32(y), Shape::from((batch, channels, out_height, out_width))))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(argmax) = self.argmax.get() else { bail!("max_pool2d: backward before forward") };
        let (_, _, height, width) = x.dims4()?;
        let (_, _, out_height, out_width) = y.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        cpu::with_slice(self.name(), dy, |dy| {
            dx.par_chunks_mut(height * width)
                .zip(dy.par_chunks(out_height * out_width))
                .zip(argmax.par_chunks(out_height * out_width))
                .with_min_len(16)
                .for_each(|((dx, dy), argmax)| {
                    for (&dy, &at) in dy.iter().zip(argmax) {
                        dx[at as usize] += dy;
                    }
                });
            Ok(())
        })?;
        Ok(Some(cpu::tensor(dx, x.shape())?))
    }
}
