//! `events.jsonl`: one measurement a line, each with its `time` in seconds since 1970.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::tensorboard::{self, TensorBoard};

/// A line of `events.jsonl`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// The first line: what is trained on what.
    Start(&'a Start),
    /// Which of the teacher's outputs are kept for the whole run, and which are computed in each step.
    Teacher {
        /// Kept.
        kept: &'a [String],
        /// Computed in each step.
        live: &'a [String],
        /// Spent on making or reading those that are kept.
        seconds: f64,
        /// Training images that the next two figures are of.
        images: usize,
        /// The teacher's share of right answers on them.
        accuracy: f64,
        /// Mean entropy of the teacher's softmax on them, in nats.
        entropy: f64,
    },
    /// Every so many steps.
    Step {
        /// From 1.
        epoch: usize,
        /// From 1, counted from the start of the run.
        step: u64,
        /// The step's loss.
        loss: f64,
    },
    /// The end of an epoch.
    Epoch(&'a EpochRecord),
    /// The last line.
    End {
        /// Steps taken.
        steps: u64,
    },
}

/// What is trained on what.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// The run's name.
    pub run: String,
    /// The network.
    pub model: String,
    /// The method; null on the labels alone.
    pub method: Option<String>,
    /// Trained values of the network (without a method's helpers).
    pub parameters: usize,
    /// Of one image's forward pass.
    pub multiply_adds: u64,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Threads that compute.
    pub threads: usize,
    /// Processor and cores.
    pub machine: String,
    /// Of kd.
    pub version: &'static str,
    /// Of the run.
    pub seed: u64,
    /// The images.
    pub dataset: DatasetRecord,
}

/// The images of a run.
#[derive(Clone, Debug, Serialize)]
pub struct DatasetRecord {
    /// `cifar10`, `cifar100` or `synthetic`.
    pub name: String,
    /// Images trained on.
    pub train: usize,
    /// Images tested on.
    pub test: usize,
    /// Of the whole data set.
    pub sha256: String,
    /// Why the images may not be the published ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// The figures of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// Mean over the steps.
    pub train_loss: f64,
    /// Share of right answers while training, with dropout.
    pub train_accuracy: f64,
    /// Cross-entropy, mean over the test images.
    pub test_loss: f64,
    /// Share of right answers.
    pub test_accuracy: f64,
    /// Spent on training.
    pub seconds: f64,
    /// Spent on the test images.
    pub test_seconds: f64,
    /// In training.
    pub images_per_second: f64,
    /// Share of right answers on the images that the best epoch is chosen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection_accuracy: Option<f64>,
    /// Of the epoch's last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Parts of the training loss by name, before their weights, mean over the steps.
    pub parts: BTreeMap<String, f64>,
}

/// The file, and all that has been written to it.
pub(crate) struct EventLog {
    path: PathBuf,
    file: File,
    text: String,
    tensorboard: Option<TensorBoard>,
}

#[derive(Serialize)]
struct Timed<'a> {
    #[serde(flatten)]
    event: &'a Event<'a>,
    time: f64,
}

impl EventLog {
    /// Starts the file with `text`, in place of what is there; on demand TensorBoard's too.
    pub(crate) fn restore(path: PathBuf, text: String, tensorboard: bool) -> anyhow::Result<Self> {
        files::write_whole(&path, text.as_bytes())?;
        let file = File::options()
            .append(true)
            .open(&path)
            .with_context(|| format!("{}: can't be opened", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        // A file of TensorBoard's that an earlier process began is carried on, or it would tell of steps that are done again.
        let tensorboard = match tensorboard || !tensorboard::earlier(folder)?.is_empty() {
            true => Some(TensorBoard::rewrite(folder, &text)?),
            false => None,
        };
        Ok(Self { path, file, text, tensorboard })
    }

    pub(crate) fn write(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        let timed = Timed { event, time: files::unix_seconds() };
        let mut line =
            serde_json::to_string(&timed).context("an event can't be written as JSON")?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("{}: can't be written", self.path.display()))?;
        self.text.push_str(&line);
        match &mut self.tensorboard {
            Some(tensorboard) => tensorboard.add(&line),
            None => Ok(()),
        }
    }

    /// Everything so far, for a checkpoint.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| format!("{}: can't be written", self.path.display()))
    }
}

/// The epochs in the text of an `events.jsonl`; a line that is anything else is passed over.
pub fn epochs_of(text: &str) -> Vec<EpochRecord> {
    #[derive(Deserialize)]
    #[serde(tag = "event", rename_all = "lowercase")]
    enum Line {
        Epoch(EpochRecord),
        #[serde(other)]
        Other,
    }
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let epoch = |line| match line {
        Line::Epoch(record) => Some(record),
        Line::Other => None,
    };
    lines.filter_map(epoch).collect()
}

/// Whether a run's events say that it came to its end.
pub(crate) fn has_ended(path: &Path) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        event: String,
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let last = text.strip_suffix('\n').and_then(|text| text.lines().last());
    let kind = last.and_then(|line| serde_json::from_str::<Kind>(line).ok());
    kind.is_some_and(|kind| kind.event == "end")
}
