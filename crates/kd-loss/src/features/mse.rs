//! Mean squared error, to which methods with a learned map from the student's features to the teacher's bring them.

use candle_core::Tensor;

use crate::matching::check_types;
use crate::numeric::widened_both;
use crate::{Error, Result};

/// `mean over all elements of (student - teacher)²`, a scalar. It is computed in f32, or in f64 where one of them is. The teacher gets no gradient.
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
    check_types(student, teacher)?;
    let (student, teacher) = widened_both(student, &teacher.detach())?;
    Ok((student - teacher)?.sqr()?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{any_rows, check_formula, tensor};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn mse_has_the_formulas_value_and_gradient(student in any_rows(3, 4, 2.0), teacher in any_rows(3, 4, 2.0)) {
            let formula = |student: &[Vec<f64>]| {
                let pairs = student.concat().into_iter().zip(teacher.concat());
                pairs.map(|(s, t)| (s - t).powi(2)).sum::<f64>() / 12.0
            };
            check_formula(&student, |student| mse(student, &tensor(&teacher)).unwrap(), formula);
        }
    }
}
