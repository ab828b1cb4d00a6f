//! The backward pass of several convolutions in a row over a batch.
//!
//! Images are taken in parts, in parallel; each part has sums of its own, which are added in order at the end. Within a
//! part, for each image: the maps between the layers are computed again, the gradient of the result is laid out, and then
//! each layer, the last one first, adds to its sums and hands the gradient of its input to the layer before it.

use rayon::prelude::*;

use super::chain::{Chain, Parameters, Prepared};
use super::images::{copy_picture, to_nchw, to_nhwc};
use super::layer::{Layer, Maps};
use super::memory::{carve, pieces};
use super::pointwise::{add_pixels, mask, max_pool2_gradient};
use super::wanted::Wanted;
use crate::cpu::with_scratch;

/// What the backward pass is given: all of a batch.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    /// The input, NCHW.
    pub(super) x: &'a [f32],
    /// The result and the pool's winners, as the forward pass gave them.
    pub(super) y: &'a [f32],
    pub(super) winners: &'a [u8],
    /// The gradient of the result, NCHW.
    pub(super) dy: &'a [f32],
}

/// What the backward pass gives.
pub(super) struct Gradients {
    /// The input's gradient, NCHW; empty where it was not asked for.
    pub(super) data: Vec<f32>,
    /// Each layer's parameters'.
    pub(super) parameters: Vec<ParameterGradients>,
}

/// The gradients of a layer's parameters.
pub(super) struct ParameterGradients {
    /// `[O, I, kh, kw]`.
    pub(super) weight: Vec<f32>,
    /// What is added to each output channel, `[O]`.
    pub(super) bias: Vec<f32>,
}

/// All gradients of `chain`, that of the input only where `ask_data` says so.
pub(super) fn backward(
    chain: &Chain,
    parameters: &[Parameters<'_>],
    given: Given<'_>,
    ask_data: bool,
) -> Gradients {
    let backward = Backward::new(chain, parameters, given, ask_data);
    let data_len = if ask_data { chain.input_len() } else { 0 };
    let mut data = vec![0.0; chain.batch * data_len];
    let parts = chain.batch.div_ceil(backward.images_per_part);
    let sums: Vec<Vec<Sums>> = pieces(&mut data, backward.images_per_part * data_len, parts)
        .into_par_iter()
        .enumerate()
        .map(|(part, data)| backward.part(part, data))
        .collect();
    Gradients { data, parameters: finish(chain, sums) }
}

/// A layer's sums over images, in its algorithm's own layout.
struct Sums {
    /// See [`Layer::sums_len`].
    weight: Vec<f32>,
    /// A number for each channel of the output image.
    bias: Vec<f32>,
}

impl Sums {
    fn zeros(layer: &Layer) -> Self {
        let bias = vec![0.0; layer.output_image().channels];
        Self { weight: vec![0.0; layer.sums_len()], bias }
    }
}

/// A backward pass with all that its parts share.
struct Backward<'a> {
    chain: &'a Chain,
    given: Given<'a>,
    ask_data: bool,
    /// Of all layers but the last, to compute what lies between the layers again.
    prepared: Vec<Prepared>,
    /// Each layer's weight, packed for its input's gradient; empty where that is not asked for.
    packed: Vec<Vec<f32>>,
    images_per_part: usize,
}

/// The scratch memory of a part, cut up.
struct Scratch<'m> {
    /// Each layer's maps. Once the maps in between are computed, `output` holds the gradient of the convolution's output.
    maps: Vec<Maps<'m>>,
    /// The gradient of one layer's padded input.
    data_image: &'m mut [f32],
    /// The gradient of one layer's pooled result.
    dpooled: &'m mut [f32],
    /// The gradient of the last layer's result, NCHW, behind its ReLU.
    masked: &'m mut [f32],
    /// The algorithms' own.
    algorithm: &'m mut [f32],
}

impl<'a> Backward<'a> {
    fn new(
        chain: &'a Chain,
        parameters: &[Parameters<'_>],
        given: Given<'a>,
        ask_data: bool,
    ) -> Self {
        let pack = |(l, (layer, parameters)): (usize, (&Layer, &Parameters<'_>))| {
            if l > 0 || ask_data { layer.pack(parameters.weight, true) } else { Vec::new() }
        };
        let sums_len = chain.layers.iter().map(Layer::sums_len).sum();
        Self {
            chain,
            given,
            ask_data,
            prepared: chain.prepare(&parameters[..chain.layers.len() - 1]),
            packed: chain.layers.iter().zip(parameters).enumerate().map(pack).collect(),
            images_per_part: images_per_part(chain.batch, sums_len),
        }
    }

    /// Whether the gradient of this layer's input is asked for.
    fn asks_for_input_of(&self, l: usize) -> bool {
        l > 0 || self.ask_data
    }

    /// Numbers of the largest layer by some measure.
    fn largest(&self, len: impl Fn(&Layer) -> usize) -> usize {
        self.chain.layers.iter().map(len).max().unwrap_or(0)
    }

    fn data_image_len(&self) -> usize {
        self.largest(|layer| layer.input_image().len())
    }

    fn scratch_len(&self) -> usize {
        self.chain.scratch_len()
            + self.chain.maps_len()
            + self.data_image_len()
            + self.largest(Layer::pooled_len)
            + self.chain.result_size().len()
    }

    fn carve_scratch<'m>(&self, mut memory: &'m mut [f32]) -> Scratch<'m> {
        Scratch {
            maps: self.chain.carve_maps(&mut memory),
            data_image: carve(&mut memory, self.data_image_len()),
            dpooled: carve(&mut memory, self.largest(Layer::pooled_len)),
            masked: carve(&mut memory, self.chain.result_size().len()),
            algorithm: memory,
        }
    }

    /// The sums of part `part`, and its images' part of the data's gradient, written to `data`.
    fn part(&self, part: usize, data: &mut [f32]) -> Vec<Sums> {
        let mut sums: Vec<Sums> = self.chain.layers.iter().map(Sums::zeros).collect();
        let first = part * self.images_per_part;
        let images = first..(first + self.images_per_part).min(self.chain.batch);
        with_scratch(self.scratch_len(), |memory| {
            let mut scratch = self.carve_scratch(memory);
            for image in images {
                self.compute_maps_again(image, &mut scratch);
                self.lay_out_result_gradient(image, &mut scratch);
                for l in (0..self.chain.layers.len()).rev() {
                    self.spread_over_pool(l, &mut scratch);
                    self.add_layer_gradients(l, &mut scratch, &mut sums[l]);
                    if l > 0 {
                        self.hand_to_layer_before(l, &mut scratch);
                    }
                }
                if self.ask_data {
                    self.write_data_gradient(image - first, &scratch, data);
                }
            }
        });
        sums
    }

    /// Every layer's input image.
    fn compute_maps_again(&self, image: usize, scratch: &mut Scratch<'_>) {
        let len = self.chain.input_len();
        let x = &self.given.x[image * len..(image + 1) * len];
        self.chain.run(x, &self.prepared, &mut scratch.maps, scratch.algorithm);
    }

    /// The image's share of `dy`, behind the last layer's ReLU, where that layer's backward pass looks for it.
    fn lay_out_result_gradient(&self, image: usize, scratch: &mut Scratch<'_>) {
        let Scratch { maps, dpooled, masked, .. } = scratch;
        let (last, result) = (self.chain.last(), self.chain.result_size());
        let of_result = image * result.len()..(image + 1) * result.len();
        masked.copy_from_slice(&self.given.dy[of_result.clone()]);
        if last.relu {
            mask(self.chain.isa, &self.given.y[of_result], masked);
        }
        let maps = &mut maps[self.chain.layers.len() - 1];
        let pooled = last.pooled_len();
        let winners = &self.given.winners[image * pooled..(image + 1) * pooled];
        for (tag, &winner) in maps.winners.iter_mut().zip(winners) {
            *tag = f32::from(winner);
        }
        let place = if last.max_pool2 { &mut **dpooled } else { &mut *maps.output };
        to_nhwc(self.chain.isa, masked, result, place, last.result_image(), (0, 0));
    }

    /// With a pool: from the gradient of its result to that of the convolution's output.
    fn spread_over_pool(&self, l: usize, scratch: &mut Scratch<'_>) {
        let layer = &self.chain.layers[l];
        if !layer.max_pool2 {
            return;
        }
        let maps = &mut scratch.maps[l];
        maps.output.fill(0.0);
        let size = (layer.g.out_height, layer.g.out_width);
        let image = layer.output_image();
        let dpooled = &*scratch.dpooled;
        max_pool2_gradient(self.chain.isa, dpooled, maps.winners, maps.output, image, size);
    }

    /// Adds to the layer's sums, and computes the gradient of its padded input where that is asked for.
    fn add_layer_gradients(&self, l: usize, scratch: &mut Scratch<'_>, sums: &mut Sums) {
        let layer = &self.chain.layers[l];
        let maps = &scratch.maps[l];
        add_pixels(self.chain.isa, maps.output, &mut sums.bias);
        let data_image = &mut scratch.data_image[..layer.input_image().len()];
        let asked = self.asks_for_input_of(l);
        if asked {
            data_image.fill(0.0);
        }
        let wanted = Wanted {
            data: asked.then_some((&self.packed[l], data_image)),
            weight: Some((&*maps.image, &mut sums.weight)),
        };
        layer.backward(1, maps.output, scratch.algorithm, wanted);
    }

    /// The gradient of layer `l`'s input becomes that of the result of the layer before it, behind that layer's ReLU.
    fn hand_to_layer_before(&self, l: usize, scratch: &mut Scratch<'_>) {
        let (layer, before) = (&self.chain.layers[l], &self.chain.layers[l - 1]);
        let image = layer.input_image();
        let data_image = &mut scratch.data_image[..image.len()];
        if before.relu {
            // The layer's input is the result of the ReLU before it.
            mask(self.chain.isa, scratch.maps[l].image, data_image);
        }
        let place = match before.max_pool2 {
            true => &mut *scratch.dpooled,
            false => &mut *scratch.maps[l - 1].output,
        };
        let from = (&*data_image, image, layer.g.padding);
        copy_picture(from, (place, before.result_image(), 0), before.result_size());
    }

    /// The gradient of the first layer's input, to the place of the part's `n`-th image in `data`.
    fn write_data_gradient(&self, n: usize, scratch: &Scratch<'_>, data: &mut [f32]) {
        let first = &self.chain.layers[0];
        let (size, image) = (first.input_size(), first.input_image());
        let data = &mut data[n * size.len()..(n + 1) * size.len()];
        let data_image = &scratch.data_image[..image.len()];
        to_nchw(self.chain.isa, data_image, image, (first.g.padding, first.g.padding), data, size);
    }
}

/// Adds up the parts' sums, in their order, and turns them into each layer's gradients.
fn finish(chain: &Chain, parts: Vec<Vec<Sums>>) -> Vec<ParameterGradients> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_else(|| chain.layers.iter().map(Sums::zeros).collect());
    for part in parts {
        for (total, part) in total.iter_mut().zip(part) {
            add(&mut total.weight, &part.weight);
            add(&mut total.bias, &part.bias);
        }
    }
    let gradients = |(layer, mut sums): (&Layer, Sums)| {
        sums.bias.truncate(layer.g.out_channels);
        ParameterGradients { weight: layer.finish_weight(&sums.weight), bias: sums.bias }
    };
    chain.layers.iter().zip(total).map(gradients).collect()
}

fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
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
    use super::super::chain::Forward;
    use super::super::geometry::{Conv2dConfig, Geometry};
    use super::*;
    use crate::simd::Isa;

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
        let parameters = [Parameters { weight: &weight, bias: &bias }];
        let Forward { y, winners } = chain.forward(&x, &parameters);
        let dy = numbers(y.len(), 4);
        let given = Given { x: &x, y: &y, winners: &winners, dy: &dy };
        let Gradients { data, parameters } = backward(&chain, &parameters, given, true);
        let mut all = vec![y, data];
        for ParameterGradients { weight, bias } in parameters {
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
