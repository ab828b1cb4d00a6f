//! Mean squared error, to which methods with a learned map from the student's features to the teacher's bring them.

use candle_core::Tensor;

use crate::{Error, Result};

/// `mean over all elements of (student - teacher)²`, a scalar. The teacher gets no gradient.
///
/// # Errors
/// When the shapes differ.
pub fn mse(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    if student.dims() != teacher.dims() {
        return Err(Error::ShapeMismatch {
            what: "features".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be equal",
        });
    }
    if student.elem_count() == 0 {
        return Err(Error::EmptyBatch);
    }
    Ok((student - teacher.detach())?.sqr()?.mean_all()?)
}
