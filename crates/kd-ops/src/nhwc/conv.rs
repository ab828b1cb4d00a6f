//! A convolution of an image, or of a few images at once, with what lies before and behind it: its input is read through a normalisation and an
//! activation, its result's moments are taken on the way, and its gradients go through the normalisations on both sides.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::depthwise::{Depthwise, MOST_LINES};
use super::pointwise::Pointwise;
use super::spatial::Spatial;
use super::statistics::{add_masked_sums, norm_gradient};
use super::{Activation, Isa, Moments, NormGradient, Read};
use crate::conv::Pads;
use crate::cpu::with_scratch;

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
    /// Zeros around the input.
    pub pads: Pads,
    /// Groups of channels: 1, or as many as there are inputs and outputs.
    pub groups: usize,
}

impl ConvSizes {
    /// Whether there is a [`Conv`] of such groups, zeros and windows.
    pub fn is_known(&self) -> bool {
        let Pads { top, bottom, left, right } = self.pads;
        let depthwise = self.groups == self.inputs && self.groups == self.outputs;
        // The gradient of a depthwise convolution's input is one with `kernel - 1` less so many zeros on each side.
        let reaches = [top, bottom, left, right].iter().all(|&zeros| zeros < self.kernel);
        self.groups == 1 || (depthwise && reaches && self.kernel <= MOST_LINES)
    }
}

/// A convolution by the algorithm that its sizes ask for.
pub struct Conv {
    sizes: ConvSizes,
    kind: Kind,
}

enum Kind {
    Spatial(Box<Spatial>),
    Pointwise(Pointwise),
    Depthwise(Depthwise),
}

/// What a convolution reads.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A picture as the caller has it, NCHW.
    Picture(&'a [f32]),
    /// What an earlier layer gave, a map, as it is read.
    Map(Read<'a>),
}

/// Where a convolution's result goes.
pub struct Output<'a> {
    /// What is added to each channel, as long as the padded channels.
    pub bias: Option<&'a [f32]>,
    /// What follows the bias.
    pub activation: Activation,
    /// The result, a map.
    pub to: &'a mut [f32],
    /// The result's moments, where somebody normalises by them.
    pub moments: Option<Moments<'a>>,
}

/// The gradient that comes to a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// A map: of the result or, with `norm`, of what a normalisation makes of it. `None` where it lies in [`Outgoing::to`],
    /// which has its shape: the gradient of a sum of a convolution's result and input, to which the convolution adds.
    pub gradient: Option<&'a [f32]>,
    /// The result and the factors of that normalisation's gradient.
    pub norm: Option<(&'a [f32], NormGradient<'a>)>,
}

/// Where the gradient of the input goes.
pub struct Outgoing<'a> {
    /// The gradient, a map.
    pub to: &'a mut [f32],
    /// Whether it is added to what is there.
    pub add: bool,
    /// Where the input is read through a normalisation: the gradient that is stored is the one behind that normalisation and
    /// before its activation, and here are the sums of it.
    pub norm: Option<NormSums<'a>>,
}

/// One image's forward pass.
pub struct Forward<'a> {
    /// What is read.
    pub input: Input<'a>,
    /// What is written.
    pub output: Output<'a>,
}

/// One image's backward pass.
pub struct Backward<'a> {
    /// What the forward pass read; it may be left out where neither the weight's gradient nor a normalisation's sums are asked
    /// for.
    pub input: Option<Input<'a>>,
    /// The gradient of the result.
    pub incoming: Incoming<'a>,
    /// Where the gradient of the input goes, if somebody asks for it.
    pub outgoing: Option<Outgoing<'a>>,
}

/// The sums that make the gradients of a normalisation, see [`super::add_gradient_sums`].
pub struct NormSums<'a> {
    /// The normalised value's mean.
    pub mean: &'a [f32],
    /// Each channel's sum of the gradient.
    pub sums: &'a mut [f64],
    /// Each channel's sum of the gradient times the distance from the mean.
    pub products: &'a mut [f64],
}

/// The sums over images that make the gradients of weight and bias.
pub struct WeightSums<'a> {
    /// The sums for the weight's gradient in the convolution's own order, [`Conv::sums_len`] numbers.
    pub weight: &'a mut [f32],
    /// As long as the result's padded channels.
    pub bias: Option<&'a mut [f32]>,
}

impl Conv {
    /// A convolution for the vectors of `isa`.
    ///
    /// # Errors
    /// When the window does not fit into the padded image, a size is zero, or the groups are neither one nor one a channel.
    pub fn new(isa: Isa, sizes: ConvSizes) -> Result<Self> {
        if !sizes.is_known() {
            bail!(
                "conv: expected one group, or one a channel with fewer zeros than the window's side and windows of at most {MOST_LINES} pixels; got {sizes:?}"
            );
        }
        let plain = (sizes.kernel, sizes.stride, sizes.pads) == (1, 1, Pads::default());
        let kind = if sizes.groups > 1 {
            Kind::Depthwise(Depthwise::new(isa, sizes)?)
        } else if plain {
            Kind::Pointwise(Pointwise::new(isa, sizes))
        } else {
            Kind::Spatial(Box::new(Spatial::new(isa, sizes)?))
        };
        Ok(Self { sizes, kind })
    }

    /// The sizes that it was made for.
    pub fn sizes(&self) -> ConvSizes {
        self.sizes
    }

    /// Whether it can read [`Input::Picture`].
    pub fn reads_pictures(&self) -> bool {
        matches!(self.kind, Kind::Spatial(_))
    }

    /// How many images it takes at once at most; it is fastest with as many.
    pub fn images(&self) -> usize {
        match &self.kind {
            Kind::Spatial(conv) => conv.images(),
            Kind::Pointwise(_) | Kind::Depthwise(_) => 1,
        }
    }

    /// Numbers of scratch memory that a pass over as many images needs as it takes at once.
    pub fn scratch_len(&self) -> usize {
        match &self.kind {
            Kind::Spatial(conv) => conv.scratch_len(),
            Kind::Pointwise(conv) => conv.scratch_len(),
            Kind::Depthwise(conv) => conv.scratch_len(),
        }
    }

    /// Numbers of the sums that make the weight's gradient; see [`Self::finish_weight`].
    pub fn sums_len(&self) -> usize {
        match &self.kind {
            Kind::Spatial(conv) => conv.sums_len(),
            Kind::Pointwise(conv) => conv.sums_len(),
            Kind::Depthwise(conv) => conv.sums_len(),
        }
    }

    /// The weight `[O, I / groups, k, k]` as [`Self::forward`] takes it or, with `gradient`, as [`Self::backward`] does. It goes
    /// to `packed`, which is grown where it has not the room.
    pub fn pack(&self, weight: &[f32], gradient: bool, packed: &mut Vec<f32>) {
        match &self.kind {
            Kind::Spatial(conv) => conv.pack(weight, gradient, packed),
            Kind::Pointwise(conv) => conv.pack(weight, gradient, packed),
            Kind::Depthwise(conv) => conv.pack(weight, gradient, packed),
        }
    }

    /// The convolution of at most [`Self::images`] images.
    pub fn forward(&self, images: &mut [Forward<'_>], packed: &[f32], scratch: &mut [f32]) {
        if let Kind::Spatial(conv) = &self.kind {
            return conv.forward(images, packed, scratch);
        }
        for Forward { input, output } in images {
            let read = input.map();
            match &self.kind {
                Kind::Spatial(_) => {}
                Kind::Pointwise(conv) => conv.forward(read, packed, scratch, output),
                Kind::Depthwise(conv) => conv.forward(read, packed, scratch, output),
            }
        }
    }

    /// The convolution of one image whose result has no moments, with its rows shared among rayon's threads: what
    /// [`Self::forward`] gives, bit for bit.
    pub fn forward_by_threads(&self, image: &mut Forward<'_>, packed: &[f32]) {
        let rows = match &self.kind {
            Kind::Spatial(conv) => conv.rows_at_once(),
            Kind::Pointwise(conv) => Some(conv.rows_at_once()),
            Kind::Depthwise(conv) => Some(conv.rows_at_once()),
        };
        let (Some((rows, at_once)), None) = (rows, &image.output.moments) else {
            return with_scratch(self.scratch_len(), |scratch| {
                self.forward(std::slice::from_mut(image), packed, scratch);
            });
        };
        let Forward { input, output: Output { bias, activation, to, .. } } = image;
        let behind = (*bias, *activation);
        let per_piece = rows.div_ceil(rayon::current_num_threads()).next_multiple_of(at_once);
        let len = to.len() / rows;
        let pieces = to.par_chunks_mut(per_piece * len).enumerate();
        let of = |piece: usize, to: &[f32]| piece * per_piece..piece * per_piece + to.len() / len;
        match &self.kind {
            Kind::Spatial(conv) => with_scratch(conv.frame_len(), |frame| {
                conv.lay_out(*input, frame);
                let frame = &*frame;
                pieces.for_each(|(piece, to)| {
                    with_scratch(self.scratch_len(), |scratch| {
                        conv.forward_rows(frame, packed, scratch, (of(piece, to), behind), to);
                    });
                });
            }),
            Kind::Pointwise(conv) => pieces.for_each(|(piece, to)| {
                with_scratch(self.scratch_len(), |scratch| {
                    let rows = (of(piece, to), behind);
                    conv.forward_rows(input.map(), packed, scratch, rows, to);
                });
            }),
            Kind::Depthwise(conv) => pieces.for_each(|(piece, to)| {
                with_scratch(self.scratch_len(), |scratch| {
                    let rows = (of(piece, to), behind, None);
                    conv.forward_rows(input.map(), packed, scratch, rows, to);
                });
            }),
        }
    }

    /// From the gradient of the results of at most [`Self::images`] images: the gradients of the inputs, for which the weight
    /// is `packed`, go where it is asked for; the images' share of the weight's is added to `weight`.
    pub fn backward(
        &self,
        images: &mut [Backward<'_>],
        packed: &[f32],
        scratch: &mut [f32],
        mut weight: Option<WeightSums<'_>>,
    ) {
        if let Kind::Spatial(conv) = &self.kind {
            return conv.backward(images, packed, scratch, weight);
        }
        for Backward { input, incoming, outgoing } in images {
            let read = match *input {
                Some(Input::Map(read)) => Some(read),
                _ => None,
            };
            let (incoming, weight) = (*incoming, weight.as_mut());
            match &self.kind {
                Kind::Spatial(_) => {}
                Kind::Pointwise(conv) => {
                    conv.backward(read, incoming, (packed, outgoing), scratch, weight);
                }
                Kind::Depthwise(conv) => {
                    conv.backward(read, incoming, (packed, outgoing), scratch, weight);
                }
            }
        }
    }

    /// The weight's gradient `[O, I / groups, k, k]` from the sums over all images.
    pub fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        match &self.kind {
            Kind::Spatial(conv) => conv.finish_weight(sums),
            Kind::Pointwise(conv) => conv.finish_weight(sums),
            Kind::Depthwise(conv) => conv.finish_weight(sums),
        }
    }
}

impl<'a> Input<'a> {
    fn map(&self) -> Read<'a> {
        let Self::Map(read) = *self else { panic!("this convolution reads maps") };
        read
    }
}

impl Incoming<'_> {
    /// Some numbers of the gradient of the convolution's result; `data` is where the gradient of the input goes.
    pub(super) fn copy(
        &self,
        isa: Isa,
        data: Option<&Outgoing<'_>>,
        range: std::ops::Range<usize>,
        to: &mut [f32],
    ) {
        let gradient = match (self.gradient, data) {
            (Some(gradient), _) => &gradient[range.clone()],
            (None, Some(data)) => &data.to[range.clone()],
            (None, None) => panic!("a convolution has a gradient"),
        };
        match self.norm {
            Some((z, by)) => norm_gradient(isa, (gradient, &z[range]), by, to),
            None => to.copy_from_slice(gradient),
        }
    }
}

impl NormSums<'_> {
    pub(super) fn start(&mut self) {
        self.sums.fill(0.0);
        self.products.fill(0.0);
    }

    /// Takes some pixels' gradient of what a layer reads as `read`: goes through its activation, in place, and adds to the
    /// sums.
    pub(super) fn take(&mut self, isa: Isa, gradient: &mut [f32], read: Read<'_>) {
        let Some(affine) = read.affine else { panic!("what is normalised is read so") };
        let mask = Some((affine, read.activation));
        add_masked_sums(isa, gradient, read.x, mask, self.mean, self.sums, self.products);
    }
}
