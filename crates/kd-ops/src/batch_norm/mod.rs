//! Batch normalisation with PyTorch's semantics, with an addition and a ReLU fused in behind it.

pub(crate) mod layer;
mod operation;

use candle_core::{Result, Tensor, bail};

use crate::cpu;
pub use layer::{BatchNorm, BatchNormConfig, Statistics};
pub(crate) use operation::Blend;
use operation::{BatchNormOp, NAME, Planes, values};

impl BatchNorm {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, plus `residual` where one is given, then
    /// `max(y, 0)` where `config.relu` says so. `x`, `residual` and the result are f32 `[N, C, H, W]`; on a GPU `x` may be
    /// bf16, and the result then is.
    ///
    /// As in PyTorch a batch's variance is biased where it normalises and unbiased where it enters `running_var`.
    /// Sums run over a channel of one image, then over the images, in a fixed order.
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
            // An empty tensor stands for none: an operation has a fixed number of arguments.
            None => Tensor::zeros(0, x.dtype(), x.device())?,
        };
        let x = x.contiguous()?;
        let planes = Planes { channels, plane: height * width };
        let (mean, var) = match statistics {
            Statistics::Batch => {
                let (mean, squares) = cpu::with_slice(NAME, &x, |x| Ok(planes.moments(x)))?;
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
            planes,
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
