//! Batch normalisation with PyTorch's semantics, an addition and a ReLU fused behind it.

use candle_core::{CpuStorage, CustomOp3, InplaceOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu;

/// How a batch normalisation computes, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormConfig {
    /// The share of a batch's statistics in the new running statistics.
    pub momentum: f64,
    /// Added to the variance.
    pub eps: f64,
    /// Whether `max(y, 0)` follows (after the addition), fused in; its derivative at zero is 0.
    pub relu: bool,
}

impl Default for BatchNormConfig {
    /// PyTorch's.
    fn default() -> Self {
        Self { momentum: 0.1, eps: 1e-5, relu: false }
    }
}

/// Which mean and variance normalise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The batch's, of which the running ones then take their share; the gradient goes through them.
    Batch,
    /// The running ones, which stay as they are.
    Running,
}

/// Batch normalisation of each channel (Ioffe and Szegedy, 2015), as `torch.nn.BatchNorm2d` computes it.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// The scale, f32 `[C]`.
    pub weight: Tensor,
    /// The shift, f32 `[C]`.
    pub bias: Tensor,
    /// Mean of what came through in training, f32 `[C]`. It is changed in place, so every tensor
    /// that shares its memory (a `Var` and the tensors it gave) sees the change.
    pub running_mean: Tensor,
    /// Variance of the same, unbiased, f32 `[C]`.
    pub running_var: Tensor,
    /// Momentum, eps and what is fused in.
    pub config: BatchNormConfig,
}

impl BatchNorm {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, plus `residual` where one is given, then
    /// `max(y, 0)` where `config.relu` says so. `x` and `residual` are f32 `[N, C, H, W]`.
    ///
    /// A batch's variance is biased where it normalises and unbiased where it enters `running_var`.
    /// Sums run over a plane, then over the batch's planes, in a fixed order.
    ///
    /// # Errors
    /// When the shapes don't fit together, a tensor is not f32, or batch statistics are asked of a
    /// single value in each channel.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        statistics: Statistics,
    ) -> Result<Tensor> {
        let Ok((batch, channels, height, width)) = x.dims4() else {
            bail!("batch_norm: expected x [N, C, H, W], got {:?}", x.shape())
        };
        for (name, tensor) in [
            ("weight", &self.weight),
            ("bias", &self.bias),
            ("running_mean", &self.running_mean),
            ("running_var", &self.running_var),
        ] {
            if tensor.dims() != [channels] {
                let found = tensor.shape();
                bail!("batch_norm: expected {name} of shape [{channels}], got {found:?}");
            }
        }
        if let Some(residual) = residual.filter(|residual| residual.dims() != x.dims()) {
            bail!(
                "batch_norm: expected a residual of x's shape {:?}, got {:?}",
                x.shape(),
                residual.shape()
            );
        }
        let count = batch * height * width;
        if statistics == Statistics::Batch && count < 2 {
            bail!(
                "batch_norm: a batch of shape {:?} has {count} values in each channel; its variance needs at least 2",
                x.shape()
            );
        }
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return crate::cuda::batch_norm::forward(self, x, residual, statistics);
        }
        let residual = match residual {
            Some(residual) => residual.contiguous()?,
            // Stands for none: an operation has a fixed number of arguments.
            None => Tensor::zeros(0, x.dtype(), x.device())?,
        };
        let x = x.contiguous()?;
        let geometry = Geometry { channels, plane: height * width };
        let (mean, var) = match statistics {
            Statistics::Batch => {
                let (mean, squares) = cpu::with_slice(NAME, &x, |x| Ok(geometry.moments(x)))?;
                let share = self.config.momentum;
                let unbiased = squares.iter().map(|squares| squares / (count - 1) as f64).collect();
                self.running_mean.inplace_op1(&Blend { share, new: mean.clone() })?;
                self.running_var.inplace_op1(&Blend { share, new: unbiased })?;
                let biased = squares.iter().map(|squares| squares / count as f64).collect();
                (mean, biased)
            }
            Statistics::Running => (values(&self.running_mean)?, values(&self.running_var)?),
        };
        let op = BatchNormOp {
            geometry,
            statistics,
            relu: self.config.relu,
            mean: mean.iter().map(|&mean| mean as f32).collect(),
            inv_std: var.iter().map(|var| 1.0 / (var + self.config.eps).sqrt()).collect(),
        };
        // One tensor, so that the residual finds room among the three arguments.
        let affine = Tensor::cat(&[&self.weight, &self.bias], 0)?;
        x.apply_op3(&affine, &residual, op)
    }
}

const NAME: &str = "batch_norm";

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    cpu::with_slice(NAME, tensor, |values| Ok(values.iter().map(|&v| f64::from(v)).collect()))
}

/// `(1 - share) * old + share * new`, in place.
struct Blend {
    share: f64,
    new: Vec<f64>,
}

impl InplaceOp1 for Blend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(old) = storage else { bail!("batch_norm: running statistics not f32") };
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("batch_norm: running statistics of shape {:?} not contiguous", layout.shape())
        };
        for (old, new) in old[from..to].iter_mut().zip(&self.new) {
            *old = ((1.0 - self.share) * f64::from(*old) + self.share * new) as f32;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Geometry {
    channels: usize,
    /// Values of one channel of one image.
    plane: usize,
}

impl Geometry {
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
    /// A plane's own mean and squares are found while it is in the cache, and put together by
    /// Chan, Golub and LeVeque (1979): x is read from memory once and nothing cancels.
    fn moments(&self, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
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

struct BatchNormOp {
    geometry: Geometry,
    statistics: Statistics,
    relu: bool,
    /// What was subtracted, by channel.
    mean: Vec<f32>,
    /// What was multiplied with, by channel.
    inv_std: Vec<f64>,
}

impl BatchNormOp {
    /// What x less its mean is multiplied with, by channel.
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
        let Geometry { channels, plane } = self.geometry;
        let (weight, bias) = affine.split_at(channels);
        let scales = self.scales(weight);
        let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        // Written so that NaN stays NaN.
        let relu = |y: f32| if y < floor { floor } else { y };
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(self.geometry.image()).enumerate().for_each(|(image, y)| {
            for (channel, y) in y.chunks_exact_mut(plane.max(1)).enumerate() {
                let x = self.geometry.plane_of(x, image, channel);
                let (mean, scale, bias) = (self.mean[channel], scales[channel], bias[channel]);
                if residual.is_empty() {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = relu((x - mean) * scale + bias);
                    }
                } else {
                    let residual = self.geometry.plane_of(residual, image, channel);
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
            cpu::with_slice(NAME, affine, |affine| Ok(affine[..self.geometry.channels].to_vec()))?;
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

struct Gradients {
    x: Option<Vec<f32>>,
    /// Of weight and bias.
    affine: Vec<f32>,
    residual: Option<Vec<f32>>,
}

impl BatchNormOp {
    /// `y` is empty without a ReLU; `wanted`: the gradients of x and of the residual.
    fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        y: &[f32],
        dy: &[f32],
        wanted: (bool, bool),
    ) -> Gradients {
        let Geometry { channels, plane } = self.geometry;
        let image = self.geometry.image();
        let batch = x.len() / image;
        // The gradient before the ReLU, which is also the residual's.
        let masked: Vec<f32>;
        let dz = if y.is_empty() {
            dy
        } else {
            let mut values = vec![0.0; dy.len()];
            let images = values.par_chunks_mut(image).zip(y.par_chunks(image));
            images.zip(dy.par_chunks(image)).for_each(|((dz, y), dy)| {
                for ((dz, &y), &dy) in dz.iter_mut().zip(y).zip(dy) {
                    *dz = if y > 0.0 { dy } else { 0.0 };
                }
            });
            masked = values;
            &masked
        };
        let planes = self.geometry.of_planes(batch, |image, channel| {
            let x = self.geometry.plane_of(x, image, channel);
            let dz = self.geometry.plane_of(dz, image, channel);
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
        let mut totals = vec![[0.0; 2]; channels];
        for planes in planes.chunks_exact(channels.max(1)) {
            for (total, plane) in totals.iter_mut().zip(planes) {
                total[0] += plane[0];
                total[1] += plane[1];
            }
        }
        let of_weight =
            totals.iter().zip(&self.inv_std).map(|(total, inv)| (total[1] * inv) as f32);
        let affine = of_weight.chain(totals.iter().map(|total| total[0] as f32)).collect();

        let dx = wanted.0.then(|| {
            let scales = self.scales(weight);
            // Through the batch's mean and variance; the running ones are constants.
            let count = match self.statistics {
                Statistics::Batch => (batch * plane) as f64,
                Statistics::Running => f64::INFINITY,
            };
            let through: Vec<(f32, f32)> = totals
                .iter()
                .zip(&self.inv_std)
                .map(|(total, inv)| {
                    ((total[0] / count) as f32, (total[1] * inv * inv / count) as f32)
                })
                .collect();
            let mut dx = vec![0.0; x.len()];
            dx.par_chunks_mut(image).enumerate().for_each(|(image, dx)| {
                for (channel, dx) in dx.chunks_exact_mut(plane.max(1)).enumerate() {
                    let x = self.geometry.plane_of(x, image, channel);
                    let dz = self.geometry.plane_of(dz, image, channel);
                    let (mean, scale) = (self.mean[channel], scales[channel]);
                    let (of_mean, of_var) = through[channel];
                    for ((dx, &x), &dz) in dx.iter_mut().zip(x).zip(dz) {
                        *dx = scale * (dz - of_mean - (x - mean) * of_var);
                    }
                }
            });
            dx
        });
        let residual = wanted.1.then(|| dz.to_vec());
        Gradients { x: dx, affine, residual }
    }
}
