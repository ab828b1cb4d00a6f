//! A stored tensor's elements as f32.

use std::path::Path;

use super::check::{check_finite, check_variance};
use super::contents::{Stored, Type};
use crate::{Error, Result};

/// How many bytes of its member a tensor's elements span, from the first to the end of the last; `None` when that overflows
/// or its type isn't read.
pub(super) fn span(stored: &Stored) -> Option<usize> {
    if stored.shape.contains(&0) {
        return Some(0);
    }
    let mut steps = stored.shape.iter().zip(&stored.strides);
    let last = steps
        .try_fold(0usize, |at, (size, stride)| at.checked_add((size - 1).checked_mul(*stride)?));
    last?.checked_add(1)?.checked_mul(stored.dtype.size()?)
}

/// The elements in row-major order, from the bytes that [`span`] counts. All are finite, and a running variance is not
/// negative.
///
/// # Errors
/// When they are not, or one lies beyond f32.
pub(super) fn decode(path: &Path, name: &str, stored: &Stored, bytes: &[u8]) -> Result<Vec<f32>> {
    let one = |bytes: &[u8]| -> f64 {
        match (&stored.dtype, bytes) {
            (Type::F16, [a, b]) => half::f16::from_le_bytes([*a, *b]).to_f64(),
            (Type::BF16, [a, b]) => half::bf16::from_le_bytes([*a, *b]).to_f64(),
            (Type::F32, [a, b, c, d]) => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
            (_, bytes) => bytes.try_into().map_or(f64::NAN, f64::from_le_bytes),
        }
    };
    let size = stored.dtype.size().unwrap_or(1);
    let count = stored.shape.iter().product();
    let mut values = Vec::with_capacity(count);
    let mut position = vec![0; stored.shape.len()];
    let mut at = 0;
    while values.len() < count {
        let value = one(bytes.get(at * size..(at + 1) * size).unwrap_or_default());
        if value.is_finite() && !(value as f32).is_finite() {
            let (name, index) = (name.into(), values.len());
            return Err(Error::BeyondF32 { path: path.into(), name, index, value });
        }
        values.push(value as f32);
        // The next position: the last dimension runs fastest.
        for axis in (0..position.len()).rev() {
            position[axis] += 1;
            at += stored.strides[axis];
            if position[axis] < stored.shape[axis] {
                break;
            }
            at -= position[axis] * stored.strides[axis];
            position[axis] = 0;
        }
    }
    check_finite(path, name, &values)?;
    if name.ends_with(".running_var") {
        check_variance(path, name, &values)?;
    }
    Ok(values)
}
