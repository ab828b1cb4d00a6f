//! A convolution whose windows take more than a pixel of all channels: input and output lie in frames, and the products are
//! those of [`Layer`].

use candle_core::Result;

use super::conv::{ConvSizes, Incoming, Input, Outgoing, Output, WeightSums};
use super::elementwise::{frame, unframe};
use super::statistics::add_pixels;
use super::{Activation, Frame, Isa, Map, from_nchw};
use crate::conv::geometry::{Conv2dConfig, Geometry};
use crate::conv::layer::Layer;
use crate::conv::memory::carve;
use crate::conv::wanted::Wanted;

pub(super) struct Spatial {
    isa: Isa,
    layer: Layer,
    from: Map,
    to: Map,
    /// Where the input lies, zeros around it, and where the output does, from pixel (0, 0) on; what is beyond the output has
    /// no meaning.
    input: Frame,
    output: Frame,
}

impl Spatial {
    pub(super) fn new(isa: Isa, sizes: ConvSizes) -> Result<Self> {
        let ConvSizes { inputs, outputs, height, width, kernel, stride, pads, .. } = sizes;
        // Uneven zeros are taken for a part of the input.
        let (padding, rows, line, top, left) = match pads.even() {
            Some(padding) => (padding, height, width, padding, padding),
            None => {
                let (rows, line) =
                    (height + pads.top + pads.bottom, width + pads.left + pads.right);
                (0, rows, line, pads.top, pads.left)
            }
        };
        let config = Conv2dConfig { stride, padding, ..Conv2dConfig::default() };
        let (x, weight) = ([1, inputs, rows, line], [outputs, inputs, kernel, kernel]);
        let layer = Layer::new(isa, Geometry::new(&x, &weight, &config)?, false, false);
        let (to, image, result) = (&layer.g, layer.input_image(), layer.output_image());
        Ok(Self {
            isa,
            from: Map::new(isa, [inputs, height, width]),
            to: Map::new(isa, [outputs, to.out_height, to.out_width]),
            input: Frame {
                rows: image.rows,
                line: image.line,
                channels: image.channels,
                top,
                left,
            },
            output: Frame {
                rows: result.rows,
                line: result.line,
                channels: result.channels,
                top: 0,
                left: 0,
            },
            layer,
        })
    }

    pub(super) fn scratch_len(&self) -> usize {
        2 * self.input.len() + self.output.len() + self.layer.scratch_len()
    }

    pub(super) fn sums_len(&self) -> usize {
        self.layer.sums_len()
    }

    pub(super) fn pack(&self, weight: &[f32], gradient: bool) -> Vec<f32> {
        self.layer.pack(weight, gradient)
    }

    pub(super) fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        self.layer.finish_weight(sums)
    }

    fn lay_out(&self, input: Input<'_>, to: &mut [f32]) {
        match input {
            Input::Picture(x) => from_nchw(self.isa, x, &self.from, to, &self.input),
            Input::Map(read) => frame(self.isa, (read, &self.from), to, &self.input),
        }
    }

    pub(super) fn forward(
        &self,
        input: Input<'_>,
        packed: &[f32],
        mut scratch: &mut [f32],
        output: Output<'_>,
    ) {
        let image = carve(&mut scratch, self.input.len());
        let result = carve(&mut scratch, self.output.len());
        self.lay_out(input, image);
        self.layer.products(image, packed, scratch, result);
        let Output { bias, activation, to, moments } = output;
        let result = (&*result, &self.output);
        unframe(self.isa, result, (bias, activation), (&mut *to, &self.to), false);
        if let Some(mut moments) = moments {
            moments.whole(self.isa, to);
        }
    }

    pub(super) fn backward(
        &self,
        input: Option<Input<'_>>,
        incoming: Incoming<'_>,
        mut scratch: &mut [f32],
        data: Option<Outgoing<'_>>,
        weight: Option<WeightSums<'_>>,
    ) {
        let gradient = carve(&mut scratch, self.output.len());
        let image = carve(&mut scratch, self.input.len());
        let data_image = carve(&mut scratch, self.input.len());
        self.lay_out_gradient(incoming, data.as_ref(), gradient);
        if let (Some(_), Some(input)) = (&weight, input) {
            self.lay_out(input, image);
        }
        if data.is_some() {
            data_image.fill(0.0);
        }
        let WeightSums { weight, bias } = match weight {
            Some(sums) => sums,
            None => WeightSums { weight: &mut [], bias: None },
        };
        let wanted = Wanted {
            data: data.as_ref().map(|data| (data.packed, &mut *data_image)),
            weight: (!weight.is_empty()).then_some((&*image, weight)),
        };
        self.layer.backward(gradient, scratch, wanted);
        if let Some(bias) = bias {
            add_pixels(self.isa, gradient, bias);
        }
        if let Some(Outgoing { to, add, norm, .. }) = data {
            let plain = (None, Activation::Identity);
            unframe(self.isa, (data_image, &self.input), plain, (&mut *to, &self.from), add);
            if let (Some(mut norm), Some(Input::Map(read))) = (norm, input) {
                norm.start();
                norm.take(self.isa, to, read);
            }
        }
    }

    /// The gradient of the output in its frame, zeros around it.
    fn lay_out_gradient(
        &self,
        incoming: Incoming<'_>,
        data: Option<&Outgoing<'_>>,
        to: &mut [f32],
    ) {
        let row = self.to.width * self.to.padded;
        let mut lines = to.chunks_exact_mut(self.output.line * self.output.channels);
        for (y, line) in lines.by_ref().take(self.to.height).enumerate() {
            let (line, beyond) = line.split_at_mut(row);
            incoming.copy(self.isa, data, y * row..(y + 1) * row, line);
            beyond.fill(0.0);
        }
        for line in lines {
            line.fill(0.0);
        }
    }
}
