//! The teacher: a network that doesn't learn, and what it says of each training image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::{Device, Tensor};
use kd_data::{Batch, Normalization};
use kd_loss::Needs;
use kd_models::weights::{self, Metadata};
use kd_models::{Architecture, Classifier, Mode, ModelConfig};

use crate::data::Data;
use crate::kept::{self, Kept};
use crate::recipe::DataConfig;
use crate::{evaluate, files};

/// A network's weights from a file.
pub struct Pretrained {
    /// The file.
    pub path: PathBuf,
    /// Of the file.
    pub sha256: String,
    /// The network.
    pub config: ModelConfig,
    /// The weights.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Pretrained {
    /// Loads a weights file and checks that it fits the data: class count and, where the file tells,
    /// normalisation.
    ///
    /// `architecture` is needed for files that don't say theirs (PyTorch's); `None` then means `teacher`.
    ///
    /// # Errors
    /// When the file is missing, damaged, of another network, or doesn't fit the data.
    pub fn load(
        path: &Path,
        architecture: Option<Architecture>,
        classes: usize,
        normalization: Normalization,
    ) -> anyhow::Result<Self> {
        let sha256 = files::sha256(path)?;
        let config = ModelConfig::new(architecture.unwrap_or(Architecture::Teacher), classes);
        let (config, loaded) = match weights::load(path, &config) {
            // Nobody said which network, but the file does.
            Err(kd_models::Error::WrongArchitecture { found, .. }) if architecture.is_none() => {
                let config = ModelConfig::new(found.parse()?, classes);
                (config, weights::load(path, &config)?)
            }
            loaded => (config, loaded?),
        };
        let (tensors, metadata): (_, Option<Metadata>) = loaded;
        if let Some(metadata) = metadata {
            metadata.check_normalization(path, normalization.mean, normalization.std)?;
        }
        Ok(Self { path: path.to_owned(), sha256, config, tensors })
    }

    /// The network, which no gradient reaches.
    ///
    /// # Errors
    /// When candle refuses.
    pub fn network(&self, device: &Device) -> anyhow::Result<Box<dyn Classifier + Send + Sync>> {
        let tensors = on_device(&self.tensors, device)?;
        Ok(kd_models::build(&self.config, kd_models::frozen(&tensors))?)
    }
}

fn on_device(
    tensors: &BTreeMap<String, Tensor>,
    device: &Device,
) -> candle_core::Result<BTreeMap<String, Tensor>> {
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_device(device)?))).collect()
}

/// The name under which logits are kept; feature places have their own names.
pub(crate) const LOGITS: &str = "logits";

/// What the teacher says of the training images: kept from one pass, or computed for each batch.
pub(crate) struct TeacherOutputs {
    network: Box<dyn Classifier + Send + Sync>,
    kept: BTreeMap<String, Tensor>,
    live: Vec<String>,
}

/// What [`TeacherOutputs::new`] needs besides teacher and data.
pub(crate) struct KeepConfig<'a> {
    pub(crate) data: &'a DataConfig,
    /// Where files with kept outputs go.
    pub(crate) folder: &'a Path,
    /// Most bytes to keep in memory.
    pub(crate) memory: u64,
}

impl TeacherOutputs {
    /// Decides what is kept, and gets it: from the folder, or by a pass over the training images,
    /// of which `progress` hears (images done).
    ///
    /// With augmentation nothing is kept: each view is new.
    pub(crate) fn new(
        teacher: &Pretrained,
        needs: &Needs,
        data: &Data,
        config: &KeepConfig<'_>,
        device: &Device,
        progress: &mut dyn FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let network = teacher.network(device)?;
        let mut wanted: Vec<(String, Vec<usize>)> = Vec::new();
        if needs.teacher_logits {
            wanted.push((LOGITS.into(), vec![network.num_classes()]));
        }
        for place in network.places() {
            if needs.teacher.contains(&place.name) {
                wanted.push((place.name, place.shape));
            }
        }
        let mut outputs = Self { network, kept: BTreeMap::new(), live: Vec::new() };
        let mut budget = config.memory;
        let mut missing = Vec::new();
        for (output, shape) in wanted {
            let values = data.train.len() as u64 * shape.iter().product::<usize>() as u64;
            match budget.checked_sub(4 * values) {
                Some(rest) if config.data.augment().is_off() => {
                    budget = rest;
                    let kept = Kept::new(&output, shape, teacher, data, config);
                    match kept.read()? {
                        Some(tensor) => _ = outputs.kept.insert(output, tensor),
                        None => missing.push(kept),
                    }
                }
                _ => outputs.live.push(output),
            }
        }
        if !missing.is_empty() {
            outputs.pass(&missing, data, config, device, progress)?;
        }
        Ok(outputs)
    }

    /// Computes and keeps what is missing, all in one pass.
    fn pass(
        &mut self,
        missing: &[Kept],
        data: &Data,
        config: &KeepConfig<'_>,
        device: &Device,
        progress: &mut dyn FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut values: Vec<Vec<f32>> =
            missing.iter().map(|kept| Vec::with_capacity(kept.values())).collect();
        let batches = evaluate::in_order(config.data.normalization());
        let places: Vec<&str> = missing
            .iter()
            .map(|kept| kept.output.as_str())
            .filter(|name| *name != LOGITS)
            .collect();
        let mut done = 0;
        for batch in kd_data::batches(&data.train, &batches, device)? {
            let batch = batch?;
            let output = self.network.forward_t(&batch.images, Mode::Eval, &places)?;
            for (kept, values) in missing.iter().zip(&mut values) {
                let tensor = select(&output, &kept.output)?;
                values.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
            }
            done += batch.indices.len();
            progress(done)?;
        }
        for (kept, values) in missing.iter().zip(values) {
            kept.write(&values);
            let mut shape = vec![data.train.len()];
            shape.extend(&kept.shape);
            self.kept.insert(kept.output.clone(), Tensor::from_vec(values, shape, device)?);
        }
        Ok(())
    }

    /// The outputs for a batch of training images, by name.
    pub(crate) fn of(&self, batch: &Batch) -> anyhow::Result<BTreeMap<String, Tensor>> {
        let mut outputs = BTreeMap::new();
        if !self.kept.is_empty() {
            let indices = Tensor::new(batch.indices.as_slice(), batch.images.device())?;
            for (name, all) in &self.kept {
                outputs.insert(name.clone(), all.index_select(&indices, 0)?);
            }
        }
        if !self.live.is_empty() {
            let places: Vec<&str> =
                self.live.iter().map(String::as_str).filter(|name| *name != LOGITS).collect();
            let output = self.network.forward_t(&batch.images, Mode::Eval, &places)?;
            for name in &self.live {
                outputs.insert(name.clone(), select(&output, name)?.clone());
            }
        }
        Ok(outputs)
    }

    pub(crate) fn kept(&self) -> Vec<String> {
        self.kept.keys().cloned().collect()
    }

    pub(crate) fn live(&self) -> &[String] {
        &self.live
    }
}

fn select<'a>(output: &'a kd_models::Output, name: &str) -> anyhow::Result<&'a Tensor> {
    match name {
        LOGITS => Ok(&output.logits),
        place => output.features.get(place).with_context(|| format!("the teacher gave no {place}")),
    }
}

pub use kept::DEFAULT_MEMORY;
