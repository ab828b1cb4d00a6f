//! A network's weights from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use kd_data::Normalization;
use kd_models::weights::{self, LeftOut, Loaded};
use kd_models::{Architecture, Classifier, ModelConfig};
use sha2::{Digest, Sha256};

use crate::error::other;
use crate::{Error, Result};
use kd_record::hash::{hex, sha256};

/// A network that is built and ready to answer.
pub type Network = Box<dyn Classifier + Send + Sync>;

/// A network's weights from a file.
pub struct Pretrained {
    /// The weights file.
    pub path: PathBuf,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// The teacher's network, without its weights.
    pub config: ModelConfig,
    /// The weights by name, on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
    /// The part of the training images that the network has not seen, if its file names one.
    pub left_out: Option<LeftOut>,
    /// The weights of the network for each part, where the targets are cross-fitted; otherwise empty. `tensors` are the
    /// first part's.
    pub parts: Vec<BTreeMap<String, Tensor>>,
    /// Sentences on what was done to read the file's weights, if anything.
    pub notes: Vec<String>,
}

impl Pretrained {
    /// Loads a weights file and checks that it fits the data: class count and, where the file records it, normalisation.
    ///
    /// `architecture` is needed for files that don't record theirs (PyTorch's); `None` then means `teacher`.
    ///
    /// # Errors
    /// When the file is missing, damaged, of another network, or doesn't fit the data.
    pub fn load(
        path: &Path,
        architecture: Option<Architecture>,
        classes: usize,
        normalization: Normalization,
    ) -> Result<Self> {
        let sha256 = sha256(path)?;
        let config = weights::peek(path)?.config(architecture, Some(classes))?;
        let Loaded { tensors, metadata, notes } = weights::load(path, &config)?;
        let left_out = metadata.as_ref().and_then(|metadata| metadata.left_out);
        if let Some(metadata) = metadata {
            metadata.check_normalization(path, normalization.mean, normalization.std)?;
        }
        let (path, parts) = (path.to_owned(), Vec::new());
        Ok(Self { path, sha256, config, tensors, left_out, parts, notes })
    }

    /// Several networks that together teach as one: each answers for the part of the images that it has not seen.
    ///
    /// # Errors
    /// When one was not trained without its part of these `images` training images, or is of another architecture.
    pub fn cross_fitted(path: &Path, parts: Vec<Self>, images: usize) -> Result<Self> {
        let of = parts.len();
        let mut hash = Sha256::new();
        for (index, part) in parts.iter().enumerate() {
            let expected = LeftOut { part: index + 1, of, images };
            if part.left_out != Some(expected) {
                let found = part.left_out.map_or("without any part left out".into(), |found| {
                    format!(
                        "without part {} of {} of {} images",
                        found.part, found.of, found.images
                    )
                });
                return Err(Error::unfit(format!(
                    "{}: this teacher was trained {found}; cross-fitted targets here need one that was trained without part {} of {of} of {images} images: `kd train --part {}/{of}`",
                    part.path.display(),
                    index + 1,
                    index + 1
                )));
            }
            hash.update(&part.sha256);
        }
        let Some(first) = parts.first() else {
            return Err(other!("cross-fitted targets need at least one part"));
        };
        let config = first.config;
        let other = parts.iter().find(|part| part.config.architecture != config.architecture);
        if let Some(other) = other {
            return Err(Error::unfit(format!(
                "{}: this teacher is a {}, that of the first part a {}",
                other.path.display(),
                other.config.architecture,
                config.architecture
            )));
        }
        let notes = parts.iter().flat_map(|part| part.notes.clone()).collect();
        let parts: Vec<_> = parts.into_iter().map(|part| part.tensors).collect();
        Ok(Self {
            path: path.to_owned(),
            sha256: hex(hash),
            config,
            tensors: parts[0].clone(),
            left_out: None,
            parts,
            notes,
        })
    }

    /// The network, which no gradient reaches.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn network(&self, device: &Device) -> Result<Network> {
        self.network_of(&self.tensors, device)
    }

    /// The same network with other weights.
    pub(super) fn network_of(
        &self,
        tensors: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> Result<Network> {
        let tensors = tensors.iter();
        let tensors = tensors.map(|(name, tensor)| Ok((name.clone(), tensor.to_device(device)?)));
        let tensors = tensors.collect::<candle_core::Result<BTreeMap<_, _>>>()?;
        Ok(kd_models::build(&self.config, kd_models::frozen(&tensors))?)
    }
}
