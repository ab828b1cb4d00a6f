//! `log softmax` by candle's operations.

use candle_core::{D, Result, Tensor};

/// `log softmax` over the last dimension.
///
/// The row's maximum is subtracted as a constant. Its share of the gradient would cancel out; candle's own `log_softmax` computes that
/// share and leaves the rounding errors of the cancellation in the gradient.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)
}
