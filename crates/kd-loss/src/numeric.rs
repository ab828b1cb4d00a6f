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

/// `x` divided by its Euclidean length over the last dimension. Zeros stay zeros.
///
/// Nothing is added to the length, so that small features keep their direction. At a row of zeros there is no derivative; its gradient is
/// taken as 0, where PyTorch's `normalize` has 1e12 times what arrives: an image of dead ReLUs must not end a run.
pub(crate) fn normalized(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    let counts = above_shortest(&squares)?;
    only(x, &counts)?.broadcast_div(&or_one(&squares, &counts)?.sqrt()?)
}

/// `x` where the last dimension's row has a value that is not 0; the gradient of the other rows is 0.
pub(crate) fn without_zero_rows(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    only(x, &above_shortest(&squares)?)
}

/// Which squared lengths are above 1e-32. Of shorter rows nothing is left in f32, where their squares underflow: they count as zeros.
fn above_shortest(squares: &Tensor) -> Result<Tensor> {
    squares.gt(&squares.zeros_like()?.affine(1.0, 1e-32)?)
}

/// The square root, with gradient 0 at 0, where it has no derivative.
pub(crate) fn root(squares: &Tensor) -> Result<Tensor> {
    let counts = above_shortest(squares)?;
    only(&or_one(squares, &counts)?.sqrt()?, &counts)
}

/// `x` minus its mean over the last dimension. A row of equal values becomes zeros with gradient 0: what rounding would leave of it has no
/// meaning, and divided by its own length it would look like a direction.
pub(crate) fn centred(x: &Tensor) -> Result<Tensor> {
    let fixed = x.detach();
    let range = (fixed.max_keepdim(D::Minus1)? - fixed.min_keepdim(D::Minus1)?)?;
    let unit = if x.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let varies = range.gt(&(fixed.abs()?.max_keepdim(D::Minus1)? * (4.0 * unit))?)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    only(&centred, &varies)
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
