//! A convolution of one image.

use candle_core::Result;

use super::{Frame, Isa};
use crate::conv::geometry::{Conv2dConfig, Geometry};
use crate::conv::layer::Layer;
use crate::conv::wanted::Wanted;

/// The sizes of a convolution with a square window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSizes {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Height and width of the window.
    pub kernel: usize,
    /// Pixels between neighbouring windows.
    pub stride: usize,
    /// Zeros on each of the four sides, in pixels.
    pub padding: usize,
}

/// A convolution without bias, by the algorithm that its sizes ask for.
pub struct Conv {
    layer: Layer,
}

impl Conv {
    /// A convolution for the vectors of `isa`.
    ///
    /// # Errors
    /// When the window does not fit into the padded image, or a size is zero.
    pub fn new(isa: Isa, sizes: ConvSizes) -> Result<Self> {
        let ConvSizes { inputs, outputs, height, width, kernel, stride, padding } = sizes;
        let config = Conv2dConfig { stride, padding, ..Conv2dConfig::default() };
        let (x, weight) = ([1, inputs, height, width], [outputs, inputs, kernel, kernel]);
        let geometry = Geometry::new(&x, &weight, &config)?;
        Ok(Self { layer: Layer::new(isa, geometry, false, false) })
    }

    /// Where its input has to lie, zeros around it.
    pub fn input(&self) -> Frame {
        let image = self.layer.input_image();
        let corner = self.layer.g.padding;
        Frame { rows: image.rows, line: image.line, channels: image.channels, corner }
    }

    /// Where its output lies, from pixel (0, 0) on; what is beyond the output has no meaning.
    pub fn output(&self) -> Frame {
        let image = self.layer.output_image();
        Frame { rows: image.rows, line: image.line, channels: image.channels, corner: 0 }
    }

    /// Numbers of scratch memory that a pass over one image needs besides the frames.
    pub fn scratch_len(&self) -> usize {
        self.layer.scratch_len()
    }

    /// Numbers of the sums that make the weight's gradient; see [`Self::finish_weight`].
    pub fn sums_len(&self) -> usize {
        self.layer.sums_len()
    }

    /// The weight `[O, I, k, k]` as [`Self::forward`] takes it or, with `gradient`, as [`Self::backward`] does.
    pub fn pack(&self, weight: &[f32], gradient: bool) -> Vec<f32> {
        self.layer.pack(weight, gradient)
    }

    /// The convolution of the frame `input` to the frame `output`.
    pub fn forward(&self, input: &[f32], packed: &[f32], scratch: &mut [f32], output: &mut [f32]) {
        self.layer.products(input, packed, scratch, output);
    }

    /// From the gradient of the output, a frame with zeros around it: with `data`, which is the packed weight and a frame,
    /// the gradient of the input is written to that frame; with `weight`, which is the input's frame and sums, this image's
    /// share is added to the sums.
    pub fn backward(
        &self,
        gradient: &[f32],
        scratch: &mut [f32],
        mut data: Option<(&[f32], &mut [f32])>,
        weight: Option<(&[f32], &mut [f32])>,
    ) {
        if let Some((_, frame)) = &mut data {
            frame.fill(0.0);
        }
        self.layer.backward(gradient, scratch, Wanted { data, weight });
    }

    /// The weight's gradient `[O, I, k, k]` from the sums over all images.
    pub fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        self.layer.finish_weight(sums)
    }
}
