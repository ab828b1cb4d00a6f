//! The arithmetic of a training step.

use candle_core::DType;
use kd_data::Batch;
use kd_record::Precision;

/// A batch as a network in training takes it: with bf16 images where maps are bf16.
pub(crate) fn in_precision(batch: &Batch, precision: Precision) -> candle_core::Result<Batch> {
    let mut batch = batch.clone();
    if precision == Precision::Bf16 {
        batch.images = batch.images.to_dtype(DType::BF16)?;
    }
    Ok(batch)
}

/// From here until the value is dropped, products on a GPU are of this precision.
pub(crate) fn begin(precision: Precision) -> Products {
    let tf32 = precision == Precision::Tf32;
    if tf32 {
        allow_tf32(true);
    }
    Products { tf32 }
}

/// See [`begin`].
pub(crate) struct Products {
    tf32: bool,
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.tf32 {
            allow_tf32(false);
        }
    }
}

#[cfg(feature = "cuda")]
use kd_ops::cuda::allow_tf32;

#[cfg(not(feature = "cuda"))]
fn allow_tf32(_: bool) {}
