//! What keeps values and gradients right at the edges: half-precision inputs, rows without a direction, roots at zero.

use candle_core::{D, DType, Result, Tensor};

/// f16 and bf16 as f32, in which every sum is made: a sum of ones in bf16 stops at 256, and 1e30 is no f16. f32 and f64 stay as they
/// are. The gradient comes back in the input's type.
pub(crate) fn widened(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// Two networks' numbers in one type, in which they can be computed with each other: f64 where one of them is f64, else f32. Neither is
/// rounded. The gradient comes back in the input's own type.
pub(crate) fn widened_both(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let dtype =
        if [a, b].iter().any(|x| x.dtype() == DType::F64) { DType::F64 } else { DType::F32 };
    Ok((a.to_dtype(dtype)?, b.to_dtype(dtype)?))
}

/// The same where the types differ; two tensors of one type, half precision included, stay as they are.
pub(crate) fn in_one_type(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    if a.dtype() == b.dtype() {
        return Ok((a.clone(), b.clone()));
    }
    widened_both(a, b)
}

/// Logits in f64 on the CPU, for losses that subtract probabilities, or their logarithms, that may be nearly equal: of logits 1e-5 apart f32
/// holds two digits. On a GPU they stay as they are, f32 or f64.
pub(crate) fn finest(logits: &Tensor) -> Result<Tensor> {
    match logits.device().is_cpu() {
        true => logits.to_dtype(DType::F64),
        false => Ok(logits.clone()),
    }
}

/// `x` divided by its Euclidean length over the last dimension. Rows of a length up to [`SHORTEST`] become zeros.
///
/// Nothing is added to the length, so that small features keep their direction. At a row of zeros there is no derivative; its gradient is
/// taken as 0, where PyTorch's `normalize` has 1e12 times what arrives: an image of dead ReLUs must not end a run.
pub(crate) fn normalized(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    let counts = above_shortest(&squares)?;
    only(x, &counts)?.broadcast_div(&or_one(&squares, &counts)?.sqrt()?)
}

/// `x` whose rows of a length up to [`SHORTEST`] over the last dimension are zeros with gradient 0.
pub(crate) fn without_zero_rows(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    only(x, &above_shortest(&squares)?)
}

/// Up to this length a row counts as zeros. The derivative of a direction divides by the squared length, and f32 makes infinity and NaN of
/// that from lengths of 1e-19 down.
pub(crate) const SHORTEST: f64 = 1e-16;

/// Which squared lengths are those of rows longer than [`SHORTEST`].
fn above_shortest(squares: &Tensor) -> Result<Tensor> {
    // No scalar is copied to a GPU for it: a captured step allows no copy from the host.
    squares.gt(&squares.zeros_like()?.affine(1.0, SHORTEST * SHORTEST)?)
}

/// The square root; of squares up to that of [`SHORTEST`] it and its gradient are 0. At 0 a root has no derivative.
pub(crate) fn root(squares: &Tensor) -> Result<Tensor> {
    let counts = above_shortest(squares)?;
    only(&or_one(squares, &counts)?.sqrt()?, &counts)
}

/// `x` minus its mean over the last dimension. A row of equal values becomes zeros with gradient 0: what rounding would leave of it has no
/// meaning, and divided by its own length it would look like a direction.
pub(crate) fn centred(x: &Tensor) -> Result<Tensor> {
    let fixed = x.detach();
    let highest = fixed.max_keepdim(D::Minus1)?;
    let range = (&highest - fixed.min_keepdim(D::Minus1)?)?;
    let unit = if x.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let varies = range.gt(&(fixed.abs()?.max_keepdim(D::Minus1)? * (4.0 * unit))?)?;
    // From the highest value on, so that a mean far from 0 is not rounded at its own size.
    let x = x.broadcast_sub(&highest)?;
    only(&x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?, &varies)
}

/// `x` where `mask` (of `x`'s shape, or with a last dimension of 1) is true, elsewhere 0 with gradient 0.
pub(crate) fn only(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    mask.broadcast_as(x.shape())?.where_cond(x, &x.zeros_like()?)
}

/// `x` where `mask`, of the same shape, is true, elsewhere 1: what can be divided by.
pub(crate) fn or_one(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    mask.where_cond(x, &x.ones_like()?)
}

/// `max(x, 0)` with derivative 0 at 0, as in PyTorch; candle's own `relu` has 1 there.
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return kd_ops::relu(x);
    }
    only(x, &x.gt(&x.zeros_like()?)?)
}
