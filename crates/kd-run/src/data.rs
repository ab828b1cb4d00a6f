//! The images that a recipe asks for, loaded and cut into those to train on and to test on.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use kd_data::{
    FilesConfig, FolderConfig, Limits, Portions, Room, Scaled, Scaling, Sources, SyntheticConfig,
    TestOn, images,
};
use kd_models::classes::shortened;
use serde::Deserialize;

use crate::error::other;
use crate::recipe::{DataConfig, DatasetName, RunConfig};
use crate::{Error, Result};

/// Puts a data set and shards that somebody asks for in the place of a recipe's. What the recipe says of its own data set alone does not
/// count for another one: `sha256`, `skip_broken`, the shards, `split` and `test_on`. Shards to test on take the place of `split`, too.
pub fn choose(
    config: &mut DataConfig,
    dataset: Option<DatasetName>,
    train_shards: Option<&str>,
    test_shards: Option<&str>,
) {
    if let Some(dataset) = dataset.filter(|dataset| *dataset != config.dataset) {
        config.dataset = dataset;
        (config.sha256, config.skip_broken) = (None, false);
        (config.train_shards, config.test_shards) = (None, None);
        (config.split, config.test_on) = (None, TestOn::default());
    }
    if let Some(shards) = train_shards {
        config.train_shards = Some(shards.into());
    }
    if let Some(shards) = test_shards {
        (config.test_shards, config.split) = (Some(shards.into()), None);
    }
}

/// Loads the data set of `config` and applies its limits. `folder` holds the data set's files, or is the parent of the folder that
/// does; the synthetic set needs no folder, and one's own pictures lie in `train` and `test` in it. Without labels on the training images
/// there may be no test images, and no classes.
///
/// # Errors
/// When there is nothing to train on or to test on, a file is missing, or damaged and not to be left out, when the data's SHA-256 is not the recipe's, or when so many images are to
/// be held out that a class would have none left to train on.
pub fn load(config: &DataConfig, folder: &Path) -> Result<Portions> {
    load_within(config, folder, DATA_MEMORY)
}

/// Most bytes of decoded pictures that are kept in memory where nothing is said.
pub const DATA_MEMORY: u64 = 256 << 20;

/// As [`load`], with at most so many bytes of decoded pictures in memory, where pictures are read from their files as they are wanted.
///
/// # Errors
/// As [`load`]'s.
pub fn load_within(config: &DataConfig, folder: &Path, memory: u64) -> Result<Portions> {
    let data = load_untested(config, folder, memory)?;
    if data.train.is_empty() {
        return Err(Error::unfit(format!(
            "{}: there are no pictures to train on; add a folder train with a folder of pictures for each class, or with pictures that have none",
            folder.display()
        )));
    }
    if data.test.is_empty() && data.train.is_labelled() {
        return Err(Error::unfit(format!(
            "{}: there are no pictures to test on; add a folder test, val or validation beside train (test_shards or split in a recipe's [data] for shards), or hold some of the training pictures out (--held-out, held_out in a recipe's [data])",
            folder.display()
        )));
    }
    Ok(data)
}

/// As [`load_within`], where there may be no images to train on or to test on.
///
/// # Errors
/// As [`load`]'s, but for images that are missing.
pub fn load_untested(config: &DataConfig, folder: &Path, memory: u64) -> Result<Portions> {
    config.check().map_err(|invalid| other!("the recipe's table data: {invalid}"))?;
    let (mut files, mut notes) = (None, Vec::new());
    let dataset = match (config.dataset, config.scaling()) {
        (DatasetName::Folder | DatasetName::Shards, Some(scaling)) => {
            let (sources, said) = of_any_size(config, scaling, folder, memory)?;
            notes = said;
            sources
        }
        (DatasetName::Folder, None) => {
            let DataConfig { split, test_on, skip_broken, .. } = *config;
            let read = FolderConfig { side: images::SIDE, split, test_on, skip_broken };
            let (dataset, said) = kd_data::image_folder_as(folder, &read).map_err(with_cure)?;
            notes = said;
            dataset.into()
        }
        (name, scaling) => {
            let dataset = match name {
                DatasetName::Cifar10 => kd_data::cifar10(folder)?,
                DatasetName::Cifar100 => kd_data::cifar100(folder)?,
                _ => kd_data::synthetic(&SyntheticConfig::default()),
            };
            files = match name {
                DatasetName::Cifar10 => Some("cifar-10-batches-bin"),
                DatasetName::Cifar100 => Some("cifar-100-binary"),
                _ => None,
            };
            scaled(dataset.into(), scaling)?
        }
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
    let mut portions = Portions::new(dataset, &limits(config), warning)?;
    portions.notes = notes;
    Ok(portions)
}

/// The images scaled to another size, where one is set.
fn scaled(sources: Sources, scaling: Option<Scaling>) -> Result<Sources> {
    let Some(scaling) = scaling else { return Ok(sources) };
    let to_size = |images| Ok::<_, Error>(Arc::new(Scaled::new(images, scaling, Room::new(0))?));
    let (train, test) = (to_size(sources.train)?, to_size(sources.test)?);
    Ok(Sources { train, test, ..sources })
}

/// The same, to plan a run by: where the files of CIFAR are not there, black images in their number, and a sentence that says so.
///
/// # Errors
/// As [`load`]'s, but for files of CIFAR that are missing.
pub(crate) fn load_or_blank(
    config: &DataConfig,
    folder: &Path,
    memory: u64,
) -> Result<(Portions, Option<String>)> {
    let blank = match config.dataset {
        DatasetName::Cifar10 => kd_data::blank_cifar10,
        DatasetName::Cifar100 => kd_data::blank_cifar100,
        DatasetName::Synthetic | DatasetName::Folder | DatasetName::Shards => {
            return Ok((load_within(config, folder, memory)?, None));
        }
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
            let blank = scaled(blank().into(), config.scaling())?;
            Ok((Portions::new(blank, &limits(config), None)?, Some(note)))
        }
        loaded => Ok((loaded?, None)),
    }
}

fn limits(config: &DataConfig) -> Limits {
    Limits { train: config.train_limit, test: config.test_limit, held_out: config.held_out }
}

/// An error of the data; where pictures can't be read, with what leaves them out.
pub fn with_cure(error: kd_data::Error) -> Error {
    match error {
        kd_data::Error::Picture { .. } | kd_data::Error::Pictures { .. } => other!(
            "{error}\n--skip-broken (skip_broken = true in a recipe's [data]) leaves them out and lists them"
        ),
        other => other.into(),
    }
}

/// One's own pictures of any size, read when they are wanted, and what there is to say about them.
fn of_any_size(
    config: &DataConfig,
    scaling: Scaling,
    folder: &Path,
    memory: u64,
) -> Result<(Sources, Vec<String>)> {
    let DataConfig { split, test_on, skip_broken, .. } = *config;
    let files = FilesConfig { scaling, split, test_on, skip_broken, room: Room::new(memory) };
    let found = match config.dataset {
        DatasetName::Shards => {
            let train = config.train_shards.as_deref().unwrap_or_default();
            kd_data::picture_shards(folder, train, config.test_shards.as_deref(), &files)
        }
        _ => kd_data::picture_files(folder, &files),
    };
    found.map_err(with_cure)
}

/// The pictures of one's own that the recipe's data names in `folder`, before any limit and none kept in memory, and what there is to
/// say about them.
///
/// # Errors
/// As [`load`]'s, and when the data set is not of pictures of one's own.
pub fn pictures(config: &DataConfig, folder: &Path) -> Result<(Sources, Vec<String>)> {
    config.check().map_err(|invalid| other!("the recipe's table data: {invalid}"))?;
    match config.scaling().filter(|_| config.dataset.is_ones_own()) {
        Some(scaling) => of_any_size(config, scaling, folder, 0),
        None => Err(Error::unfit(format!(
            "the data set is {}; expected folder or shards: those are pictures of any size",
            config.dataset.name()
        ))),
    }
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
