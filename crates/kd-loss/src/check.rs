//! Checks of shapes, labels and options that the losses share.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// That a tensor's numbers are of a type that losses compute with. `what` names the tensor in the error.
pub(crate) fn float(what: &'static str, x: &Tensor) -> Result<()> {
    match x.dtype() {
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        found => Err(Error::NumberType { what, found }),
    }
}

/// The batch and the classes of logits `[B, C]`; there must be at least one of each. `what` names the tensor in the error.
pub(crate) fn logits_shape(what: &'static str, logits: &Tensor) -> Result<(usize, usize)> {
    float(what, logits)?;
    let expected = "[B, C] with at least one class";
    match *logits.dims() {
        [0, _] => Err(Error::EmptyBatch),
        [batch, classes] if classes > 0 => Ok((batch, classes)),
        _ => Err(Error::Shape { what, found: logits.dims().to_vec(), expected }),
    }
}

/// That there are two classes, for losses that compare classes with each other.
pub(crate) fn two_classes(logits: &Tensor, classes: usize) -> Result<()> {
    if classes >= 2 {
        return Ok(());
    }
    let found = logits.dims().to_vec();
    Err(Error::Shape { what: "logits", found, expected: "[B, C] with at least two classes" })
}

/// That labels are u32 `[B]` and, on the CPU, that each is one of the logits' classes.
///
/// On another device reading them would make every step wait, so their values are not looked at there.
pub(crate) fn labels(logits: &Tensor, labels: &Tensor) -> Result<()> {
    let (batch, classes) = logits_shape("student logits", logits)?;
    if labels.dtype() != DType::U32 {
        return Err(Error::LabelType { found: labels.dtype() });
    }
    if labels.dims() != [batch] {
        return Err(Error::ShapeMismatch {
            what: "logits".into(),
            student: logits.dims().to_vec(),
            other: labels.dims().to_vec(),
            expected: "labels must be [B]",
        });
    }
    if !labels.device().is_cpu() {
        return Ok(());
    }
    let labels = labels.to_vec1::<u32>()?;
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(position) => {
            Err(Error::LabelOutOfRange { position, label: labels[position], classes })
        }
        None => Ok(()),
    }
}

/// That class weights are `[C]` and, on the CPU, that each is a number above 0.
pub(crate) fn class_weights(logits: &Tensor, weights: &Tensor) -> Result<()> {
    let what = "class weights";
    if weights.dims() != [logits.dim(1)?] {
        let found = weights.dims().to_vec();
        return Err(Error::Shape { what, found, expected: "[C], one for each class" });
    }
    if !weights.device().is_cpu() {
        return Ok(());
    }
    let weights = weights.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    match weights.iter().position(|weight| !is_class_weight(*weight)) {
        Some(class) => Err(Error::Option {
            field: what,
            found: format!("{} for class {class}", weights[class]),
            expected: CLASS_WEIGHTS,
        }),
        None => Ok(()),
    }
}

/// What class weights are, for messages.
pub(crate) const CLASS_WEIGHTS: &str = "numbers above 0";

/// Whether a class can have this weight. PyTorch takes 0, too, and gives NaN for a batch that is of classes of weight 0 alone.
pub(crate) fn is_class_weight(weight: f64) -> bool {
    weight > 0.0 && weight.is_finite()
}

/// That the shares of mixed images are `[B]` and, on the CPU, that each is from 0 to 1.
pub(crate) fn shares(logits: &Tensor, shares: &Tensor) -> Result<()> {
    let what = "shares";
    let batch = logits.dim(0)?;
    if shares.dims() != [batch] {
        let found = shares.dims().to_vec();
        return Err(Error::Shape { what, found, expected: "[B], one for each image" });
    }
    if !shares.device().is_cpu() {
        return Ok(());
    }
    let shares = shares.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    match shares.iter().position(|share| !(0.0..=1.0).contains(share)) {
        Some(image) => Err(Error::Option {
            field: what,
            found: format!("{} for image {image}", shares[image]),
            expected: "a number from 0 to 1",
        }),
        None => Ok(()),
    }
}

/// The batch and the classes that both networks' logits have in common.
pub(crate) fn same_logits(student: &Tensor, teacher: &Tensor) -> Result<(usize, usize)> {
    let shape = logits_shape("student logits", student)?;
    float("the teacher's logits", teacher)?;
    if student.dims() != teacher.dims() {
        return Err(Error::ShapeMismatch {
            what: "logits".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be [B, C]",
        });
    }
    Ok(shape)
}

/// That a temperature is a number above 0.
pub(crate) fn temperature(temperature: f64) -> Result<()> {
    positive("temperature", temperature)
}

/// That an option is a number above 0.
pub(crate) fn positive(field: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::Option { field, found: value.to_string(), expected: "a number above 0" })
}

/// That an option is a share, a number in [0, 1].
pub(crate) fn share(field: &'static str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::Option { field, found: value.to_string(), expected: "a number in [0, 1]" })
}

/// That an option is a weight, zero or more.
pub(crate) fn weight(field: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    let expected = "a number that is not negative";
    Err(Error::Option { field, found: value.to_string(), expected })
}
