//! A teacher that is a network, computed for each batch.

use kd_data::Batch;
use kd_loss::Needs;
use kd_models::{Mode, Output};

use super::{Answers, Network, Teacher};
use crate::Result;

/// A network that answers about each batch anew.
pub struct NetworkTeacher {
    network: Network,
}

impl NetworkTeacher {
    /// A teacher of this network, whose weights should be [frozen](kd_models::frozen): a forward pass then keeps nothing for a
    /// gradient.
    pub fn new(network: Network) -> Self {
        Self { network }
    }
}

impl Teacher for NetworkTeacher {
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
        if !needs.any_teacher() {
            return Ok(Answers::default());
        }
        let places: Vec<&str> = needs.teacher.iter().map(String::as_str).collect();
        let Output { logits, features } =
            self.network.forward_t(&batch.images, Mode::Eval, &places)?;
        Ok(Answers { logits: Some(logits), features })
    }

    fn not_to_be_captured(&self, _: &Needs) -> Option<&'static str> {
        None
    }
}
