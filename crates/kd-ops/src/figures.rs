//! What a step of training measures, put together where it was computed.

use candle_core::{D, DType, Result, Tensor};

/// The numbers of f32 and f64 tensors, one tensor behind the other, as one f64 tensor `[numbers]` on their device. No gradient
/// flows through it. On a GPU (feature `cuda`) it is one launch for up to 32 tensors.
///
/// # Errors
/// When there is no tensor, or they lie on several devices.
pub fn join_f64(tensors: &[Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::figures::takes(tensors) {
        return crate::cuda::figures::join_f64(tensors);
    }
    let wide = |tensor: &Tensor| tensor.detach().to_dtype(DType::F64)?.flatten_all();
    Tensor::cat(&tensors.iter().map(wide).collect::<Result<Vec<_>>>()?, 0)
}

/// How many rows of `scores` `[B, C]` are largest at their label, u32 `[B]`; an f32 scalar on their device.
///
/// # Errors
/// When the shapes don't fit.
pub fn count_largest_at(scores: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let largest = scores.detach().argmax(D::Minus1)?;
    #[cfg(feature = "cuda")]
    if largest.device().is_cuda() && labels.dtype() == DType::U32 {
        return crate::cuda::figures::count_equal(&largest, labels);
    }
    largest.eq(labels)?.to_dtype(DType::F32)?.sum_all()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn numbers_of_both_types_follow_each_other_and_equal_answers_are_counted() {
        let scalar = Tensor::new(0.1f32, &Device::Cpu).unwrap();
        let wide = Tensor::new(&[1e300, 0.1], &Device::Cpu).unwrap();
        let joined = join_f64(&[scalar, wide]).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(joined, [f64::from(0.1f32), 1e300, 0.1]);
        let scores = Tensor::new(&[[0.0f32, 1.0], [3.0, 1.0], [1.0, 2.0]], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[1u32, 1, 1], &Device::Cpu).unwrap();
        let count = count_largest_at(&scores, &labels).unwrap();
        assert_eq!(count.to_scalar::<f32>().unwrap(), 2.0);
    }
}
