//! Checks that the losses share.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// `[B, C]` of logits; there must be an image and a class.
pub(crate) fn logits_shape(what: &'static str, logits: &Tensor) -> Result<(usize, usize)> {
    let expected = "[B, C] with at least one class";
    match *logits.dims() {
        [0, _] => Err(Error::EmptyBatch),
        [batch, classes] if classes > 0 => Ok((batch, classes)),
        _ => Err(Error::Shape { what, found: logits.dims().to_vec(), expected }),
    }
}

/// Some losses compare classes with each other.
pub(crate) fn two_classes(logits: &Tensor, classes: usize) -> Result<()> {
    if classes >= 2 {
        return Ok(());
    }
    let found = logits.dims().to_vec();
    Err(Error::Shape { what: "logits", found, expected: "[B, C] with at least two classes" })
}

/// The labels, checked against the logits' shape; the values are on the CPU only read there.
///
/// On another device reading them would make every step wait, so `None` is returned.
pub(crate) fn labels(
    method: &'static str,
    logits: &Tensor,
    labels: &Tensor,
) -> Result<Option<Vec<u32>>> {
    let (batch, classes) = logits_shape("student logits", logits)?;
    if labels.dtype() != DType::U32 {
        return Err(Error::LabelType { found: labels.dtype() });
    }
    if labels.dims() != [batch] {
        return Err(Error::ShapeMismatch {
            method,
            what: "logits".into(),
            student: logits.dims().to_vec(),
            other: labels.dims().to_vec(),
            expected: "labels must be [B]",
        });
    }
    if !labels.device().is_cpu() {
        return Ok(None);
    }
    let labels = labels.to_vec1::<u32>()?;
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(position) => {
            Err(Error::LabelOutOfRange { position, label: labels[position], classes })
        }
        None => Ok(Some(labels)),
    }
}

/// The common shape of student's and teacher's logits.
pub(crate) fn same_logits(
    method: &'static str,
    student: &Tensor,
    teacher: &Tensor,
) -> Result<(usize, usize)> {
    let shape = logits_shape("student logits", student)?;
    if student.dims() != teacher.dims() {
        return Err(Error::ShapeMismatch {
            method,
            what: "logits".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must be [B, C]",
        });
    }
    Ok(shape)
}

pub(crate) fn temperature(method: &'static str, temperature: f64) -> Result<()> {
    positive(method, "temperature", temperature)
}

pub(crate) fn positive(method: &'static str, field: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::Config { method, field, found: value.to_string(), expected: "a number above 0" })
}

/// A share: in [0, 1].
pub(crate) fn share(method: &'static str, field: &'static str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::Config { method, field, found: value.to_string(), expected: "a number in [0, 1]" })
}

/// A weight: zero or more.
pub(crate) fn weight(method: &'static str, field: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    let expected = "a number that is not negative";
    Err(Error::Config { method, field, found: value.to_string(), expected })
}
