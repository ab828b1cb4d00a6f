//! The images that a recipe asks for, loaded and cut into those to train on and to test on.

use std::path::Path;

use anyhow::Context;
use kd_data::{Dataset, Limits, Portions, SyntheticConfig, images};
use kd_models::classes::shortened;
use serde::Deserialize;

use crate::error::other;
use crate::recipe::{DataConfig, DatasetName, RunConfig};
use crate::{Error, Result};

/// Loads the data set of `config` and applies its limits. `folder` holds the data set's files, or is the parent of the folder that
/// does; the synthetic set needs no folder, and one's own pictures lie in `train` and `test` in it.
///
/// # Errors
/// When a file is missing, or damaged and not to be left out, when the data's SHA-256 is not the recipe's, or when so many images are to
/// be held out that a class would have none left to train on.
pub fn load(config: &DataConfig, folder: &Path) -> Result<Portions> {
    config.check().map_err(|invalid| other!("the recipe's table data: {invalid}"))?;
    let (dataset, files) = match config.dataset {
        DatasetName::Cifar10 => (kd_data::cifar10(folder)?, Some("cifar-10-batches-bin")),
        DatasetName::Cifar100 => (kd_data::cifar100(folder)?, Some("cifar-100-binary")),
        DatasetName::Synthetic => (kd_data::synthetic(&SyntheticConfig::default()), None),
        DatasetName::Folder => (pictures(folder, config.skip_broken)?, None),
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
    let warning = files.and_then(|files| warning(folder, files));
    Ok(Portions::new(dataset, &limits(config), warning)?)
}

/// The same, to plan a run by: where the files of CIFAR are not there, black images in their number, and a sentence that says so.
///
/// # Errors
/// As [`load`]'s, but for files of CIFAR that are missing.
pub(crate) fn load_or_blank(
    config: &DataConfig,
    folder: &Path,
) -> Result<(Portions, Option<String>)> {
    let blank = match config.dataset {
        DatasetName::Cifar10 => kd_data::blank_cifar10,
        DatasetName::Cifar100 => kd_data::blank_cifar100,
        DatasetName::Synthetic | DatasetName::Folder => return Ok((load(config, folder)?, None)),
    };
    match load(config, folder) {
        Err(Error::Other(error))
            if matches!(error.downcast_ref(), Some(kd_data::Error::Missing { .. })) =>
        {
            let note = format!(
                "{}: the files of {} are not there; planned with the numbers of its images",
                folder.display(),
                config.dataset.name()
            );
            Ok((Portions::new(blank(), &limits(config), None)?, Some(note)))
        }
        loaded => Ok((loaded?, None)),
    }
}

fn limits(config: &DataConfig) -> Limits {
    Limits { train: config.train_limit, test: config.test_limit, held_out: config.held_out }
}

/// One's own pictures in `folder`; those that can't be read are left out, or an error that says how to do so.
fn pictures(folder: &Path, skip_broken: bool) -> Result<Dataset> {
    if skip_broken {
        return Ok(kd_data::image_folder_without_broken(folder, images::SIDE)?);
    }
    kd_data::image_folder(folder, images::SIDE).map_err(|error| match error {
        kd_data::Error::Picture { .. } | kd_data::Error::Pictures { .. } => other!(
            "{error}\n--skip-broken (skip_broken = true in a recipe's [data]) leaves them out and lists them"
        ),
        other => other.into(),
    })
}

/// What each class counts in the run's cross-entropy with the labels; `None` where all count the same.
///
/// # Errors
/// When the recipe's `class_weights` don't fit the classes or the training images.
pub(crate) fn class_weights(run: &RunConfig, data: &Portions) -> Result<Option<Vec<f64>>> {
    let Some(weights) = &run.class_weights else { return Ok(None) };
    let images = data.train.class_counts(data.classes.len());
    let weights = weights.of(&data.classes, &images).map_err(|error| {
        let (name, classes) = (&run.name, shortened(&data.classes));
        Error::unfit(format!("run {name}: {error}; the classes are {classes}"))
    })?;
    Ok(Some(weights))
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
