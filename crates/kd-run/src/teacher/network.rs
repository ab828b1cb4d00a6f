//! A teacher that is a network, computed for each batch.

use candle_core::Device;
use kd_data::Batch;
use kd_loss::Needs;
use kd_models::Output;

use super::{Answers, Network, Pretrained, Teacher};
use crate::Result;

/// A network that answers about each batch anew.
pub struct NetworkTeacher {
    network: Network,
    /// Whether the network changes the normalisation of its images first.
    renormalizes: bool,
    /// Whether another program's library computes it, from and to the host's memory.
    is_foreign: bool,
}

impl NetworkTeacher {
    /// A teacher of this network, whose weights should be [frozen](kd_models::frozen): a forward pass then keeps nothing for a
    /// gradient.
    pub fn new(network: Network) -> Self {
        Self { network, renormalizes: false, is_foreign: false }
    }

    /// The teacher of a weights file.
    pub(super) fn of(pretrained: &Pretrained, device: &Device) -> Result<Self> {
        let network = pretrained.network(device)?;
        let is_foreign = pretrained.foreign.is_some();
        Ok(Self { network, renormalizes: pretrained.renormalize.is_some(), is_foreign })
    }
}

impl Teacher for NetworkTeacher {
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
        if !needs.any_teacher() {
            return Ok(Answers::default());
        }
        let places: Vec<&str> = needs.teacher.iter().map(String::as_str).collect();
        let Output { logits, features } = self.network.evaluate(&batch.images, &places)?;
        Ok(Answers { logits: Some(logits), features })
    }

    fn not_to_be_captured(&self, _: &Needs) -> Option<&'static str> {
        if self.is_foreign {
            return Some("the teacher is an ONNX file, which is computed on the host");
        }
        // Channel by channel operations of candle upload their strides.
        self.renormalizes.then_some("the teacher changes the normalisation of its images")
    }
}
