//! The parameter-free shortcut of residual networks, where a stage halves the map and adds channels.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu;

/// Every second pixel of `x`, in both directions, between channels of zeros: from f32 `[N, C, H, W]` to
/// `[N, channels, H/2, W/2]`, rounded up, with half of the new channels before the old ones and half behind them.
///
/// It is option A of He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2; in PyTorch
/// `F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, k, k))` with `k = (channels - C) / 2`.
///
/// # Errors
/// When `x` has another rank or type, or the new channels can't be halved.
pub fn subsample_pad(x: &Tensor, channels: usize) -> Result<Tensor> {
    let Ok((_, inputs, _, _)) = x.dims4() else {
        bail!("subsample_pad: expected x [N, C, H, W], got {:?}", x.shape())
    };
    match channels.checked_sub(inputs) {
        #[cfg(feature = "cuda")]
        Some(new) if new % 2 == 0 && x.device().is_cuda() => {
            crate::cuda::shortcut::subsample_pad(x, channels)
        }
        Some(new) if new % 2 == 0 => x.contiguous()?.apply_op1(SubsamplePad { channels }),
        _ => bail!(
            "subsample_pad: expected an even number of channels more than x's {inputs}, got {channels}"
        ),
    }
}

struct SubsamplePad {
    channels: usize,
}

/// Channels, height and width of a map before and after.
struct Sizes {
    before: (usize, usize, usize),
    after: (usize, usize, usize),
}

impl Sizes {
    fn new(shape: &Shape, channels: usize) -> Result<Self> {
        let (_, inputs, height, width) = shape.dims4()?;
        let after = (channels, height.div_ceil(2), width.div_ceil(2));
        Ok(Self { before: (inputs, height, width), after })
    }

    /// Values of an image; at least 1, as a length of chunks.
    fn image((channels, height, width): (usize, usize, usize)) -> usize {
        (channels * height * width).max(1)
    }

    /// For each row of the result that is not zeros: where it starts, before and after.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let ((inputs, height, width), (channels, out_height, out_width)) =
            (self.before, self.after);
        let first = (channels - inputs) / 2;
        (0..inputs).flat_map(move |channel| {
            (0..out_height).map(move |row| {
                let before = (channel * height + 2 * row) * width;
                (before, ((first + channel) * out_height + row) * out_width)
            })
        })
    }
}

impl CustomOp1 for SubsamplePad {
    fn name(&self) -> &'static str {
        "subsample_pad"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), storage, layout)?;
        let sizes = Sizes::new(layout.shape(), self.channels)?;
        let (image, out_image) = (Sizes::image(sizes.before), Sizes::image(sizes.after));
        let (channels, height, width) = sizes.after;
        let batch = x.len() / image;
        let mut y = vec![0.0; batch * channels * height * width];
        y.par_chunks_mut(out_image).zip(x.par_chunks(image)).for_each(|(y, x)| {
            for (from, to) in sizes.rows() {
                let x = x[from..from + sizes.before.2].iter().step_by(2);
                for (y, x) in y[to..to + width].iter_mut().zip(x) {
                    *y = *x;
                }
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((batch, channels, height, width))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let sizes = Sizes::new(x.shape(), self.channels)?;
        let (image, out_image) = (Sizes::image(sizes.before), Sizes::image(sizes.after));
        let mut dx = vec![0.0; x.elem_count()];
        cpu::with_slice(self.name(), dy, |dy| {
            dx.par_chunks_mut(image).zip(dy.par_chunks(out_image)).for_each(|(dx, dy)| {
                for (to, from) in sizes.rows() {
                    let dx = dx[to..to + sizes.before.2].iter_mut().step_by(2);
                    for (dx, dy) in dx.zip(&dy[from..from + sizes.after.2]) {
                        *dx = *dy;
                    }
                }
            });
            Ok(())
        })?;
        Ok(Some(cpu::tensor(dx, x.shape())?))
    }
}
