//! The forward and the backward pass of one convolution, or of several in a row, over a batch.
//!
//! Each image goes through all layers before the next one starts, so what lies between two
//! layers stays in the cache and is never stored: the backward pass computes it again.

use rayon::prelude::*;

use super::direct::Direct;
use super::geometry::Geometry;
use super::kernels::{self, Nhwc, Size};
use super::winograd::Winograd;
use super::{Wanted, carve};
use crate::cpu::with_scratch;
use crate::simd::Isa;

/// The way one convolution is computed.
enum Algorithm {
    Winograd(Winograd),
    Direct(Direct),
}

/// One convolution with what is fused behind it.
pub(super) struct Layer {
    isa: Isa,
    g: Geometry,
    relu: bool,
    max_pool2: bool,
    algorithm: Algorithm,
}

impl Layer {
    pub(super) fn new(isa: Isa, g: Geometry, relu: bool, max_pool2: bool) -> Self {
        let algorithm = if Winograd::suits(&g) {
            Algorithm::Winograd(Winograd::new(isa, g))
        } else {
            Algorithm::Direct(Direct::new(isa, g))
        };
        Self { isa, g, relu, max_pool2, algorithm }
    }

    /// The padded input in scratch memory.
    fn input_image(&self) -> Nhwc {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.input_image(),
            Algorithm::Direct(direct) => direct.input_image(),
        }
    }

    /// The convolution's output in scratch memory; it may be larger than the output.
    fn output_image(&self) -> Nhwc {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.output_image(),
            Algorithm::Direct(direct) => direct.output_image(),
        }
    }

    /// The result in scratch memory: the output, or its pooled half.
    fn result_image(&self) -> Nhwc {
        let output = self.output_image();
        match self.max_pool2 {
            true => Nhwc { rows: self.g.out_height / 2, line: self.g.out_width / 2, ..output },
            false => output,
        }
    }

    fn pooled_len(&self) -> usize {
        if self.max_pool2 { self.result_image().len() } else { 0 }
    }

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

    fn pack(&self, weight: &[f32], gradient: bool) -> Vec<f32> {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.pack(weight, gradient),
            Algorithm::Direct(direct) => direct.pack(weight, gradient),
        }
    }

    fn pad_bias(&self, bias: &[f32]) -> Vec<f32> {
        let mut padded = bias.to_vec();
        padded.resize(self.output_image().channels, 0.0);
        padded
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

    /// Convolution, bias, ReLU and pool of one image; the result lies in [`Maps::result`].
    fn forward(&self, packed: &[f32], bias: &[f32], maps: &mut Maps<'_>, scratch: &mut [f32]) {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => {
                winograd.forward(maps.image, packed, scratch, maps.output);
            }
            Algorithm::Direct(direct) => direct.forward(maps.image, packed, maps.output),
        }
        kernels::bias_relu(self.isa, maps.output, bias, self.relu);
        if self.max_pool2 {
            let size = (self.g.out_height, self.g.out_width);
            let output = self.output_image();
            kernels::max_pool2(self.isa, maps.output, output, size, maps.pooled, maps.winners);
        }
    }

    fn backward(&self, dz: &[f32], scratch: &mut [f32], wanted: Wanted<'_>) {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.backward(dz, scratch, wanted),
            Algorithm::Direct(direct) => direct.backward(dz, scratch, wanted),
        }
    }

    /// The weight's gradient from the summed sums.
    fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        match &self.algorithm {
            Algorithm::Winograd(winograd) => winograd.finish_weight(sums),
            Algorithm::Direct(direct) => direct.finish_weight(sums),
        }
    }
}

/// A layer's maps for one image, in scratch memory.
struct Maps<'a> {
    /// The padded input.
    image: &'a mut [f32],
    output: &'a mut [f32],
    /// With a pool: the maxima, and which pixel of four gave each.
    pooled: &'a mut [f32],
    winners: &'a mut [f32],
}

impl<'a> Maps<'a> {
    fn len(layer: &Layer) -> usize {
        layer.input_image().len() + layer.output_image().len() + 2 * layer.pooled_len()
    }

    fn carve(layer: &Layer, memory: &mut &'a mut [f32]) -> Self {
        Self {
            image: carve(memory, layer.input_image().len()),
            output: carve(memory, layer.output_image().len()),
            pooled: carve(memory, layer.pooled_len()),
            winners: carve(memory, layer.pooled_len()),
        }
    }

    /// The layer's result, see [`Layer::result_image`].
    fn result(&self, layer: &Layer) -> &[f32] {
        if layer.max_pool2 { self.pooled } else { self.output }
    }
}

/// Convolutions in a row, ready for batches; there is at least one.
pub(super) struct Chain {
    isa: Isa,
    batch: usize,
    layers: Vec<Layer>,
}

/// Weight and bias of one layer.
pub(super) type Parameters<'a> = (&'a [f32], &'a [f32]);

/// What the forward pass gives.
pub(super) struct Forward {
    /// The last layer's result, NCHW.
    pub(super) y: Vec<f32>,
    /// With a pool in the last layer: which pixel of four won, NHWC with padded channels.
    pub(super) winners: Vec<u8>,
}

/// What the backward pass gives.
pub(super) struct Gradients {
    /// Empty where not asked for.
    pub(super) data: Vec<f32>,
    /// Each layer's weight and bias.
    pub(super) parameters: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Chain {
    /// `layers` must not be empty, and each layer's result must be the next one's input.
    pub(super) fn new(isa: Isa, batch: usize, layers: Vec<Layer>) -> Self {
        assert!(!layers.is_empty());
        Self { isa, batch, layers }
    }

    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    fn last(&self) -> &Layer {
        &self.layers[self.layers.len() - 1]
    }

    /// Channels, height and width of the result.
    pub(super) fn result_size(&self) -> Size {
        self.last().result_size()
    }

    fn scratch_len(&self) -> usize {
        self.layers.iter().map(Layer::scratch_len).max().unwrap_or(0)
    }

    /// Runs one image through the first `count` layers; each result goes into the next layer's
    /// image, where there is one in `maps`.
    fn run(
        &self,
        x: &[f32],
        ready: &[(Vec<f32>, Vec<f32>)],
        maps: &mut [Maps<'_>],
        count: usize,
        scratch: &mut [f32],
    ) {
        let first = &self.layers[0];
        let (size, image) = (first.input_size(), first.input_image());
        kernels::to_nhwc(self.isa, x, size, maps[0].image, image, first.g.padding);
        for l in 0..count {
            let layer = &self.layers[l];
            let (packed, bias) = &ready[l];
            let (done, rest) = maps.split_at_mut(l + 1);
            layer.forward(packed, bias, &mut done[l], scratch);
            if let (Some(next), Some(maps)) = (self.layers.get(l + 1), rest.first_mut()) {
                let place = (maps.image as &mut [f32], next.input_image(), next.g.padding);
                copy_picture(
                    (done[l].result(layer), layer.result_image(), 0),
                    place,
                    layer.result_size(),
                );
            }
        }
    }

    pub(super) fn forward(&self, x: &[f32], parameters: &[Parameters<'_>]) -> Forward {
        let ready = self.ready(parameters);
        let (last, result) = (self.last(), self.result_size());
        let pooled = last.pooled_len();
        let mut y = vec![0.0; self.batch * result.len()];
        let mut winners = vec![0u8; self.batch * pooled];
        let memory = self.scratch_len() + self.layers.iter().map(Maps::len).sum::<usize>();
        let in_len = self.layers[0].input_size().len();
        pieces(&mut y, result.len(), self.batch)
            .into_par_iter()
            .zip(pieces(&mut winners, pooled, self.batch))
            .enumerate()
            .for_each(|(n, (y, winners))| {
                with_scratch(memory, |mut scratch| {
                    let x = &x[n * in_len..(n + 1) * in_len];
                    let mut maps: Vec<_> =
                        self.layers.iter().map(|layer| Maps::carve(layer, &mut scratch)).collect();
                    self.run(x, &ready, &mut maps, self.layers.len(), scratch);
                    let maps = &maps[maps.len() - 1];
                    for (winner, &tag) in winners.iter_mut().zip(&*maps.winners) {
                        *winner = tag as u8;
                    }
                    kernels::to_nchw(
                        self.isa,
                        maps.result(last),
                        last.result_image(),
                        0,
                        y,
                        result,
                    );
                });
            });
        Forward { y, winners }
    }

    /// Packed weights and padded biases for the forward pass.
    fn ready(&self, parameters: &[Parameters<'_>]) -> Vec<(Vec<f32>, Vec<f32>)> {
        let layers = self.layers.iter().zip(parameters);
        layers
            .map(|(layer, (weight, bias))| (layer.pack(weight, false), layer.pad_bias(bias)))
            .collect()
    }

    /// The gradients from the result's gradient `dy`; `y` and `winners` are what forward gave.
    pub(super) fn backward(
        &self,
        x: &[f32],
        parameters: &[Parameters<'_>],
        (y, winners): (&[f32], &[u8]),
        dy: &[f32],
        ask_data: bool,
    ) -> Gradients {
        let ready = self.ready(&parameters[..self.layers.len() - 1]);
        let asked = |l: usize| l > 0 || ask_data;
        let packed: Vec<Vec<f32>> = (self.layers.iter().zip(parameters).enumerate())
            .map(
                |(l, (layer, (weight, _)))| {
                    if asked(l) { layer.pack(weight, true) } else { Vec::new() }
                },
            )
            .collect();
        let (last, result) = (self.last(), self.result_size());
        let pooled = last.pooled_len();
        let sums_len = self.layers.iter().map(Layer::sums_len).sum();
        let images = images_per_part(self.batch, sums_len);
        let in_len = self.layers[0].input_size().len();
        let data_len = if ask_data { in_len } else { 0 };
        let mut data = vec![0.0; self.batch * data_len];
        let data_image_len =
            self.layers.iter().map(|layer| layer.input_image().len()).max().unwrap_or(0);
        let dpooled_len = self.layers.iter().map(Layer::pooled_len).max().unwrap_or(0);
        let memory = self.scratch_len()
            + self.layers.iter().map(Maps::len).sum::<usize>()
            + data_image_len
            + dpooled_len
            + result.len();
        let parts = self.batch.div_ceil(images);
        let sums: Vec<Vec<(Vec<f32>, Vec<f32>)>> = pieces(&mut data, images * data_len, parts)
            .into_par_iter()
            .enumerate()
            .map(|(part, data)| {
                let mut sums: Vec<(Vec<f32>, Vec<f32>)> = (self.layers.iter())
                    .map(|layer| {
                        (vec![0.0; layer.sums_len()], vec![0.0; layer.output_image().channels])
                    })
                    .collect();
                with_scratch(memory, |mut scratch| {
                    let mut maps: Vec<_> =
                        self.layers.iter().map(|layer| Maps::carve(layer, &mut scratch)).collect();
                    let data_image = carve(&mut scratch, data_image_len);
                    let dpooled = carve(&mut scratch, dpooled_len);
                    let masked = carve(&mut scratch, result.len());
                    let numbers = part * images..((part + 1) * images).min(self.batch);
                    for (i, n) in numbers.enumerate() {
                        let x = &x[n * in_len..(n + 1) * in_len];
                        self.run(x, &ready, &mut maps, self.layers.len() - 1, scratch);
                        // From here on a layer's `output` holds the gradient of its convolution.
                        let of_result = n * result.len()..(n + 1) * result.len();
                        masked.copy_from_slice(&dy[of_result.clone()]);
                        if last.relu {
                            kernels::mask(self.isa, &y[of_result], masked);
                        }
                        let maps_of_last = &mut maps[self.layers.len() - 1];
                        let winners = &winners[n * pooled..(n + 1) * pooled];
                        for (tag, &winner) in maps_of_last.winners.iter_mut().zip(winners) {
                            *tag = f32::from(winner);
                        }
                        let place =
                            if last.max_pool2 { &mut *dpooled } else { &mut *maps_of_last.output };
                        kernels::to_nhwc(self.isa, masked, result, place, last.result_image(), 0);
                        for l in (0..self.layers.len()).rev() {
                            let layer = &self.layers[l];
                            let (before, rest) = maps.split_at_mut(l);
                            let maps = &mut rest[0];
                            if layer.max_pool2 {
                                let size = (layer.g.out_height, layer.g.out_width);
                                let output = layer.output_image();
                                maps.output.fill(0.0);
                                kernels::max_pool2_gradient(
                                    self.isa,
                                    dpooled,
                                    maps.winners,
                                    maps.output,
                                    output,
                                    size,
                                );
                            }
                            kernels::add_pixels(self.isa, maps.output, &mut sums[l].1);
                            let image = layer.input_image();
                            let data_image = &mut data_image[..image.len()];
                            if asked(l) {
                                data_image.fill(0.0);
                            }
                            let wanted = Wanted {
                                data: asked(l).then_some((&packed[l], &mut *data_image)),
                                weight: Some((&*maps.image, &mut sums[l].0)),
                            };
                            layer.backward(maps.output, scratch, wanted);
                            if let (Some(earlier), Some(earlier_maps)) =
                                (l.checked_sub(1).map(|l| &self.layers[l]), before.last_mut())
                            {
                                if earlier.relu {
                                    kernels::mask(self.isa, maps.image, data_image);
                                }
                                let place = match earlier.max_pool2 {
                                    true => &mut *dpooled,
                                    false => &mut *earlier_maps.output,
                                };
                                copy_picture(
                                    (data_image, image, layer.g.padding),
                                    (place, earlier.result_image(), 0),
                                    earlier.result_size(),
                                );
                            } else if ask_data {
                                let data = &mut data[i * data_len..(i + 1) * data_len];
                                let size = layer.input_size();
                                kernels::to_nchw(
                                    self.isa,
                                    data_image,
                                    image,
                                    layer.g.padding,
                                    data,
                                    size,
                                );
                            }
                        }
                    }
                });
                sums
            })
            .collect();
        Gradients { data, parameters: self.finish(sums) }
    }

    /// Adds up the parts' sums, in their order, and turns them into each layer's gradients.
    fn finish(&self, parts: Vec<Vec<(Vec<f32>, Vec<f32>)>>) -> Vec<(Vec<f32>, Vec<f32>)> {
        let mut parts = parts.into_iter();
        let mut total = parts.next().unwrap_or_else(|| {
            let empty = |l: &Layer| (vec![0.0; l.sums_len()], vec![0.0; l.output_image().channels]);
            self.layers.iter().map(empty).collect()
        });
        for part in parts {
            for ((weight, bias), (weight_part, bias_part)) in total.iter_mut().zip(part) {
                add(weight, &weight_part);
                add(bias, &bias_part);
            }
        }
        let layers = self.layers.iter().zip(total);
        layers
            .map(|(layer, (weight, mut bias))| {
                bias.truncate(layer.g.out_channels);
                (layer.finish_weight(&weight), bias)
            })
            .collect()
    }
}

fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Copies a picture of `size` from a place in one NHWC image to a place in another; the rest of
/// the other becomes zero. A place is the memory, the image, and the picture's corner in it.
fn copy_picture(
    (from, from_image, from_corner): (&[f32], Nhwc, usize),
    (to, to_image, to_corner): (&mut [f32], Nhwc, usize),
    size: Size,
) {
    let to = &mut to[..to_image.len()];
    to.fill(0.0);
    for y in 0..size.height {
        let from_at = ((y + from_corner) * from_image.line + from_corner) * from_image.channels;
        let to_at = ((y + to_corner) * to_image.line + to_corner) * to_image.channels;
        let from = &from[from_at..from_at + size.width * from_image.channels];
        let to = &mut to[to_at..to_at + size.width * to_image.channels];
        if from_image.channels == to_image.channels {
            to.copy_from_slice(from);
            continue;
        }
        let pixels =
            from.chunks_exact(from_image.channels).zip(to.chunks_exact_mut(to_image.channels));
        for (from, to) in pixels {
            to[..size.channels].copy_from_slice(&from[..size.channels]);
        }
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

#[cfg(test)]
mod tests {
    use super::super::Conv2dConfig;
    use super::*;

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i.wrapping_add(seed).wrapping_mul(2654435761) >> 8) as f32;
        (0..len as u32).map(|i| hash(i) / (1 << 23) as f32 - 1.0).collect()
    }

    /// Values and gradients of one convolution on the vector unit `isa`.
    fn run(isa: Isa, inputs: usize, outputs: usize, config: &Conv2dConfig) -> Vec<Vec<f32>> {
        let (x, weight) = ([5, inputs, 10, 9], [outputs, inputs, 3, 3]);
        let g = Geometry::new(&x, &weight, config).unwrap();
        let layer = Layer::new(isa, g, config.relu, config.max_pool2);
        let chain = Chain::new(isa, g.batch, vec![layer]);
        let x = numbers(x.iter().product(), 1);
        let (weight, bias) = (numbers(g.weight_len(), 2), numbers(outputs, 3));
        let parameters = [(weight.as_slice(), bias.as_slice())];
        let Forward { y, winners } = chain.forward(&x, &parameters);
        let dy = numbers(y.len(), 4);
        let gradients = chain.backward(&x, &parameters, (&y, &winners), &dy, true);
        let mut all = vec![y, gradients.data];
        for (weight, bias) in gradients.parameters {
            all.extend([weight, bias]);
        }
        all
    }

    #[test]
    fn every_vector_unit_of_this_processor_agrees_with_portable_code() {
        let units = Isa::available();
        println!("vector units: {}", units.iter().map(|u| u.name()).collect::<Vec<_>>().join(", "));
        for (inputs, outputs) in [(3, 5), (3, 40), (16, 16), (20, 33), (40, 17)] {
            for stride in [1, 2] {
                for (relu, max_pool2) in [(false, false), (true, true)] {
                    let config =
                        Conv2dConfig { stride, padding: 1, relu, max_pool2, ..Default::default() };
                    let expected = run(Isa::Portable, inputs, outputs, &config);
                    for &isa in &units {
                        for (found, expected) in
                            run(isa, inputs, outputs, &config).iter().zip(&expected)
                        {
                            let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
                            for (found, expected) in found.iter().zip(expected) {
                                assert!(
                                    (found - expected).abs() <= 1e-5 * largest,
                                    "{isa:?} {inputs} {outputs} {config:?}: {found} for {expected}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
