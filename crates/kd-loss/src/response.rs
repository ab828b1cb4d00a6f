//! Losses that compare the student's softmax with fixed target probabilities.
//!
//! Cross-entropy, label smoothing and KL at temperature are one function of the logits:
//! `T² · mean over images of Σ_j t_j (log t_j - log softmax(z / T)_j)`, apart from a constant.
//! On the CPU in f32 its value and its gradient, `T (softmax(z / T) - t) / B`, come from one pass
//! with f64 inside. Elsewhere candle's operations do it.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};

/// Whether [`fused`] can take these logits.
pub(crate) fn can_fuse(logits: &Tensor) -> bool {
    logits.device().is_cpu() && logits.dtype() == DType::F32
}

/// `log softmax` over the last dimension.
///
/// The maximum is taken out of the graph: the gradient is the same with and without it (its
/// share cancels), and candle's `log_softmax` leaves the rounding errors of that cancellation.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)
}

/// `log softmax(row / temperature)`, in f64.
fn log_softmax_row(row: &[f32], temperature: f64, out: &mut Vec<f64>) {
    out.clear();
    out.extend(row.iter().map(|&z| f64::from(z) / temperature));
    // A NaN must not be lost here: `f64::max` would drop it, the sum below keeps it.
    let max = out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = out.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    for z in out {
        *z -= max + log_sum;
    }
}

/// What the student's softmax is compared with.
pub(crate) struct Targets {
    /// `[B, C]`; each row sums to 1.
    pub(crate) probabilities: Vec<f64>,
    /// Added to the value: minus the targets' mean entropy for a KL divergence, 0 for a cross-entropy.
    pub(crate) constant: f64,
}

impl Targets {
    /// Labels, `smoothing` of each spread evenly over the classes.
    pub(crate) fn labels(labels: &[u32], classes: usize, smoothing: f64) -> Self {
        let mut probabilities = vec![smoothing / classes as f64; labels.len() * classes];
        for (row, &label) in probabilities.chunks_exact_mut(classes).zip(labels) {
            row[label as usize] += 1.0 - smoothing;
        }
        Self { probabilities, constant: 0.0 }
    }

    /// `softmax(logits / temperature)` of a teacher: f32 `[B, C]` on the CPU.
    pub(crate) fn teacher(logits: &Tensor, temperature: f64) -> Result<Self> {
        let (batch, classes) = logits.dims2()?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let mut probabilities = Vec::with_capacity(logits.len());
        let mut log_row = Vec::with_capacity(classes);
        let mut constant = 0.0;
        for row in logits.chunks_exact(classes) {
            log_softmax_row(row, temperature, &mut log_row);
            for &log_t in &log_row {
                let t = log_t.exp();
                constant += t * log_t;
                probabilities.push(t);
            }
        }
        Ok(Self { probabilities, constant: constant / batch as f64 })
    }
}

/// The loss for f32 `[B, C]` logits on the CPU; a scalar.
pub(crate) fn fused(
    logits: &Tensor,
    targets: Targets,
    temperature: f64,
    name: &'static str,
) -> Result<Tensor> {
    let op = Response { targets, temperature, name, gradient: OnceLock::new() };
    logits.contiguous()?.apply_op1(op)
}

struct Response {
    targets: Targets,
    temperature: f64,
    name: &'static str,
    /// With respect to the logits, `[B, C]`; made along with the value.
    gradient: OnceLock<Vec<f32>>,
}

impl CustomOp1 for Response {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, classes) = layout.shape().dims2()?;
        let (CpuStorage::F32(logits), Some((from, to))) = (storage, layout.contiguous_offsets())
        else {
            bail!("{}: expected contiguous f32 logits", self.name)
        };
        let temperature = self.temperature;
        let scale = temperature / batch as f64;
        let mut gradient = Vec::with_capacity(to - from);
        let mut log_row = Vec::with_capacity(classes);
        let mut sum = 0.0;
        let rows = logits[from..to].chunks_exact(classes);
        for (row, targets) in rows.zip(self.targets.probabilities.chunks_exact(classes)) {
            log_softmax_row(row, temperature, &mut log_row);
            for (&log_p, &t) in log_row.iter().zip(targets) {
                sum -= t * log_p;
                gradient.push((scale * (log_p.exp() - t)) as f32);
            }
        }
        let value = temperature * temperature * (sum / batch as f64 + self.targets.constant);
        // `cpu_fwd` runs once for each operation that is built, so the cell is empty here.
        let _ = self.gradient.set(gradient);
        Ok((CpuStorage::F32(vec![value as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _value: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = self.gradient.get() else {
            bail!("{}: backward before forward", self.name)
        };
        let grad = grad.to_scalar::<f32>()?;
        let gradient: Vec<f32> = gradient.iter().map(|g| g * grad).collect();
        Ok(Some(Tensor::from_vec(gradient, logits.shape(), logits.device())?))
    }
}
