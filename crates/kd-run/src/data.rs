//! The images that a recipe asks for, loaded and cut into those to train on, to test on and to select an epoch on.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use kd_data::{Split, SyntheticConfig};
use serde::Deserialize;

use crate::recipe::{DataConfig, DatasetName, RunConfig};
use crate::{Error, Result};

/// Seed of the subsets that `train_limit` and `test_limit` take. Like the three seeds below it is a constant, so that the choice is
/// the same in every run, whatever the run's own seed.
const SUBSET_SEED: u64 = 0;
/// Seed of the choice of held-out images.
const HELD_OUT_SEED: u64 = 1;
/// Seed of the parts of cross-fitting.
const PART_SEED: u64 = 2;
/// Seed of the choice of images that a run selects its epoch on.
const SELECTION_SEED: u64 = 3;

/// The images of a run, after every limit of its recipe has been applied.
#[derive(Clone, Debug)]
pub struct Data {
    /// `cifar10`, `cifar100`, `synthetic` or `folder`.
    pub name: String,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// The images to train on.
    pub train: Arc<Split>,
    /// The images to test on.
    pub test: Arc<Split>,
    /// The number of training images before [`Data::for_run`] left any out for one run.
    pub whole_train: usize,
    /// Images taken out of the training images, on which the run selects its best epoch; `None` where it does not.
    pub selection: Option<Arc<Split>>,
    /// SHA-256 of the whole data set.
    pub sha256: String,
    /// Why the images may differ from the published ones, for the report; `None` when nothing says so.
    pub warning: Option<String>,
}

impl Data {
    /// The labels of the training images, in the data's order.
    pub(crate) fn train_labels(&self) -> Vec<u32> {
        self.train.labels.iter().map(|&label| u32::from(label)).collect()
    }
}

/// Loads the data set of `config` and applies its limits. `folder` holds the data set's files, or is the parent of the folder that
/// does; the synthetic set needs no folder, and one's own pictures lie in `train` and `test` in it.
///
/// # Errors
/// When a file is missing or damaged, when the data's SHA-256 is not the recipe's, or when more images are to be held out than
/// there are training images.
pub fn load(config: &DataConfig, folder: &Path) -> Result<Data> {
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
    let classes = dataset.classes.len();
    let limited = |split: Split, limit: Option<usize>| match limit {
        Some(limit) if limit < split.len() => {
            split.select(&split.balanced_subset(limit, classes, SUBSET_SEED))
        }
        _ => split,
    };
    let mut warning = files.and_then(|files| warning(folder, files));
    let (train, test) = match config.held_out {
        None => (dataset.train, dataset.test),
        Some(held_out) => {
            let note = format!(
                "the test images are {held_out} images held out of the training set; the data set's own test images were not used"
            );
            warning = Some(warning.map_or(note.clone(), |warning| format!("{warning}; {note}")));
            hold_out(&dataset.train, held_out, classes)?
        }
    };
    let train = limited(train, config.train_limit);
    Ok(Data {
        name: dataset.name,
        whole_train: train.len(),
        train: Arc::new(train),
        test: Arc::new(limited(test, config.test_limit)),
        selection: None,
        classes: dataset.classes,
        sha256: dataset.sha256,
        warning,
    })
}

impl Data {
    /// Leaves out the training images that `run` must not train on: its part in cross-fitting, and those that it selects its epoch
    /// on, which become [`Data::selection`].
    ///
    /// # Errors
    /// When there are fewer training images than parts or than images to select on.
    pub fn for_run(mut self, run: &RunConfig) -> Result<Self> {
        if let Some([part, of]) = run.part {
            let left_out = self.part(part, of)?;
            self.train = Arc::new(self.train.select(&all_but(self.train.len(), &left_out)));
        }
        if let Some(count) = run.select_on {
            let images = self.train.len();
            if count >= images {
                return Err(Error::unfit(format!(
                    "run {}: select_on is {count}; expected fewer than the {images} training images",
                    run.name
                )));
            }
            let chosen = self.train.balanced_subset(count, self.classes.len(), SELECTION_SEED);
            self.selection = Some(Arc::new(self.train.select(&chosen)));
            self.train = Arc::new(self.train.select(&all_but(self.train.len(), &chosen)));
        }
        Ok(self)
    }

    /// The indices of the training images in part `part` (from 1) of `of` parts. The parts are balanced over the classes, hold each
    /// image exactly once, and are the same in every run.
    pub(crate) fn part(&self, part: usize, of: usize) -> Result<Vec<u32>> {
        let images = self.train.len();
        if of > images {
            return Err(Error::unfit(format!(
                "{images} training images can't be cut into {of} parts; expected at most one part for each image"
            )));
        }
        // With the same seed a smaller balanced subset is contained in each larger one.
        let up_to = |part: usize| {
            self.train.balanced_subset(images * part / of, self.classes.len(), PART_SEED)
        };
        let before = up_to(part - 1);
        Ok(up_to(part).into_iter().filter(|i| before.binary_search(i).is_err()).collect())
    }
}

/// Splits the training images into those that remain and the `count` that are held out.
fn hold_out(train: &Split, count: usize, classes: usize) -> Result<(Split, Split)> {
    let images = train.len();
    if count >= images {
        return Err(Error::unfit(format!(
            "data.held_out is {count}; expected fewer than the {images} training images"
        )));
    }
    let held_out = train.balanced_subset(count, classes, HELD_OUT_SEED);
    Ok((train.select(&all_but(train.len(), &held_out)), train.select(&held_out)))
}

/// The indices below `len` that are not in `left_out`, whose indices must be in ascending order.
fn all_but(len: usize, left_out: &[u32]) -> Vec<u32> {
    (0..len as u32).filter(|index| left_out.binary_search(index).is_err()).collect()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn load_with(held_out: Option<usize>, train_limit: Option<usize>) -> Result<Data> {
        let config = DataConfig {
            dataset: DatasetName::Synthetic,
            held_out,
            train_limit,
            ..DataConfig::default()
        };
        load(&config, Path::new(""))
    }

    #[test]
    fn parts_are_balanced_and_hold_each_image_once() {
        let data = load_with(None, Some(103)).unwrap();
        let parts: Vec<Vec<u32>> = (1..=4).map(|part| data.part(part, 4).unwrap()).collect();
        let mut all: Vec<u32> = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        for (index, part) in parts.iter().enumerate() {
            let counts = data.train.select(part).class_counts(10);
            assert!(counts.iter().all(|count| (2..=4).contains(count)), "{counts:?}");
            let mut run = RunConfig::on_labels("t", kd_models::Architecture::TUTORIAL_TEACHER);
            run.part = Some([index + 1, 4]);
            let seen = data.clone().for_run(&run).unwrap();
            assert_eq!(seen.train.len() + part.len(), 103);
            run.select_on = Some(20);
            let seen = data.clone().for_run(&run).unwrap();
            let selection = seen.selection.unwrap();
            assert_eq!((selection.len(), seen.train.len()), (20, 103 - part.len() - 20));
        }
        assert!(data.part(1, 104).is_err());
    }

    #[test]
    fn held_out_images_are_balanced_the_same_each_time_and_not_trained_on() {
        let whole = load_with(None, None).unwrap();
        let data = load_with(Some(500), None).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (whole.train.len() - 500, 500));
        assert_eq!(data.test.class_counts(10), [50; 10]);
        let pictures = |split: &Split| -> Vec<Vec<u8>> {
            (0..split.len()).map(|i| split.image(i).to_vec()).collect()
        };
        let train: BTreeSet<_> = pictures(&data.train).into_iter().collect();
        assert!(pictures(&data.test).iter().all(|image| !train.contains(image)));
        // A limit takes from what is left, and leaves the held-out images alone.
        let limited = load_with(Some(500), Some(200)).unwrap();
        assert_eq!((limited.train.len(), &limited.test), (200, &data.test));
        assert!(data.warning.unwrap().contains("500 images held out"));
        let message = load_with(Some(whole.train.len()), None).unwrap_err().to_string();
        assert!(message.contains("expected fewer than the"), "{message}");
    }
}
