//! Brings two networks' features to shapes that can be compared.

use candle_core::Tensor;

use crate::numeric::widened_both;
use crate::{Error, Result, check};

/// Two maps `[B, C, H, W]`, brought to the same height and width: the larger one is averaged over windows. Their channels may
/// differ. Both become f32, or f64 where one of them is.
///
/// # Errors
/// When the batches differ in size or are empty, or neither map's height and width are multiples of the other's.
pub(crate) fn match_size(student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    let mismatch = || Error::ShapeMismatch {
        what: "feature maps".into(),
        student: student.dims().to_vec(),
        other: teacher.dims().to_vec(),
        expected: "both must be [B, C, H, W] with the same B, the height and width of one multiples of the other's",
    };
    let (&[batch, _, hs, ws], &[batch_t, _, ht, wt]) = (student.dims(), teacher.dims()) else {
        return Err(mismatch());
    };
    if batch != batch_t {
        return Err(mismatch());
    }
    if batch == 0 {
        return Err(Error::EmptyBatch);
    }
    let (h, w) = common_size((hs, ws), (ht, wt)).ok_or_else(mismatch)?;
    check_types(student, teacher)?;
    let (student, teacher) = widened_both(student, teacher)?;
    Ok((average_to(&student, h, w)?, average_to(&teacher, h, w)?))
}

/// The smaller of two sizes (height, width), if the other one is a multiple of it in both directions.
pub(crate) fn common_size(a: (usize, usize), b: (usize, usize)) -> Option<(usize, usize)> {
    let divides = |small: (usize, usize), large: (usize, usize)| {
        small.0 > 0
            && small.1 > 0
            && large.0.is_multiple_of(small.0)
            && large.1.is_multiple_of(small.1)
    };
    if divides(a, b) {
        Some(a)
    } else if divides(b, a) {
        Some(b)
    } else {
        None
    }
}

fn average_to(map: &Tensor, h: usize, w: usize) -> candle_core::Result<Tensor> {
    let (_, _, height, width) = map.dims4()?;
    if (height, width) == (h, w) {
        return Ok(map.clone());
    }
    map.avg_pool2d((height / h, width / w))
}

/// Two batches of features `[B, ...]`, each flattened to rows `[B, F]`; F may differ. Both become f32, or f64 where one of them is. The teacher's
/// have no gradient.
///
/// # Errors
/// When the batches differ in size or are empty, or an image has no features.
pub(crate) fn rows(student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    let fits = student.rank() >= 2
        && teacher.rank() >= 2
        && student.dims()[0] == teacher.dims()[0]
        && student.dims()[1..].iter().chain(&teacher.dims()[1..]).all(|&dim| dim > 0);
    if !fits {
        return Err(Error::ShapeMismatch {
            what: "features".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be [B, ...] with the same B",
        });
    }
    if student.dims()[0] == 0 {
        return Err(Error::EmptyBatch);
    }
    check_types(student, teacher)?;
    let (student, teacher) = widened_both(student, &teacher.detach())?;
    Ok((student.flatten_from(1)?, teacher.flatten_from(1)?))
}

/// That two maps `[B, C, H, W]` have the same shape, and are of types that losses compute with: their B.
///
/// # Errors
/// When they have not, or the batch is empty.
pub(crate) fn same_maps(student: &Tensor, teacher: &Tensor) -> Result<usize> {
    if student.rank() != 4 || student.dims() != teacher.dims() {
        return Err(Error::ShapeMismatch {
            what: "feature maps".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be [B, C, H, W]",
        });
    }
    if student.elem_count() == 0 {
        return Err(Error::EmptyBatch);
    }
    check_types(student, teacher)?;
    Ok(student.dims()[0])
}

/// That both networks' features are of types that losses compute with.
///
/// # Errors
/// When one is not; the error names the network.
pub(crate) fn check_types(student: &Tensor, teacher: &Tensor) -> Result<()> {
    check::float("the student's features", student)?;
    check::float("the teacher's features", teacher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_larger_map_is_averaged() -> Result<()> {
        let small = Tensor::zeros((1, 2, 2, 1), DType::F32, &Device::Cpu)?;
        let large = Tensor::arange(0f32, 16.0, &Device::Cpu)?.reshape((1, 2, 4, 2))?;
        let (small, large) = match_size(&small, &large)?;
        assert_eq!(small.dims(), [1, 2, 2, 1]);
        assert_eq!(large.flatten_all()?.to_vec1::<f32>()?, [1.5, 5.5, 9.5, 13.5]);
        Ok(())
    }

    #[test]
    fn maps_whose_sizes_do_not_divide_are_an_error_with_both_shapes() -> Result<()> {
        let a = Tensor::zeros((1, 2, 4, 4), DType::F32, &Device::Cpu)?;
        let b = Tensor::zeros((1, 2, 6, 6), DType::F32, &Device::Cpu)?;
        let error = match_size(&a, &b).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("[1, 2, 4, 4]") && error.contains("[1, 2, 6, 6]"), "{error}");
        Ok(())
    }
}
