//! `evaluation.json`: the finished network's figures on the test images.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::read::read_text_or;
use crate::write::write_whole;
use crate::{Error, Result};

/// The version of this description.
pub const FORMAT: u32 = 1;
/// A thousand classes' counts are far smaller.
const MAX_BYTES: u64 = 64 << 20;

/// A network's figures on the test images.
///
/// What follows from the confusion matrix is computed from it whenever an evaluation is read, so that files and checkpoints of
/// versions before 0.3 have it, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Evaluation {
    /// The version of this description: [`FORMAT`].
    pub format: u32,
    /// Share of correct predictions, from 0 to 1.
    pub accuracy: f64,
    /// Cross-entropy, mean over the images.
    pub loss: f64,
    /// The classes' names.
    pub classes: Vec<String>,
    /// Counts of images; rows: the true class, columns: the predicted one.
    pub confusion: Vec<Vec<u32>>,
    /// Share of correct predictions in each class; `None` (null in the file) for a class without test images.
    pub per_class_accuracy: Vec<Option<f64>>,
    /// Mean of the classes' accuracies, from 0 to 1: each class counts the same, however many test images it has. Classes without
    /// test images are left out ([`untested`](Self::untested)), as scikit-learn's `balanced_accuracy_score` leaves them out.
    pub balanced_accuracy: f64,
    /// Mean of the classes' F1 scores, from 0 to 1: twice a class's correct predictions, divided by its test images and the
    /// predictions of it together. Classes without test images that nothing is predicted to be are left out, as in scikit-learn's
    /// `f1_score(average="macro")`; a class without test images that some image is predicted to be counts with 0.
    pub macro_f1: f64,
    /// The figures of the mean of the network's logits of each image and of its mirror image, where they were asked for. They stand
    /// beside the others, which are of the images alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_flip: Option<TestFlip>,
}

/// What test-time flipping gives: a network asked about each image and about its mirror image, with the mean of both logits as its
/// answer. It takes two forward passes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestFlip {
    /// Share of correct predictions, from 0 to 1.
    pub accuracy: f64,
    /// Cross-entropy, mean over the images.
    pub loss: f64,
}

/// What an evaluation's file has held since version 0.1.
#[derive(Deserialize)]
struct Stored {
    format: u32,
    accuracy: f64,
    loss: f64,
    classes: Vec<String>,
    confusion: Vec<Vec<u32>>,
    per_class_accuracy: Vec<Option<f64>>,
    #[serde(default)]
    test_flip: Option<TestFlip>,
}

impl From<Stored> for Evaluation {
    fn from(stored: Stored) -> Self {
        let Stored {
            format,
            accuracy,
            loss,
            classes,
            confusion,
            mut per_class_accuracy,
            test_flip,
        } = stored;
        // Versions 0.1 and 0.2 wrote 0 for a class without test images.
        for (share, row) in per_class_accuracy.iter_mut().zip(&confusion) {
            if row.iter().all(|count| *count == 0) {
                *share = None;
            }
        }
        Self {
            balanced_accuracy: balanced_accuracy(&per_class_accuracy),
            macro_f1: macro_f1(&confusion),
            format,
            accuracy,
            loss,
            classes,
            confusion,
            per_class_accuracy,
            test_flip,
        }
    }
}

/// See [`Evaluation::balanced_accuracy`]; NaN where no class has an accuracy.
fn balanced_accuracy(per_class: &[Option<f64>]) -> f64 {
    mean(per_class.iter().copied().flatten())
}

/// See [`Evaluation::macro_f1`]; NaN where no image is counted. A row that is too short counts as filled up with zeros.
fn macro_f1(confusion: &[Vec<u32>]) -> f64 {
    let count = |row: &Vec<u32>, class: usize| u64::from(row.get(class).copied().unwrap_or(0));
    mean(confusion.iter().enumerate().filter_map(|(class, row)| {
        let images: u64 = row.iter().copied().map(u64::from).sum();
        let predictions: u64 = confusion.iter().map(|row| count(row, class)).sum();
        let both = images + predictions;
        (both > 0).then(|| (2 * count(row, class)) as f64 / both as f64)
    }))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

impl Evaluation {
    /// The figures that follow from the confusion matrix (rows: the true class) and the mean loss. The accuracy of no image is NaN.
    pub fn new(classes: &[String], confusion: Vec<Vec<u32>>, loss: f64) -> Self {
        let share = |right: u32, of: u32| (of > 0).then(|| f64::from(right) / f64::from(of));
        let right = || confusion.iter().enumerate().map(|(class, row)| row[class]);
        let counts = confusion.iter().map(|row| row.iter().sum());
        let per_class_accuracy: Vec<_> =
            right().zip(counts).map(|(right, of)| share(right, of)).collect();
        Self {
            format: FORMAT,
            accuracy: share(right().sum(), confusion.iter().flatten().sum()).unwrap_or(f64::NAN),
            loss,
            classes: classes.to_vec(),
            balanced_accuracy: balanced_accuracy(&per_class_accuracy),
            macro_f1: macro_f1(&confusion),
            per_class_accuracy,
            confusion,
            test_flip: None,
        }
    }

    /// The names of the classes without test images, which the balanced accuracy leaves out.
    pub fn untested(&self) -> Vec<&str> {
        let named = self.classes.iter().zip(&self.per_class_accuracy);
        named.filter(|(_, share)| share.is_none()).map(|(name, _)| name.as_str()).collect()
    }

    /// Whether the classes have different numbers of test images, so that balanced accuracy and accuracy differ.
    pub fn is_uneven(&self) -> bool {
        let mut counts = self.confusion.iter().map(|row| row.iter().sum::<u32>());
        counts.next().is_some_and(|first| counts.any(|count| count != first))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string(self).map_err(|error| {
            Error::corrupt(path, None, format!("the evaluation can't be written as JSON: {error}"))
        })?;
        write_whole(path, format!("{json}\n").as_bytes())
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it is missing, can't be read, is of another format, or its figures don't fit each other.
    pub fn read(path: &Path) -> Result<Self> {
        let advice = "the run's events say that it ended; run it again to evaluate it";
        let text = read_text_or(path, MAX_BYTES, advice)?;
        let bad = |found: String| Error::corrupt(path, None, found);
        let evaluation: Self = serde_json::from_str(&text)
            .map_err(|error| bad(format!("not an evaluation: {error}")))?;
        evaluation.check().map_err(bad)?;
        Ok(evaluation)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.format != FORMAT {
            return Err(format!(
                "format is {}; this version reads format {FORMAT}: use the version of kd that wrote it, or remove it and run the same command again",
                self.format
            ));
        }
        let (classes, confusion) = (self.classes.len(), &self.confusion);
        if confusion.len() != classes || confusion.iter().any(|row| row.len() != classes) {
            let widths: Vec<usize> = confusion.iter().map(Vec::len).collect();
            return Err(format!(
                "confusion has {} rows of {widths:?} columns; expected {classes} of {classes}, one per class",
                confusion.len()
            ));
        }
        if self.per_class_accuracy.len() != classes {
            let found = self.per_class_accuracy.len();
            return Err(format!(
                "{found} per_class_accuracy values; expected {classes}, one per class"
            ));
        }
        let total: u64 = confusion.iter().flatten().copied().map(u64::from).sum();
        if total == 0 {
            return Err("confusion counts no image; expected at least one".into());
        }
        let right: u64 = (0..classes).map(|class| u64::from(confusion[class][class])).sum();
        let counted = right as f64 / total as f64;
        // Written so that NaN is refused too.
        let close = (counted - self.accuracy).abs() <= 1e-4;
        if !close {
            return Err(format!(
                "accuracy {} is not the confusion matrix's, {right} of {total} ({counted:.4})",
                self.accuracy
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_follow_from_the_counts() {
        let classes = ["a", "b", "empty"].map(str::to_owned);
        let counts = vec![vec![3, 1, 0], vec![2, 2, 0], vec![0, 0, 0]];
        let found = Evaluation::new(&classes, counts, 0.5);
        assert_eq!(found.accuracy, 0.625);
        assert_eq!(found.per_class_accuracy, [Some(0.75), Some(0.5), None]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.json");
        found.write(&path).unwrap();
        assert_eq!(Evaluation::read(&path).unwrap(), found);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("[0.75,0.5,null]"), "{text}");
        // As versions before 0.3 wrote it.
        std::fs::write(&path, text.replace("null", "0.0")).unwrap();
        assert_eq!(Evaluation::read(&path).unwrap(), found);
        let empty = Evaluation { accuracy: 0.0, confusion: vec![vec![0; 3]; 3], ..found.clone() };
        empty.write(&path).unwrap();
        let message = Evaluation::read(&path).unwrap_err().to_string();
        assert!(message.contains("confusion counts no image"), "{message}");
        // A row that was cut off is named, though figures are computed before the rows are checked.
        let cut = text.replacen("[2,2,0]", "[2,2]", 1);
        std::fs::write(&path, cut).unwrap();
        assert!(Evaluation::read(&path).unwrap_err().to_string().contains("[3, 2, 3] columns"));
        let other = Evaluation { accuracy: 0.63, ..found };
        other.write(&path).unwrap();
        let message = Evaluation::read(&path).unwrap_err().to_string();
        assert!(message.contains("0.63 is not the confusion matrix's, 5 of 8"), "{message}");
    }

    /// A confusion matrix with scikit-learn 1.9.1's `balanced_accuracy_score(true, predicted)` and
    /// `f1_score(true, predicted, average="macro", zero_division=0)` of the same predictions.
    const SCIKIT_LEARN: [(&[&[u32]], f64, f64); 4] = [
        (&[&[3, 1, 0], &[2, 2, 0], &[0, 0, 0]], 0.625, 0.6190476190476191),
        (&[&[90, 5, 5], &[2, 3, 0], &[1, 0, 1]], 0.6666666666666666, 0.5480603161950311),
        (&[&[4, 0, 1], &[1, 3, 2], &[0, 0, 0]], 0.65, 0.48888888888888893),
        (
            &[&[5, 0, 0, 0], &[0, 0, 0, 3], &[0, 0, 0, 0], &[1, 0, 0, 6]],
            0.6190476190476191,
            0.5530303030303031,
        ),
    ];

    #[test]
    fn balanced_accuracy_and_macro_f1_are_scikit_learns() {
        for (confusion, balanced, f1) in SCIKIT_LEARN {
            let classes: Vec<String> =
                (0..confusion.len()).map(|class| class.to_string()).collect();
            let rows = confusion.iter().map(|row| row.to_vec()).collect();
            let found = Evaluation::new(&classes, rows, 0.5);
            assert!((found.balanced_accuracy - balanced).abs() < 1e-12, "{found:?}");
            assert!((found.macro_f1 - f1).abs() < 1e-12, "{found:?}");
            // A file of a version before 0.3 has neither figure.
            let mut old = serde_json::to_value(&found).unwrap();
            for key in ["balanced_accuracy", "macro_f1"] {
                old.as_object_mut().unwrap().remove(key).unwrap();
            }
            assert_eq!(serde_json::from_value::<Evaluation>(old).unwrap(), found);
        }
    }

    #[test]
    fn classes_without_test_images_are_named() {
        let classes = ["a", "b", "c"].map(str::to_owned);
        let found = Evaluation::new(&classes, vec![vec![0; 3], vec![0, 2, 0], vec![0; 3]], 0.5);
        assert_eq!((found.untested(), found.is_uneven()), (vec!["a", "c"], true));
        let even = Evaluation::new(&classes, vec![vec![1, 1, 0]; 3], 0.5);
        assert!(even.untested().is_empty() && !even.is_uneven());
    }
}
