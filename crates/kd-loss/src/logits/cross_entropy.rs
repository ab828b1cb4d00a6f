//! Cross-entropy with the labels, plain and smoothed.

use candle_core::{D, Tensor};

use super::fused::{self, FusedTerms, fused};
use super::log_softmax::log_softmax;
use crate::numeric::widened;
use crate::{Result, check};

/// `mean over images of -log softmax(z)_label`, a scalar.
///
/// `logits` is `[B, C]`, `labels` u32 `[B]`. The loss is finite for any finite logits. For f32, bf16 and f16 logits it is one
/// operation with its gradient and the loss is f32, on the CPU and, with the feature `cuda`, on a GPU.
///
/// # Errors
/// When the shapes don't fit or a label is no class. On a GPU the labels are not read back,
/// which would make every step wait: there a label out of range makes the loss and its row of the gradient NaN.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    cross_entropy_smoothed(logits, labels, 0.0)
}

/// Cross-entropy with `1 - smoothing` of each target on the label and `smoothing` spread evenly
/// over all classes, the label's among them, as `torch.nn.CrossEntropyLoss(label_smoothing=...)`.
///
/// Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7.
///
/// # Errors
/// As [`cross_entropy`], and when `smoothing` is not in [0, 1].
pub fn cross_entropy_smoothed(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    check::share("smoothing", smoothing)?;
    check::labels(logits, labels)?;
    if fused::takes(logits) {
        let terms = FusedTerms::labels(smoothing);
        return Ok(fused(logits, None, Some(labels), terms)?.total);
    }
    Ok(with_candle_ops(logits, labels, smoothing)?)
}

/// The same loss by candle's operations, for any float type and device.
fn with_candle_ops(
    logits: &Tensor,
    labels: &Tensor,
    smoothing: f64,
) -> candle_core::Result<Tensor> {
    let classes = logits.dim(1)? as u32;
    let log_p = log_softmax(&widened(logits)?)?;
    // A label out of range must not reach `gather`; it marks the loss instead.
    let in_range = labels.lt(classes)?;
    let labels = labels.minimum(classes - 1)?;
    let picked = log_p.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?;
    let nan = Tensor::full(f32::NAN, picked.shape(), picked.device())?.to_dtype(picked.dtype())?;
    let picked = in_range.where_cond(&picked, &nan)?.mean_all()?;
    if smoothing == 0.0 {
        return picked.neg();
    }
    let even = log_p.mean(D::Minus1)?.mean_all()?;
    (picked * (smoothing - 1.0))? - (even * smoothing)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        any_rows, assert_agrees, check_formula, for_each_logits, labels, softmax,
    };
    use candle_core::{DType, Device, Var};
    use proptest::prelude::*;

    #[test]
    fn the_fused_operation_agrees_with_candles() -> Result<()> {
        let z = Tensor::new(&[[0.3f32, -1.2, 4.0], [2.0, 2.0, -7.5]], &Device::Cpu)?;
        let labels = Tensor::new(&[2u32, 1], &Device::Cpu)?;
        for smoothing in [0.0, 0.1, 1.0] {
            let (fused, ops) = (Var::from_tensor(&z)?, Var::from_tensor(&z)?);
            let a = cross_entropy_smoothed(&fused, &labels, smoothing)?;
            let b = with_candle_ops(&ops, &labels, smoothing)?;
            assert!((a.to_scalar::<f32>()? - b.to_scalar::<f32>()?).abs() < 1e-6);
            let (a, b) = ((a * 3.0)?.backward()?, (b * 3.0)?.backward()?);
            let (Some(a), Some(b)) = (a.get(&fused), b.get(&ops)) else { panic!("no gradient") };
            let difference = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-6, "smoothing {smoothing}: {difference}");
        }
        Ok(())
    }

    #[test]
    fn unread_labels_out_of_range_make_the_loss_nan() -> Result<()> {
        let z = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        let labels = Tensor::new(&[2u32, 3], &Device::Cpu)?;
        assert!(with_candle_ops(&z, &labels, 0.0)?.to_scalar::<f32>()?.is_nan());
        Ok(())
    }

    #[test]
    fn cross_entropy_agrees_with_pytorch() {
        for_each_logits(|fixture, name, student, _| {
            let loss = cross_entropy(student, &labels(fixture)).unwrap();
            assert_agrees(fixture, &format!("{name}.cross_entropy"), &loss, &[student]);
        });
    }

    #[test]
    fn smoothed_cross_entropy_agrees_with_pytorch() {
        for_each_logits(|fixture, name, student, _| {
            for smoothing in [0.1, 1.0] {
                let loss = cross_entropy_smoothed(student, &labels(fixture), smoothing).unwrap();
                assert_agrees(
                    fixture,
                    &format!("{name}.smoothed_{smoothing:.1}"),
                    &loss,
                    &[student],
                );
            }
        });
    }

    fn cross_entropy_formula(z: &[Vec<f64>], labels: &[u32], smoothing: f64) -> f64 {
        let row = |(z, &label): (&Vec<f64>, &u32)| {
            let p = softmax(z, 1.0);
            let even = p.iter().map(|p| p.ln()).sum::<f64>() / p.len() as f64;
            -(1.0 - smoothing) * p[label as usize].ln() - smoothing * even
        };
        z.iter().zip(labels).map(row).sum::<f64>() / z.len() as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn cross_entropy_has_the_formulas_value_and_gradient(
            z in any_rows(3, 5, 8.0), labels in prop::collection::vec(0u32..5, 3), smoothing in 0.0..=1.0,
        ) {
            let tensor = Tensor::new(labels.clone(), &Device::Cpu).unwrap();
            check_formula(&z, |z| cross_entropy(z, &tensor).unwrap(), |z| cross_entropy_formula(z, &labels, 0.0));
            check_formula(
                &z,
                |z| cross_entropy_smoothed(z, &tensor, smoothing).unwrap(),
                |z| cross_entropy_formula(z, &labels, smoothing),
            );
        }
    }
}
