//! TensorFlow's "same" padding, which may be uneven.

use candle_core::{Result, Tensor, bail};

use super::geometry::Conv2dConfig;

/// Zeros added around a map, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pads {
    /// Rows of zeros above the map.
    pub top: usize,
    /// Rows of zeros below the map.
    pub bottom: usize,
    /// Columns of zeros on its left.
    pub left: usize,
    /// Columns of zeros on its right.
    pub right: usize,
}

impl Pads {
    /// The zeros of TensorFlow's "same" padding for a map of `height` x `width` pixels and a square window: as many as make
    /// the result ceil(side / stride) pixels long, half of them before the map and half behind it; an odd one stands behind
    /// it. (TensorFlow's documentation of `tf.nn`, "Notes on padding".) A stride of 0 counts as 1.
    pub fn same([height, width]: [usize; 2], kernel: usize, stride: usize) -> Self {
        let ([top, bottom], [left, right]) =
            (same(height, kernel, stride), same(width, kernel, stride));
        Self { top, bottom, left, right }
    }

    /// The number of zeros on each side, where it is the same on all four.
    pub fn even(&self) -> Option<usize> {
        let Self { top, bottom, left, right } = *self;
        (top == bottom && top == left && top == right).then_some(top)
    }

    /// `x` `[N, C, H, W]` with the zeros around it.
    fn around(&self, x: &Tensor) -> Result<Tensor> {
        x.pad_with_zeros(2, self.top, self.bottom)?.pad_with_zeros(3, self.left, self.right)
    }
}

/// Zeros before and behind one side.
fn same(side: usize, kernel: usize, stride: usize) -> [usize; 2] {
    let stride = stride.max(1);
    let last = side.div_ceil(stride).saturating_sub(1).saturating_mul(stride);
    let zeros = last.saturating_add(kernel).saturating_sub(side);
    [zeros / 2, zeros - zeros / 2]
}

/// A convolution with "same" padding as one with as many zeros on each side: where they are uneven, `x` gets them here.
pub(super) fn resolve(
    x: &Tensor,
    weight: &[usize],
    config: &Conv2dConfig,
) -> Result<(Tensor, Conv2dConfig)> {
    let Conv2dConfig { stride, padding, dilation, .. } = *config;
    let (Ok((_, _, height, width)), &[_, _, kernel, columns]) = (x.dims4(), weight) else {
        bail!(
            "conv2d: expected x [N, I, H, W] and weight [O, I, kh, kw], got x {:?} and weight {weight:?}",
            x.shape()
        )
    };
    if padding != 0 || dilation != 1 || stride == 0 || kernel != columns || height * width == 0 {
        bail!(
            "conv2d: \"same\" padding goes with a square window, padding 0, dilation 1 and a stride of at least 1; got a \
             {kernel}x{columns} window, padding {padding}, dilation {dilation} and stride {stride} on {height}x{width} pixels"
        );
    }
    let pads = Pads::same([height, width], kernel, stride);
    let config = Conv2dConfig { same_padding: false, ..*config };
    Ok(match pads.even() {
        Some(padding) => (x.clone(), Conv2dConfig { padding, ..config }),
        None => (pads.around(x)?, config),
    })
}
