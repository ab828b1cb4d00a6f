//! `events.jsonl`: one measurement a line, each a JSON object with its kind under `event` and under `time` the seconds since
//! 1970. It is the truth about a run: the report and TensorBoard's file are made from it.
//!
//! | event | when |
//! | --- | --- |
//! | `start` | first: what is trained on what, and what it learns from |
//! | `teacher` | before the first step of a run with a teacher |
//! | `step` | every so many steps |
//! | `epoch` | at the end of an epoch |
//! | `end` | last: the weights are written |
//! | `extended` | where a run goes on for more epochs than it was started for |
//!
//! Readers pass over events of other kinds. A process that is killed may leave half a line, and only as the last one. A run
//! that goes on may report an epoch again; the last report counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::read::read_text_or;
use crate::roles::Roles;
use crate::write::write_whole;
use crate::{Error, Result};

/// The events of a million epochs are far smaller.
const MAX_BYTES: u64 = 1 << 30;

/// What a line of `events.jsonl` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The first line: what is trained on what.
    Start(Box<Start>),
    /// How the teacher's outputs are had, and how good they are.
    Teacher(TeacherRecord),
    /// A training step.
    Step {
        /// The epoch, counted from 1.
        epoch: usize,
        /// The step, counted from 1 at the start of the run.
        step: u64,
        /// The loss of the step's batch.
        loss: f64,
    },
    /// The end of an epoch.
    Epoch(EpochRecord),
    /// The last line: the run is finished.
    End {
        /// Steps taken in all.
        steps: u64,
    },
    /// The run goes on for more epochs than it was started for.
    Extended(Extension),
}

/// The kinds that [`Event`] knows.
const KINDS: [&str; 6] = ["start", "teacher", "step", "epoch", "end", "extended"];

/// What is trained on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The run's name.
    #[serde(alias = "name")]
    pub run: String,
    /// The network's name.
    pub model: String,
    /// The methods' names joined by "+"; null on the labels alone. [`Start::roles`] says more.
    #[serde(default)]
    pub method: Option<String>,
    /// Trained values of the network, without a method's helpers.
    pub parameters: usize,
    /// Multiplications, each with an addition, in the forward pass of one image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiply_adds: Option<u64>,
    /// What computes: `cpu` or `cuda`.
    pub device: String,
    /// Threads that compute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Processor and number of cores, for people who compare times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The version of kd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The seed of every random draw.
    pub seed: u64,
    /// The data set that the run was trained and tested on.
    pub dataset: DatasetRecord,
    /// What the run learns from; version 0.1 did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Roles>,
}

/// The images of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// `cifar10`, `cifar100`, `synthetic`, `folder` or `shards`.
    pub name: String,
    /// Images trained on, after any limit.
    pub train: usize,
    /// Images tested on, after any limit.
    pub test: usize,
    /// SHA-256 of the whole data set.
    pub sha256: String,
    /// Why the images may not be the published ones, e.g. an archive whose checksum is not the published one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The pictures of a folder that could not be read and were left out of training and test images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedPicture>,
}

/// A picture that could not be read and was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedPicture {
    /// Its file, as seen from the data set's folder.
    pub path: String,
    /// Why it could not be read.
    pub reason: String,
}

/// A run's training for more epochs than it was started for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Whole epochs done when it was extended.
    pub done: usize,
    /// The number of epochs that the run had until then.
    pub from: usize,
    /// The number of epochs that it has from here on.
    pub to: usize,
    /// The version of kd that goes on.
    pub version: String,
}

/// How a run's teacher is asked, and how it does on images that it teaches with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherRecord {
    /// Outputs (logits, or feature places) that are in the cache for the whole run. Version 0.1 calls them `kept`.
    #[serde(default, alias = "kept")]
    pub cached: Vec<String>,
    /// Outputs that are computed in each step. Version 0.1 calls them `live`.
    #[serde(default, alias = "live")]
    pub computed: Vec<String>,
    /// Wall-clock seconds spent on filling or reading the cache.
    #[serde(default)]
    pub seconds: f64,
    /// How good the teacher's answers are; version 0.1's first runs did not record it.
    #[serde(flatten)]
    pub quality: Option<TeacherQuality>,
}

/// How a teacher does on training images: where it is always right and always sure, it says little beyond the labels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherQuality {
    /// Training images that the next two figures are of.
    pub images: usize,
    /// Share of correct predictions among them, from 0 to 1.
    pub accuracy: f64,
    /// Mean entropy of the teacher's softmax on them, in nats.
    pub entropy: f64,
}

/// The figures of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Training loss, mean over the epoch's images. Versions 0.1 and 0.2 took the mean over its steps.
    pub train_loss: f64,
    /// Share of correct predictions on the training images, with dropout, each before its step; `None` where these have no labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_accuracy: Option<f64>,
    /// Cross-entropy on the test images, mean over the images; `None` where there are none with labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// Share of correct predictions on the test images, from 0 to 1; `None` where there are none with labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_accuracy: Option<f64>,
    /// Wall-clock seconds spent training this epoch.
    pub seconds: f64,
    /// Wall-clock seconds spent evaluating after this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_seconds: Option<f64>,
    /// Training throughput, images per second.
    pub images_per_second: f64,
    /// Share of correct predictions on the images that the best epoch is chosen on, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection_accuracy: Option<f64>,
    /// The learning rate of the epoch's last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Parts of the training loss by name, each before its weight, mean over the same.
    #[serde(default)]
    pub parts: BTreeMap<String, f64>,
}

/// An event and when it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// Seconds since 1970; 0 in files of early versions.
    #[serde(default)]
    pub time: f64,
}

/// Reads one line of `events.jsonl`; `None` for an event of a kind that this version does not know.
///
/// # Errors
/// When the line is not a JSON object with a kind of event, or lacks what its kind has.
pub fn parse_line(line: &str) -> serde_json::Result<Option<Timed>> {
    #[derive(Deserialize)]
    struct Kind {
        event: Option<String>,
    }
    match serde_json::from_str(line)? {
        Kind { event: Some(kind) } if KINDS.contains(&kind.as_str()) => {
            serde_json::from_str(line).map(Some)
        }
        Kind { event: Some(_) } => Ok(None),
        Kind { event: None } => Err(serde::de::Error::custom("no field \"event\" with its kind")),
    }
}

/// Everything that a run has reported, each epoch once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    /// What is trained on what; absent only where nothing else is there either.
    pub start: Option<Start>,
    /// About the run's teacher, if it has one.
    pub teacher: Option<TeacherRecord>,
    /// In the order of their numbers; of an epoch that was reported again the last report.
    pub epochs: Vec<EpochRecord>,
    /// Each time that the run was to go on for more epochs than before, in order.
    pub extensions: Vec<Extension>,
    /// Whether the run is finished.
    pub ended: bool,
}

impl Events {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is missing, can't be read, or a line is not an event: with file and line.
    pub fn read(path: &Path) -> Result<Self> {
        let advice = "each run folder holds its events";
        Self::parse(&read_text_or(path, MAX_BYTES, advice)?, path)
    }

    /// Reads the text of the file `path`, whose name is for messages alone.
    ///
    /// # Errors
    /// When a line is not an event: with file and line.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut found = Self::default();
        let mut epochs = BTreeMap::new();
        let mut lines = text.split_inclusive('\n').enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            // Half of a line, from a process that was killed.
            if lines.peek().is_none() && !line.ends_with('\n') {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            let bad = |found: String| Error::corrupt(path, Some(index + 1), found);
            let timed = parse_line(line).map_err(|error| bad(format!("not an event: {error}")))?;
            match timed.map(|timed| timed.event) {
                Some(Event::Start(start)) => {
                    found.start = Some(*start);
                    found.ended = false;
                }
                Some(Event::Epoch(record)) => {
                    if let Some(accuracy) = record.test_accuracy
                        && !(0.0..=1.0).contains(&accuracy)
                    {
                        return Err(bad(format!(
                            "test_accuracy is {accuracy}; expected a number from 0 to 1"
                        )));
                    }
                    epochs.insert(record.epoch, record);
                    found.ended = false;
                }
                Some(Event::Teacher(record)) => found.teacher = Some(record),
                Some(Event::End { .. }) => found.ended = true,
                Some(Event::Extended(extension)) => {
                    found.extensions.push(extension);
                    found.ended = false;
                }
                Some(Event::Step { .. }) | None => {}
            }
        }
        if found.start.is_none() && !epochs.is_empty() {
            let found = "epochs without a \"start\" event before them";
            return Err(Error::corrupt(path, None, found));
        }
        found.epochs = epochs.into_values().collect();
        Ok(found)
    }
}

/// The epochs in the text of an `events.jsonl`, for a display that must not fail: what isn't an epoch is passed over.
pub fn epochs_of(text: &str) -> Vec<EpochRecord> {
    let epoch = |line| match parse_line(line).ok()??.event {
        Event::Epoch(record) => Some(record),
        _ => None,
    };
    text.lines().filter_map(epoch).collect()
}

/// The number of steps after which a run came to its end, as its events say; `None` where the last line is no whole `end`.
pub fn ended_after(path: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let last = text.strip_suffix('\n').and_then(|text| text.lines().last());
    let event = last.and_then(|line| parse_line(line).ok()?).map(|timed| timed.event);
    match event {
        Some(Event::End { steps }) => Some(steps),
        _ => None,
    }
}

/// An `events.jsonl` that is being written, and all that has been written to it.
pub struct EventLog {
    path: PathBuf,
    file: File,
    text: String,
}

impl EventLog {
    /// Starts the file with `text`, in place of what is there: a checkpoint holds the events up to it, so that a run that goes
    /// on reports no step twice.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn restore(path: PathBuf, text: String) -> Result<Self> {
        write_whole(&path, text.as_bytes())?;
        let file = File::options().append(true).open(&path);
        let file = file.map_err(Error::io(&path, "can't be opened"))?;
        Ok(Self { path, file, text })
    }

    /// Adds an event with the present time; returns its line, with the line's end.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&mut self, event: Event) -> Result<&str> {
        let timed = Timed { event, time: unix_seconds() };
        let mut line = serde_json::to_string(&timed).map_err(|error| {
            Error::corrupt(&self.path, None, format!("an event can't be written as JSON: {error}"))
        })?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path, "can't be written"))?;
        let start = self.text.len();
        self.text.push_str(&line);
        Ok(&self.text[start..])
    }

    /// Every line so far, for a checkpoint.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Makes what was written last.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn flush(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path, "can't be written"))
    }
}

/// Seconds since 1970, to the millisecond.
pub fn unix_seconds() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_millis() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as version 0.1 wrote them.
    const OLD: &str = concat!(
        r#"{"event":"start","run":"kd","model":"student","method":"kd","parameters":267738,"multiply_adds":1,"device":"cpu","#,
        r#""threads":2,"machine":"2 cores","version":"0.1.0","seed":3,"dataset":{"name":"synthetic","train":100,"test":40,"sha256":"ab"},"time":5.5}"#,
        "\n",
        r#"{"event":"teacher","kept":["logits"],"live":["features.5"],"seconds":0.25,"images":100,"accuracy":0.75,"entropy":0.5,"time":6.0}"#,
        "\n",
        r#"{"event":"step","epoch":1,"step":1,"loss":1.5,"time":6.5}"#,
        "\n",
        r#"{"event":"epoch","epoch":1,"train_loss":1.5,"train_accuracy":0.5,"test_loss":1.0,"test_accuracy":0.625,"seconds":2.0,"#,
        r#""test_seconds":0.5,"images_per_second":50.0,"learning_rate":0.001,"parts":{"kd":0.5,"labels":1.0},"time":7.0}"#,
        "\n",
        r#"{"event":"end","steps":1,"time":8.0}"#,
        "\n",
    );

    #[test]
    fn lines_of_version_0_1_are_read() {
        let found = Events::parse(OLD, Path::new("e")).unwrap();
        let start = found.start.unwrap();
        assert_eq!((start.run.as_str(), start.seed, start.threads), ("kd", 3, Some(2)));
        assert_eq!((start.dataset.train, start.dataset.test, start.roles), (100, 40, None));
        let teacher = found.teacher.unwrap();
        assert_eq!((&teacher.cached[0][..], &teacher.computed[0][..]), ("logits", "features.5"));
        let quality = TeacherQuality { images: 100, accuracy: 0.75, entropy: 0.5 };
        assert_eq!(teacher.quality, Some(quality));
        assert_eq!((found.epochs.len(), found.epochs[0].parts["kd"]), (1, 0.5));
        assert!(found.ended);
        // The first runs of that version said less.
        let teacher = r#"{"event":"teacher","kept":[],"live":[],"seconds":1.0}"#;
        match parse_line(teacher).unwrap().unwrap().event {
            Event::Teacher(record) => assert_eq!((record.seconds, record.quality), (1.0, None)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_reads_back_number_for_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.jsonl");
        let mut log = EventLog::restore(path.clone(), OLD.to_owned()).unwrap();
        let record = EpochRecord {
            epoch: 2,
            // No short decimal form.
            train_loss: 0.1 + 0.2,
            train_accuracy: Some(1.0 / 3.0),
            test_loss: Some(1e-300),
            test_accuracy: Some(0.5),
            seconds: 1.0,
            test_seconds: None,
            images_per_second: 3.0,
            selection_accuracy: Some(0.7),
            learning_rate: None,
            parts: BTreeMap::new(),
        };
        let line = log.write(Event::Epoch(record.clone())).unwrap();
        assert!(
            line.starts_with(r#"{"event":"epoch","epoch":2,"#) && line.ends_with("}\n"),
            "{line}"
        );
        log.flush().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, log.text());
        assert_eq!(Events::read(&path).unwrap().epochs[1], record);
        assert_eq!(epochs_of(&text)[1], record);
        assert_eq!(ended_after(&path), None, "an epoch came after the end");
        log.write(Event::End { steps: 2 }).unwrap();
        assert_eq!(ended_after(&path), Some(2));
        assert!(Events::read(&path).unwrap().ended);
        let extension = Extension { done: 2, from: 2, to: 5, version: "1".into() };
        log.write(Event::Extended(extension.clone())).unwrap();
        assert_eq!(ended_after(&path), None);
        let found = Events::read(&path).unwrap();
        assert_eq!((found.extensions, found.ended), (vec![extension], false));
    }

    #[test]
    fn of_an_epoch_that_is_reported_again_the_last_report_counts() {
        let epoch = |text: &str| OLD.lines().nth(3).unwrap().replace("1.5,", text);
        let text = format!("{OLD}{{\"event\":\"resume\"}}\n{}\n", epoch("1.25,"));
        let found = Events::parse(&text, Path::new("e")).unwrap();
        assert_eq!((found.epochs.len(), found.epochs[0].train_loss), (1, 1.25));
        assert!(!found.ended);
    }

    #[test]
    fn a_line_that_is_none_is_named_unless_a_kill_cut_it() {
        let cut = format!("{OLD}{{\"event\":\"ep");
        assert_eq!(Events::parse(&cut, Path::new("e")).unwrap().epochs.len(), 1);
        assert!(epochs_of(&cut).len() == 1);
        let message = |text: &str| Events::parse(text, Path::new("e")).unwrap_err().to_string();
        assert!(message(&format!("{cut}\n")).starts_with("e, line 6: not an event: "), "{cut}");
        let absent = message("{\"kind\":\"x\"}\n");
        assert!(absent.contains("line 1: not an event: no field \"event\""), "{absent}");
        let lone = OLD.lines().nth(3).unwrap().to_owned() + "\n";
        assert!(message(&lone).contains("without a \"start\" event"));
        let wrong = OLD.replace("\"test_accuracy\":0.625", "\"test_accuracy\":62.5");
        assert!(message(&wrong).contains("line 4: test_accuracy is 62.5; expected"));
    }
}
