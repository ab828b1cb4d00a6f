//! Cross-entropy with the labels: plain, smoothed, with a weight for each class.

use candle_core::{D, Tensor};

use super::fused::{self, FusedTerms, fused};
use super::log_softmax::log_softmax;
use crate::inputs::{Inputs, MixedLabels};
use crate::numeric::widened;
use crate::{Error, Result, check};

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

/// Cross-entropy in which each class has a weight w, as `torch.nn.CrossEntropyLoss(weight=..., label_smoothing=...)` has it, mean
/// included. With s the smoothing, y the label and C classes, summed over images i:
///
/// `Σ_i [(1 - s) · w_y · -log p_y + s / C · Σ_c w_c · -log p_c] / Σ_i w_y`, a scalar.
///
/// `logits` is `[B, C]`, `labels` u32 `[B]`, `class_weights` a float tensor `[C]` of numbers above 0, on the logits' device, which gets
/// no gradient. The loss of f16 and bf16 logits is computed in f32. It is made of candle's operations on every device.
///
/// # Errors
/// As [`cross_entropy_smoothed`], and when the weights are not `[C]` or, on the CPU, one is not above 0. On a GPU neither labels nor
/// weights are read back: there a label out of range makes the loss NaN.
pub fn cross_entropy_weighted(
    logits: &Tensor,
    labels: &Tensor,
    class_weights: &Tensor,
    smoothing: f64,
) -> Result<Tensor> {
    check::share("smoothing", smoothing)?;
    check::labels(logits, labels)?;
    check::class_weights(logits, class_weights)?;
    Ok(weighted(logits, labels, class_weights, smoothing)?)
}

/// The weighted loss of what has been checked, as far as it could be.
fn weighted(
    logits: &Tensor,
    labels: &Tensor,
    class_weights: &Tensor,
    smoothing: f64,
) -> candle_core::Result<Tensor> {
    let log_p = log_softmax(&widened(logits)?)?;
    let classes = logits.dim(1)? as u32;
    let weights = class_weights.detach().to_dtype(log_p.dtype())?;
    let is_label =
        Tensor::arange(0, classes, labels.device())?.broadcast_eq(&labels.unsqueeze(1)?)?;
    // The weight of the label's class at the label, elsewhere 0.
    let at_label = is_label.to_dtype(log_p.dtype())?.broadcast_mul(&weights)?;
    let of_image = at_label.sum(D::Minus1)?;
    // A label out of range has no weight; the image must not be left out without a word.
    let nan = of_image.ones_like()?.affine(f64::NAN, 0.0)?;
    let is_class = of_image.gt(&of_image.zeros_like()?)?;
    let whole = is_class.where_cond(&of_image, &nan)?.sum_all()?;
    let even = (weights * (smoothing / f64::from(classes)))?;
    let targets = (at_label * (1.0 - smoothing))?.broadcast_add(&even)?;
    (log_p * targets)?.sum_all()?.neg()? / whole
}

/// Cross-entropy with targets of two classes: `share` of each target is on the label and the rest on the label of the image that was
/// mixed in; of that, `smoothing` is spread evenly over all classes. As `torch.nn.CrossEntropyLoss(label_smoothing=...)` of such
/// targets as probabilities.
///
/// `logits` is `[B, C]`, `labels` u32 `[B]`. The loss of f16 and bf16 logits is computed in f32. It is made of candle's operations on
/// every device.
///
/// Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), equation 1.
///
/// # Errors
/// As [`cross_entropy_smoothed`], for both labels, and when the shares are not `[B]` or, on the CPU, one is not from 0 to 1. On a GPU
/// neither labels nor shares are read back: there a label out of range makes the loss NaN.
pub fn cross_entropy_mixed(
    logits: &Tensor,
    labels: &Tensor,
    mixed: MixedLabels<'_>,
    smoothing: f64,
) -> Result<Tensor> {
    check::share("smoothing", smoothing)?;
    check::labels(logits, labels)?;
    check::labels(logits, mixed.labels)?;
    check::shares(logits, mixed.shares)?;
    let log_p = log_softmax(&widened(logits)?)?;
    let shares = mixed.shares.detach().to_dtype(log_p.dtype())?;
    let (own, other) = (at_labels(&log_p, labels)?, at_labels(&log_p, mixed.labels)?);
    let picked = (other.clone() + (shares * (own - other)?)?)?.mean_all()?;
    if smoothing == 0.0 {
        return Ok(picked.neg()?);
    }
    let even = log_p.mean(D::Minus1)?.mean_all()?;
    Ok(((picked * (smoothing - 1.0))? - (even * smoothing)?)?)
}

/// The cross-entropy of a batch with its labels, with the weights of the classes where it has them.
pub(crate) fn labels_cross_entropy(inputs: &Inputs<'_>, smoothing: f64) -> Result<Tensor> {
    let (logits, labels) = (inputs.student_logits, inputs.labels);
    if let Some(mixed) = inputs.mixed {
        if inputs.class_weights.is_some() {
            return Err(Error::Mixed { what: "class weights count" });
        }
        return cross_entropy_mixed(logits, labels, mixed, smoothing);
    }
    match inputs.class_weights {
        Some(weights) => cross_entropy_weighted(logits, labels, weights, smoothing),
        None => cross_entropy_smoothed(logits, labels, smoothing),
    }
}

/// The smoothed loss by candle's operations, for any float type and device.
fn with_candle_ops(
    logits: &Tensor,
    labels: &Tensor,
    smoothing: f64,
) -> candle_core::Result<Tensor> {
    let log_p = log_softmax(&widened(logits)?)?;
    let picked = at_labels(&log_p, labels)?.mean_all()?;
    if smoothing == 0.0 {
        return picked.neg();
    }
    let even = log_p.mean(D::Minus1)?.mean_all()?;
    (picked * (smoothing - 1.0))? - (even * smoothing)?
}

/// The entry of each row of `log_p`, `[B, C]`, at the row's label: `[B]`, NaN where the label is no class.
fn at_labels(log_p: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
    let classes = log_p.dim(1)? as u32;
    // A label out of range must not reach `gather`; it marks the loss instead.
    let in_range = labels.lt(classes)?;
    let labels = labels.minimum(classes - 1)?;
    let picked = log_p.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?;
    let nan = Tensor::full(f32::NAN, picked.shape(), picked.device())?.to_dtype(picked.dtype())?;
    in_range.where_cond(&picked, &nan)
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
        let weights = Tensor::new(&[0.5f32, 4.0, 1.0], &Device::Cpu)?;
        for smoothing in [0.0, 0.1] {
            let loss = weighted(&z, &labels, &weights, smoothing)?;
            assert!(loss.to_scalar::<f32>()?.is_nan());
        }
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

    #[test]
    fn weighted_cross_entropy_agrees_with_pytorch() {
        for_each_logits(|fixture, name, student, _| {
            for smoothing in [0.0, 0.1, 1.0] {
                let weights = &fixture["class_weights"];
                let loss = cross_entropy_weighted(student, &labels(fixture), weights, smoothing);
                let case = format!("{name}.weighted_{smoothing:.1}");
                assert_agrees(fixture, &case, &loss.unwrap(), &[student]);
            }
        });
    }

    #[test]
    fn mixed_cross_entropy_is_pytorchs_of_probabilities() {
        for_each_logits(|fixture, name, student, _| {
            let partners = fixture["partners"].to_dtype(DType::U32).unwrap();
            let mixed = MixedLabels { labels: &partners, shares: &fixture["shares"] };
            for smoothing in [0.0, 0.1] {
                let loss = cross_entropy_mixed(student, &labels(fixture), mixed, smoothing);
                let case = format!("{name}.mixed_{smoothing:.1}");
                assert_agrees(fixture, &case, &loss.unwrap(), &[student]);
            }
        });
    }

    #[test]
    fn shares_that_make_no_sense_are_refused() -> Result<()> {
        let z = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        let labels = Tensor::new(&[2u32, 1], &Device::Cpu)?;
        for (shares, expected) in [
            (vec![0.5f32], "shares has shape [1]; expected [B], one for each image"),
            (vec![0.5, 1.5], "shares is 1.5 for image 1; expected a number from 0 to 1"),
            (vec![f32::NAN, 0.5], "shares is NaN for image 0"),
        ] {
            let shares = Tensor::new(shares, &Device::Cpu)?;
            let mixed = MixedLabels { labels: &labels, shares: &shares };
            let message = cross_entropy_mixed(&z, &labels, mixed, 0.0).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        Ok(())
    }

    /// The loss of a bf16 or f16 row is that of the same numbers in f32, and f64 stays f64.
    #[test]
    fn every_float_type_has_class_weights() -> Result<()> {
        let z = Tensor::new(&[[0.25f32, -1.25, 4.0], [2.0, 2.0, -7.5]], &Device::Cpu)?;
        let labels = Tensor::new(&[2u32, 1], &Device::Cpu)?;
        let weights = Tensor::new(&[0.5f32, 4.0, 1.0], &Device::Cpu)?;
        let of = |z: &Tensor| cross_entropy_weighted(z, &labels, &weights, 0.1);
        let expected = of(&z)?.to_scalar::<f32>()?;
        for dtype in [DType::BF16, DType::F16] {
            assert_eq!(of(&z.to_dtype(dtype)?)?.to_scalar::<f32>()?, expected);
        }
        let wide = of(&z.to_dtype(DType::F64)?)?.to_scalar::<f64>()?;
        assert!((wide - f64::from(expected)).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn class_weights_that_make_no_sense_are_refused() -> Result<()> {
        let z = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        let labels = Tensor::new(&[2u32, 1], &Device::Cpu)?;
        for (weights, expected) in [
            (vec![1f32, 1.0], "class weights has shape [2]; expected [C], one for each class"),
            (vec![1.0, -1.0, 1.0], "class weights is -1 for class 1; expected numbers above 0"),
            (vec![1.0, 0.0, 1.0], "class weights is 0 for class 1; expected numbers above 0"),
            (vec![1.0, 1.0, f32::NAN], "class weights is NaN for class 2"),
        ] {
            let weights = Tensor::new(weights, &Device::Cpu)?;
            let message = cross_entropy_weighted(&z, &labels, &weights, 0.0).unwrap_err();
            assert!(message.to_string().contains(expected), "{message}");
        }
        Ok(())
    }

    fn cross_entropy_formula(z: &[Vec<f64>], labels: &[u32], w: &[f64; 5], smoothing: f64) -> f64 {
        let row = |(z, &label): (&Vec<f64>, &u32)| {
            let p = softmax(z, 1.0);
            let even = p.iter().zip(w).map(|(p, w)| w * p.ln()).sum::<f64>() / p.len() as f64;
            -(1.0 - smoothing) * w[label as usize] * p[label as usize].ln() - smoothing * even
        };
        let whole = labels.iter().map(|&label| w[label as usize]).sum::<f64>();
        z.iter().zip(labels).map(row).sum::<f64>() / whole
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn cross_entropy_has_the_formulas_value_and_gradient(
            z in any_rows(3, 5, 8.0), labels in prop::collection::vec(0u32..5, 3), smoothing in 0.0..=1.0,
            weights in prop::array::uniform5(0.1..10.0),
        ) {
            let tensor = Tensor::new(labels.clone(), &Device::Cpu).unwrap();
            let even = [1.0; 5];
            check_formula(
                &z,
                |z| cross_entropy(z, &tensor).unwrap(),
                |z| cross_entropy_formula(z, &labels, &even, 0.0),
            );
            check_formula(
                &z,
                |z| cross_entropy_smoothed(z, &tensor, smoothing).unwrap(),
                |z| cross_entropy_formula(z, &labels, &even, smoothing),
            );
            let w = Tensor::new(&weights, &Device::Cpu).unwrap();
            check_formula(
                &z,
                |z| cross_entropy_weighted(z, &tensor, &w, smoothing).unwrap(),
                |z| cross_entropy_formula(z, &labels, &weights, smoothing),
            );
        }
    }
}
