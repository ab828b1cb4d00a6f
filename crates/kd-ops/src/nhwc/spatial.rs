//! A convolution whose windows take more than a pixel of all channels: input and output lie in frames, and the products are
//! those of [`Layer`].

use candle_core::Result;

use super::conv::{Backward, ConvSizes, Forward, Incoming, Input, Outgoing, Output, WeightSums};
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
    /// How many images are taken at once, one behind the other.
    images: usize,
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
        let (layer, images) = Layer::stacked(isa, Geometry::new(&x, &weight, &config)?);
        let (to, image, result) = (&layer.g, layer.input_image(), layer.output_image());
        Ok(Self {
            isa,
            images,
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

    pub(super) fn images(&self) -> usize {
        self.images
    }

    pub(super) fn scratch_len(&self) -> usize {
        self.images * (2 * self.input.len() + self.output.len()) + self.layer.scratch_len()
    }

    pub(super) fn sums_len(&self) -> usize {
        self.layer.sums_len()
    }

    pub(super) fn pack(&self, weight: &[f32], gradient: bool, packed: &mut Vec<f32>) {
        self.layer.pack_into(weight, gradient, packed);
    }

    /// The rows of a result, and how many are best computed at once; `None` where an image is computed as a whole.
    pub(super) fn rows_at_once(&self) -> Option<(usize, usize)> {
        self.layer.by_rows().map(|_| (self.to.height, 1))
    }

    /// Numbers of memory for an image's input as [`Self::forward_rows`] takes it.
    pub(super) fn frame_len(&self) -> usize {
        self.input.len()
    }

    /// Some rows of an image whose input [`Self::lay_out`] has laid out in `frame`; they go to `to`.
    pub(super) fn forward_rows(
        &self,
        frame: &[f32],
        packed: &[f32],
        scratch: &mut [f32],
        (rows, behind): (std::ops::Range<usize>, (Option<&[f32]>, Activation)),
        to: &mut [f32],
    ) {
        let Some(direct) = self.layer.by_rows() else { panic!("the image is computed as a whole") };
        let output = Frame { rows: rows.len(), ..self.output };
        let map = Map { height: rows.len(), ..self.to };
        let result = &mut scratch[..output.len()];
        direct.forward_rows(frame, packed, rows, result);
        unframe(self.isa, (result, &output), behind, (to, &map), false);
    }

    pub(super) fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        self.layer.finish_weight(sums)
    }

    pub(super) fn lay_out(&self, input: Input<'_>, to: &mut [f32]) {
        match input {
            Input::Picture(x) => from_nchw(self.isa, x, &self.from, to, &self.input),
            Input::Map(read) => frame(self.isa, (read, &self.from), to, &self.input),
        }
    }

    pub(super) fn forward(
        &self,
        images: &mut [Forward<'_>],
        packed: &[f32],
        mut scratch: &mut [f32],
    ) {
        assert!(images.len() <= self.images);
        let inputs = carve(&mut scratch, images.len() * self.input.len());
        let results = carve(&mut scratch, images.len() * self.output.len());
        for (image, frame) in images.iter().zip(inputs.chunks_exact_mut(self.input.len())) {
            self.lay_out(image.input, frame);
        }
        self.layer.products(images.len(), inputs, packed, scratch, results);
        for (image, frame) in images.iter_mut().zip(results.chunks_exact(self.output.len())) {
            let Output { bias, activation, to, moments } = &mut image.output;
            let (result, behind) = ((frame, &self.output), (*bias, *activation));
            unframe(self.isa, result, behind, (to, &self.to), false);
            if let Some(moments) = moments {
                moments.whole(self.isa, to);
            }
        }
    }

    pub(super) fn backward(
        &self,
        images: &mut [Backward<'_>],
        packed: &[f32],
        mut scratch: &mut [f32],
        weight: Option<WeightSums<'_>>,
    ) {
        assert!(images.len() <= self.images);
        let gradients = carve(&mut scratch, images.len() * self.output.len());
        let inputs = carve(&mut scratch, images.len() * self.input.len());
        let data = carve(&mut scratch, images.len() * self.input.len());
        let places = gradients.chunks_exact_mut(self.output.len());
        for ((image, gradient), input) in
            images.iter().zip(places).zip(inputs.chunks_exact_mut(self.input.len()))
        {
            self.lay_out_gradient(image.incoming, image.outgoing.as_ref(), gradient);
            if let (Some(_), Some(read)) = (&weight, image.input) {
                self.lay_out(read, input);
            }
        }
        let asked = images.iter().any(|image| image.outgoing.is_some());
        if asked {
            data.fill(0.0);
        }
        let WeightSums { weight, bias } = match weight {
            Some(sums) => sums,
            None => WeightSums { weight: &mut [], bias: None },
        };
        let wanted = Wanted {
            data: asked.then_some((packed, &mut *data)),
            weight: (!weight.is_empty()).then_some((&*inputs, weight)),
        };
        self.layer.backward(images.len(), gradients, scratch, wanted);
        if let Some(bias) = bias {
            add_pixels(self.isa, gradients, bias);
        }
        for (image, data) in images.iter_mut().zip(data.chunks_exact(self.input.len())) {
            let Some(Outgoing { to, add, norm }) = &mut image.outgoing else { continue };
            let plain = (None, Activation::Identity);
            unframe(self.isa, (data, &self.input), plain, (to, &self.from), *add);
            if let (Some(norm), Some(Input::Map(read))) = (norm, image.input) {
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
