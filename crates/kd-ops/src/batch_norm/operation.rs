//! The operation on the CPU: statistics, forward and backward pass.

use candle_core::{CpuStorage, CustomOp3, InplaceOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::layer::Statistics;
use crate::cpu;

/// The operation's name in errors.
pub(super) const NAME: &str = "batch_norm";

/// The numbers of a tensor of statistics.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    cpu::with_slice(NAME, tensor, |values| Ok(values.iter().map(|&v| f64::from(v)).collect()))
}

/// Running statistics take their share of a batch's: `(1 - share) * old + share * new`, in place.
pub(crate) struct Blend {
    pub(crate) share: f64,
    pub(crate) new: Vec<f64>,
}

impl InplaceOp1 for Blend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(old) = storage else {
            bail!("batch_norm: expected running statistics in f32")
        };
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("batch_norm: running statistics of shape {:?} are not contiguous", layout.shape())
        };
        for (old, new) in old[from..to].iter_mut().zip(&self.new) {
            *old = ((1.0 - self.share) * f64::from(*old) + self.share * new) as f32;
        }
        Ok(())
    }
}

/// A batch as planes: a plane holds one channel of one image.
#[derive(Clone, Copy)]
pub(super) struct Planes {
    pub(super) channels: usize,
    /// Values of a plane.
    pub(super) plane: usize,
}

impl Planes {
    /// Values of one image; at least 1, as a length of chunks.
    fn image(&self) -> usize {
        (self.channels * self.plane).max(1)
    }

    /// Two figures of each plane, `of(image, channel)`, image by image; images in parallel.
    fn of_planes(
        &self,
        batch: usize,
        of: impl Fn(usize, usize) -> [f64; 2] + Sync,
    ) -> Vec<[f64; 2]> {
        let mut figures = vec![[0.0; 2]; batch * self.channels];
        let images = figures.par_chunks_mut(self.channels.max(1)).enumerate();
        images.for_each(|(image, figures)| {
            for (channel, figure) in figures.iter_mut().enumerate() {
                *figure = of(image, channel);
            }
        });
        figures
    }

    /// Each channel's mean, and its sum of squared distances from that mean.
    ///
    /// A plane's own mean and squares are found while it is in the cache, and put together by the formula of
    /// Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances", 1979): x is
    /// read from memory once, and no large numbers cancel.
    pub(super) fn moments(&self, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let batch = x.len() / self.image();
        let planes = self.of_planes(batch, |image, channel| {
            let plane = self.plane_of(x, image, channel);
            let mean = lane_sum(plane, |x| x) / self.plane as f64;
            let center = mean as f32;
            let squares = lane_sum(plane, |x| (x - center) * (x - center));
            [mean, squares]
        });
        let (mut mean, mut squares) = (vec![0.0; self.channels], vec![0.0; self.channels]);
        for (image, planes) in planes.chunks_exact(self.channels.max(1)).enumerate() {
            let share = 1.0 / (image + 1) as f64;
            for (channel, &[plane_mean, plane_squares]) in planes.iter().enumerate() {
                let distance = plane_mean - mean[channel];
                mean[channel] += distance * share;
                // Before this plane there were `image` planes of the same size.
                let between = image as f64 * share * self.plane as f64;
                squares[channel] += plane_squares + distance * distance * between;
            }
        }
        (mean, squares)
    }

    fn plane_of<'a>(&self, x: &'a [f32], image: usize, channel: usize) -> &'a [f32] {
        &x[(image * self.channels + channel) * self.plane..][..self.plane]
    }
}

/// Sums run in this many lanes, which the compiler turns into vectors.
const LANES: usize = 16;

/// The sum of `f` over `x`.
fn lane_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}

/// The differentiable operation on x, on weight and bias in one tensor, and on the residual (empty for none).
pub(super) struct BatchNormOp {
    pub(super) planes: Planes,
    pub(super) statistics: Statistics,
    pub(super) relu: bool,
    /// The mean that is subtracted, by channel.
    pub(super) mean: Vec<f32>,
    /// 1 / sqrt(variance + eps), by channel.
    pub(super) inv_std: Vec<f64>,
}

impl BatchNormOp {
    /// The factor of x less its mean, by channel.
    fn scales(&self, weight: &[f32]) -> Vec<f32> {
        weight.iter().zip(&self.inv_std).map(|(&w, inv)| (f64::from(w) * inv) as f32).collect()
    }
}

impl CustomOp3 for BatchNormOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        affine: &CpuStorage,
        affine_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(NAME, x, x_layout)?;
        let affine = cpu::slice(NAME, affine, affine_layout)?;
        let residual = cpu::slice(NAME, residual, residual_layout)?;
        let Planes { channels, plane } = self.planes;
        let (weight, bias) = affine.split_at(channels);
        let scales = self.scales(weight);
        let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        // Written so that NaN stays NaN.
        let relu = |y: f32| if y < floor { floor } else { y };
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(self.planes.image()).enumerate().for_each(|(image, y)| {
            for (channel, y) in y.chunks_exact_mut(plane.max(1)).enumerate() {
                let x = self.planes.plane_of(x, image, channel);
                let (mean, scale, bias) = (self.mean[channel], scales[channel], bias[channel]);
                if residual.is_empty() {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = relu((x - mean) * scale + bias);
                    }
                } else {
                    let residual = self.planes.plane_of(residual, image, channel);
                    for ((y, &x), &residual) in y.iter_mut().zip(x).zip(residual) {
                        *y = relu((x - mean) * scale + bias + residual);
                    }
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        affine: &Tensor,
        residual: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let weight =
            cpu::with_slice(NAME, affine, |affine| Ok(affine[..self.planes.channels].to_vec()))?;
        let gradients = cpu::with_slice(NAME, x, |x_values| {
            cpu::with_slice(NAME, y, |y_values| {
                cpu::with_slice(NAME, dy, |dy| {
                    let wanted = (x.track_op(), residual.elem_count() > 0 && residual.track_op());
                    // Without a ReLU any y lets the gradient through.
                    let y = if self.relu { y_values } else { &[] };
                    Ok(self.backward(x_values, &weight, y, dy, wanted))
                })
            })
        })?;
        let map = |values: Option<Vec<f32>>| {
            values.map(|values| cpu::tensor(values, x.shape())).transpose()
        };
        let affine = cpu::tensor(gradients.affine, affine.shape())?;
        Ok((map(gradients.x)?, Some(affine), map(gradients.residual)?))
    }
}

/// What a backward pass gives; `None` where it was not asked for.
struct Gradients {
    x: Option<Vec<f32>>,
    /// The weight's gradient, then the bias's.
    affine: Vec<f32>,
    residual: Option<Vec<f32>>,
}

impl BatchNormOp {
    /// `y` is empty without a ReLU; `wanted` says which of the gradients of x and of the residual are.
    fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        y: &[f32],
        dy: &[f32],
        wanted: (bool, bool),
    ) -> Gradients {
        let masked = (!y.is_empty()).then(|| self.before_relu(y, dy));
        // The gradient before the ReLU, which is also the residual's.
        let dz = masked.as_deref().unwrap_or(dy);
        let totals = self.totals(x, dz);
        let of_weight =
            totals.iter().zip(&self.inv_std).map(|(total, inv)| (total[1] * inv) as f32);
        Gradients {
            affine: of_weight.chain(totals.iter().map(|total| total[0] as f32)).collect(),
            x: wanted.0.then(|| self.data_gradient(x, weight, dz, &totals)),
            residual: wanted.1.then(|| dz.to_vec()),
        }
    }

    /// The gradient before the ReLU whose result was `y`.
    fn before_relu(&self, y: &[f32], dy: &[f32]) -> Vec<f32> {
        let image = self.planes.image();
        let mut dz = vec![0.0; dy.len()];
        let images = dz.par_chunks_mut(image).zip(y.par_chunks(image));
        images.zip(dy.par_chunks(image)).for_each(|((dz, y), dy)| {
            for ((dz, &y), &dy) in dz.iter_mut().zip(y).zip(dy) {
                *dz = if y > 0.0 { dy } else { 0.0 };
            }
        });
        dz
    }

    /// Each channel's sums of `dz` and of `dz * (x - mean)`.
    fn totals(&self, x: &[f32], dz: &[f32]) -> Vec<[f64; 2]> {
        let batch = x.len() / self.planes.image();
        let planes = self.planes.of_planes(batch, |image, channel| {
            let x = self.planes.plane_of(x, image, channel);
            let dz = self.planes.plane_of(dz, image, channel);
            let mean = self.mean[channel];
            let (mut sums, mut products) = ([0f32; LANES], [0f32; LANES]);
            let ((x, x_rest), (dz, dz_rest)) = (x.as_chunks::<LANES>(), dz.as_chunks::<LANES>());
            for (x, dz) in x.iter().zip(dz) {
                for lane in 0..LANES {
                    sums[lane] += dz[lane];
                    products[lane] += dz[lane] * (x[lane] - mean);
                }
            }
            for (lane, (&x, &dz)) in x_rest.iter().zip(dz_rest).enumerate() {
                sums[lane] += dz;
                products[lane] += dz * (x - mean);
            }
            let total = |lanes: [f32; LANES]| lanes.iter().map(|&lane| f64::from(lane)).sum();
            [total(sums), total(products)]
        });
        let channels = self.planes.channels;
        let mut totals = vec![[0.0; 2]; channels];
        for planes in planes.chunks_exact(channels.max(1)) {
            for (total, plane) in totals.iter_mut().zip(planes) {
                total[0] += plane[0];
                total[1] += plane[1];
            }
        }
        totals
    }

    /// The gradient of x from [`Self::totals`].
    fn data_gradient(
        &self,
        x: &[f32],
        weight: &[f32],
        dz: &[f32],
        totals: &[[f64; 2]],
    ) -> Vec<f32> {
        let Planes { plane, .. } = self.planes;
        let image = self.planes.image();
        let batch = x.len() / image;
        let scales = self.scales(weight);
        // Through the batch's mean and variance; the running ones are constants.
        let count = match self.statistics {
            Statistics::Batch => (batch * plane) as f64,
            Statistics::Running => f64::INFINITY,
        };
        let through: Vec<(f32, f32)> = totals
            .iter()
            .zip(&self.inv_std)
            .map(|(total, inv)| ((total[0] / count) as f32, (total[1] * inv * inv / count) as f32))
            .collect();
        let mut dx = vec![0.0; x.len()];
        dx.par_chunks_mut(image).enumerate().for_each(|(image, dx)| {
            for (channel, dx) in dx.chunks_exact_mut(plane.max(1)).enumerate() {
                let x = self.planes.plane_of(x, image, channel);
                let dz = self.planes.plane_of(dz, image, channel);
                let (mean, scale) = (self.mean[channel], scales[channel]);
                let (of_mean, of_var) = through[channel];
                for ((dx, &x), &dz) in dx.iter_mut().zip(x).zip(dz) {
                    *dx = scale * (dz - of_mean - (x - mean) * of_var);
                }
            }
        });
        dx
    }
}
