//! What every network of this crate can do.

use std::collections::BTreeMap;

use candle_core::Tensor;
use kd_ops::DropoutKey;

use crate::{Architecture, Error, Result};

/// Whether a forward pass trains or evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No dropout; batch normalisation by its running statistics.
    Eval,
    /// Dropout, with the masks that the key gives; batch normalisation by the batch's statistics, which
    /// also enter the running ones.
    Train(DropoutKey),
}

/// A point of a network whose values can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A module's name in the reference, such as `features.2` or `layer1`: the place is that module's
    /// output. What has no module there has a name of its own ([`ResNet`](crate::ResNet)).
    pub name: String,
    /// The shape of one image's values there: `[C, H, W]` or `[F]`.
    pub shape: Vec<usize>,
}

/// What a forward pass gives.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[B, classes]`, before any softmax.
    pub logits: Tensor,
    /// The values at the places that were asked for, each with the batch as first dimension.
    pub features: BTreeMap<String, Tensor>,
}

/// A network that tells images of classes apart.
pub trait Classifier {
    /// The forward pass.
    ///
    /// `images` is f32 `[B, 3, 32, 32]`, normalised; `places` names the feature maps to return
    /// besides the logits. Maps that aren't asked for may never exist (layers are fused). On a GPU images may be bf16:
    /// maps and products then are bf16, too, of weights that may be f32 and then get f32 gradients.
    ///
    /// # Errors
    /// When the images have another shape, or a place does not exist (the error lists those that do).
    fn forward_t(&self, images: &Tensor, mode: Mode, places: &[&str]) -> Result<Output>;

    /// The feature places, from the input to the output.
    fn places(&self) -> Vec<Place>;

    /// The number of classes.
    fn num_classes(&self) -> usize;

    /// Multiplications (each with an addition) in the convolutions and linear layers of the
    /// forward pass of one image, done directly.
    fn multiply_adds(&self) -> u64;
}

/// Images must be `[B, 3, 32, 32]`.
pub(crate) fn check_images(architecture: Architecture, images: &Tensor) -> Result<()> {
    match images.dims() {
        [_, 3, 32, 32] => Ok(()),
        found => Err(Error::Images { architecture: architecture.name(), found: found.to_vec() }),
    }
}

/// Every place asked for must be known.
pub(crate) fn check_places(
    architecture: Architecture,
    known: &[Place],
    asked: &[&str],
) -> Result<()> {
    let is_unknown = |name: &&&str| known.iter().all(|place| place.name != **name);
    let Some(&place) = asked.iter().find(is_unknown) else { return Ok(()) };
    let known: Vec<_> = known.iter().map(|place| place.name.as_str()).collect();
    Err(Error::UnknownPlace {
        architecture: architecture.name(),
        place: place.to_string(),
        known: known.join(", "),
    })
}
