//! The images that a recipe asks for, loaded and cut into those to train on and to test on.

use std::path::Path;

use anyhow::Context;
use kd_data::{Limits, Portions, SyntheticConfig};
use serde::Deserialize;

use crate::recipe::{DataConfig, DatasetName};
use crate::{Error, Result};

/// Loads the data set of `config` and applies its limits. `folder` holds the data set's files, or is the parent of the folder that
/// does; the synthetic set needs no folder, and one's own pictures lie in `train` and `test` in it.
///
/// # Errors
/// When a file is missing or damaged, when the data's SHA-256 is not the recipe's, or when so many images are to be held out that
/// a class would have none left to train on.
pub fn load(config: &DataConfig, folder: &Path) -> Result<Portions> {
    let (dataset, files) = match config.dataset {
        DatasetName::Cifar10 => (kd_data::cifar10(folder)?, Some("cifar-10-batches-bin")),
        DatasetName::Cifar100 => (kd_data::cifar100(folder)?, Some("cifar-100-binary")),
        DatasetName::Synthetic => (kd_data::synthetic(&SyntheticConfig::default()), None),
        DatasetName::Folder => (kd_data::image_folder(folder, kd_data::images::SIDE)?, None),
    };
    if let Some(expected) = &config.sha256
        && *expected != dataset.sha256
    {
        return Err(Error::unfit(format!(
            "{}: the data's SHA-256 is {}; the recipe's data.sha256 is {expected}: the recipe was made for other data. Give that data with --data, or remove data.sha256 from the recipe",
            folder.display(),
            dataset.sha256
        )));
    }
    let limits =
        Limits { train: config.train_limit, test: config.test_limit, held_out: config.held_out };
    Ok(Portions::new(dataset, &limits, files.and_then(|files| warning(folder, files)))?)
}

/// The warning in `source.json` beside the data set's files, if that file is there and has one. `cargo xtask data` writes it when
/// the images did not come from the published archive.
fn warning(folder: &Path, files: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Source {
        warning: Option<String>,
    }
    let read = |folder: &Path| std::fs::read(folder.join("source.json")).ok();
    let text = read(&folder.join(files)).or_else(|| read(folder))?;
    let source: anyhow::Result<Source> =
        serde_json::from_slice(&text).context("source.json beside the data can't be read");
    match source {
        Ok(source) => source.warning,
        Err(error) => {
            tracing::warn!("{error:#}");
            None
        }
    }
}
