//! The forward and the backward pass over a batch, image by image, with bias, ReLU and pool.

use rayon::prelude::*;

use super::direct::Direct;
use super::geometry::Geometry;
use super::kernels::{self, Nhwc, Size};
use super::winograd::Winograd;
use super::{Wanted, carve};
use crate::cpu::with_scratch;
use crate::simd::Isa;

/// What is fused behind the convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fused {
    pub(super) relu: bool,
    pub(super) max_pool2: bool,
}

/// The way one convolution is computed.
enum Algorithm {
    Winograd(Winograd),
    Direct(Direct),
}

/// One convolution, ready for batches.
pub(super) struct Passes {
    isa: Isa,
    g: Geometry,
    fused: Fused,
    algorithm: Algorithm,
}

/// What the forward pass gives.
pub(super) struct Forward {
    /// `[N, O, H', W']`, or its pooled half.
    pub(super) y: Vec<f32>,
    /// With a pool: which pixel of four won, NHWC with padded channels.
    pub(super) winners: Vec<u8>,
}

/// Which gradients are to be computed.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    pub(super) data: bool,
    pub(super) weight: bool,
}

/// What the backward pass gives; empty where not asked for.
pub(super) struct Gradients {
    pub(super) data: Vec<f32>,
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Passes {
    pub(super) fn new(isa: Isa, g: Geometry, fused: Fused) -> Self {
        let algorithm = if Winograd::suits(&g) {
            Algorithm::Winograd(Winograd::new(isa, g))
        } else {
            Algorithm::Direct(Direct::new(isa, g))
        };
        Self { isa, g, fused, algorithm }
    }

    fn input_image(&self) -> Nhwc {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.input_image(),
            Algorithm::Direct(direct) => direct.input_image(),
        }
    }

    fn output_image(&self) -> Nhwc {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.output_image(),
            Algorithm::Direct(direct) => direct.output_image(),
        }
    }

    fn pack(&self, weight: &[f32], gradient: bool) -> Vec<f32> {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.pack(weight, gradient),
            Algorithm::Direct(direct) => direct.pack(weight, gradient),
        }
    }

    fn scratch_len(&self) -> usize {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.scratch_len(),
            Algorithm::Direct(direct) => direct.scratch_len(),
        }
    }

    fn sums_len(&self) -> usize {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.sums_len(),
            Algorithm::Direct(direct) => direct.sums_len(),
        }
    }

    fn input_size(&self) -> Size {
        Size { channels: self.g.in_channels, height: self.g.height, width: self.g.width }
    }

    /// The size of one result.
    pub(super) fn result_size(&self) -> Size {
        let halved = if self.fused.max_pool2 { 2 } else { 1 };
        Size {
            channels: self.g.out_channels,
            height: self.g.out_height / halved,
            width: self.g.out_width / halved,
        }
    }

    /// The result before it is turned into NCHW, with a pool.
    fn pooled_image(&self) -> Nhwc {
        let size = self.result_size();
        Nhwc { rows: size.height, line: size.width, channels: self.output_image().channels }
    }

    fn winners_len(&self) -> usize {
        if self.fused.max_pool2 { self.pooled_image().len() } else { 0 }
    }

    pub(super) fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Forward {
        let packed = self.pack(weight, false);
        let (input, output, pooled) = (self.input_image(), self.output_image(), self.winners_len());
        let mut padded_bias = bias.to_vec();
        padded_bias.resize(output.channels, 0.0);
        let result = self.result_size();
        let mut y = vec![0.0; self.g.batch * result.len()];
        let mut winners = vec![0u8; self.g.batch * pooled];
        let memory = input.len() + output.len() + self.scratch_len() + 2 * pooled;
        // `max(1)`: an empty result is cut into no pieces rather than a panic.
        y.par_chunks_mut(result.len().max(1))
            .zip(x.par_chunks(self.g.in_len().max(1)))
            .zip(pieces(&mut winners, pooled, self.g.batch))
            .for_each(|((y, x), winners)| {
                with_scratch(memory, |mut scratch| {
                    let image = carve(&mut scratch, input.len());
                    let out = carve(&mut scratch, output.len());
                    kernels::to_nhwc(self.isa, x, self.input_size(), image, input, self.g.padding);
                    match &self.algorithm {
                        Algorithm::Winograd(winograd) => {
                            let scratch = carve(&mut scratch, winograd.scratch_len());
                            winograd.forward(image, &packed, scratch, out);
                        }
                        Algorithm::Direct(direct) => direct.forward(image, &packed, out),
                    }
                    kernels::bias_relu(self.isa, out, &padded_bias, self.fused.relu);
                    if self.fused.max_pool2 {
                        let maxima = carve(&mut scratch, pooled);
                        let tags = carve(&mut scratch, pooled);
                        let size = (self.g.out_height, self.g.out_width);
                        kernels::max_pool2(self.isa, out, output, size, maxima, tags);
                        for (winner, &tag) in winners.iter_mut().zip(&*tags) {
                            *winner = tag as u8;
                        }
                        kernels::to_nchw(self.isa, maxima, self.pooled_image(), 0, y, result);
                    } else {
                        kernels::to_nchw(self.isa, out, output, 0, y, result);
                    }
                });
            });
        Forward { y, winners }
    }

    /// The gradients from the result's gradient `dy`; `y` and `winners` are what forward gave.
    pub(super) fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        (y, winners): (&[f32], &[u8]),
        dy: &[f32],
        ask: Ask,
    ) -> Gradients {
        let g = &self.g;
        let packed = if ask.data { self.pack(weight, true) } else { Vec::new() };
        let (input, output, pooled) = (self.input_image(), self.output_image(), self.winners_len());
        let result = self.result_size();
        let sums_len = if ask.weight { self.sums_len() } else { 0 };
        let images = images_per_part(g.batch, sums_len);
        let data_len = if ask.data { g.in_len() } else { 0 };
        let mut data = vec![0.0; g.batch * data_len];
        let memory =
            2 * input.len() + output.len() + self.scratch_len() + result.len() + 2 * pooled;
        let parts = g.batch.div_ceil(images);
        let sums: Vec<(Vec<f32>, Vec<f32>)> = pieces(&mut data, images * data_len, parts)
            .into_par_iter()
            .enumerate()
            .map(|(part, data)| {
                let mut weight_sums = vec![0.0; sums_len];
                let mut bias_sums = vec![0.0; output.channels];
                with_scratch(memory, |mut scratch| {
                    let image = carve(&mut scratch, input.len());
                    let data_image = carve(&mut scratch, input.len());
                    let dz = carve(&mut scratch, output.len());
                    let masked = carve(&mut scratch, result.len());
                    let pooled_dy = carve(&mut scratch, pooled);
                    let tags = carve(&mut scratch, pooled);
                    let numbers = part * images..((part + 1) * images).min(g.batch);
                    for (i, n) in numbers.enumerate() {
                        let of_result = n * result.len()..(n + 1) * result.len();
                        let mut dy = &dy[of_result.clone()];
                        if self.fused.relu {
                            kernels::mask(self.isa, &y[of_result], dy, masked);
                            dy = masked;
                        }
                        if self.fused.max_pool2 {
                            kernels::to_nhwc(
                                self.isa,
                                dy,
                                result,
                                pooled_dy,
                                self.pooled_image(),
                                0,
                            );
                            let winners = &winners[n * pooled..(n + 1) * pooled];
                            for (tag, &winner) in tags.iter_mut().zip(winners) {
                                *tag = winner as f32;
                            }
                            dz.fill(0.0);
                            let size = (g.out_height, g.out_width);
                            kernels::max_pool2_gradient(
                                self.isa, pooled_dy, tags, dz, output, size,
                            );
                        } else {
                            kernels::to_nhwc(self.isa, dy, result, dz, output, 0);
                        }
                        kernels::add_pixels(self.isa, dz, &mut bias_sums);
                        let of_input = n * g.in_len()..(n + 1) * g.in_len();
                        let size = self.input_size();
                        if ask.weight {
                            let x = &x[of_input];
                            kernels::to_nhwc(self.isa, x, size, image, input, g.padding);
                        }
                        if ask.data {
                            data_image.fill(0.0);
                        }
                        let wanted = Wanted {
                            data: ask.data.then_some((&packed, &mut *data_image)),
                            weight: ask.weight.then_some((&*image, &mut weight_sums)),
                        };
                        match &self.algorithm {
                            Algorithm::Winograd(winograd) => winograd.backward(dz, scratch, wanted),
                            Algorithm::Direct(direct) => direct.backward(dz, scratch, wanted),
                        }
                        if ask.data {
                            let data = &mut data[i * data_len..(i + 1) * data_len];
                            kernels::to_nchw(self.isa, data_image, input, g.padding, data, size);
                        }
                    }
                });
                (weight_sums, bias_sums)
            })
            .collect();
        let (weight_sums, bias_sums): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
        let weight = match (&self.algorithm, ask.weight) {
            (_, false) => Vec::new(),
            (Algorithm::Winograd(winograd), true) => {
                winograd.finish_weight(&sum_parts(weight_sums, sums_len))
            }
            (Algorithm::Direct(direct), true) => {
                direct.finish_weight(&sum_parts(weight_sums, sums_len))
            }
        };
        let mut bias = sum_parts(bias_sums, output.channels);
        bias.truncate(g.out_channels);
        Gradients { data, weight, bias }
    }
}

/// `count` pieces of `len` numbers each (the last may be shorter), also where `len` is zero.
fn pieces<T>(mut all: &mut [T], len: usize, count: usize) -> Vec<&mut [T]> {
    (0..count)
        .map(|_| {
            let len = len.min(all.len());
            let (piece, rest) = std::mem::take(&mut all).split_at_mut(len);
            all = rest;
            piece
        })
        .collect()
}

/// How many images a partial sum of the weight's gradient covers. It depends on the sizes alone,
/// so the gradient is the same, bit for bit, for any number of threads.
fn images_per_part(batch: usize, sums_len: usize) -> usize {
    // Large sums cost memory traffic of their own, so fewer of them.
    let parts = if sums_len > 1 << 16 { 8 } else { 16 };
    batch.div_ceil(parts).max(1)
}

/// The sum of `parts`, in their order.
fn sum_parts(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![0.0; len]);
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sum
}
