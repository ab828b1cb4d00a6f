//! For each image one of the teachers.

use candle_core::{Result, Tensor};

use super::errors;

/// The logits of the teacher whose cross-entropy with the label is smallest, image by image.
pub(super) fn of_smallest_error(logits: &[Tensor], labels: &Tensor) -> Result<Tensor> {
    let best = errors(logits, labels)?.argmin_keepdim(0)?;
    let (images, classes) = logits[0].dims2()?;
    let index = best.unsqueeze(2)?.broadcast_as((1, images, classes))?.contiguous()?;
    Tensor::stack(logits, 0)?.gather(&index, 0)?.squeeze(0)
}
