//! What a planned network has to do with candle's tensors and with kd's other operations.

use candle_core::{Result, Tensor};

use crate::batch_norm::Blend;
use crate::dropout::{DropoutKey, dropout_part};

/// Runs `body` on the numbers of an f32 tensor on the CPU; one that is not contiguous is copied first.
///
/// # Errors
/// When the tensor is not f32 or lies elsewhere, and `body`'s.
pub fn with_values<T>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    crate::cpu::with_slice("network", tensor, body)
}

/// Running statistics take their share of a batch's, in place: `(1 - share) * running + share * new`.
///
/// # Errors
/// When `running` is not f32 or does not lie on the CPU.
pub fn blend(running: &Tensor, share: f64, new: Vec<f64>) -> Result<()> {
    running.inplace_op1(&Blend { share, new })
}

/// Dropout of a part of a batch's values, in place, with the mask that [`dropout`](crate::dropout) has for the whole; `first`
/// is the part's first element there. The gradient goes through the same function.
pub fn dropout(values: &mut [f32], share: f64, key: DropoutKey, layer: u64, first: u64) {
    dropout_part(values, share, key, layer, first);
}
