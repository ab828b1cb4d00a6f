//! What a weights file says of its network, beyond the weights.

use std::collections::HashMap;
use std::path::Path;

use kd_record::Interpolation;
use serde::{Deserialize, Serialize};

use crate::{Architecture, Error, ModelConfig, Result};

/// The version of [`Metadata`] that this crate writes and reads.
const FORMAT: u32 = 1;
/// The only metadata entry: with two, safetensors' hash map would make the order, and so the
/// bytes, change from run to run.
pub(super) const KEY: &str = "kd";
/// The images of a network whose file does not say them.
const CIFAR: [usize; 3] = [3, 32, 32];

/// What a weights file says of its network, beyond the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The version of this description: 1.
    pub format: u32,
    /// The network that the weights belong to, by its name.
    pub architecture: Architecture,
    /// The shape of its images, `[C, H, W]`. A file says it where it is not `[3, 32, 32]`.
    #[serde(default = "cifar", skip_serializing_if = "is_cifar")]
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// The classes' names in the order of the logits, if they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
    /// How training brought pictures of any size to that of `input`. `None` where it did not: its images had the size, or the largest
    /// square of each picture was scaled to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled: Option<Scaled>,
    /// What was subtracted from each colour of the images, on a scale from 0 to 1.
    pub mean: [f32; 3],
    /// What each colour was then divided by.
    pub std: [f32; 3],
    /// The data that the network was trained on.
    pub dataset: String,
    /// What of it the network has not seen, for cross-fitted targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
}

fn cifar() -> [usize; 3] {
    CIFAR
}

fn is_cifar(input: &[usize; 3]) -> bool {
    *input == CIFAR
}

/// How pictures were brought to a network's size: torchvision's `Resize(resize)`, then `CenterCrop` to the size of its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaled {
    /// What the shorter side was scaled to, in pixels; at least the side of the images.
    pub resize: usize,
    /// How it was scaled.
    pub interpolation: Interpolation,
}

/// A part of the training images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Which part, from 1.
    pub part: usize,
    /// How many parts there are.
    pub of: usize,
    /// The number of images in all parts together.
    pub images: usize,
    /// SHA-256 of the part's images and labels, in hex; `None` in files of versions that did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Metadata {
    /// A description in the current format.
    pub fn new(config: &ModelConfig, mean: [f32; 3], std: [f32; 3], dataset: &str) -> Self {
        Self {
            format: FORMAT,
            architecture: config.architecture,
            input: config.input,
            classes: config.classes,
            class_names: None,
            scaled: None,
            mean,
            std,
            dataset: dataset.to_string(),
            left_out: None,
        }
    }

    /// The network that is described, with its default dropout.
    pub fn config(&self) -> ModelConfig {
        ModelConfig { input: self.input, ..ModelConfig::new(self.architecture, self.classes) }
    }

    /// Checks that images normalised with `mean` and `std` are what the network was trained on;
    /// `path` is the weights file, for the message.
    ///
    /// # Errors
    /// When they are not.
    pub fn check_normalization(&self, path: &Path, mean: [f32; 3], std: [f32; 3]) -> Result<()> {
        if self.mean == mean && self.std == std {
            return Ok(());
        }
        let (found_mean, found_std) = (self.mean, self.std);
        Err(Error::Normalization { path: path.into(), found_mean, found_std, mean, std })
    }

    /// A sentence about pictures whose shorter side is scaled to `resize` pixels and of which a square of `size` is cut out, where the
    /// network of the file `path` was trained on others.
    pub fn scaled_otherwise(&self, path: &Path, size: usize, given: Scaled) -> Option<String> {
        let own = self.scaled?;
        let side = self.input[1];
        if own == given && side == size {
            return None;
        }
        let way = |side: usize, of: Scaled| {
            format!(
                "scaled to {} pixels ({}, the shorter side), {side}x{side} of them cut out",
                of.resize, of.interpolation
            )
        };
        Some(format!(
            "{}: its network was trained on pictures {}; the data's are {}",
            path.display(),
            way(side, own),
            way(size, given)
        ))
    }

    /// This crate's entry among the metadata of the file `path`.
    pub(super) fn read(
        path: &Path,
        entries: &Option<HashMap<String, String>>,
    ) -> Result<Option<Self>> {
        /// Read first: a later format may differ in every other field.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Some(json) = entries.as_ref().and_then(|entries| entries.get(KEY)) else {
            return Ok(None);
        };
        let bad = |reason: String| Error::Metadata { path: path.into(), reason };
        let version: Version =
            serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
        if version.format != FORMAT {
            return Err(bad(format!(
                "format is {}; this version reads format {FORMAT}: use the version of kd that wrote the file, or train anew",
                version.format
            )));
        }
        let metadata: Self = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
        if let Some(names) = &metadata.class_names
            && names.len() != metadata.classes
        {
            let (names, classes) = (names.len(), metadata.classes);
            return Err(bad(format!("{names} class names for {classes} classes")));
        }
        if let Some(Scaled { resize, .. }) = metadata.scaled
            && resize < metadata.input[1]
        {
            let [_, side, _] = metadata.input;
            return Err(bad(format!(
                "scaled.resize is {resize}; expected at least {side}, the side of the images that are cut out of it"
            )));
        }
        metadata.config().graph().map_err(|error| bad(error.to_string()))?;
        Ok(Some(metadata))
    }
}
