//! Cross-fitted targets (Dao et al., "Knowledge Distillation as Semiparametric Inference", 2021): several networks, each
//! trained without one part of the images, of which each answers for the part that it has not seen.

use candle_core::{Device, Tensor};
use kd_data::Batch;
use kd_loss::Needs;
use kd_models::Mode;

use super::{Answers, Network, Pretrained, Teacher};
use crate::Result;
use crate::data::Data;
use crate::error::other;

/// A teacher of several networks, each of which answers for a part of the training images.
pub struct CrossFitted {
    networks: Vec<Network>,
    /// For each training image the network that answers for it.
    part_of: Vec<usize>,
}

impl CrossFitted {
    /// The networks of [`Pretrained::cross_fitted`].
    ///
    /// # Errors
    /// When feature maps are needed, which are not comparable between networks, or the data can't be cut into so many parts.
    pub fn new(teacher: &Pretrained, needs: &Needs, data: &Data, device: &Device) -> Result<Self> {
        refuse_features(needs, teacher.parts.len())?;
        let mut networks = Vec::new();
        let mut part_of = vec![0; data.train.len()];
        for (part, tensors) in teacher.parts.iter().enumerate() {
            networks.push(teacher.network_of(tensors, device)?);
            for image in data.part(part + 1, teacher.parts.len())? {
                part_of[image as usize] = part;
            }
        }
        Ok(Self { networks, part_of })
    }
}

fn refuse_features(needs: &Needs, parts: usize) -> Result<()> {
    match needs.teacher.is_empty() {
        true => Ok(()),
        false => Err(other!(
            "cross-fitted targets come from {parts} teachers, whose feature maps are not each other's; a method asks for {}: use methods that need the teacher's logits alone, or leave cross_fit out",
            needs.teacher.join(", ")
        )),
    }
}

impl Teacher for CrossFitted {
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
        refuse_features(needs, self.networks.len())?;
        if !needs.teacher_logits {
            return Ok(Answers::default());
        }
        let device = batch.images.device();
        let mut logits = Vec::new();
        // For each of the rows of `logits`, its place in the batch.
        let mut places: Vec<u32> = Vec::new();
        for (part, network) in self.networks.iter().enumerate() {
            let rows: Vec<u32> = (0..batch.indices.len() as u32)
                .filter(|&row| self.part_of[batch.indices[row as usize] as usize] == part)
                .collect();
            if rows.is_empty() {
                continue;
            }
            let images = batch.images.index_select(&Tensor::new(rows.as_slice(), device)?, 0)?;
            logits.push(network.forward_t(&images, Mode::Eval, &[])?.logits);
            places.extend(rows);
        }
        let mut order = vec![0u32; places.len()];
        for (row, &place) in places.iter().enumerate() {
            order[place as usize] = row as u32;
        }
        let logits = Tensor::cat(&logits, 0)?.index_select(&Tensor::new(order, device)?, 0)?;
        Ok(Answers { logits: Some(logits), ..Answers::default() })
    }

    fn not_to_be_captured(&self, needs: &Needs) -> Option<&'static str> {
        needs
            .teacher_logits
            .then_some("the host chooses which of the cross-fitted teachers answers for an image")
    }
}
