//! A 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3); [`transforms`] has the formulas and their source.
//!
//! One image is worked on in blocks of tiles, small enough that a block's transform stays in the
//! second-level cache between being written and being read by the matrix products.

use super::geometry::Geometry;
use super::images::Nhwc;
use super::memory::carve;
use super::products::{Rows, add_transposed_rows_times, packed_index, rows_times_packed};
use super::transforms::{self, Block, FREQUENCIES, TILE};
use super::wanted::Wanted;
use crate::simd::Isa;

/// Bytes that one block's input transform may take. Of 75, 150, 300, 600 and 1200 KiB, 300 was
/// the fastest for 128 to 64 channels on a processor with 512 KiB of second-level cache.
const BLOCK_BYTES: usize = 300 << 10;

/// One convolution's sizes and offsets for this algorithm.
pub(super) struct Winograd {
    isa: Isa,
    g: Geometry,
    /// Tiles of an image, horizontally and vertically.
    tiles_x: usize,
    tiles_y: usize,
    /// Input and output channels, rounded up to whole vectors.
    inputs: usize,
    outputs: usize,
    /// Tiles of a block.
    block: usize,
    /// Where each tile starts in the input image and in the output image.
    input_tiles: Vec<u32>,
    output_tiles: Vec<u32>,
    /// Where each tile of a block starts within one frequency of its transform, of the input and of the output.
    input_rows: Vec<u32>,
    output_rows: Vec<u32>,
}

impl Winograd {
    /// Whether this algorithm applies and pays: with fewer than 16 channels the transforms
    /// cost as much as they save.
    pub(super) fn suits(g: &Geometry) -> bool {
        const FEWEST_CHANNELS: usize = 16;
        (g.kernel_height, g.kernel_width, g.stride, g.dilation) == (3, 3, 1, 1)
            && g.in_channels >= FEWEST_CHANNELS
            && g.out_channels >= FEWEST_CHANNELS
    }

    /// For a convolution that [`Self::suits`].
    pub(super) fn new(isa: Isa, g: Geometry) -> Self {
        let (tiles_y, tiles_x) = (g.out_height.div_ceil(TILE), g.out_width.div_ceil(TILE));
        let inputs = g.in_channels.next_multiple_of(isa.lanes());
        let outputs = g.out_channels.next_multiple_of(isa.lanes());
        let per_tile = FREQUENCIES * inputs.max(outputs) * size_of::<f32>();
        let block = (BLOCK_BYTES / per_tile).clamp(4, (tiles_x * tiles_y).max(4));
        let tiles = |line: usize, channels: usize| {
            (0..tiles_y * tiles_x)
                .map(|t| ((t / tiles_x * TILE * line + t % tiles_x * TILE) * channels) as u32)
                .collect()
        };
        let rows = |channels: usize| (0..block).map(|t| (t * channels) as u32).collect();
        Self {
            isa,
            g,
            tiles_x,
            tiles_y,
            inputs,
            outputs,
            block,
            input_tiles: tiles(TILE * tiles_x + 2, inputs),
            output_tiles: tiles(TILE * tiles_x, outputs),
            input_rows: rows(inputs),
            output_rows: rows(outputs),
        }
    }

    /// The layout of the padded input image: whole tiles with the pixel around them that their windows reach.
    pub(super) fn input_image(&self) -> Nhwc {
        let (rows, line) = (TILE * self.tiles_y + 2, TILE * self.tiles_x + 2);
        Nhwc { rows, line, channels: self.inputs }
    }

    /// The layout of the output image: whole tiles, so it may be larger than the output.
    pub(super) fn output_image(&self) -> Nhwc {
        let (rows, line) = (TILE * self.tiles_y, TILE * self.tiles_x);
        Nhwc { rows, line, channels: self.outputs }
    }

    /// Numbers between two frequencies of a block's transform. It is a cache line more than the block
    /// needs: otherwise the 36 streams would fall on the same few sets of the cache.
    fn frequency(&self, channels: usize) -> usize {
        self.block * channels + 16
    }

    /// Numbers of scratch memory that a pass over one image needs: a block's transforms of input and output.
    pub(super) fn scratch_len(&self) -> usize {
        FREQUENCIES * (self.frequency(self.inputs) + self.frequency(self.outputs))
    }

    /// Numbers of a partial sum of the weight's gradient, which is kept transformed: `[36, inputs, outputs]`.
    pub(super) fn sums_len(&self) -> usize {
        FREQUENCIES * self.inputs * self.outputs
    }

    fn input_block<'a>(&self, tiles: &'a [u32]) -> Block<'a> {
        Block {
            tiles,
            line: self.input_image().line * self.inputs,
            channels: self.inputs,
            frequency: self.frequency(self.inputs),
        }
    }

    fn output_block<'a>(&self, tiles: &'a [u32]) -> Block<'a> {
        Block {
            tiles,
            line: self.output_image().line * self.outputs,
            channels: self.outputs,
            frequency: self.frequency(self.outputs),
        }
    }

    /// The weight `[O, I, 3, 3]`, transformed, and packed for the products that give the output (their rows are input
    /// channels) or, with `gradient`, for those that give the gradient of the input (their rows are output channels).
    pub(super) fn pack(&self, weight: &[f32], gradient: bool) -> Vec<f32> {
        let (rows, cols) =
            if gradient { (self.outputs, self.inputs) } else { (self.inputs, self.outputs) };
        let mut packed = vec![0.0; FREQUENCIES * rows * cols];
        let lanes = self.isa.lanes();
        for o in 0..self.g.out_channels {
            for i in 0..self.g.in_channels {
                let at = (o * self.g.in_channels + i) * 9;
                let filter = transforms::filter_transform(&weight[at..at + 9]);
                let (row, col) = if gradient { (o, i) } else { (i, o) };
                let index = packed_index(row, col, rows, cols, lanes);
                for (f, value) in filter.into_iter().enumerate() {
                    packed[f * rows * cols + index] = value;
                }
            }
        }
        packed
    }

    /// The convolution of `image` (see [`Self::input_image`]), without bias, to `out` (see [`Self::output_image`]).
    pub(super) fn forward(
        &self,
        image: &[f32],
        packed: &[f32],
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let mut scratch = scratch;
        let v = carve(&mut scratch, FREQUENCIES * self.frequency(self.inputs));
        let m = carve(&mut scratch, FREQUENCIES * self.frequency(self.outputs));
        let blocks = self.input_tiles.chunks(self.block).zip(self.output_tiles.chunks(self.block));
        for (input_tiles, output_tiles) in blocks {
            transforms::input_transform(self.isa, image, self.input_block(input_tiles), v);
            let rows = Rows {
                row_offsets: &self.input_rows[..input_tiles.len()],
                segment_offsets: &[0],
                segment_len: self.inputs,
            };
            for f in 0..FREQUENCIES {
                let v = &v[f * self.frequency(self.inputs)..];
                let u = &packed[f * self.inputs * self.outputs..];
                let m = &mut m[f * self.frequency(self.outputs)..];
                rows_times_packed(self.isa, v, rows, u, m, self.outputs);
            }
            transforms::output_transform(self.isa, m, self.output_block(output_tiles), out);
        }
    }

    /// From the output's gradient `dz` (see [`Self::output_image`]): adds to the gradient of the input
    /// and to the sums of the weight's gradient, as `wanted` says.
    pub(super) fn backward(&self, dz: &[f32], scratch: &mut [f32], wanted: Wanted<'_>) {
        let mut scratch = scratch;
        let v = carve(&mut scratch, FREQUENCIES * self.frequency(self.inputs));
        let z = carve(&mut scratch, FREQUENCIES * self.frequency(self.outputs));
        let blocks = self.input_tiles.chunks(self.block).zip(self.output_tiles.chunks(self.block));
        let Wanted { mut data, mut weight } = wanted;
        for (input_tiles, output_tiles) in blocks {
            transforms::output_transform_adjoint(self.isa, dz, self.output_block(output_tiles), z);
            if let Some((packed, dx)) = &mut data {
                let rows = Rows {
                    row_offsets: &self.output_rows[..input_tiles.len()],
                    segment_offsets: &[0],
                    segment_len: self.outputs,
                };
                for f in 0..FREQUENCIES {
                    let z = &z[f * self.frequency(self.outputs)..];
                    let u = &packed[f * self.inputs * self.outputs..];
                    let v = &mut v[f * self.frequency(self.inputs)..];
                    rows_times_packed(self.isa, z, rows, u, v, self.inputs);
                }
                let block = self.input_block(input_tiles);
                transforms::input_transform_adjoint(self.isa, v, block, dx);
            }
            if let Some((image, sums)) = &mut weight {
                transforms::input_transform(self.isa, image, self.input_block(input_tiles), v);
                let rows = Rows {
                    row_offsets: &self.input_rows[..input_tiles.len()],
                    segment_offsets: &[0],
                    segment_len: self.inputs,
                };
                for f in 0..FREQUENCIES {
                    let v = &v[f * self.frequency(self.inputs)..];
                    let z = &z[f * self.frequency(self.outputs)..];
                    let sums = &mut sums[f * self.inputs * self.outputs..];
                    add_transposed_rows_times(self.isa, v, rows, z, sums, self.outputs);
                }
            }
        }
    }

    /// The weight's gradient `[O, I, 3, 3]` from its sums over all images.
    pub(super) fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        let mut dweight = Vec::with_capacity(self.g.weight_len());
        for o in 0..self.g.out_channels {
            for i in 0..self.g.in_channels {
                let at = i * self.outputs + o;
                let tile = std::array::from_fn(|f| sums[f * self.inputs * self.outputs + at]);
                dweight.extend_from_slice(&transforms::filter_transform_adjoint(&tile));
            }
        }
        dweight
    }
}
