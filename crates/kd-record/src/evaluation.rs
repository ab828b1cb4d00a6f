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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}

impl Evaluation {
    /// The figures that follow from the confusion matrix (rows: the true class) and the mean loss. The accuracy of no image is NaN.
    pub fn new(classes: &[String], confusion: Vec<Vec<u32>>, loss: f64) -> Self {
        let share = |right: u32, of: u32| (of > 0).then(|| f64::from(right) / f64::from(of));
        let right = || confusion.iter().enumerate().map(|(class, row)| row[class]);
        let counts = confusion.iter().map(|row| row.iter().sum());
        Self {
            format: FORMAT,
            accuracy: share(right().sum(), confusion.iter().flatten().sum()).unwrap_or(f64::NAN),
            loss,
            classes: classes.to_vec(),
            per_class_accuracy: right().zip(counts).map(|(right, of)| share(right, of)).collect(),
            confusion,
        }
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
        let mut evaluation: Self = serde_json::from_str(&text)
            .map_err(|error| bad(format!("not an evaluation: {error}")))?;
        evaluation.check().map_err(bad)?;
        // Versions 0.1 and 0.2 wrote 0 for a class without test images.
        for (share, row) in evaluation.per_class_accuracy.iter_mut().zip(&evaluation.confusion) {
            if row.iter().all(|count| *count == 0) {
                *share = None;
            }
        }
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
        let other = Evaluation { accuracy: 0.63, ..found };
        other.write(&path).unwrap();
        let message = Evaluation::read(&path).unwrap_err().to_string();
        assert!(message.contains("0.63 is not the confusion matrix's, 5 of 8"), "{message}");
    }
}
