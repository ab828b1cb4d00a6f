//! The images of a recipe, in memory.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use kd_data::{Split, SyntheticConfig};
use serde::Deserialize;

use crate::recipe::{DataConfig, DatasetName};

/// A seed of its own, so that the subset is the same in every run, whatever the run's seed.
const SUBSET_SEED: u64 = 0;

/// Images to train on and to test on, after any limit.
#[derive(Clone, Debug)]
pub struct Data {
    /// `cifar10`, `cifar100` or `synthetic`.
    pub name: String,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// The images to train on.
    pub train: Arc<Split>,
    /// The images to test on.
    pub test: Arc<Split>,
    /// SHA-256 of the whole data set.
    pub sha256: String,
    /// Why the images may not be the published ones.
    pub warning: Option<String>,
}

/// Loads the data set of `config`; `folder` has its batch files or is the parent of that folder
/// (the synthetic set needs none).
///
/// # Errors
/// When a file is missing or damaged, or the data is not what the recipe's hash says.
pub fn load(config: &DataConfig, folder: &Path) -> anyhow::Result<Data> {
    let (dataset, files) = match config.dataset {
        DatasetName::Cifar10 => (kd_data::cifar10(folder)?, Some("cifar-10-batches-bin")),
        DatasetName::Cifar100 => (kd_data::cifar100(folder)?, Some("cifar-100-binary")),
        DatasetName::Synthetic => (kd_data::synthetic(&SyntheticConfig::default()), None),
    };
    if let Some(expected) = &config.sha256
        && *expected != dataset.sha256
    {
        anyhow::bail!(
            "{}: the data's SHA-256 is {}; the recipe's data.sha256 is {expected}: it was made for other data",
            folder.display(),
            dataset.sha256
        );
    }
    let classes = dataset.classes.len();
    let limited = |split: Split, limit: Option<usize>| match limit {
        Some(limit) if limit < split.len() => {
            split.select(&split.balanced_subset(limit, classes, SUBSET_SEED))
        }
        _ => split,
    };
    Ok(Data {
        name: dataset.name,
        train: Arc::new(limited(dataset.train, config.train_limit)),
        test: Arc::new(limited(dataset.test, config.test_limit)),
        classes: dataset.classes,
        sha256: dataset.sha256,
        warning: files.and_then(|files| warning(folder, files)),
    })
}

/// What `source.json` beside the batch files says against them, if it is there.
fn warning(folder: &Path, files: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Source {
        warning: Option<String>,
    }
    let read = |folder: &Path| std::fs::read(folder.join("source.json")).ok();
    let text = read(&folder.join(files)).or_else(|| read(folder))?;
    let source: Result<Source, _> =
        serde_json::from_slice(&text).context("source.json beside the data can't be read");
    match source {
        Ok(source) => source.warning,
        Err(error) => {
            tracing::warn!("{error:#}");
            None
        }
    }
}
