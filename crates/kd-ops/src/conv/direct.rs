//! A convolution of any window, stride, padding and dilation, each window read where it lies.
//!
//! The padded image is NHWC, so a line of a window is a run of contiguous numbers; the products
//! of [`super::products`] take their rows from such runs.

use super::geometry::Geometry;
use super::images::Nhwc;
use super::memory::{carve, zeros};
use super::products::{Rows, add_transposed_rows_times, packed_index, rows_times_packed};
use super::wanted::Wanted;
use crate::simd::Isa;

/// One convolution's sizes and offsets for this algorithm.
pub(crate) struct Direct {
    isa: Isa,
    g: Geometry,
    /// Output channels, rounded up to whole vectors.
    outputs: usize,
    /// Where each output pixel's window starts in the padded image, where the runs that a window is made of start within
    /// it, and how long a run is.
    row_offsets: Vec<u32>,
    segment_offsets: Vec<u32>,
    segment_len: usize,
    data: DataGradient,
}

/// How the gradient of the input ("data") is computed from that of the output, `dz`.
enum DataGradient {
    /// With stride 1: as a convolution of the padded `dz` with the weight turned by half a turn.
    Convolution {
        /// The layout of the padded `dz`, and the zeros before its first pixel, vertically and horizontally.
        image: Nhwc,
        before: (usize, usize),
        /// As in [`Direct`], of the padded `dz`.
        row_offsets: Vec<u32>,
        segment_offsets: Vec<u32>,
        segment_len: usize,
        /// Input channels, rounded up to whole vectors.
        inputs: usize,
    },
    /// With any other stride: each output pixel gives a window of gradients, which is added where the window lies.
    Windows {
        /// Where each output pixel's `dz` starts.
        row_offsets: Vec<u32>,
        /// Numbers of a window, rounded up to whole vectors.
        window: usize,
    },
}

impl Direct {
    /// For any convolution.
    pub(super) fn new(isa: Isa, g: Geometry) -> Self {
        let lanes = isa.lanes();
        let outputs = g.out_channels.next_multiple_of(lanes);
        let line = g.width + 2 * g.padding;
        let (segment_offsets, segment_len) = segments(&g, line, g.in_channels);
        let row_offsets = (0..g.out_pixels())
            .map(|p| {
                let (y, x) = (p / g.out_width, p % g.out_width);
                ((y * g.stride * line + x * g.stride) * g.in_channels) as u32
            })
            .collect();
        let reach = |kernel: usize| (kernel - 1) * g.dilation;
        let (reach_y, reach_x) = (reach(g.kernel_height), reach(g.kernel_width));
        let convolution = g.stride == 1 && g.padding <= reach_y.min(reach_x);
        let data = if convolution {
            let image =
                Nhwc { rows: g.height + reach_y, line: g.width + reach_x, channels: outputs };
            let (segment_offsets, segment_len) = segments(&g, image.line, outputs);
            DataGradient::Convolution {
                image,
                before: (reach_y - g.padding, reach_x - g.padding),
                row_offsets: (0..g.height * g.width)
                    .map(|p| ((p / g.width * image.line + p % g.width) * outputs) as u32)
                    .collect(),
                segment_offsets,
                segment_len,
                inputs: g.in_channels.next_multiple_of(lanes),
            }
        } else {
            DataGradient::Windows {
                row_offsets: (0..g.out_pixels()).map(|p| (p * outputs) as u32).collect(),
                window: g.window_len().next_multiple_of(lanes),
            }
        };
        Self { isa, g, outputs, row_offsets, segment_offsets, segment_len, data }
    }

    fn rows(&self) -> Rows<'_> {
        Rows {
            row_offsets: &self.row_offsets,
            segment_offsets: &self.segment_offsets,
            segment_len: self.segment_len,
        }
    }

    /// The layout of the padded input image.
    pub(super) fn input_image(&self) -> Nhwc {
        let (rows, line) = (self.g.height + 2 * self.g.padding, self.g.width + 2 * self.g.padding);
        Nhwc { rows, line, channels: self.g.in_channels }
    }

    /// The layout of the output image.
    pub(super) fn output_image(&self) -> Nhwc {
        Nhwc { rows: self.g.out_height, line: self.g.out_width, channels: self.outputs }
    }

    /// Numbers of scratch memory that the backward pass over one image needs.
    pub(super) fn scratch_len(&self) -> usize {
        match &self.data {
            DataGradient::Convolution { image, inputs, .. } => {
                image.len() + self.g.height * self.g.width * inputs
            }
            DataGradient::Windows { window, .. } => self.g.out_pixels() * window,
        }
    }

    /// Numbers of a partial sum of the weight's gradient, kept as `[window, outputs]`.
    pub(super) fn sums_len(&self) -> usize {
        self.g.window_len() * self.outputs
    }

    /// The weight `[O, I, kh, kw]`, packed for [`Self::forward`] or, with `gradient`, for the gradient of the input.
    pub(super) fn pack(&self, weight: &[f32], gradient: bool, packed: &mut Vec<f32>) {
        let g = &self.g;
        let lanes = self.isa.lanes();
        let (rows, cols) = match (&self.data, gradient) {
            (_, false) => (g.window_len(), self.outputs),
            (DataGradient::Convolution { inputs, .. }, true) => {
                (g.kernel_height * g.kernel_width * self.outputs, *inputs)
            }
            (DataGradient::Windows { window, .. }, true) => (self.outputs, *window),
        };
        zeros(packed, rows * cols);
        let mut weight = weight.iter();
        for o in 0..g.out_channels {
            for i in 0..g.in_channels {
                for ky in 0..g.kernel_height {
                    for kx in 0..g.kernel_width {
                        let tap = (ky * g.kernel_width + kx) * g.in_channels + i;
                        let (row, col) = match (&self.data, gradient) {
                            (_, false) => (tap, o),
                            (DataGradient::Convolution { .. }, true) => {
                                let (ky, kx) = (g.kernel_height - 1 - ky, g.kernel_width - 1 - kx);
                                ((ky * g.kernel_width + kx) * self.outputs + o, i)
                            }
                            (DataGradient::Windows { .. }, true) => (o, tap),
                        };
                        if let Some(&value) = weight.next() {
                            packed[packed_index(row, col, rows, cols, lanes)] = value;
                        }
                    }
                }
            }
        }
    }

    /// The convolution of `image` (see [`Self::input_image`]), without bias, to `out` (see [`Self::output_image`]).
    pub(super) fn forward(&self, image: &[f32], packed: &[f32], out: &mut [f32]) {
        rows_times_packed(self.isa, image, self.rows(), packed, out, self.outputs);
    }

    /// The same of some rows of the output, which go to `out`.
    pub(crate) fn forward_rows(
        &self,
        image: &[f32],
        packed: &[f32],
        rows: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        let pixels = rows.start * self.g.out_width..rows.end * self.g.out_width;
        let rows = Rows { row_offsets: &self.row_offsets[pixels], ..self.rows() };
        rows_times_packed(self.isa, image, rows, packed, out, self.outputs);
    }

    /// From the output's gradient `dz` (see [`Self::output_image`]): adds to the gradient of the input
    /// and to the sums of the weight's gradient, as `wanted` says.
    pub(super) fn backward(&self, dz: &[f32], scratch: &mut [f32], wanted: Wanted<'_>) {
        if let Some((image, sums)) = wanted.weight {
            add_transposed_rows_times(self.isa, image, self.rows(), dz, sums, self.outputs);
        }
        if let Some((packed, dx)) = wanted.data {
            self.data_gradient(dz, packed, scratch, dx);
        }
    }

    /// Adds to the gradient of the padded input, `dx`.
    fn data_gradient(&self, dz: &[f32], packed: &[f32], scratch: &mut [f32], dx: &mut [f32]) {
        let g = &self.g;
        let mut scratch = scratch;
        match &self.data {
            DataGradient::Convolution {
                image,
                before,
                row_offsets,
                segment_offsets,
                segment_len,
                inputs,
            } => {
                let padded = carve(&mut scratch, image.len());
                let product = carve(&mut scratch, g.height * g.width * inputs);
                padded.fill(0.0);
                let lines = dz.chunks_exact((g.out_width * self.outputs).max(1));
                for (y, line) in lines.take(g.out_height).enumerate() {
                    let at = ((y + before.0) * image.line + before.1) * self.outputs;
                    padded[at..at + line.len()].copy_from_slice(line);
                }
                let rows = Rows { row_offsets, segment_offsets, segment_len: *segment_len };
                rows_times_packed(self.isa, padded, rows, packed, product, *inputs);
                let line = g.width + 2 * g.padding;
                for (p, pixel) in product.chunks_exact(*inputs).enumerate() {
                    let (y, x) = (p / g.width + g.padding, p % g.width + g.padding);
                    let at = (y * line + x) * g.in_channels;
                    dx[at..at + g.in_channels].copy_from_slice(&pixel[..g.in_channels]);
                }
            }
            DataGradient::Windows { row_offsets, window } => {
                let windows = carve(&mut scratch, g.out_pixels() * window);
                let rows = Rows { row_offsets, segment_offsets: &[0], segment_len: self.outputs };
                rows_times_packed(self.isa, dz, rows, packed, windows, *window);
                for (window, &offset) in windows.chunks_exact(*window).zip(&self.row_offsets) {
                    let runs = window.chunks_exact(self.segment_len);
                    for (run, &segment) in runs.zip(&self.segment_offsets) {
                        let at = (offset + segment) as usize;
                        for (dx, value) in dx[at..at + run.len()].iter_mut().zip(run) {
                            *dx += value;
                        }
                    }
                }
            }
        }
    }

    /// The weight's gradient `[O, I, kh, kw]` from its sums over all images.
    pub(super) fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        let g = &self.g;
        let mut dweight = Vec::with_capacity(g.weight_len());
        for o in 0..g.out_channels {
            for i in 0..g.in_channels {
                for tap in 0..g.kernel_height * g.kernel_width {
                    dweight.push(sums[(tap * g.in_channels + i) * self.outputs + o]);
                }
            }
        }
        dweight
    }
}

/// The runs of contiguous numbers that a window is made of, in an image whose lines have `line` pixels of `channels`
/// numbers: where they start, counted from the window's first number, and how long each is.
fn segments(g: &Geometry, line: usize, channels: usize) -> (Vec<u32>, usize) {
    let offset = |ky: usize, kx: usize| (g.dilation * (ky * line + kx) * channels) as u32;
    if g.dilation == 1 {
        ((0..g.kernel_height).map(|ky| offset(ky, 0)).collect(), g.kernel_width * channels)
    } else {
        let taps = (0..g.kernel_height).flat_map(|ky| (0..g.kernel_width).map(move |kx| (ky, kx)));
        (taps.map(|(ky, kx)| offset(ky, kx)).collect(), channels)
    }
}
