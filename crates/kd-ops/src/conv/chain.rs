//! Several convolutions in a row over a batch, and their forward pass.
//!
//! Each image goes through all layers before the next one starts, so what lies between two layers stays in the cache and is
//! never stored: the backward pass computes it again.

use rayon::prelude::*;

use super::images::{Size, copy_picture, to_nchw, to_nhwc};
use super::layer::{Layer, Maps};
use super::memory::pieces;
use crate::cpu::with_scratch;
use crate::simd::Isa;

/// Convolutions in a row, ready for batches; there is at least one.
pub(super) struct Chain {
    pub(super) isa: Isa,
    /// Images of a batch.
    pub(super) batch: usize,
    pub(super) layers: Vec<Layer>,
}

/// A layer's parameters as its caller has them.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a> {
    /// `[O, I, kh, kw]`.
    pub(super) weight: &'a [f32],
    /// What is added to each output channel, `[O]`.
    pub(super) bias: &'a [f32],
}

/// A layer's parameters as its forward pass takes them.
pub(super) struct Prepared {
    /// The weight, packed by [`Layer::pack`].
    weight: Vec<f32>,
    /// The bias, padded by [`Layer::pad_bias`].
    bias: Vec<f32>,
}

/// What the forward pass gives.
pub(super) struct Forward {
    /// The last layer's result, NCHW.
    pub(super) y: Vec<f32>,
    /// With a pool in the last layer: which pixel of four gave each maximum, NHWC with padded channels; empty without.
    pub(super) winners: Vec<u8>,
}

impl Chain {
    /// `layers` must not be empty, and each layer's result must be the next one's input.
    pub(super) fn new(isa: Isa, batch: usize, layers: Vec<Layer>) -> Self {
        assert!(!layers.is_empty());
        Self { isa, batch, layers }
    }

    pub(super) fn last(&self) -> &Layer {
        &self.layers[self.layers.len() - 1]
    }

    /// Channels, height and width of the result.
    pub(super) fn result_size(&self) -> Size {
        self.last().result_size()
    }

    /// Numbers of one input image.
    pub(super) fn input_len(&self) -> usize {
        self.layers[0].input_size().len()
    }

    /// Numbers of scratch memory that any one layer needs.
    pub(super) fn scratch_len(&self) -> usize {
        self.layers.iter().map(Layer::scratch_len).max().unwrap_or(0)
    }

    /// Numbers of all layers' maps.
    pub(super) fn maps_len(&self) -> usize {
        self.layers.iter().map(Maps::len).sum()
    }

    /// Cuts all layers' maps off `memory`.
    pub(super) fn carve_maps<'a>(&self, memory: &mut &'a mut [f32]) -> Vec<Maps<'a>> {
        self.layers.iter().map(|layer| Maps::carve(layer, memory)).collect()
    }

    /// Parameters of the first layers, ready for [`Self::run`].
    pub(super) fn prepare(&self, parameters: &[Parameters<'_>]) -> Vec<Prepared> {
        let layers = self.layers.iter().zip(parameters);
        layers
            .map(|(layer, parameters)| Prepared {
                weight: layer.pack(parameters.weight, false),
                bias: layer.pad_bias(parameters.bias),
            })
            .collect()
    }

    /// Runs one image `x` (NCHW) through the first layers, as many as `prepared` has. Each result goes into the next
    /// layer's image, where there is a next layer.
    pub(super) fn run(
        &self,
        x: &[f32],
        prepared: &[Prepared],
        maps: &mut [Maps<'_>],
        scratch: &mut [f32],
    ) {
        let first = &self.layers[0];
        let (size, image) = (first.input_size(), first.input_image());
        to_nhwc(self.isa, x, size, maps[0].image, image, (first.g.padding, first.g.padding));
        for (l, prepared) in prepared.iter().enumerate() {
            let layer = &self.layers[l];
            let (done, rest) = maps.split_at_mut(l + 1);
            layer.forward(&prepared.weight, &prepared.bias, &mut done[l], scratch);
            if let (Some(next), Some(next_maps)) = (self.layers.get(l + 1), rest.first_mut()) {
                let result = (done[l].result(layer), layer.result_image(), 0);
                let place = (&mut *next_maps.image, next.input_image(), next.g.padding);
                copy_picture(result, place, layer.result_size());
            }
        }
    }

    /// The forward pass over a batch `x`, NCHW; images in parallel.
    pub(super) fn forward(&self, x: &[f32], parameters: &[Parameters<'_>]) -> Forward {
        let prepared = self.prepare(parameters);
        let (last, result) = (self.last(), self.result_size());
        let (in_len, pooled) = (self.input_len(), last.pooled_len());
        let mut y = vec![0.0; self.batch * result.len()];
        let mut winners = vec![0u8; self.batch * pooled];
        let image = |n: usize, y: &mut [f32], winners: &mut [u8]| {
            with_scratch(self.scratch_len() + self.maps_len(), |mut scratch| {
                let mut maps = self.carve_maps(&mut scratch);
                self.run(&x[n * in_len..(n + 1) * in_len], &prepared, &mut maps, scratch);
                let maps = &maps[maps.len() - 1];
                for (winner, &tag) in winners.iter_mut().zip(&*maps.winners) {
                    *winner = tag as u8;
                }
                to_nchw(self.isa, maps.result(last), last.result_image(), (0, 0), y, result);
            });
        };
        pieces(&mut y, result.len(), self.batch)
            .into_par_iter()
            .zip(pieces(&mut winners, pooled, self.batch))
            .enumerate()
            .for_each(|(n, (y, winners))| image(n, y, winners));
        Forward { y, winners }
    }
}
