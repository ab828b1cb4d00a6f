//! One direction of the contrast as one operation on the CPU: products, similarities, loss and gradient while a row of the memory is in
//! cache. By candle's operations 1024 negatives are 64 MiB that are gathered, read twice, and given a gradient that nobody asks for: a step
//! of the tutorial's student at batch 128 took 84 ms that way on one core, and takes 37 ms this way.

use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};
use rayon::prelude::*;

/// The operation's name in candle's errors.
const NAME: &str = "contrast of embeddings";

/// What a batch's embeddings are contrasted with, and at which temperature.
pub(super) struct OneWay<'a> {
    /// The other network's embeddings of all training images, f32 `[images, dim]` on the CPU.
    pub(super) memory: &'a Tensor,
    /// Rows of the memory, `1 + N` for each embedding, the positive first.
    pub(super) drawn: &'a [u32],
    pub(super) temperature: f64,
}

/// Whether the operation takes these: f32 on the CPU.
pub(super) fn takes(embedded: &Tensor, memory: &Tensor) -> bool {
    [embedded, memory].iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

impl OneWay<'_> {
    /// The mean of all similarities exp(x·y / T).
    pub(super) fn mean_similarity(&self, embedded: &Tensor) -> Result<f64> {
        let (batch, dim) = embedded.dims2()?;
        let embedded = embedded.flatten_all()?.to_vec1::<f32>()?;
        with_values(self.memory, |memory| {
            let drawn = self.drawn.par_chunks_exact(self.drawn.len() / batch);
            let sums: Vec<f64> = embedded
                .par_chunks_exact(dim)
                .zip(drawn)
                .map(|(x, drawn)| {
                    let rows = drawn.iter().map(|&row| &memory[row as usize * dim..][..dim]);
                    rows.map(|row| (product(x, row) / self.temperature).exp()).sum()
                })
                .collect();
            Ok(sums.iter().sum::<f64>() / self.drawn.len() as f64)
        })
    }

    /// [`crd_nce`](super::crd_nce) of `embedded` `[B, dim]`.
    pub(super) fn loss(&self, embedded: &Tensor, normalizer: f64, images: usize) -> Result<Tensor> {
        let (batch, dim) = embedded.dims2()?;
        let values = embedded.flatten_all()?.to_vec1::<f32>()?;
        let columns = self.drawn.len() / batch;
        let noise = (columns - 1) as f64 / images as f64;
        let mut gradient = vec![0f32; values.len()];
        let losses: Vec<f64> = with_values(self.memory, |memory| {
            let drawn = self.drawn.par_chunks_exact(columns);
            let images = values.par_chunks_exact(dim).zip(gradient.par_chunks_exact_mut(dim));
            let losses = images.zip(drawn).map(|((x, gradient), drawn)| {
                let mut loss = -((columns - 1) as f64) * noise.ln();
                for (n, &row) in drawn.iter().enumerate() {
                    let row = &memory[row as usize * dim..][..dim];
                    let scaled = product(x, row) / self.temperature;
                    let p = scaled.exp() / normalizer;
                    loss += (p + noise).ln();
                    let mut slope = p / (p + noise);
                    if n == 0 {
                        loss -= scaled - normalizer.ln();
                        slope -= 1.0;
                    }
                    let factor = (slope / (self.temperature * batch as f64)) as f32;
                    for (gradient, value) in gradient.iter_mut().zip(row) {
                        *gradient += factor * value;
                    }
                }
                loss
            });
            Ok(losses.collect())
        })?;
        let loss = losses.iter().sum::<f64>() / batch as f64;
        let gradient = Tensor::from_vec(gradient, (batch, dim), &Device::Cpu)?;
        embedded.apply_op1(Made { loss: loss as f32, gradient })
    }
}

/// Gives a loss and, in the backward pass, its gradient; both were computed together.
struct Made {
    loss: f32,
    gradient: Tensor,
}

impl CustomOp1 for Made {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.loss]), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _loss: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradient.affine(f64::from(upstream.to_scalar::<f32>()?), 0.0)?))
    }
}

/// The product of two rows, added up in eight sums so that the compiler can vectorise it.
fn product(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f32; 8];
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.into_iter().chain(rest).map(f64::from).sum()
}

/// Calls `body` with the numbers of a contiguous f32 tensor on the CPU, without a copy.
fn with_values<T>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => body(&values[from..to]),
        _ => bail!("{NAME}: expected a contiguous f32 memory on the CPU"),
    }
}
