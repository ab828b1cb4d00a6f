//! Which gradients a convolution's backward pass over one image computes, and where they go.

/// The gradients of one convolution for one image. A part that is `None` is not computed.
pub(crate) struct Wanted<'a> {
    /// For the gradient with respect to the input ("data"): the weight, packed by `pack(weight, true)`, and the padded NHWC
    /// image of zeros that the gradient is added to.
    pub(crate) data: Option<(&'a [f32], &'a mut [f32])>,
    /// For the weight's gradient: the padded NHWC input, and the sums over the images so far, which this image's are added
    /// to.
    pub(crate) weight: Option<(&'a [f32], &'a mut [f32])>,
}
