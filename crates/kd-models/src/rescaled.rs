//! A network that takes images on another scale than those that it was trained on.

use candle_core::{DType, Device, Tensor};

use crate::{Classifier, Mode, Output, Place, Result};

/// The network behind a change of its images: each colour channel x becomes `scale * x + shift`, in f32, before the network is given
/// it. So a network that was trained on images of one normalisation takes those of another.
///
/// # Errors
/// When the device fails.
pub fn rescaled(
    network: Box<dyn Classifier + Send + Sync>,
    scale: [f32; 3],
    shift: [f32; 3],
    device: &Device,
) -> Result<Box<dyn Classifier + Send + Sync>> {
    let channels = |values: [f32; 3]| Tensor::new(&values, device)?.reshape((1, 3, 1, 1));
    Ok(Box::new(Rescaled { network, scale: channels(scale)?, shift: channels(shift)? }))
}

/// A network behind the change of its images.
struct Rescaled {
    network: Box<dyn Classifier + Send + Sync>,
    /// f32 `[1, 3, 1, 1]`.
    scale: Tensor,
    /// f32 `[1, 3, 1, 1]`.
    shift: Tensor,
}

impl Rescaled {
    /// The images as the network wants them; computed in f32 also where they are bf16.
    fn own(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let own =
            images.to_dtype(DType::F32)?.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?;
        own.to_dtype(images.dtype())
    }
}

impl Classifier for Rescaled {
    fn forward_t(&self, images: &Tensor, mode: Mode, places: &[&str]) -> Result<Output> {
        self.network.forward_t(&self.own(images)?, mode, places)
    }

    fn evaluate(&self, images: &Tensor, places: &[&str]) -> Result<Output> {
        self.network.evaluate(&self.own(images)?, places)
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
    use crate::{Architecture, ModelConfig};

    #[test]
    fn the_network_sees_the_changed_channels() {
        let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, 4);
        let parameters = crate::init(&config, 1, &Device::Cpu).unwrap();
        let build = || crate::build(&config, crate::var_builder(&parameters)).unwrap();
        let (scale, shift) = ([2f32, 0.5, 1.0], [0f32, 1.0, -3.0]);
        let network = rescaled(build(), scale, shift, &Device::Cpu).unwrap();
        let images = Tensor::rand(-1f32, 1., (2, 3, 32, 32), &Device::Cpu).unwrap();
        let channel = |c: usize| {
            let plane = images.narrow(1, c, 1).unwrap();
            plane.affine(f64::from(scale[c]), f64::from(shift[c])).unwrap()
        };
        let changed = Tensor::cat(&[channel(0), channel(1), channel(2)], 1).unwrap();
        let logits = |network: &dyn Classifier, images: &Tensor| {
            network.forward_t(images, Mode::Eval, &[]).unwrap().logits.to_vec2::<f32>().unwrap()
        };
        assert_eq!(logits(&*network, &images), logits(&*build(), &changed));
    }
}
