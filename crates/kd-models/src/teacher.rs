//! The teacher.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::cnn::{Cnn, Plan};
use crate::{Architecture, Classifier, Mode, Output, Place, Result};

pub(crate) const PLAN: Plan = Plan {
    architecture: Architecture::Teacher,
    convs: &[(128, false), (64, true), (64, false), (32, true)],
    hidden: 512,
};

/// The network that teaches: four 3x3 convolutions (128, 64, pool, 64, 32, pool) and two linear
/// layers (2048-512-classes); 1,186,986 parameters with ten classes.
///
/// `DeepNN` of the PyTorch tutorial on knowledge distillation, with its names: `features.0`, `.2`,
/// `.5`, `.7` are the convolutions, `classifier.0` and `.3` the linear layers. The feature map that
/// the tutorial distils from is `features.9`, `[32, 8, 8]`.
pub struct TeacherCnn {
    cnn: Cnn,
}

impl TeacherCnn {
    /// The network on the weights that `vb` gives; `dropout` is the share dropped in training.
    ///
    /// # Errors
    /// When a setting makes no sense, or `vb` lacks a weight or has it with another shape.
    pub fn new(classes: usize, dropout: f64, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self { cnn: Cnn::new(&PLAN, classes, dropout, vb)? })
    }
}

impl Classifier for TeacherCnn {
    fn forward_t(&self, images: &Tensor, mode: Mode, places: &[&str]) -> Result<Output> {
        self.cnn.forward_t(images, mode, places)
    }

    fn places(&self) -> Vec<Place> {
        self.cnn.places()
    }

    fn num_classes(&self) -> usize {
        self.cnn.num_classes()
    }

    fn multiply_adds(&self) -> u64 {
        self.cnn.multiply_adds()
    }
}
