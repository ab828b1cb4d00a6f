//! How a convolution is set, and all of its sizes.

use candle_core::{Result, bail};

/// How a convolution moves over the image, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Pixels between neighbouring windows, in both directions.
    pub stride: usize,
    /// Zeros added on each of the four sides, in pixels.
    pub padding: usize,
    /// Whether TensorFlow's "same" padding ([`Pads::same`](crate::Pads::same)) takes the place of `padding`, which is 0 then:
    /// where its zeros are uneven, `x` is copied with them around it. For square windows of dilation 1.
    pub same_padding: bool,
    /// Groups of channels, 1 for an ordinary convolution: each group of output channels sees a group of input channels of
    /// its own, and the weight is `[O, I / groups, kh, kw]`. With as many as there are channels in and out the convolution is
    /// depthwise.
    pub groups: usize,
    /// Pixels between neighbouring entries of a window.
    pub dilation: usize,
    /// Whether `max(y, 0)` follows, fused in; its derivative at zero is 0.
    pub relu: bool,
    /// Whether a 2x2 max-pool of stride 2 follows (after the ReLU), fused in: the full-size map
    /// is then never stored. Gradients as in [`crate::max_pool2d`].
    pub max_pool2: bool,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            same_padding: false,
            groups: 1,
            dilation: 1,
            relu: false,
            max_pool2: false,
        }
    }
}

/// All sizes of one convolution, checked against each other; numbers of images, channels and pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    pub(crate) batch: usize,
    pub(crate) in_channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) out_channels: usize,
    pub(crate) kernel_height: usize,
    pub(crate) kernel_width: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
}

impl Geometry {
    /// The sizes of the convolution of a batch of shape `x` `[N, I, H, W]` with a weight of shape `[O, I, kh, kw]`.
    ///
    /// # Errors
    /// When they don't fit together, or the window doesn't fit in the padded image.
    pub(crate) fn new(x: &[usize], weight: &[usize], config: &Conv2dConfig) -> Result<Self> {
        let (&[batch, in_channels, height, width], &[out_channels, weight_in, kh, kw]) =
            (x, weight)
        else {
            bail!(
                "conv2d: expected x [N, I, H, W] and weight [O, I, kh, kw], got x {x:?} and weight {weight:?}"
            )
        };
        let &Conv2dConfig { stride, padding, dilation, .. } = config;
        if in_channels != weight_in {
            bail!("conv2d: x has {in_channels} channels, weight {weight:?} takes {weight_in}");
        }
        if stride == 0 || dilation == 0 {
            bail!(
                "conv2d: stride and dilation must be at least 1, got stride {stride} and dilation {dilation}"
            );
        }
        if kh == 0 || kw == 0 || in_channels == 0 || out_channels == 0 {
            bail!("conv2d: a weight of shape {weight:?} has no entries");
        }
        let out = |size: usize, kernel: usize| {
            let window = dilation.checked_mul(kernel - 1)?.checked_add(1)?;
            let padded = padding.checked_mul(2)?.checked_add(size)?;
            Some(padded.checked_sub(window)? / stride + 1)
        };
        let (Some(out_height), Some(out_width)) = (out(height, kh), out(width, kw)) else {
            bail!(
                "conv2d: a {kh}x{kw} window with dilation {dilation} does not fit in {height}x{width} pixels with padding {padding}"
            )
        };
        Ok(Self {
            batch,
            in_channels,
            height,
            width,
            out_channels,
            kernel_height: kh,
            kernel_width: kw,
            stride,
            padding,
            dilation,
            out_height,
            out_width,
        })
    }

    /// Numbers in a batch of inputs.
    #[cfg(feature = "cuda")]
    pub(crate) fn input_len(&self) -> usize {
        self.batch * self.in_channels * self.height * self.width
    }

    /// Numbers in a batch of outputs.
    #[cfg(feature = "cudnn")]
    pub(crate) fn output_len(&self) -> usize {
        self.batch * self.out_channels * self.out_pixels()
    }

    /// Pixels of one output map.
    pub(crate) fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Entries of one output channel's weight.
    pub(crate) fn window_len(&self) -> usize {
        self.in_channels * self.kernel_height * self.kernel_width
    }

    /// Numbers in the weight.
    pub(crate) fn weight_len(&self) -> usize {
        self.out_channels * self.window_len()
    }
}
