//! Weights files that are used without a data set: what a file says about its network, or a `config.json` beside it, and the way of
//! the network's family where neither says anything.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::Tensor;
use kd_data::Normalization;
use kd_models::preprocessing::{self, Preprocessing, Stated, timm};
use kd_models::weights::Loaded;
use kd_models::{Architecture, ModelConfig, weights};
use kd_report::text::plain;

/// A file's network, and what it was trained on.
pub(super) struct Weights {
    pub(super) config: ModelConfig,
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// What is done to a picture before the network.
    pub(super) preprocessing: Preprocessing,
    /// The classes' names, by label; `None` in files that don't say them.
    pub(super) class_names: Option<Vec<String>>,
}

impl Weights {
    /// How the network's images are normalised.
    pub(super) fn normalization(&self) -> Normalization {
        Normalization { mean: self.preprocessing.mean, std: self.preprocessing.std }
    }
}

/// Says on standard error what was done to read a weights file.
pub(super) fn say(notes: &[String]) {
    for note in notes {
        // A note that can't be shown is no reason not to go on.
        let _ = writeln!(std::io::stderr(), "{}", plain(note));
    }
}

/// Loads a weights file. Where neither the file, nor a `config.json` beside it, nor the caller says which network it is, it is taken
/// for `teacher`; the number of classes is then that of its last layer. What was done to read the file is said on standard error.
pub(super) fn load(
    path: &Path,
    architecture: Option<Architecture>,
    classes: Option<usize>,
    stated: &Stated,
) -> anyhow::Result<Weights> {
    let header = weights::peek(path)?;
    let (timm, note) = timm::beside(path, header.metadata.as_ref())?;
    say(note.as_slice());
    let known = architecture.or(timm.as_ref().and_then(|timm| timm.architecture));
    let mut config = header.config(known, classes)?;
    let metadata = header.metadata.as_ref();
    let (preprocessing, note) =
        preprocessing::find(path, metadata, timm.as_ref(), config.architecture, stated)?;
    let size = preprocessing.size;
    if stated.size.is_some() || metadata.is_none() {
        config.input = [3, size, size];
    }
    let Loaded { tensors, metadata, notes } = weights::load(path, &config)?;
    say(&notes);
    say(note.as_slice());
    let class_names = match (metadata, timm) {
        (Some(metadata), _) => metadata.class_names,
        (None, Some(timm)) => timm.names(config.classes)?.map(<[String]>::to_vec),
        (None, None) => None,
    };
    Ok(Weights { config, tensors, preprocessing, class_names })
}
