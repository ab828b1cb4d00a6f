//! Cross-fitted targets (Dao et al., "Knowledge Distillation as Semiparametric Inference", 2021): several networks, each
//! trained without one part of the images, of which each answers for the part that it has not seen.

use candle_core::{Device, Tensor};
use kd_data::{Batch, Portions};
use kd_loss::Needs;

use super::{Answers, Network, Pretrained, Teacher};
use crate::Result;
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
    pub fn new(
        teacher: &Pretrained,
        needs: &Needs,
        data: &Portions,
        device: &Device,
    ) -> Result<Self> {
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

    /// The training images of each part, in ascending order.
    pub(super) fn parts(&self) -> Vec<Vec<u32>> {
        let mut parts = vec![Vec::new(); self.networks.len()];
        for (image, &part) in self.part_of.iter().enumerate() {
            parts[part].push(image as u32);
        }
        parts
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
            logits.push(network.evaluate(&images, &[])?.logits);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kd_models::{Architecture, ModelConfig};

    use super::*;
    use crate::data;
    use crate::recipe::{DataConfig, DatasetName};

    #[test]
    fn each_image_is_answered_by_the_network_of_its_part() {
        let config = DataConfig {
            dataset: DatasetName::Synthetic,
            train_limit: Some(70),
            ..DataConfig::default()
        };
        let data = data::load(&config, Path::new("")).unwrap();
        let network = ModelConfig::new(Architecture::TUTORIAL_STUDENT, data.classes.len());
        let tensors = |seed| {
            let parameters = kd_models::init(&network, seed, &Device::Cpu).unwrap();
            parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
        };
        let teacher = Pretrained {
            path: "teacher.safetensors".into(),
            sha256: String::new(),
            config: network,
            foreign: None,
            tensors: tensors(0),
            left_out: None,
            parts: (0..3).map(tensors).collect(),
            members: Vec::new(),
            combination: kd_loss::Combination::default(),
            normalization: config.normalization(),
            renormalize: None,
            identity: String::new(),
            notes: Vec::new(),
        };
        let needs = Needs { teacher_logits: true, ..Needs::default() };
        let cross_fitted = CrossFitted::new(&teacher, &needs, &data, &Device::Cpu).unwrap();
        let batches = crate::evaluate::in_order(config.normalization());
        let [batch] = &kd_data::batches(&data.train, &batches, &Device::Cpu)
            .unwrap()
            .collect::<kd_data::Result<Vec<_>>>()
            .unwrap()[..]
        else {
            panic!("70 images are one batch")
        };
        let answers = cross_fitted.answer(batch, &needs).unwrap().logits.unwrap();
        for (part, images) in cross_fitted.parts().iter().enumerate() {
            assert_eq!(*images, data.part(part + 1, 3).unwrap());
            let rows = Tensor::new(images.as_slice(), &Device::Cpu).unwrap();
            let own = teacher.network_of(&teacher.parts[part], &Device::Cpu).unwrap();
            let own_images = batch.images.index_select(&rows, 0).unwrap();
            let expected = own.evaluate(&own_images, &[]).unwrap().logits;
            let found = answers.index_select(&rows, 0).unwrap();
            assert_eq!(found.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
        }
        let features = Needs { teacher: vec!["features.0".into()], ..Needs::default() };
        let message = cross_fitted.answer(batch, &features).unwrap_err().to_string();
        assert!(message.contains("come from 3 teachers"), "{message}");
    }
}
