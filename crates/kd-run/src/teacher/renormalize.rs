//! A network that was trained on images of another normalisation than those that it is given.

use candle_core::{DType, Device, Tensor};
use kd_data::Normalization;
use kd_models::{Classifier, Mode, Output, Place};

use super::Network;
use crate::Result;

/// The change of each colour channel, `scale * x + shift`, from images of one normalisation to those of another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Renormalize {
    /// The factor of red, green and blue.
    pub scale: [f32; 3],
    /// What is then added.
    pub shift: [f32; 3],
}

impl Renormalize {
    /// From `x = (p - m) / s` to `(p - m') / s' = s / s' * x + (m - m') / s'`; `None` where both normalisations are the same.
    pub fn between(from: Normalization, to: Normalization) -> Option<Self> {
        if from == to {
            return None;
        }
        let f = f64::from;
        let scale = |c: usize| (f(from.std[c]) / f(to.std[c])) as f32;
        let shift = |c: usize| ((f(from.mean[c]) - f(to.mean[c])) / f(to.std[c])) as f32;
        Some(Self { scale: [0, 1, 2].map(scale), shift: [0, 1, 2].map(shift) })
    }

    /// The network, which from here on takes images of the first normalisation.
    pub(super) fn before(self, network: Network, device: &Device) -> Result<Network> {
        let channels = |values: [f32; 3]| Tensor::new(&values, device)?.reshape((1, 3, 1, 1));
        let (scale, shift) = (channels(self.scale)?, channels(self.shift)?);
        Ok(Box::new(Renormalized { network, scale, shift }))
    }
}

/// A network behind the change of its images.
struct Renormalized {
    network: Network,
    /// f32 `[1, 3, 1, 1]`.
    scale: Tensor,
    /// f32 `[1, 3, 1, 1]`.
    shift: Tensor,
}

impl Classifier for Renormalized {
    fn forward_t(&self, images: &Tensor, mode: Mode, places: &[&str]) -> kd_models::Result<Output> {
        // In f32 also where the images are bf16.
        let own =
            images.to_dtype(DType::F32)?.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?;
        self.network.forward_t(&own.to_dtype(images.dtype())?, mode, places)
    }

    fn places(&self) -> Vec<Place> {
        self.network.places()
    }

    fn num_classes(&self) -> usize {
        self.network.num_classes()
    }

    fn multiply_adds(&self) -> u64 {
        self.network.multiply_adds()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_becomes_the_other_normalisations_input() {
        let from = Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };
        let to = Normalization::default();
        let change = Renormalize::between(from, to).unwrap();
        for channel in 0..3 {
            for byte in 0..=255 {
                let found =
                    change.scale[channel] * from.apply(channel, byte) + change.shift[channel];
                let expected = to.apply(channel, byte);
                assert!((found - expected).abs() < 2e-6, "{channel} {byte}: {found} {expected}");
            }
        }
        assert_eq!(Renormalize::between(to, to), None);
    }
}
