//! On the CPU and in f64: the squared distances between the images of a batch, and the loss of angles as one operation.
//!
//! The loss takes the images' squared distances q alone, by the law of cosines: with d_ij = sqrt(q_ij) the angle at j between the directions to i
//! and k has the cosine (q_ij + q_jk - q_ik) / (2 d_ij d_jk). Computed from directions, the loss moves B² vectors
//! of features through memory several times: a step of the tutorial's student at batch 128 then took 240 ms on one core beside another run,
//! nearly all of it here.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::numeric::SHORTEST;

/// The operation's name in candle's errors.
const NAME: &str = "angles between images";
/// How many images' angles one thread adds up. The order of the sums depends on this and on the batch size alone.
const PART: usize = 16;

/// [`rkd_angle`](super::rkd_angle) of rows `[B, F]` on the CPU.
pub(super) fn angle(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let teacher: Vec<f64> = teacher.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    let op = Angle { teacher, with_gradient: student.track_op(), gradient: OnceLock::new() };
    student.to_dtype(DType::F64)?.contiguous()?.apply_op1(op)?.to_dtype(student.dtype())
}

/// The squared distances of all pairs of rows `[B, F]` on the CPU: f64 `[B, B]`, whatever the type of `x`.
pub(super) fn squared_distances(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F64)?.contiguous()?.apply_op1(SquaredDistances)
}

struct SquaredDistances;

impl CustomOp1 for SquaredDistances {
    fn name(&self) -> &'static str {
        "squared distances between images"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F64(values), Some((from, to))) = (storage, layout.contiguous_offsets())
        else {
            bail!("{}: expected contiguous f64 features", self.name())
        };
        let (batch, _) = layout.shape().dims2()?;
        let q = all_squared_distances(&values[from..to], batch);
        Ok((CpuStorage::F64(q), Shape::from((batch, batch))))
    }

    fn bwd(&self, x: &Tensor, _q: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let values: Vec<f64> = x.flatten_all()?.to_vec1()?;
        let upstream: Vec<f64> = upstream.flatten_all()?.to_vec1()?;
        let gradient = to_features(&values, &upstream, x.dims()[0], 1.0);
        Ok(Some(Tensor::from_vec(gradient, x.shape(), &Device::Cpu)?))
    }
}

struct Angle {
    /// The teacher's features, as many rows as the student has.
    teacher: Vec<f64>,
    with_gradient: bool,
    /// The gradient of the student's features, computed in the forward pass.
    gradient: OnceLock<Tensor>,
}

impl CustomOp1 for Angle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F64(values), Some((from, to))) = (storage, layout.contiguous_offsets())
        else {
            bail!("{NAME}: expected contiguous f64 features")
        };
        let (batch, _) = layout.shape().dims2()?;
        let student = &values[from..to];
        let ours = Distances::new(student, batch);
        let theirs = Distances::new(&self.teacher, batch);
        let parts: Vec<Sums> = (0..batch)
            .into_par_iter()
            .step_by(PART)
            .map(|first| {
                let mut sums = Sums::new(batch);
                (first..batch.min(first + PART)).for_each(|j| sums.add(&ours, &theirs, j));
                sums
            })
            .collect();
        let triples = (batch * batch * batch) as f64;
        let loss = parts.iter().map(|sums| sums.loss).sum::<f64>() / triples;
        if self.with_gradient {
            let mut by_distance = vec![0.0; batch * batch];
            for sums in &parts {
                by_distance.iter_mut().zip(&sums.by_distance).for_each(|(all, of)| *all += of);
            }
            let gradient = to_features(student, &by_distance, batch, 1.0 / triples);
            let gradient = Tensor::from_vec(gradient, layout.shape(), &Device::Cpu)?;
            // A forward pass runs once for each operation that is built, so the cell is empty here.
            let _ = self.gradient.set(gradient);
        }
        Ok((CpuStorage::F64(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _loss: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = self.gradient.get() else {
            bail!("{NAME}: these features have no gradient")
        };
        Ok(Some(gradient.affine(upstream.to_scalar::<f64>()?, 0.0)?))
    }
}

/// The distances between the images of one network's batch.
struct Distances {
    /// The squared distances, `[B, B]`.
    q: Vec<f64>,
    /// The distances' inverses, `[B, B]`.
    inverse: Vec<f64>,
    batch: usize,
}

impl Distances {
    fn new(x: &[f64], batch: usize) -> Self {
        let q = all_squared_distances(x, batch);
        // As in `normalized`: an image has no direction to one that is equal to it.
        let inverse = |q: &f64| if *q > SHORTEST * SHORTEST { 1.0 / q.sqrt() } else { 0.0 };
        let inverse = q.iter().map(inverse).collect();
        Self { q, inverse, batch }
    }

    /// Squared distances and inverse distances of image `i` to all images.
    fn row(&self, i: usize) -> (&[f64], &[f64]) {
        let row = i * self.batch..(i + 1) * self.batch;
        (&self.q[row.clone()], &self.inverse[row])
    }
}

/// The squared distances of all pairs of rows, `[B, B]`.
fn all_squared_distances(x: &[f64], batch: usize) -> Vec<f64> {
    let width = x.len() / batch;
    let row = |i: usize| &x[i * width..][..width];
    let mut q = vec![0.0; batch * batch];
    q.par_chunks_mut(batch).enumerate().for_each(|(i, q)| {
        for (j, q) in q.iter_mut().enumerate() {
            *q = squared_distance(row(i), row(j));
        }
    });
    q
}

/// The squared distance of two rows, added up in eight sums so that the compiler can vectorise it.
fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += (a[lane] - b[lane]) * (a[lane] - b[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b));
    sums.into_iter().chain(rest).sum()
}

/// What the angles at some of the images add up to.
struct Sums {
    loss: f64,
    /// `[B, B]`: the derivative of the loss by the squared distances. A pair of images has two entries, whose sum is meant.
    by_distance: Vec<f64>,
    /// The loss of the angles at one image, by the angles' second side; like the two below it is cleared for each image.
    losses: Vec<f64>,
    direct: Vec<f64>,
    through_length: Vec<f64>,
}

impl Sums {
    fn new(batch: usize) -> Self {
        let zeros = || vec![0.0; batch];
        Self {
            loss: 0.0,
            by_distance: vec![0.0; batch * batch],
            losses: zeros(),
            direct: zeros(),
            through_length: zeros(),
        }
    }

    /// Adds the angles at image `j`.
    fn add(&mut self, ours: &Distances, theirs: &Distances, j: usize) {
        let batch = self.losses.len();
        let (our_q, our_inverse) = ours.row(j);
        let (their_q, their_inverse) = theirs.row(j);
        for sums in [&mut self.losses, &mut self.direct, &mut self.through_length] {
            sums.fill(0.0);
        }
        for i in 0..batch {
            let (across, _) = ours.row(i);
            let (their_across, _) = theirs.row(i);
            let by_across = &mut self.by_distance[i * batch..][..batch];
            let (q, half) = (our_q[i], 0.5 * our_inverse[i]);
            let (their_q_i, their_half) = (their_q[i], 0.5 * their_inverse[i]);
            let losses = &mut self.losses[..batch];
            let direct = &mut self.direct[..batch];
            let through_length = &mut self.through_length[..batch];
            for k in 0..batch {
                let by_numerator = half * our_inverse[k];
                let cosine = (q + our_q[k] - across[k]) * by_numerator;
                let theirs =
                    (their_q_i + their_q[k] - their_across[k]) * (their_half * their_inverse[k]);
                let difference = cosine - theirs;
                // huber(x) is s x - s² / 2 with s = x between -1 and 1, which is also its derivative.
                let slope = difference.clamp(-1.0, 1.0);
                losses[k] += slope * (difference - 0.5 * slope);
                direct[k] += slope * by_numerator;
                through_length[k] += slope * cosine;
                by_across[k] -= slope * by_numerator;
            }
        }
        self.loss += self.losses.iter().sum::<f64>();
        // The two sides of an angle are interchangeable, and each angle is counted twice.
        let by_sides = &mut self.by_distance[j * batch..][..batch];
        for (k, by_side) in by_sides.iter_mut().enumerate() {
            let through_length = 0.5 * self.through_length[k] * our_inverse[k] * our_inverse[k];
            *by_side += 2.0 * (self.direct[k] - through_length);
        }
    }
}

/// The gradient of the features, from the derivatives by their squared distances, times `scale`.
fn to_features(x: &[f64], by_distance: &[f64], batch: usize, scale: f64) -> Vec<f64> {
    let width = x.len() / batch;
    let mut gradient = vec![0.0; x.len()];
    gradient.par_chunks_mut(width).enumerate().for_each(|(i, gradient)| {
        let own = &x[i * width..][..width];
        for (j, other) in x.chunks_exact(width).enumerate() {
            let both = by_distance[i * batch + j] + by_distance[j * batch + i];
            let weight = 2.0 * scale * both;
            for ((gradient, own), other) in gradient.iter_mut().zip(own).zip(other) {
                *gradient += weight * (own - other);
            }
        }
    });
    gradient
}
