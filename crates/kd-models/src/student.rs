//! The student.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::cnn::{Cnn, Plan};
use crate::{Architecture, Classifier, Mode, Output, Place, Result};

pub(crate) const PLAN: Plan =
    Plan { architecture: Architecture::Student, convs: &[(16, true), (16, true)], hidden: 256 };

/// The network that learns: two 3x3 convolutions (16, pool, 16, pool) and two linear layers
/// (1024-256-classes); 267,738 parameters with ten classes.
///
/// `LightNN` of the PyTorch tutorial on knowledge distillation, with its names: `features.0` and
/// `.3` are the convolutions, `classifier.0` and `.3` the linear layers. The feature map that the
/// tutorial compares with the teacher's is `features.5`, `[16, 8, 8]`.
pub struct StudentCnn {
    cnn: Cnn,
}

impl StudentCnn {
    /// The network on the weights that `vb` gives; `dropout` is the share dropped in training.
    ///
    /// # Errors
    /// When a setting makes no sense, or `vb` lacks a weight or has it with another shape.
    pub fn new(classes: usize, dropout: f64, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self { cnn: Cnn::new(&PLAN, classes, dropout, vb)? })
    }
}

impl Classifier for StudentCnn {
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
