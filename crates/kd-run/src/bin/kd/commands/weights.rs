//! Weights files that are used without a data set: what a file says about its network, and the tutorial's values where it says
//! nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::Tensor;
use kd_data::Normalization;
use kd_models::weights::Loaded;
use kd_models::{Architecture, ModelConfig, weights};
use kd_report::text::plain;

/// A file's network, and what it was trained on.
pub(super) struct Weights {
    pub(super) config: ModelConfig,
    pub(super) tensors: BTreeMap<String, Tensor>,
    pub(super) normalization: Normalization,
    /// The classes' names, by label; `None` in files that PyTorch wrote.
    pub(super) class_names: Option<Vec<String>>,
}

/// Says on standard error what was done to read a weights file.
pub(super) fn say(notes: &[String]) {
    for note in notes {
        // A note that can't be shown is no reason not to go on.
        let _ = writeln!(std::io::stderr(), "{}", plain(note));
    }
}

/// Loads a weights file. Where neither the file nor the caller says which network it is, it is taken for `teacher`; the number of
/// classes is then that of its last layer. What was done to read the file is said on standard error.
pub(super) fn load(
    path: &Path,
    architecture: Option<Architecture>,
    classes: Option<usize>,
) -> anyhow::Result<Weights> {
    let config = weights::peek(path)?.config(architecture, classes)?;
    let Loaded { tensors, metadata, notes } = weights::load(path, &config)?;
    say(&notes);
    let mut normalization = Normalization::default();
    let mut class_names = None;
    match metadata {
        Some(metadata) => {
            normalization = Normalization { mean: metadata.mean, std: metadata.std };
            class_names = metadata.class_names;
        }
        // A file from PyTorch doesn't say it; the tutorial's way is assumed.
        None => say(&[format!(
            "{}: the file does not say how the images of its network's training were normalised; mean {:?} and std {:?} are taken",
            path.display(),
            normalization.mean,
            normalization.std
        )]),
    }
    Ok(Weights { config, tensors, normalization, class_names })
}
