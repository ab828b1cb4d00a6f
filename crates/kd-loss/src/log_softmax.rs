//! `log softmax` by candle's operations.

use candle_core::{D, Result, Tensor};

/// `log softmax` over the last dimension.
///
/// The maximum is taken out of the graph: the gradient is the same with and without it (its
/// share cancels), and candle's `log_softmax` leaves the rounding errors of that cancellation.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)
}
