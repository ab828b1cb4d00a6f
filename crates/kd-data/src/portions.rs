//! A data set cut into the images to train on, to test on and to select an epoch on.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::labels::{self, balanced_parts, balanced_subset, class_counts, held_out_subset};
use crate::names::Named;
use crate::one_line::shown;
use crate::source::{Source, select};
use crate::{Dataset, Error, Picture, Result, Skipped};
use kd_record::hash::hex;

/// Seed of the subsets that [`Limits`] take. Like the three seeds below it is a constant, so that the choice is the same in every run,
/// whatever the run's own seed.
const SUBSET_SEED: u64 = 0;
/// Seed of the choice of held-out images.
const HELD_OUT_SEED: u64 = 1;
/// Seed of the parts of cross-fitting.
const PART_SEED: u64 = 2;
/// Seed of the choice of images that a run selects its epoch on.
const SELECTION_SEED: u64 = 3;

/// How many images of a data set are used. The default is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Train on at most this many images, balanced over the classes.
    pub train: Option<usize>,
    /// Test on at most this many images, balanced over the classes.
    pub test: Option<usize>,
    /// Take this many training images out, balanced over the classes, and test on them instead of the test images.
    pub held_out: Option<usize>,
}

/// A data set whose pictures need not lie in memory. Of a [`Dataset`], which holds them there, it is made with `into`.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `cifar10`, `cifar100`, `synthetic`, `folder` or `shards`.
    pub name: String,
    /// The classes' names, by label; none where neither the images to train on nor those to test on have labels.
    pub classes: Vec<String>,
    /// The images to train on.
    pub train: Arc<dyn Source>,
    /// The images to test on, which have labels; they may be none where images are held out.
    pub test: Arc<dyn Source>,
    /// What the data set is known by: as [`Dataset::sha256`] of pictures in memory, and of files as
    /// [`picture_files`](crate::picture_files) says.
    pub sha256: String,
    /// The pictures that can't be read and were left out.
    pub skipped: Vec<Skipped>,
}

impl From<Dataset> for Sources {
    fn from(dataset: Dataset) -> Self {
        let Dataset { name, classes, train, test, sha256, skipped, names } = dataset;
        let (train, test): (Arc<dyn Source>, Arc<dyn Source>) = (Arc::new(train), Arc::new(test));
        let (train, test) = match names {
            Some([of_train, of_test]) => {
                (Named::by_name(of_train, train), Named::by_name(of_test, test))
            }
            None => (Named::by_number("train", train), Named::by_number("test", test)),
        };
        Self { name, classes, train, test, sha256, skipped }
    }
}

/// The images of a run, after every limit has been applied.
#[derive(Clone, Debug)]
pub struct Portions {
    /// `cifar10`, `cifar100`, `synthetic`, `folder` or `shards`.
    pub name: String,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// The images to train on.
    pub train: Arc<dyn Source>,
    /// The images to test on.
    pub test: Arc<dyn Source>,
    /// The number of training images before [`Portions::for_run`] left any out for one run.
    pub whole_train: usize,
    /// SHA-256 of the part of the training images that [`Portions::for_run`] left out, as [`Portions::part_sha256`]; `None` where it
    /// left out none.
    pub left_out_sha256: Option<String>,
    /// Images taken out of the training images, on which the run selects its best epoch; `None` where it does not.
    pub selection: Option<Arc<dyn Source>>,
    /// SHA-256 of the whole data set.
    pub sha256: String,
    /// Why the images may differ from the published ones, and the [class warnings](Self::class_warnings), for the report; `None`
    /// when there is nothing to say.
    pub warning: Option<String>,
    /// The pictures that can't be read and were left out.
    pub skipped: Vec<Skipped>,
    /// Sentences about what was passed over when the data was read, and which images are tested on.
    pub notes: Vec<String>,
    /// A sentence for each way in which the limits leave a class short of images: without one to train on, to select an epoch on or
    /// to test on.
    pub class_warnings: Vec<String>,
}

impl Portions {
    /// The images of `dataset` after its limits. `warning` says why the images may differ from the published ones.
    ///
    /// # Errors
    /// When so many images are to be held out that a class would have none left to train on, or an image has no label.
    pub fn new(
        dataset: impl Into<Sources>,
        limits: &Limits,
        warning: Option<String>,
    ) -> Result<Self> {
        let dataset = dataset.into();
        let classes = dataset.classes.len();
        let limited = |source: Arc<dyn Source>, limit: Option<usize>| match limit {
            Some(limit) if limit < source.len() => {
                // Pictures without labels are as of one class.
                let (labels, classes) = match source.is_labelled() {
                    true => (source.labels()?, classes),
                    false => (vec![0; source.len()], 1),
                };
                let chosen = balanced_subset(&labels, limit, classes, SUBSET_SEED);
                Ok::<_, Error>(select(&source, &chosen))
            }
            _ => Ok(source),
        };
        let mut data = Self {
            name: dataset.name,
            whole_train: 0,
            left_out_sha256: None,
            train: dataset.train,
            test: dataset.test,
            selection: None,
            classes: dataset.classes,
            sha256: dataset.sha256,
            warning,
            skipped: dataset.skipped,
            notes: Vec::new(),
            class_warnings: Vec::new(),
        };
        if let Some(sentence) = data.skipped_sentence() {
            data.warn(sentence);
        }
        if let Some(held_out) = limits.held_out {
            data.warn(format!(
                "the test images are {held_out} images held out of the training set; the data set's own test images were not used"
            ));
            data.test = data.take_out("data.held_out", held_out, HELD_OUT_SEED)?;
        }
        data.train = limited(data.train, limits.train)?;
        data.test = limited(data.test, limits.test)?;
        data.whole_train = data.train.len();
        let untested = data.absent(&data.test);
        if !untested.is_empty() {
            data.warn_of_classes(format!(
                "no test image is of {}: the accuracy there is not measured",
                class_list(&untested)
            ));
        }
        Ok(data)
    }

    /// Leaves out the training images that the run `run` must not train on: those of part `part[0]` (from 1) of `part[1]` parts in
    /// cross-fitting, and the `select_on` images that it selects its epoch on, which become [`Portions::selection`]. A class that
    /// has no image to train on, or none to select on, is named in [`Portions::class_warnings`].
    ///
    /// # Errors
    /// When there are fewer training images than parts, or when so many images are to be selected on that a class would have none
    /// left to train on.
    pub fn for_run(
        mut self,
        run: &str,
        part: Option<[usize; 2]>,
        select_on: Option<usize>,
    ) -> Result<Self> {
        if let Some([part, of]) = part {
            self.require_labels(&format!("run {run}: part"))?;
            self.left_out_sha256 = Some(self.part_sha256(part, of)?);
            let left_out = self.part(part, of)?;
            self.train = select(&self.train, &all_but(self.train.len(), &left_out));
        }
        if let Some(count) = select_on {
            let setting = format!("run {run}: select_on");
            let selection = self.take_out(&setting, count, SELECTION_SEED)?;
            let absent = self.absent(&selection);
            if !absent.is_empty() {
                self.warn_of_classes(format!(
                    "no image that the epoch is selected on is of {}: the choice takes no account of it",
                    class_list(&absent)
                ));
            }
            self.selection = Some(selection);
        }
        let unseen = if self.train.is_labelled() { self.absent(&self.train) } else { Vec::new() };
        if !unseen.is_empty() {
            let part = part.map_or(String::new(), |[part, of]| {
                format!(" outside of part {part} of {of}, which is left out,")
            });
            self.warn_of_classes(format!(
                "no training image{part} is of {}: the network can't learn it",
                class_list(&unseen)
            ));
        }
        Ok(self)
    }

    /// How many pictures were left out because they can't be read, and the first of them; `None` where none was.
    pub fn skipped_sentence(&self) -> Option<String> {
        const NAMED: usize = 5;
        let skipped = self.skipped.iter().take(NAMED);
        let named: Vec<_> = skipped.map(|skipped| shown(&skipped.path)).collect();
        let more = match self.skipped.len() {
            0 => return None,
            all if all > NAMED => format!(" and {} more", all - NAMED),
            _ => String::new(),
        };
        let which = match self.skipped.len() {
            1 => "1 picture that can't be read is".into(),
            all => format!("{all} pictures that can't be read are"),
        };
        Some(format!("{which} left out: {}{more}", named.join(", ")))
    }

    /// The labels of the training images, in the data's order; empty where the images have none.
    ///
    /// # Errors
    /// When an image has none and others do.
    pub fn train_labels(&self) -> Result<Vec<u32>> {
        if self.train.is_labelled() { self.train.labels() } else { Ok(Vec::new()) }
    }

    /// Refuses training images without labels where `setting` goes by them.
    ///
    /// # Errors
    /// When they have none.
    pub fn require_labels(&self, setting: &str) -> Result<()> {
        match self.train.is_labelled() || self.train.is_empty() {
            true => Ok(()),
            false => Err(Error::Unlabelled { setting: setting.into() }),
        }
    }

    /// The shape of the images that a network gets: channels, height and width.
    pub fn input(&self) -> [usize; 3] {
        self.train.shape()
    }

    /// The indices of the training images in part `part` (from 1) of `of` parts. The parts are balanced over the classes, hold each
    /// image exactly once, and are the same in every run. A class of two images or more lies in no part alone.
    ///
    /// # Errors
    /// When there are fewer training images than parts.
    pub fn part(&self, part: usize, of: usize) -> Result<Vec<u32>> {
        let images = self.train.len();
        if of > images {
            return Err(too_few(format!(
                "{images} training images can't be cut into {of} parts; expected at most one part for each image"
            )));
        }
        let mut parts = balanced_parts(&self.train.labels()?, of, self.classes.len(), PART_SEED);
        Ok(parts.swap_remove(part - 1))
    }

    /// SHA-256, in hex, of the pixels and labels of the training images in part `part` (from 1) of `of` parts, by which two cuts of two
    /// data sets can be told apart. Where the pictures don't lie in memory, it is that of the part's identity and labels.
    ///
    /// # Errors
    /// As [`Portions::part`].
    pub fn part_sha256(&self, part: usize, of: usize) -> Result<String> {
        let mut hash = Sha256::new();
        let part = select(&self.train, &self.part(part, of)?);
        if part.block().is_none() {
            hash.update(part.identity());
            hash.update(labels::bytes(&part.labels()?));
            return Ok(hex(hash));
        }
        let mut picture = Picture::default();
        for (index, label) in (0..).zip(part.labels()?) {
            part.read(index, &mut picture)?;
            hash.update(&picture.pixels);
            hash.update(labels::bytes(&[label]));
        }
        Ok(hex(hash))
    }

    /// Takes `count` images, balanced over the classes, out of the training images; each class keeps at least one. `setting` is what
    /// asks for them.
    fn take_out(&mut self, setting: &str, count: usize, seed: u64) -> Result<Arc<dyn Source>> {
        self.require_labels(setting)?;
        let (images, classes) = (self.train.len(), self.classes.len());
        if count >= images {
            return Err(too_few(format!(
                "{setting} is {count}; expected fewer than the {images} training images"
            )));
        }
        let labels = self.train.labels()?;
        let counts = class_counts(&labels, classes);
        let unlimited = balanced_subset(&labels, count, classes, seed);
        let unlimited: Vec<u32> = unlimited.iter().map(|&index| labels[index as usize]).collect();
        let unlimited = class_counts(&unlimited, classes);
        let emptied =
            (0..classes).filter(|&class| counts[class] > 0 && unlimited[class] == counts[class]);
        let emptied: Vec<&str> = emptied.map(|class| self.classes[class].as_str()).collect();
        let chosen = held_out_subset(&labels, count, classes, seed);
        if chosen.len() < count {
            return Err(too_few(format!(
                "{setting} is {count}, which would leave no training image of {}; expected at most {} of the {images} training images, so that each class keeps one",
                class_list(&emptied),
                chosen.len()
            )));
        }
        if !emptied.is_empty() {
            let note = format!(
                "{setting} is {count}, which would take every image of {}: one of each stays in training",
                class_list(&emptied)
            );
            self.warn_of_classes(note);
        }
        let taken = select(&self.train, &chosen);
        self.train = select(&self.train, &all_but(images, &chosen));
        Ok(taken)
    }

    /// The names of the classes of which `source` has no image.
    fn absent(&self, source: &Arc<dyn Source>) -> Vec<&str> {
        let counts = source.class_counts(self.classes.len());
        let named = self.classes.iter().zip(counts);
        named.filter(|(_, count)| *count == 0).map(|(name, _)| name.as_str()).collect()
    }

    /// Adds a sentence to the warning.
    fn warn(&mut self, sentence: String) {
        self.warning = Some(match self.warning.take() {
            Some(warning) => format!("{warning}; {sentence}"),
            None => sentence,
        });
    }

    /// Adds a sentence about classes to both warnings.
    fn warn_of_classes(&mut self, sentence: String) {
        self.class_warnings.push(sentence.clone());
        self.warn(sentence);
    }
}

fn too_few(reason: String) -> Error {
    Error::TooFew { reason }
}

/// These classes' names for a sentence: the first ten, and how many there are.
fn class_list(names: &[&str]) -> String {
    const NAMED: usize = 10;
    let quoted = names.iter().take(NAMED).map(|name| format!("`{name}`"));
    let listed = quoted.collect::<Vec<_>>().join(", ");
    match names.len() {
        0 | 1 => format!("class {listed}"),
        2..=NAMED => format!("the classes {listed}"),
        all => format!("{all} classes ({listed}, ...)"),
    }
}

/// The indices below `len` that are not in `left_out`, whose indices must be in ascending order.
fn all_but(len: usize, left_out: &[u32]) -> Vec<u32> {
    (0..len as u32).filter(|index| left_out.binary_search(index).is_err()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Split, SyntheticConfig, synthetic};

    fn with_limits(held_out: Option<usize>, train: Option<usize>) -> Result<Portions> {
        let limits = Limits { held_out, train, test: None };
        Portions::new(synthetic(&SyntheticConfig::default()), &limits, None)
    }

    #[test]
    fn parts_are_balanced_and_hold_each_image_once() {
        let data = with_limits(None, Some(103)).unwrap();
        let parts: Vec<Vec<u32>> = (1..=4).map(|part| data.part(part, 4).unwrap()).collect();
        let mut all: Vec<u32> = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        for (index, part) in parts.iter().enumerate() {
            let counts = select(&data.train, part).class_counts(10);
            assert!(counts.iter().all(|count| (2..=4).contains(count)), "{counts:?}");
            let left_out = Some([index + 1, 4]);
            let seen = data.clone().for_run("t", left_out, None).unwrap();
            assert_eq!(seen.left_out_sha256, data.part_sha256(index + 1, 4).ok());
            assert_ne!(seen.left_out_sha256, data.part_sha256((index + 1) % 4 + 1, 4).ok());
            assert_eq!(seen.train.len() + part.len(), 103);
            let seen = data.clone().for_run("t", left_out, Some(20)).unwrap();
            let selection = seen.selection.unwrap();
            assert_eq!((selection.len(), seen.train.len()), (20, 103 - part.len() - 20));
        }
        assert!(data.part(1, 104).is_err());
    }

    #[test]
    fn held_out_images_are_balanced_the_same_each_time_and_not_trained_on() {
        let whole = with_limits(None, None).unwrap();
        let data = with_limits(Some(500), None).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (whole.train.len() - 500, 500));
        assert_eq!(data.test.class_counts(10), [50; 10]);
        let pictures = |source: &Arc<dyn Source>| -> Vec<Vec<u8>> {
            let block = source.block().unwrap().images;
            block.chunks(3072).map(<[u8]>::to_vec).collect()
        };
        let train: BTreeSet<_> = pictures(&data.train).into_iter().collect();
        assert!(pictures(&data.test).iter().all(|image| !train.contains(image)));
        // A limit takes from what is left, and leaves the held-out images alone.
        let limited = with_limits(Some(500), Some(200)).unwrap();
        assert_eq!(limited.train.len(), 200);
        assert_eq!(limited.test.identity(), data.test.identity());
        assert!(data.warning.unwrap().contains("500 images held out"));
        let message = with_limits(Some(whole.train.len()), None).unwrap_err().to_string();
        assert!(message.contains("expected fewer than the"), "{message}");
    }

    /// Classes `a`, `b`, ... of so many training images, and two test images of each.
    fn of_counts(counts: &[usize]) -> Portions {
        let split = |counts: &[usize]| -> Arc<dyn Source> {
            let labels: Vec<u32> =
                (0..).zip(counts).flat_map(|(label, &count)| vec![label; count]).collect();
            let images = labels.iter().flat_map(|&label| [label as u8; 3]).collect();
            Arc::new(Split { images, labels, coarse_labels: None, shape: [3, 1, 1] })
        };
        Portions {
            name: "folder".into(),
            classes: ('a'..).take(counts.len()).map(String::from).collect(),
            train: split(counts),
            test: split(&vec![2; counts.len()]),
            whole_train: counts.iter().sum(),
            left_out_sha256: None,
            selection: None,
            sha256: String::new(),
            warning: None,
            skipped: Vec::new(),
            notes: Vec::new(),
            class_warnings: Vec::new(),
        }
    }

    #[test]
    fn a_rare_class_stays_in_training_whatever_is_held_out() {
        let mut data = of_counts(&[200, 20, 5]);
        let held_out = data.take_out("data.held_out", 30, HELD_OUT_SEED).unwrap();
        assert_eq!(held_out.class_counts(3), [13, 13, 4]);
        assert_eq!(data.train.class_counts(3), [187, 7, 1]);
        let [warning] = &data.class_warnings[..] else { panic!("{:?}", data.class_warnings) };
        assert!(warning.contains("would take every image of class `c`"), "{warning}");
        assert_eq!(data.warning.as_ref(), Some(warning));
        let mut data = of_counts(&[200, 20, 5]);
        let error = data.take_out("data.held_out", 224, HELD_OUT_SEED).unwrap_err().to_string();
        assert!(error.contains("no training image of the classes `b`, `c`"), "{error}");
        assert!(error.contains("expected at most 222 of the 225"), "{error}");
    }

    #[test]
    fn the_images_to_select_on_leave_each_class_some_and_a_class_without_is_named() {
        let data = of_counts(&[30, 30, 1]).for_run("t", None, Some(2)).unwrap();
        assert_eq!(data.selection.unwrap().class_counts(3), [1, 1, 0]);
        assert_eq!(data.train.class_counts(3), [29, 29, 1]);
        let warnings = data.class_warnings.join("\n");
        assert!(warnings.contains("selected on is of class `c`"), "{warnings}");
        let error = of_counts(&[30, 30, 1]).for_run("t", None, Some(60)).unwrap_err().to_string();
        assert!(error.contains("run t: select_on is 60, which would leave"), "{error}");
        assert!(error.contains("expected at most 58 of the 61"), "{error}");
    }

    #[test]
    fn a_part_without_a_class_elsewhere_is_said() {
        let mut unseen = 0;
        for part in 1..=3 {
            let data = of_counts(&[60, 4, 1]).for_run("t", Some([part, 3]), None).unwrap();
            let counts = data.train.class_counts(3);
            assert!(counts[0] >= 39 && counts[1] >= 2, "{counts:?}");
            let warned = data.class_warnings.iter().any(|warning| {
                warning.contains("which is left out, is of class `c`: the network can't learn it")
            });
            assert_eq!(warned, counts[2] == 0);
            unseen += usize::from(warned);
        }
        assert_eq!(unseen, 1);
    }

    #[test]
    fn limits_below_the_number_of_classes_name_those_left_out() {
        let limits = Limits { train: Some(8), test: Some(9), held_out: None };
        let data = Portions::new(synthetic(&SyntheticConfig::default()), &limits, None).unwrap();
        let data = data.for_run("t", None, None).unwrap();
        let [test, train] = &data.class_warnings[..] else { panic!("{:?}", data.class_warnings) };
        let names = |classes: &[String]| {
            class_list(&classes.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert!(
            test.contains(&format!("no test image is of {}", names(&data.classes[9..]))),
            "{test}"
        );
        assert!(
            train.contains(&format!("no training image is of {}", names(&data.classes[8..]))),
            "{train}"
        );
        assert!(with_limits(Some(500), Some(200)).unwrap().class_warnings.is_empty());
    }
}
