//! The teacher: a network that doesn't learn, and what it says of each training image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};
use kd_data::{Batch, Normalization};
use kd_loss::Needs;
use kd_models::weights::{self, LeftOut, Metadata};
use kd_models::{Architecture, Classifier, Mode, ModelConfig, Output};

use sha2::{Digest, Sha256};

use crate::data::Data;
use crate::kept::{self, Kept};
use crate::recipe::DataConfig;
use crate::{evaluate, files};

/// A teacher's network, built and ready to answer.
pub type Network = Box<dyn Classifier + Send + Sync>;

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
    /// What the network has not seen, if its file says so.
    pub left_out: Option<LeftOut>,
    /// Of cross-fitted targets: the weights of the network for each part. `tensors` are the first's.
    pub parts: Vec<BTreeMap<String, Tensor>>,
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
        let left_out = metadata.as_ref().and_then(|metadata| metadata.left_out);
        if let Some(metadata) = metadata {
            metadata.check_normalization(path, normalization.mean, normalization.std)?;
        }
        Ok(Self { path: path.to_owned(), sha256, config, tensors, left_out, parts: Vec::new() })
    }

    /// Several networks that together teach as one, each the part of the images that it has not seen.
    ///
    /// # Errors
    /// When one was not trained without its part of these `images` training images.
    pub fn cross_fitted(path: &Path, parts: Vec<Self>, images: usize) -> anyhow::Result<Self> {
        let of = parts.len();
        let mut hash = Sha256::new();
        for (index, part) in parts.iter().enumerate() {
            let expected = LeftOut { part: index + 1, of, images };
            let found = part.left_out.map_or("without any part left out".into(), |found| {
                format!("without part {} of {} of {} images", found.part, found.of, found.images)
            });
            ensure!(
                part.left_out == Some(expected),
                "{}: this teacher was trained {found}; cross-fitted targets here need one that was trained without part {} of {of} of {images} images: `kd train --part {}/{of}`",
                part.path.display(),
                index + 1,
                index + 1
            );
            hash.update(&part.sha256);
        }
        let config = parts.first().context("cross-fitted targets need at least one part")?.config;
        let other = parts.iter().find(|part| part.config.architecture != config.architecture);
        if let Some(other) = other {
            bail!(
                "{}: this teacher is a {}, that of the first part a {}",
                other.path.display(),
                other.config.architecture,
                config.architecture
            );
        }
        let parts: Vec<_> = parts.into_iter().map(|part| part.tensors).collect();
        Ok(Self {
            path: path.to_owned(),
            sha256: files::hex(hash),
            config,
            tensors: parts[0].clone(),
            left_out: None,
            parts,
        })
    }

    /// The network, which no gradient reaches.
    ///
    /// # Errors
    /// When candle refuses.
    pub fn network(&self, device: &Device) -> anyhow::Result<Network> {
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
    /// One, or with cross-fitted targets one for each part.
    networks: Vec<Network>,
    /// Of cross-fitted targets: which network answers for each training image; else empty.
    part_of: Vec<usize>,
    kept: BTreeMap<String, Tensor>,
    live: Vec<String>,
}

/// How a teacher does on images that it teaches with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Says {
    pub(crate) images: usize,
    /// Share of right answers.
    pub(crate) accuracy: f64,
    /// Of its softmax, mean, in nats.
    pub(crate) entropy: f64,
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
        let (networks, part_of) = match teacher.parts.is_empty() {
            true => (vec![teacher.network(device)?], Vec::new()),
            false => cross_fitted(teacher, needs, data, device)?,
        };
        // Kept even if no method asks for them: they tell how well the teacher knows the images.
        let mut wanted = vec![(LOGITS.to_string(), vec![networks[0].num_classes()])];
        for place in networks[0].places() {
            if needs.teacher.contains(&place.name) {
                wanted.push((place.name, place.shape));
            }
        }
        let mut outputs = Self { networks, part_of, kept: BTreeMap::new(), live: Vec::new() };
        let mut budget = config.memory;
        let mut missing = Vec::new();
        for (output, shape) in wanted {
            let values = data.train.len() as u64 * shape.iter().product::<usize>() as u64;
            match budget.checked_sub(4 * values) {
                Some(rest) if config.data.augment().is_off() => {
                    budget = rest;
                    let kept = Kept::new(&output, shape, teacher, data, config);
                    match kept.read()? {
                        Some(tensor) => {
                            outputs.kept.insert(output, tensor.to_device(device)?);
                        }
                        None => missing.push(kept),
                    }
                }
                _ if output == LOGITS && !needs.teacher_logits => {}
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
            missing.iter().map(|kept| vec![0.0; kept.values()]).collect();
        let batches = evaluate::in_order(config.data.normalization());
        let places: Vec<&str> = missing
            .iter()
            .map(|kept| kept.output.as_str())
            .filter(|name| *name != LOGITS)
            .collect();
        let mut done = 0;
        for (part, network) in self.networks.iter().enumerate() {
            // The images that this network answers for, and where each stands among all.
            let (split, positions) = match self.part_of.is_empty() {
                true => (data.train.clone(), None),
                false => {
                    let in_part = |image: &u32| self.part_of[*image as usize] == part;
                    let images: Vec<u32> = (0..data.train.len() as u32).filter(in_part).collect();
                    (Arc::new(data.train.select(&images)), Some(images))
                }
            };
            for batch in kd_data::batches(&split, &batches, device)? {
                let batch = batch?;
                let output = network.forward_t(&batch.images, Mode::Eval, &places)?;
                for (kept, values) in missing.iter().zip(&mut values) {
                    let rows = select(&output, &kept.output)?.flatten_all()?.to_vec1::<f32>()?;
                    let len = rows.len() / batch.indices.len();
                    for (row, &index) in rows.chunks_exact(len).zip(&batch.indices) {
                        let at = match &positions {
                            None => index as usize,
                            Some(images) => images[index as usize] as usize,
                        };
                        values[at * len..][..len].copy_from_slice(row);
                    }
                }
                done += batch.indices.len();
                progress(done)?;
            }
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
        for (name, all) in &self.kept {
            outputs.insert(name.clone(), all.index_select(&batch.rows, 0)?);
        }
        if !self.live.is_empty() {
            let places: Vec<&str> =
                self.live.iter().map(String::as_str).filter(|name| *name != LOGITS).collect();
            // Cross-fitted targets are logits alone.
            let output = match self.part_of.is_empty() {
                true => self.networks[0].forward_t(&batch.images, Mode::Eval, &places)?,
                false => Output { logits: self.logits_of(batch)?, features: BTreeMap::new() },
            };
            for name in &self.live {
                outputs.insert(name.clone(), select(&output, name)?.clone());
            }
        }
        Ok(outputs)
    }

    /// What the networks say of this batch's views, each of the images that it answers for.
    fn logits_of(&self, batch: &Batch) -> anyhow::Result<Tensor> {
        if self.part_of.is_empty() {
            return Ok(self.networks[0].forward_t(&batch.images, Mode::Eval, &[])?.logits);
        }
        let device = batch.images.device();
        let mut logits = Vec::new();
        // For each of the rows below, its place in the batch.
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
        Ok(Tensor::cat(&logits, 0)?.index_select(&Tensor::new(order, device)?, 0)?)
    }

    /// How the teacher does on the images that it teaches with: on all of them where its logits are
    /// kept, otherwise on those of `sample`, batches as the student sees them.
    pub(crate) fn says(
        &self,
        data: &Data,
        sample: impl Iterator<Item = kd_data::Result<Batch>>,
    ) -> anyhow::Result<Says> {
        let mut sums = Says { images: 0, accuracy: 0.0, entropy: 0.0 };
        let mut add = |logits: &Tensor, labels: &mut dyn Iterator<Item = usize>| {
            for (row, label) in logits.to_vec2::<f32>()?.iter().zip(labels) {
                let (entropy, answer) = entropy_and_answer(row);
                sums.images += 1;
                sums.entropy += entropy;
                sums.accuracy += f64::from(u8::from(answer == label));
            }
            anyhow::Ok(())
        };
        match self.kept.get(LOGITS) {
            Some(logits) => add(logits, &mut data.train.labels.iter().map(|&l| usize::from(l)))?,
            None => {
                for batch in sample {
                    let batch = batch?;
                    let labels = batch.labels.to_vec1::<u32>()?;
                    let logits = self.logits_of(&batch)?;
                    add(&logits, &mut labels.into_iter().map(|label| label as usize))?;
                }
            }
        }
        let images = sums.images.max(1) as f64;
        let (accuracy, entropy) = (sums.accuracy / images, sums.entropy / images);
        Ok(Says { accuracy, entropy, ..sums })
    }

    /// Whether a batch's images ask different networks.
    #[cfg(feature = "cuda")]
    pub(crate) fn chooses_networks(&self) -> bool {
        !self.part_of.is_empty() && !self.live.is_empty()
    }

    pub(crate) fn kept(&self) -> Vec<String> {
        self.kept.keys().cloned().collect()
    }

    pub(crate) fn live(&self) -> &[String] {
        &self.live
    }
}

/// Entropy of the softmax in nats, and the class with the largest logit.
fn entropy_and_answer(logits: &[f32]) -> (f64, usize) {
    let largest = |best, class| if logits[class] > logits[best] { class } else { best };
    let answer = (0..logits.len()).reduce(largest).unwrap_or(0);
    let shifted = || logits.iter().map(|&logit| f64::from(logit) - f64::from(logits[answer]));
    let sum: f64 = shifted().map(f64::exp).sum();
    // -sum p ln p, with ln p = shifted - ln sum.
    let mean: f64 = shifted().map(|shifted| shifted.exp() * shifted).sum::<f64>() / sum;
    (sum.ln() - mean, answer)
}

/// The network for each part, and which part each training image is in.
fn cross_fitted(
    teacher: &Pretrained,
    needs: &Needs,
    data: &Data,
    device: &Device,
) -> anyhow::Result<(Vec<Network>, Vec<usize>)> {
    ensure!(
        needs.teacher.is_empty(),
        "cross-fitted targets come from {} teachers, whose feature maps are not each other's; a method asks for {}: use methods that need the teacher's logits alone, or leave cross_fit out",
        teacher.parts.len(),
        needs.teacher.join(", ")
    );
    let mut networks = Vec::new();
    let mut part_of = vec![0; data.train.len()];
    for (part, tensors) in teacher.parts.iter().enumerate() {
        let tensors = on_device(tensors, device)?;
        networks.push(kd_models::build(&teacher.config, kd_models::frozen(&tensors))?);
        for image in data.part(part + 1, teacher.parts.len())? {
            part_of[image as usize] = part;
        }
    }
    Ok((networks, part_of))
}

fn select<'a>(output: &'a Output, name: &str) -> anyhow::Result<&'a Tensor> {
    match name {
        LOGITS => Ok(&output.logits),
        place => output.features.get(place).with_context(|| format!("the teacher gave no {place}")),
    }
}

pub use kept::DEFAULT_MEMORY;
