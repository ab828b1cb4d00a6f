//! What every network of this crate can do.

use std::collections::BTreeMap;

use candle_core::Tensor;
use kd_ops::DropoutKey;

use crate::Result;

/// Whether a forward pass trains or evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No dropout.
    Eval,
    /// Dropout, with the masks that the key gives.
    Train(DropoutKey),
}

/// A point of a network whose values can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The module's name in the reference, such as `features.2`: the place is that module's output.
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
    /// besides the logits. Maps that aren't asked for may never exist (layers are fused).
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
