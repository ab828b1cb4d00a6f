//! The fused operation on the CPU, computed in f64 with rows spread over threads.

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::operands::{FusedTerms, NAME, Operands};

/// The least number of logits for which handing them to a thread pays.
const SHARE: usize = 1 << 14;

/// What the forward pass leaves.
pub(super) struct Forward {
    /// The weighted sum of the terms.
    pub(super) total: f32,
    /// f32 `[2]`: cross-entropy and divergence before their weights.
    pub(super) parts: Tensor,
    /// The gradient, f32 of the logits' shape, for logits that need one.
    pub(super) gradient: Option<Tensor>,
}

/// The forward pass, which also computes the gradient.
pub(super) fn forward<T: WithDType>(
    op: &Operands,
    storage: &CpuStorage,
    layout: &Layout,
) -> Result<Forward> {
    let (batch, classes) = layout.shape().dims2()?;
    let student = slice::<T>(storage, layout)?;
    let labels = op.labels.as_ref().map(|labels| labels.to_vec1::<u32>()).transpose()?;
    let row = |teacher: Option<&[T]>, index: usize, student: &[T], out: Option<&mut [f32]>| {
        let teacher = teacher.map(|teacher| &teacher[index * classes..][..classes]);
        let label = labels.as_ref().map(|labels| labels[index] as usize);
        one_row(student, teacher, label, &op.terms, batch, out)
    };
    let mut gradient = vec![0.0f32; if op.with_gradient { student.len() } else { 0 }];
    let mut all_rows = |teacher: Option<&[T]>| -> Vec<(f64, f64)> {
        let rows = student.par_chunks_exact(classes).enumerate();
        let rows = rows.with_min_len(SHARE.div_ceil(classes));
        if op.with_gradient {
            let rows = rows.zip(gradient.par_chunks_exact_mut(classes));
            rows.map(|((index, student), out)| row(teacher, index, student, Some(out))).collect()
        } else {
            rows.map(|(index, student)| row(teacher, index, student, None)).collect()
        }
    };
    let rows = match &op.teacher {
        None => all_rows(None),
        Some(teacher) => match &*teacher.storage_and_layout().0 {
            Storage::Cpu(storage) => all_rows(Some(slice(storage, teacher.layout())?)),
            _ => bail!("{NAME}: the teacher's logits are not on the CPU"),
        },
    };
    // Added in the images' order, whichever thread computed which image.
    let sum = |term: fn(&(f64, f64)) -> f64| rows.iter().map(term).sum::<f64>() / batch as f64;
    let FusedTerms { labels_weight, kd_weight, temperature, .. } = op.terms;
    let (labels, kd) = (sum(|row| row.0), sum(|row| row.1) * temperature * temperature);
    let total = (labels_weight * labels + kd_weight * kd) as f32;
    let gradient = match op.with_gradient {
        true => Some(Tensor::from_vec(gradient, (batch, classes), &Device::Cpu)?),
        false => None,
    };
    let parts = Tensor::new(&[labels as f32, kd as f32], &Device::Cpu)?;
    Ok(Forward { total, parts, gradient })
}

fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<T>()?[from..to]),
        None => bail!("{NAME}: expected contiguous logits"),
    }
}

/// Cross-entropy and KL divergence of one image, before T² and weights; the weighted gradient of its logits goes to `out`.
fn one_row<T: WithDType>(
    student: &[T],
    teacher: Option<&[T]>,
    label: Option<usize>,
    terms: &FusedTerms,
    batch: usize,
    out: Option<&mut [f32]>,
) -> (f64, f64) {
    let FusedTerms { labels_weight, smoothing, kd_weight, temperature } = *terms;
    let mut gradient = vec![0.0; if out.is_some() { student.len() } else { 0 }];
    let (mut cross_entropy, mut kl) = (0.0, 0.0);
    if let Some(label) = label {
        let log_p = log_softmax(student, 1.0);
        cross_entropy = -(1.0 - smoothing) * log_p[label];
        let even = smoothing / student.len() as f64;
        if smoothing > 0.0 {
            cross_entropy -= even * log_p.iter().sum::<f64>();
        }
        let scale = labels_weight / batch as f64;
        for (class, (gradient, log_p)) in gradient.iter_mut().zip(&log_p).enumerate() {
            let target = even + if class == label { 1.0 - smoothing } else { 0.0 };
            *gradient += scale * (log_p.exp() - target);
        }
    }
    if let Some(teacher) = teacher {
        let (log_p, log_q) = (log_softmax(student, temperature), log_softmax(teacher, temperature));
        let scale = kd_weight * temperature / batch as f64;
        // Where there is no gradient, the iterator over it is empty.
        let mut gradient = gradient.iter_mut();
        for (log_p, log_q) in log_p.iter().zip(&log_q) {
            let q = log_q.exp();
            kl += q * (log_q - log_p);
            if let Some(gradient) = gradient.next() {
                *gradient += scale * (log_p.exp() - q);
            }
        }
    }
    for (out, gradient) in out.into_iter().flatten().zip(&gradient) {
        *out = *gradient as f32;
    }
    (cross_entropy, kl)
}

/// `log softmax(row / temperature)`.
fn log_softmax<T: WithDType>(row: &[T], temperature: f64) -> Vec<f64> {
    let mut out: Vec<f64> = row.iter().map(|z| z.to_f64() / temperature).collect();
    // `f64::max` drops a NaN, but the sum below keeps it: a diverged network's loss must be NaN.
    let max = out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = out.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    for z in &mut out {
        *z -= max + log_sum;
    }
    out
}
