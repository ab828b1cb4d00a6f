//! The softmax losses as one operation: cross-entropy with labels, KL to a teacher at temperature T,
//! their weighted sum and its gradient.
//!
//! With z the student's logits, t the teacher's and B images:
//!
//! - labels = mean over images of -Σ_j y_j log softmax(z)_j, y being the label, smoothed or not;
//! - kd = T² · mean over images of Σ_j q_j (log q_j - log p_j), p = softmax(z / T), q = softmax(t / T);
//! - total = w_labels · labels + w_kd · kd;
//! - its gradient is (w_labels (softmax(z) - y) + w_kd T (p - q)) / B.
//!
//! Where the logits have a gradient, it is made along with the value, while a row is at hand. On the
//! CPU everything inside is f64 and rows are spread over threads; on a GPU it is `fused/kernel.cu`.
//! Sums have a fixed order on both: a result repeats bit for bit.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

/// The two terms' weights and options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// What the cross-entropy is multiplied with.
    pub(crate) labels_weight: f64,
    /// The share of each label that is spread over all classes.
    pub(crate) smoothing: f64,
    /// What the divergence from the teacher is multiplied with.
    pub(crate) kd_weight: f64,
    /// What both logits are divided by in the divergence.
    pub(crate) temperature: f64,
}

impl Terms {
    /// The cross-entropy alone.
    pub(crate) fn labels(smoothing: f64) -> Self {
        Self { labels_weight: 1.0, smoothing, kd_weight: 0.0, temperature: 1.0 }
    }

    /// The divergence alone.
    pub(crate) fn kd(temperature: f64) -> Self {
        Self { labels_weight: 0.0, smoothing: 0.0, kd_weight: 1.0, temperature }
    }
}

/// What the operation gives: f32 scalars.
pub(crate) struct Value {
    /// The weighted sum; has a gradient.
    pub(crate) total: Tensor,
    /// The cross-entropy before its weight, 0 without labels.
    pub(crate) labels: Tensor,
    /// The divergence before its weight, 0 without a teacher.
    pub(crate) kd: Tensor,
}

/// Whether [`fused`] takes logits of this type on this device; if not, candle's operations do it.
pub(crate) fn takes(logits: &Tensor) -> bool {
    let device = match logits.device() {
        Device::Cpu => true,
        Device::Cuda(_) => cfg!(feature = "cuda"),
        Device::Metal(_) => false,
    };
    device && matches!(logits.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// The losses of `[B, C]` logits, f32, bf16 or f16, of a `teacher`'s of the same shape and of u32 `[B]` labels, with
/// at least one of the two. The teacher gets no gradient. Labels on the CPU are classes: the caller has
/// checked them; a label on a GPU that is no class makes the row's loss and gradient NaN.
pub(crate) fn fused(
    name: &'static str,
    student: &Tensor,
    teacher: Option<&Tensor>,
    labels: Option<&Tensor>,
    terms: Terms,
) -> Result<Value> {
    for other in teacher.into_iter().chain(labels) {
        if !other.device().same_device(student.device()) {
            let (a, b) = (student.device().location(), other.device().location());
            bail!("{name}: the student's logits are on {a:?}, what they are compared with on {b:?}")
        }
    }
    let teacher = teacher.map(|t| t.detach().to_dtype(student.dtype())?.contiguous());
    let made = Arc::new(OnceLock::new());
    let op = Fused {
        name,
        terms,
        teacher: teacher.transpose()?,
        labels: labels.map(Tensor::contiguous).transpose()?,
        with_gradient: student.track_op(),
        made: made.clone(),
    };
    let total = student.contiguous()?.apply_op1(op)?;
    match made.get() {
        Some(Made { parts, .. }) => Ok(Value { total, labels: parts.get(0)?, kd: parts.get(1)? }),
        None => bail!("{name}: the operation did not run"),
    }
}

struct Fused {
    name: &'static str,
    terms: Terms,
    /// Contiguous, of the student's type and shape, on its device.
    teacher: Option<Tensor>,
    labels: Option<Tensor>,
    with_gradient: bool,
    /// What the forward pass leaves besides the value.
    made: Arc<OnceLock<Made>>,
}

/// What the forward pass leaves besides the value.
struct Made {
    /// f32 `[2]`: the terms before their weights.
    parts: Tensor,
    backward: Backward,
}

/// Where the backward pass gets the gradient from.
enum Backward {
    /// Nobody asks for it.
    None,
    /// f32 of the logits' shape, on the CPU.
    Gradient(Tensor),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Backward),
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (made, total) = match storage {
            CpuStorage::F32(_) => cpu::forward::<f32>(self, storage, layout)?,
            CpuStorage::BF16(_) => cpu::forward::<half::bf16>(self, storage, layout)?,
            CpuStorage::F16(_) => cpu::forward::<half::f16>(self, storage, layout)?,
            _ => bail!("{}: expected f32, bf16 or f16 logits", self.name),
        };
        // A forward pass runs once for each operation that is built, so the cell is empty here.
        let _ = self.made.set(made);
        Ok((CpuStorage::F32(vec![total]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (made, total) = cuda::forward(self, storage, layout)?;
        let _ = self.made.set(made);
        Ok((total, Shape::from(())))
    }

    fn bwd(&self, student: &Tensor, _value: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        match self.made.get().map(|made| &made.backward) {
            Some(Backward::Gradient(gradient)) => {
                let upstream = f64::from(upstream.to_scalar::<f32>()?);
                Ok(Some((gradient * upstream)?.to_dtype(student.dtype())?))
            }
            #[cfg(feature = "cuda")]
            Some(Backward::Cuda(backward)) => {
                Ok(Some(cuda::backward(self, backward, student, upstream)?))
            }
            _ => bail!("{}: these logits have no gradient", self.name),
        }
    }
}
