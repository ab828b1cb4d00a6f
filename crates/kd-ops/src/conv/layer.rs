//! One convolution of one image, by the algorithm that its sizes ask for, with what is fused behind it.

use super::direct::Direct;
use super::geometry::Geometry;
use super::images::{Nhwc, Size};
use super::memory::carve;
use super::pointwise;
use super::wanted::Wanted;
use super::winograd::Winograd;
use crate::simd::Isa;

/// The way in which one convolution is computed.
enum Algorithm {
    Winograd(Winograd),
    Direct(Direct),
}

/// One convolution with the ReLU and the max-pool that are fused behind it.
pub(crate) struct Layer {
    isa: Isa,
    pub(crate) g: Geometry,
    pub(super) relu: bool,
    pub(super) max_pool2: bool,
    algorithm: Algorithm,
}

impl Layer {
    /// A convolution that takes one image at a time.
    pub(crate) fn new(isa: Isa, g: Geometry, relu: bool, max_pool2: bool) -> Self {
        Self::with_images(isa, g, 1, relu, max_pool2)
    }

    /// A convolution alone, which takes as many images at once as is best for it; and how many these are.
    pub(crate) fn stacked(isa: Isa, g: Geometry) -> (Self, usize) {
        let images = if Winograd::suits(&g) { Winograd::images_at_once(&g) } else { 1 };
        (Self::with_images(isa, g, images, false, false), images)
    }

    fn with_images(isa: Isa, g: Geometry, images: usize, relu: bool, max_pool2: bool) -> Self {
        let algorithm = if Winograd::suits(&g) {
            Algorithm::Winograd(Winograd::new(isa, g, images))
        } else {
            Algorithm::Direct(Direct::new(isa, g))
        };
        Self { isa, g, relu, max_pool2, algorithm }
    }

    /// The layout of the padded input in scratch memory.
    pub(crate) fn input_image(&self) -> Nhwc {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.input_image(),
            Algorithm::Direct(direct) => direct.input_image(),
        }
    }

    /// The layout of the convolution's output in scratch memory, before any pool. It may have more rows, columns and channels
    /// than the output.
    pub(crate) fn output_image(&self) -> Nhwc {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.output_image(),
            Algorithm::Direct(direct) => direct.output_image(),
        }
    }

    /// The layout of the result in scratch memory: that of the output, or of its pooled half.
    pub(super) fn result_image(&self) -> Nhwc {
        let output = self.output_image();
        match self.max_pool2 {
            true => Nhwc { rows: self.g.out_height / 2, line: self.g.out_width / 2, ..output },
            false => output,
        }
    }

    /// Numbers of the pooled image; zero without a pool.
    pub(super) fn pooled_len(&self) -> usize {
        if self.max_pool2 { self.result_image().len() } else { 0 }
    }

    /// The size of one input, without padding.
    pub(super) fn input_size(&self) -> Size {
        Size { channels: self.g.in_channels, height: self.g.height, width: self.g.width }
    }

    /// The size of one result.
    pub(super) fn result_size(&self) -> Size {
        let halved = if self.max_pool2 { 2 } else { 1 };
        Size {
            channels: self.g.out_channels,
            height: self.g.out_height / halved,
            width: self.g.out_width / halved,
        }
    }

    /// The weight `[O, I, kh, kw]`, packed for [`Self::forward`] or, with `gradient`, for the data's gradient.
    pub(crate) fn pack(&self, weight: &[f32], gradient: bool) -> Vec<f32> {
        let mut packed = Vec::new();
        self.pack_into(weight, gradient, &mut packed);
        packed
    }

    /// The same, in memory that is there.
    pub(crate) fn pack_into(&self, weight: &[f32], gradient: bool, packed: &mut Vec<f32>) {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.pack(weight, gradient, packed),
            Algorithm::Direct(direct) => direct.pack(weight, gradient, packed),
        }
    }

    /// The bias with a zero for each channel that the output image has beyond the output.
    pub(super) fn pad_bias(&self, bias: &[f32]) -> Vec<f32> {
        let mut padded = bias.to_vec();
        padded.resize(self.output_image().channels, 0.0);
        padded
    }

    /// Numbers of scratch memory that [`Self::forward`] and [`Self::backward`] need.
    pub(crate) fn scratch_len(&self) -> usize {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.scratch_len(),
            Algorithm::Direct(direct) => direct.scratch_len(),
        }
    }

    /// Numbers of the weight gradient's sums, whose layout is the algorithm's own; see [`Self::finish_weight`].
    pub(crate) fn sums_len(&self) -> usize {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.sums_len(),
            Algorithm::Direct(direct) => direct.sums_len(),
        }
    }

    /// Convolution, bias, ReLU and pool of the image in `maps`; the result lies in [`Maps::result`].
    pub(super) fn forward(
        &self,
        packed: &[f32],
        bias: &[f32],
        maps: &mut Maps<'_>,
        scratch: &mut [f32],
    ) {
        self.products(1, maps.image, packed, scratch, maps.output);
        pointwise::bias_relu(self.isa, maps.output, bias, self.relu);
        if self.max_pool2 {
            let size = (self.g.out_height, self.g.out_width);
            let output = self.output_image();
            pointwise::max_pool2(self.isa, maps.output, output, size, maps.pooled, maps.winners);
        }
    }

    /// The convolution alone, of `images` images that lie one behind the other (see [`Self::input_image`]) to `output` (see
    /// [`Self::output_image`]).
    pub(crate) fn products(
        &self,
        images: usize,
        image: &[f32],
        packed: &[f32],
        scratch: &mut [f32],
        output: &mut [f32],
    ) {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => {
                winograd.forward(images, image, packed, scratch, output);
            }
            Algorithm::Direct(direct) => {
                assert!(images == 1);
                direct.forward(image, packed, output);
            }
        }
    }

    /// What computes some rows of an image's output; `None` where the algorithm takes the image as a whole.
    pub(crate) fn by_rows(&self) -> Option<&Direct> {
        match &self.algorithm {
            Algorithm::Winograd(_) => None,
            Algorithm::Direct(direct) => Some(direct),
        }
    }

    /// The gradients of the convolution alone, from that of the outputs of `images` images, `dz` (see
    /// [`Self::output_image`]).
    pub(crate) fn backward(
        &self,
        images: usize,
        dz: &[f32],
        scratch: &mut [f32],
        wanted: Wanted<'_>,
    ) {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.backward(images, dz, scratch, wanted),
            Algorithm::Direct(direct) => {
                assert!(images == 1);
                direct.backward(dz, scratch, wanted);
            }
        }
    }

    /// The weight's gradient `[O, I, kh, kw]` from its sums over all images.
    pub(crate) fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.finish_weight(sums),
            Algorithm::Direct(direct) => direct.finish_weight(sums),
        }
    }
}

/// A layer's maps for one image, NHWC in scratch memory.
pub(super) struct Maps<'a> {
    /// The padded input, see [`Layer::input_image`].
    pub(super) image: &'a mut [f32],
    /// The convolution's output, see [`Layer::output_image`]; in the backward pass its gradient.
    pub(super) output: &'a mut [f32],
    /// With a pool: the maxima, and which pixel of four (0 to 3, row-major) gave each.
    pub(super) pooled: &'a mut [f32],
    pub(super) winners: &'a mut [f32],
}

impl<'a> Maps<'a> {
    /// Numbers of a layer's maps.
    pub(super) fn len(layer: &Layer) -> usize {
        layer.input_image().len() + layer.output_image().len() + 2 * layer.pooled_len()
    }

    /// Cuts a layer's maps off `memory`.
    pub(super) fn carve(layer: &Layer, memory: &mut &'a mut [f32]) -> Self {
        Self {
            image: carve(memory, layer.input_image().len()),
            output: carve(memory, layer.output_image().len()),
            pooled: carve(memory, layer.pooled_len()),
            winners: carve(memory, layer.pooled_len()),
        }
    }

    /// The layer's result, see [`Layer::result_image`].
    pub(super) fn result(&self, layer: &Layer) -> &[f32] {
        if layer.max_pool2 { self.pooled } else { self.output }
    }
}
