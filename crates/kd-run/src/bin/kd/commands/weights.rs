//! Weights files that nobody has data for at hand: what they say of themselves, and the tutorial's
//! values where they say nothing.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use kd_data::Normalization;
use kd_models::{Architecture, ModelConfig, weights};

/// A file's network, and what its images were.
pub(super) struct Weights {
    pub(super) config: ModelConfig,
    pub(super) tensors: BTreeMap<String, Tensor>,
    pub(super) normalization: Normalization,
    /// By label; `None` in files of PyTorch's.
    pub(super) class_names: Option<Vec<String>>,
}

/// Loads the file. A network, or a number of classes, that the file doesn't say and nobody gives is
/// taken for `teacher`, and for what the last layer has.
pub(super) fn load(
    path: &Path,
    architecture: Option<Architecture>,
    classes: Option<usize>,
) -> anyhow::Result<Weights> {
    let model = architecture.unwrap_or(Architecture::Teacher);
    let mut config = ModelConfig::new(model, classes.unwrap_or(10));
    let mut loaded = weights::load(path, &config);
    if let (Err(kd_models::Error::WrongArchitecture { found, .. }), None) = (&loaded, architecture)
    {
        config.architecture = found.parse()?;
        loaded = weights::load(path, &config);
    }
    if let (Err(kd_models::Error::ClassCount { found, .. }), None) = (&loaded, classes) {
        config.classes = *found;
        loaded = weights::load(path, &config);
    }
    let (tensors, metadata) = loaded?;
    // A file from PyTorch doesn't say its normalisation: the tutorial's.
    let mut normalization = Normalization::default();
    let mut class_names = None;
    if let Some(metadata) = metadata {
        normalization = Normalization { mean: metadata.mean, std: metadata.std };
        class_names = metadata.class_names;
    }
    Ok(Weights { config, tensors, normalization, class_names })
}
