//! What a network can do for training and evaluation, whoever wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use kd_ops::DropoutKey;

use crate::Result;
use crate::engine::TrainPass;

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
    /// The place's name, such as `features.2` or `layer1`: where PyTorch's code for the network has a module of this
    /// name, the place is that module's output.
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

/// What a forward pass in training leaves for its backward pass: [`Classifier::train`] gives it, [`Classifier::backward`]
/// takes it.
#[derive(Default)]
#[must_use = "without it the parameters' gradients are not complete"]
pub struct Tape(pub(crate) Option<Box<TrainPass>>);

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Tape(a planned pass)" } else { "Tape(candle's own)" })
    }
}

/// A network that classifies images: a [`GraphNetwork`](crate::GraphNetwork), or any candle module of one's own.
pub trait Classifier {
    /// The forward pass.
    ///
    /// `images` is f32 `[B, C, H, W]`, normalised; `places` names the feature maps to return besides the logits. Maps
    /// that are not asked for may never exist, because layers are fused. On a GPU images may be bf16: maps and products
    /// are then bf16, too, of weights that may be f32 and then get f32 gradients.
    ///
    /// # Errors
    /// When the images have another shape than the network takes, or a place does not exist (the error lists those that
    /// do).
    fn forward_t(&self, images: &Tensor, mode: Mode, places: &[&str]) -> Result<Output>;

    /// The forward pass in evaluation for whoever needs no gradients through it: the values of [`Self::forward_t`] in
    /// [`Mode::Eval`], up to rounding, perhaps faster.
    ///
    /// # Errors
    /// As [`Self::forward_t`]'s.
    fn evaluate(&self, images: &Tensor, places: &[&str]) -> Result<Output> {
        self.forward_t(images, Mode::Eval, places)
    }

    /// The forward pass of a training step: the values of [`Self::forward_t`] in [`Mode::Train`], up to rounding, perhaps
    /// faster. The parameters' gradients are complete only once [`Self::backward`] has had the tape.
    ///
    /// # Errors
    /// As [`Self::forward_t`]'s.
    fn train(&self, images: &Tensor, key: DropoutKey, places: &[&str]) -> Result<(Output, Tape)> {
        Ok((self.forward_t(images, Mode::Train(key), places)?, Tape::default()))
    }

    /// Completes the gradients that `loss.backward()` gave, where the loss was computed from [`Self::train`]'s output: adds
    /// what goes through the network to its parameters and, where the images are a variable, to them. A network of candle's
    /// operations alone has nothing to add.
    ///
    /// # Errors
    /// When a gradient's tensor is not f32 on the CPU.
    fn backward(&self, tape: Tape, gradients: &mut GradStore) -> Result<()> {
        let _ = (tape, gradients);
        Ok(())
    }

    /// The feature places, from the input to the output.
    fn places(&self) -> Vec<Place>;

    /// The number of classes.
    fn num_classes(&self) -> usize;

    /// Multiplications (each with an addition) in the convolutions and linear layers of the
    /// forward pass of one image, done directly.
    fn multiply_adds(&self) -> u64;
}

/// The network that others share: passes and places are its own.
impl<T: Classifier + ?Sized> Classifier for Arc<T> {
    fn forward_t(&self, images: &Tensor, mode: Mode, places: &[&str]) -> Result<Output> {
        (**self).forward_t(images, mode, places)
    }

    fn evaluate(&self, images: &Tensor, places: &[&str]) -> Result<Output> {
        (**self).evaluate(images, places)
    }

    fn train(&self, images: &Tensor, key: DropoutKey, places: &[&str]) -> Result<(Output, Tape)> {
        (**self).train(images, key, places)
    }

    fn backward(&self, tape: Tape, gradients: &mut GradStore) -> Result<()> {
        (**self).backward(tape, gradients)
    }

    fn places(&self) -> Vec<Place> {
        (**self).places()
    }

    fn num_classes(&self) -> usize {
        (**self).num_classes()
    }

    fn multiply_adds(&self) -> u64 {
        (**self).multiply_adds()
    }
}
