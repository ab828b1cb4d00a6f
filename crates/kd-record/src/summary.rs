//! `summary.json` of an output folder: every run's figures for programs, and over several seeds the mean and spread of each name.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::DatasetRecord;
use crate::read::read_json;
use crate::{Error, Result};

/// The version of this description.
pub const FORMAT: u32 = 1;
/// A thousand runs of a thousand epochs are far smaller.
const MAX_BYTES: u64 = 256 << 20;

/// What runs below one output folder say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The version of this description: [`FORMAT`].
    pub format: u32,
    /// The images of all runs.
    pub dataset: DatasetRecord,
    /// What the first run computed on.
    pub device: String,
    /// The runs' seed, the lowest where there are several.
    pub seed: u64,
    /// All seeds, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// Seed by seed; in each the networks trained alone (the largest first), then the distilled ones.
    pub runs: Vec<RunSummary>,
    /// Each name over the seeds, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over_seeds: Vec<OverSeeds>,
}

/// One run's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// The run's name.
    pub name: String,
    /// The run's seed, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The network's name.
    pub model: String,
    /// The methods' names joined by "+"; null on the labels alone.
    pub method: Option<String>,
    /// Trained values of the network.
    pub parameters: usize,
    /// Epochs done.
    pub epochs: usize,
    /// The numbers of epochs that the run had before it was trained on for more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub epochs_before: Vec<usize>,
    /// Share of correct predictions on the test images of the weights that the run ended with.
    pub test_accuracy: f64,
    /// The same after the best epoch.
    pub best_test_accuracy: f64,
    /// [Balanced accuracy](crate::Evaluation::balanced_accuracy) of the weights that the run ended with; absent before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_balanced_accuracy: Option<f64>,
    /// [Macro F1](crate::Evaluation::macro_f1) of the same weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_macro_f1: Option<f64>,
    /// The accuracy of these weights with test-time flipping ([`TestFlip`](crate::TestFlip)), where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_flip_accuracy: Option<f64>,
    /// Cross-entropy on the test images of the weights that the run ended with.
    pub test_loss: f64,
    /// Training loss of each epoch.
    pub train_loss: Vec<f64>,
    /// Wall-clock seconds spent training.
    pub seconds: f64,
    /// Training throughput over all epochs.
    pub images_per_second: f64,
    /// The teachers of a run that has several, in order: the names of runs, or files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teachers: Vec<String>,
    /// The teacher's share of correct predictions on the images that it teaches with; of several together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_accuracy: Option<f64>,
    /// The mean entropy of the teacher's softmax on them, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_entropy: Option<f64>,
    /// Expected calibration error on the test images, with 15 intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_calibration_error: Option<f64>,
    /// Share of the test images on which the network predicts what its teacher predicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_agreement: Option<f64>,
}

/// The runs of one name over several seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverSeeds {
    /// The runs' name.
    pub name: String,
    /// How many seeds this name was run with.
    pub count: usize,
    /// Of the weights that the runs ended with.
    pub test_accuracy: Spread,
    /// After each run's best epoch.
    pub best_test_accuracy: Spread,
    /// Balanced accuracy of the weights that the runs ended with; absent until all have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_balanced_accuracy: Option<Spread>,
    /// Macro F1 of the same weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_macro_f1: Option<Spread>,
    /// Of the weights that the runs ended with.
    pub test_loss: Spread,
    /// Wall-clock seconds spent training.
    pub seconds: Spread,
    /// Training throughput.
    pub images_per_second: Spread,
    /// Test accuracy minus that of the same network trained alone, seed by seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<Spread>,
}

/// Mean and spread of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean; null without values.
    pub mean: Option<f64>,
    /// Sample standard deviation (divided by n - 1); null with fewer than two values.
    pub standard_deviation: Option<f64>,
}

impl Summary {
    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it can't be read, or is of another format.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        // Read first: another format may differ in everything else.
        let Format { format } = read_json(path, MAX_BYTES, "a summary")?;
        if format != FORMAT {
            let found = format!(
                "format is {format}; this version reads format {FORMAT}: make it anew with `kd report`"
            );
            return Err(Error::corrupt(path, None, found));
        }
        read_json(path, MAX_BYTES, "a summary")
    }

    /// The run of that name; of several seeds the first.
    pub fn run(&self, name: &str) -> Option<&RunSummary> {
        self.runs.iter().find(|run| run.name == name)
    }
}
