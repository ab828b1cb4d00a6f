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
//! Where the logits need a gradient, it is computed along with the value, while a row is in cache. On the CPU all computation is in f64
//! and rows are spread over threads (`fused/cpu.rs`); on a GPU a kernel does it (`fused/cuda.rs`, `fused/kernel.cu`). Sums have a fixed order
//! on both, so a result repeats bit for bit.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod operands;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

pub(crate) use operands::FusedTerms;
use operands::{NAME, Operands};

/// What the operation gives, as f32 scalars.
pub(crate) struct FusedLoss {
    /// The weighted sum, which has a gradient.
    pub(crate) total: Tensor,
    /// The cross-entropy before its weight, 0 without labels.
    pub(crate) labels: Tensor,
    /// The divergence before its weight, 0 without a teacher.
    pub(crate) kd: Tensor,
}

/// Whether [`fused`] takes logits of this type on this device; if not, the caller computes the loss by candle's operations.
pub(crate) fn takes(logits: &Tensor) -> bool {
    let device = match logits.device() {
        Device::Cpu => true,
        Device::Cuda(_) => cfg!(feature = "cuda"),
        Device::Metal(_) => false,
    };
    device && matches!(logits.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// The losses of the student's logits `[B, C]` (f32, bf16 or f16) against the teacher's of the same shape and type, against u32 labels `[B]`, or
/// against both. The teacher gets no gradient. Labels on the CPU must be classes, which the caller has checked; on a GPU a label that is
/// no class makes its row's loss and gradient NaN.
pub(crate) fn fused(
    student: &Tensor,
    teacher: Option<&Tensor>,
    labels: Option<&Tensor>,
    terms: FusedTerms,
) -> Result<FusedLoss> {
    for other in teacher.into_iter().chain(labels) {
        if !other.device().same_device(student.device()) {
            let (a, b) = (student.device().location(), other.device().location());
            bail!("{NAME}: the student's logits are on {a:?}, what they are compared with on {b:?}")
        }
    }
    let teacher = teacher.map(|t| t.detach().contiguous());
    let made = Arc::new(OnceLock::new());
    let operands = Operands {
        terms,
        teacher: teacher.transpose()?,
        labels: labels.map(Tensor::contiguous).transpose()?,
        with_gradient: student.track_op(),
    };
    let op = Fused { operands, made: made.clone() };
    let total = student.contiguous()?.apply_op1(op)?;
    match made.get() {
        Some(Made { parts, .. }) => {
            Ok(FusedLoss { total, labels: parts.get(0)?, kd: parts.get(1)? })
        }
        None => bail!("{NAME}: the operation did not run"),
    }
}

struct Fused {
    operands: Operands,
    /// What the forward pass leaves besides the value.
    made: Arc<OnceLock<Made>>,
}

/// What the forward pass leaves besides the value.
struct Made {
    /// f32 `[2]`: the terms before their weights.
    parts: Tensor,
    backward: Backward,
}

/// Where the backward pass takes the gradient from.
enum Backward {
    /// The logits have no gradient.
    None,
    /// The gradient itself, f32 of the logits' shape, on the CPU.
    Gradient(Tensor),
    #[cfg(feature = "cuda")]
    /// What the GPU's kernels left.
    Cuda(cuda::Rows),
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let operands = &self.operands;
        let cpu::Forward { total, parts, gradient } = match storage {
            CpuStorage::F32(_) => cpu::forward::<f32>(operands, storage, layout)?,
            CpuStorage::BF16(_) => cpu::forward::<half::bf16>(operands, storage, layout)?,
            CpuStorage::F16(_) => cpu::forward::<half::f16>(operands, storage, layout)?,
            _ => bail!("{NAME}: expected f32, bf16 or f16 logits"),
        };
        let backward = gradient.map_or(Backward::None, Backward::Gradient);
        // A forward pass runs once for each operation that is built, so the cell is empty here.
        let _ = self.made.set(Made { parts, backward });
        Ok((CpuStorage::F32(vec![total]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let cuda::Forward { total, parts, backward } =
            cuda::forward(&self.operands, storage, layout)?;
        let backward = backward.map_or(Backward::None, Backward::Cuda);
        let _ = self.made.set(Made { parts, backward });
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
                Ok(Some(cuda::backward(&self.operands, backward, student, upstream)?))
            }
            _ => bail!("{NAME}: these logits have no gradient"),
        }
    }
}
