//! A 1x1 convolution of stride 1: the product of all pixels with the weight. Pixels are taken in strips that stay in the
//! cache on their way from the normalisation before it to the moments behind it.

use super::conv::{ConvSizes, Incoming, Outgoing, Output, WeightSums};
use super::elementwise::{activation, add, copy_read};
use super::statistics::add_pixels;
use super::{Activation, Isa, Read};
use std::ops::Range;

use crate::conv::memory::{carve, zeros};
use crate::conv::products::{
    Behind, Rows, add_transposed_rows_times, packed_index, rows_times_packed,
    rows_times_packed_behind,
};

/// Bytes that a strip's input and output may take together.
const STRIP_BYTES: usize = 128 << 10;
/// Fewest and most pixels of a strip. Each strip passes over the whole weight, and a partial sum of its gradient; a long one
/// gains nothing more.
const STRIP_PIXELS: (usize, usize) = (48, 240);

pub(super) struct Pointwise {
    isa: Isa,
    /// Channels that mean something, and with the padding ones.
    channels: (usize, usize),
    inputs: usize,
    outputs: usize,
    pixels: usize,
    /// Where each pixel of a strip starts in the input and in the output.
    input_rows: Vec<u32>,
    output_rows: Vec<u32>,
}

impl Pointwise {
    pub(super) fn new(isa: Isa, sizes: ConvSizes) -> Self {
        let padded = |channels: usize| channels.next_multiple_of(isa.lanes());
        let (inputs, outputs) = (padded(sizes.inputs), padded(sizes.outputs));
        let pixels = sizes.height * sizes.width;
        let strip = STRIP_BYTES / ((inputs + outputs) * size_of::<f32>());
        // Products take six pixels at once.
        let strip = strip.clamp(STRIP_PIXELS.0, STRIP_PIXELS.1) / 6 * 6;
        let rows =
            |channels: usize| (0..strip.min(pixels)).map(|t| (t * channels) as u32).collect();
        Self {
            isa,
            channels: (sizes.inputs, sizes.outputs),
            inputs,
            outputs,
            pixels,
            input_rows: rows(inputs),
            output_rows: rows(outputs),
        }
    }

    fn strip(&self) -> usize {
        self.input_rows.len()
    }

    pub(super) fn scratch_len(&self) -> usize {
        self.strip() * (2 * self.inputs + self.outputs)
    }

    /// Sums are kept as `[inputs, outputs]`.
    pub(super) fn sums_len(&self) -> usize {
        self.inputs * self.outputs
    }

    pub(super) fn pack(&self, weight: &[f32], gradient: bool, packed: &mut Vec<f32>) {
        let (rows, cols) =
            if gradient { (self.outputs, self.inputs) } else { (self.inputs, self.outputs) };
        zeros(packed, rows * cols);
        for (o, of_output) in weight.chunks_exact(self.channels.0).enumerate() {
            for (i, &value) in of_output.iter().enumerate() {
                let (row, col) = if gradient { (o, i) } else { (i, o) };
                packed[packed_index(row, col, rows, cols, self.isa.lanes())] = value;
            }
        }
    }

    pub(super) fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = self.channels;
        let of_output = |o: usize| (0..inputs).map(move |i| sums[i * self.outputs + o]);
        let mut weight = Vec::with_capacity(outputs * inputs);
        weight.extend((0..outputs).flat_map(of_output));
        weight
    }

    /// The strips of some pixels: first pixel and number of pixels.
    fn strips(&self, of: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let strip = self.strip().max(1);
        of.clone().step_by(strip).map(move |first| (first, strip.min(of.end - first)))
    }

    fn rows<'a>(&self, offsets: &'a [u32], pixels: usize, channels: usize) -> Rows<'a> {
        Rows { row_offsets: &offsets[..pixels], segment_offsets: &[0], segment_len: channels }
    }

    pub(super) fn forward(
        &self,
        read: Read<'_>,
        packed: &[f32],
        scratch: &mut [f32],
        output: &mut Output<'_>,
    ) {
        let Output { bias, activation, to, moments } = output;
        assert!(to.len() == self.pixels * self.outputs);
        let Some(moments) = moments else {
            let behind = (*bias, *activation);
            return self.forward_rows(read, packed, scratch, (0..self.pixels, behind), to);
        };
        moments.start();
        for (first, pixels) in self.strips(0..self.pixels) {
            let (before, rest) = to.split_at_mut(first * self.outputs);
            let y = &mut rest[..pixels * self.outputs];
            let behind = (*bias, *activation);
            self.forward_rows(read, packed, scratch, (first..first + pixels, behind), y);
            let origin = if first == 0 { &*y } else { &*before };
            moments.add(self.isa, origin, y);
        }
        moments.finish(to, self.pixels);
    }

    /// The pixels of a result, and how many are best computed at once.
    pub(super) fn rows_at_once(&self) -> (usize, usize) {
        // Products take six pixels at once.
        (self.pixels, 6)
    }

    /// The result of some pixels, which goes to `to`. Those of a pixel have the same bits whatever the others are.
    pub(super) fn forward_rows(
        &self,
        read: Read<'_>,
        packed: &[f32],
        mut scratch: &mut [f32],
        (of, (bias, activation)): (Range<usize>, (Option<&[f32]>, Activation)),
        to: &mut [f32],
    ) {
        assert!(read.x.len() == self.pixels * self.inputs);
        assert!(to.len() == of.len() * self.outputs);
        let strip = carve(&mut scratch, self.strip() * self.inputs);
        let first_of_all = of.start;
        for (first, pixels) in self.strips(of) {
            let x = self.input_strip(read, first, pixels, strip);
            let y = &mut to[(first - first_of_all) * self.outputs..][..pixels * self.outputs];
            let rows = self.rows(&self.input_rows, pixels, self.inputs);
            let behind = bias.map(|bias| Behind { bias, bounds: activation.bounds() });
            rows_times_packed_behind(self.isa, x, rows, packed, behind, y, self.outputs);
            if bias.is_none() {
                self::activation(self.isa, activation, y);
            }
        }
    }

    /// Some pixels as they are read: where they lie, or laid out in `strip`.
    fn input_strip<'a>(
        &self,
        read: Read<'a>,
        first: usize,
        pixels: usize,
        strip: &'a mut [f32],
    ) -> &'a [f32] {
        let read = read.part(first * self.inputs..(first + pixels) * self.inputs);
        if read.is_plain() {
            return read.x;
        }
        let strip = &mut strip[..pixels * self.inputs];
        copy_read(self.isa, self.inputs, read, strip);
        strip
    }

    pub(super) fn backward(
        &self,
        read: Option<Read<'_>>,
        incoming: Incoming<'_>,
        (packed, data): (&[f32], &mut Option<Outgoing<'_>>),
        mut scratch: &mut [f32],
        mut weight: Option<&mut WeightSums<'_>>,
    ) {
        let whole = self.pixels * self.outputs;
        assert!(incoming.gradient.is_none_or(|gradient| gradient.len() == whole));
        let x_strip = carve(&mut scratch, self.strip() * self.inputs);
        let dx_strip = carve(&mut scratch, self.strip() * self.inputs);
        let dz_strip = carve(&mut scratch, self.strip() * self.outputs);
        if let Some(Outgoing { norm: Some(norm), .. }) = data {
            norm.start();
        }
        for (first, pixels) in self.strips(0..self.pixels) {
            let dz = &mut dz_strip[..pixels * self.outputs];
            let range = first * self.outputs..(first + pixels) * self.outputs;
            incoming.copy(self.isa, data.as_ref(), range, dz);
            if let (Some(sums), Some(read)) = (&mut weight, read) {
                let x = self.input_strip(read, first, pixels, x_strip);
                let rows = self.rows(&self.input_rows, pixels, self.inputs);
                add_transposed_rows_times(self.isa, x, rows, dz, sums.weight, self.outputs);
                if let Some(bias) = &mut sums.bias {
                    add_pixels(self.isa, dz, bias);
                }
            }
            let Some(Outgoing { to, add: add_to, norm }) = data else { continue };
            let range = first * self.inputs..(first + pixels) * self.inputs;
            let to = &mut to[range.clone()];
            let rows = self.rows(&self.output_rows, pixels, self.outputs);
            if *add_to {
                let dx = &mut dx_strip[..pixels * self.inputs];
                rows_times_packed(self.isa, dz, rows, packed, dx, self.inputs);
                add(self.isa, to, dx);
            } else {
                rows_times_packed(self.isa, dz, rows, packed, to, self.inputs);
            }
            if let (Some(norm), Some(read)) = (norm, read) {
                norm.take(self.isa, to, read.part(range));
            }
        }
    }
}
