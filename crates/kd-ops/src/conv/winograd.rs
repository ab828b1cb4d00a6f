//! A 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3); [`transforms`] has the formulas and their source.
//!
//! One image is worked on in blocks of tiles, small enough that a block's transform stays in the
//! second-level cache between being written and being read by the matrix products.

use super::geometry::Geometry;
use super::images::Nhwc;
use super::memory::{carve, zeros};
use super::products::{Rows, add_transposed_rows_times, packed_index, rows_times_packed};
use super::transforms::{self, Block, FREQUENCIES, TILE};
use super::wanted::Wanted;
use rayon::prelude::*;

use crate::simd::Isa;

/// Bytes that one block's input transform may take. Of 75, 150, 300, 600 and 1200 KiB, 300 was
/// the fastest for 128 to 64 channels on a processor with 512 KiB of second-level cache.
const BLOCK_BYTES: usize = 300 << 10;

/// Where one frequency of the weight is larger than this, it does not stay in the second-level cache from one block to the
/// next; blocks have at least [`TILES`] tiles then, and images are taken together.
const LARGE_WEIGHT: usize = 128 << 10;
/// A transformed weight of this size stays in the second-level cache from one image to the next.
const CACHED_WEIGHT: usize = 256 << 10;
/// Tiles over which reading the weight from memory is spread: a multiply-add then costs more than its share of that.
const TILES: usize = 48;
/// Numbers of a packed panel's row: two vectors of AVX-512.
const MOST_PANEL: usize = 32;
/// Most images that are taken together.
const MOST_IMAGES: usize = 16;

/// One convolution's sizes and offsets for this algorithm, of some images that lie one behind the other.
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
    /// Where each tile of all images starts in the inputs and in the outputs.
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

    /// How many images are best taken together: several where an image has few tiles for a large weight. A ResNet-18's step on
    /// 224 x 224 pixels takes 3.2 s so, and 4.7 s image by image (batch 32, two cores, AVX2).
    pub(super) fn images_at_once(g: &Geometry) -> usize {
        let tiles = g.out_height.div_ceil(TILE) * g.out_width.div_ceil(TILE);
        let weight = FREQUENCIES * g.in_channels * g.out_channels * size_of::<f32>();
        match tiles {
            few @ 1..TILES if weight > CACHED_WEIGHT => (TILES / few).min(MOST_IMAGES),
            _ => 1,
        }
    }

    /// For a convolution that [`Self::suits`], of at most `images` at once.
    pub(super) fn new(isa: Isa, g: Geometry, images: usize) -> Self {
        let (tiles_y, tiles_x) = (g.out_height.div_ceil(TILE), g.out_width.div_ceil(TILE));
        let of_image = tiles_x * tiles_y;
        let inputs = g.in_channels.next_multiple_of(isa.lanes());
        let outputs = g.out_channels.next_multiple_of(isa.lanes());
        let per_tile = FREQUENCIES * inputs.max(outputs) * size_of::<f32>();
        let least = if inputs * outputs * size_of::<f32>() > LARGE_WEIGHT { TILES } else { 4 };
        let block = (BLOCK_BYTES / per_tile).max(least).min((images * of_image).max(4));
        let tiles = |(rows, line): (usize, usize), channels: usize| {
            (0..images * of_image)
                .map(|t| {
                    let (image, t) = (t / of_image, t % of_image);
                    let pixel = t / tiles_x * TILE * line + t % tiles_x * TILE;
                    ((image * rows * line + pixel) * channels) as u32
                })
                .collect()
        };
        let (rows_of_image, line) = (TILE * tiles_y, TILE * tiles_x);
        let rows = |channels: usize| (0..block).map(|t| (t * channels) as u32).collect();
        Self {
            isa,
            g,
            tiles_x,
            tiles_y,
            inputs,
            outputs,
            block,
            input_tiles: tiles((rows_of_image + 2, line + 2), inputs),
            output_tiles: tiles((rows_of_image, line), outputs),
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
    pub(super) fn pack(&self, weight: &[f32], gradient: bool, packed: &mut Vec<f32>) {
        let (rows, cols) =
            if gradient { (self.outputs, self.inputs) } else { (self.inputs, self.outputs) };
        zeros(packed, FREQUENCIES * rows * cols);
        let lanes = self.isa.lanes();
        let (outputs, inputs) = (self.g.out_channels, self.g.in_channels);
        let (own_rows, own_cols) = if gradient { (outputs, inputs) } else { (inputs, outputs) };
        // A panel's numbers of one row lie side by side in each frequency: 36 places are written at once, not 36 for each.
        for first in (0..own_cols).step_by(2 * lanes) {
            for row in 0..own_rows {
                let mut panel = [[0.0; MOST_PANEL]; FREQUENCIES];
                let count = (2 * lanes).min(own_cols - first);
                for col in 0..count {
                    let (o, i) = if gradient { (row, first + col) } else { (first + col, row) };
                    let at = (o * inputs + i) * 9;
                    let filter = transforms::filter_transform(&weight[at..at + 9]);
                    for (panel, value) in panel.iter_mut().zip(filter) {
                        panel[col] = value;
                    }
                }
                let index = packed_index(row, first, rows, cols, lanes);
                for (f, panel) in panel.iter().enumerate() {
                    let at = f * rows * cols + index;
                    packed[at..at + count].copy_from_slice(&panel[..count]);
                }
            }
        }
    }

    /// The tiles of `images` images, block by block.
    fn blocks(&self, images: usize) -> impl Iterator<Item = (&[u32], &[u32])> {
        let tiles = images * self.tiles_x * self.tiles_y;
        let (input, output) = (&self.input_tiles[..tiles], &self.output_tiles[..tiles]);
        input.chunks(self.block).zip(output.chunks(self.block))
    }

    /// The convolution of `images` images, one behind the other in `image` (see [`Self::input_image`]), without bias, to `out`
    /// (see [`Self::output_image`]).
    pub(super) fn forward(
        &self,
        images: usize,
        image: &[f32],
        packed: &[f32],
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let mut scratch = scratch;
        let v = carve(&mut scratch, FREQUENCIES * self.frequency(self.inputs));
        let m = carve(&mut scratch, FREQUENCIES * self.frequency(self.outputs));
        for (input_tiles, output_tiles) in self.blocks(images) {
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

    /// From the gradient of the outputs of `images` images, `dz` (see [`Self::output_image`]): adds to the gradient of the input
    /// and to the sums of the weight's gradient, as `wanted` says.
    pub(super) fn backward(
        &self,
        images: usize,
        dz: &[f32],
        scratch: &mut [f32],
        wanted: Wanted<'_>,
    ) {
        let mut scratch = scratch;
        let v = carve(&mut scratch, FREQUENCIES * self.frequency(self.inputs));
        let z = carve(&mut scratch, FREQUENCIES * self.frequency(self.outputs));
        let Wanted { mut data, mut weight } = wanted;
        for (input_tiles, output_tiles) in self.blocks(images) {
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
        // As many output channels as lie side by side in a cache line.
        const CHANNELS: usize = 16;
        let inputs = self.g.in_channels;
        let mut dweight = vec![0.0; self.g.weight_len()];
        dweight.par_chunks_mut(CHANNELS * inputs * 9).enumerate().for_each(|(block, dweight)| {
            for i in 0..inputs {
                for (o, of_output) in dweight.chunks_exact_mut(inputs * 9).enumerate() {
                    let at = i * self.outputs + block * CHANNELS + o;
                    let tile = std::array::from_fn(|f| sums[f * self.inputs * self.outputs + at]);
                    let window = transforms::filter_transform_adjoint(&tile);
                    of_output[i * 9..(i + 1) * 9].copy_from_slice(&window);
                }
            }
        });
        dweight
    }
}
