//! What a distillation method is, and how one is made from a recipe's options.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::inputs::{Inputs, Needs};
use crate::{Result, Setup};

/// A loss that is added to the cross-entropy with the labels.
///
/// A method holds what it learns (helper parameters) and gets the rest with each batch. Its name is not its own concern: a recipe or
/// whoever adds it to an [`Objective`](crate::Objective) names it, and the objective names it in errors.
pub trait Method: Send + Sync {
    /// What the trainer must provide in [`Inputs`]. An [`Objective`](crate::Objective) shows the method nothing from the host
    /// that is not asked for here.
    fn needs(&self) -> Needs;
    /// The temperature, when the loss is [`kd`](crate::kd) of the two networks' logits and nothing else: an
    /// [`Objective`](crate::Objective) then computes it and the labels' cross-entropy in one operation.
    fn plain_kd(&self) -> Option<f64> {
        None
    }
    /// The loss of a batch, a scalar, before its weight. The teacher gets no gradient.
    ///
    /// # Errors
    /// When shapes don't fit, or something that the method needs is missing.
    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor>;
}

/// How a method of the list is made: what is said of it, its options, and what follows from them.
pub trait Definition {
    /// The options, as a recipe's table holds them. An unknown key should be an error (serde's `deny_unknown_fields`).
    type Options: Clone + Default + PartialEq + Serialize + DeserializeOwned;

    /// What the list of methods says of it.
    const ABOUT: About;

    /// Whether the loss goes by the images' labels, so that it can't be had of images without any.
    const NEEDS_LABELS: bool = false;

    /// Checks the options that don't depend on the networks.
    ///
    /// # Errors
    /// When an option makes no sense.
    fn validate(options: &Self::Options) -> Result<()> {
        let _ = options;
        Ok(())
    }

    /// Fills in the feature places that were left out.
    ///
    /// # Errors
    /// When a place does not exist.
    fn resolve(options: &mut Self::Options, setup: &Setup) -> Result<()> {
        let _ = (options, setup);
        Ok(())
    }

    /// The tensors that the method needs besides the networks'.
    ///
    /// # Errors
    /// When a place does not exist or shapes don't fit.
    fn helper_parameters(options: &Self::Options, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let _ = (options, setup);
        Ok(Vec::new())
    }

    /// Makes the method; `vb` holds its helper parameters.
    ///
    /// # Errors
    /// When a place does not exist, shapes don't fit, or `vb` lacks a helper parameter.
    fn build(options: &Self::Options, setup: &Setup, vb: VarBuilder<'_>)
    -> Result<Box<dyn Method>>;
}

/// What the list of methods says of a method, besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct About {
    /// Where its knowledge lies.
    pub kind: Kind,
    /// Whether what it says of an image hangs on the other images of the step, because it compares them with each other or normalises over
    /// them: then the loss of a step is not the mean of the losses of its parts.
    pub across_images: bool,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Authors and year of the paper that it comes from.
    pub paper: &'static str,
    /// The weight that the method has where none is given.
    pub weight: f64,
    /// The weight of the cross-entropy with the labels beside it.
    pub labels: f64,
    /// Whose the weights and the options' defaults are: repository, file and what stands there, and where they depart from it and why.
    pub source: &'static str,
    /// Each option's name with its meaning.
    pub options: &'static [(&'static str, &'static str)],
}

/// Where a method looks for the teacher's knowledge (Gou et al., "Knowledge Distillation: A Survey", 2021, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The method has no teacher: others are compared with it.
    Control,
    /// In the teacher's logits.
    Response,
    /// In the teacher's feature maps.
    Feature,
    /// In relations between images, or between layers.
    Relation,
}

/// A tensor that belongs to a method and is no part of the student. It is trained and checkpointed with the run.
#[derive(Clone, Debug, PartialEq)]
pub struct HelperParameter {
    /// The name that [`build`](crate::build) asks its `VarBuilder` for.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// The values that it starts from.
    pub init: HelperInit,
}

/// The values that a helper parameter starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HelperInit {
    /// Drawn evenly from ± this bound, as PyTorch's layers are.
    Uniform(f64),
    /// The same value everywhere.
    Constant(f64),
}
