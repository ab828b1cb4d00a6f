//! A run's measurements as a file that TensorBoard reads, beside `events.jsonl`, from which it is made.
//!
//! | tag | over |
//! | --- | --- |
//! | `train/step_loss` | steps |
//! | `train/loss`, `train/accuracy`, `test/loss`, `test/accuracy`, `train/learning_rate`, `train/images_per_second`, `selection/accuracy`, `parts/<name>` | epochs |
//!
//! `events.jsonl` is the truth: whenever a run starts, goes on, or was finished before, a new file is
//! written from it in place of the old, so no step is there twice. Its first entry after the version says
//! that a session starts at step 0, upon which an open TensorBoard drops what it had read before. The file
//! before the new one is left without contents: an open TensorBoard stays with one that is removed.
//!
//! The format: TFRecord framing (TensorFlow, `core/lib/io/record_writer.h`) of `Event` messages
//! (`core/util/event.proto`, of which the fields used here are written out below).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kd_record::EpochRecord;
use prost::Message;
use serde::Deserialize;

use crate::files;

/// TensorBoard takes files with `tfevents` in their names; the number orders them.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".kd";
/// What TensorBoard expects of the first entry.
const VERSION: &str = "brain.Event:2";

#[derive(Clone, PartialEq, Message)]
struct TfEvent {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// 1: start.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A line of `events.jsonl`, as far as TensorBoard shows it.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line {
    Step {
        step: i64,
        loss: f64,
    },
    Epoch(EpochRecord),
    #[serde(other)]
    Other,
}

/// Seconds since 1970 of any line; 0 in files of earlier versions.
#[derive(Deserialize)]
struct Time {
    #[serde(default)]
    time: f64,
}

/// The open file.
pub(crate) struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Writes the file of a run's folder anew from the lines of its `events.jsonl`.
    ///
    /// # Errors
    /// When a line is no event, or a file can't be written or removed.
    pub(crate) fn rewrite(folder: &Path, events: &str) -> anyhow::Result<Self> {
        let old = earlier(folder)?;
        let newest = old.iter().filter_map(|path| number(path)).max().unwrap_or(0);
        let now = files::unix_seconds();
        // Above the earlier ones even where a clock was set back.
        let path = folder.join(format!("{PREFIX}{}{SUFFIX}", (now as u64).max(newest + 1)));
        let begun = events.lines().next().map_or(Ok(now), |line| {
            serde_json::from_str(line).map(|Time { time }| if time > 0.0 { time } else { now })
        });
        let begun = begun.context("the first line of events.jsonl is not an event")?;
        let mut bytes = Vec::new();
        for what in
            [What::FileVersion(VERSION.to_owned()), What::SessionLog(SessionLog { status: 1 })]
        {
            record(&TfEvent { wall_time: begun, step: 0, what: Some(what) }, &mut bytes);
        }
        for line in events.lines() {
            bytes.extend(records(line)?);
        }
        files::write_whole(&path, &bytes)?;
        for path in old {
            let done = match number(&path) == Some(newest) {
                true => File::create(&path).map(drop),
                false => fs::remove_file(&path),
            };
            done.with_context(|| format!("{}: can't be removed", path.display()))?;
        }
        let file = File::options()
            .append(true)
            .open(&path)
            .with_context(|| format!("{}: can't be opened", path.display()))?;
        Ok(Self { path, file })
    }

    /// Adds a line of `events.jsonl`.
    pub(crate) fn add(&mut self, line: &str) -> anyhow::Result<()> {
        self.file
            .write_all(&records(line)?)
            .with_context(|| format!("{}: can't be written", self.path.display()))
    }
}

/// Files of ours that are there already; others in the folder are not touched.
pub(crate) fn earlier(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("{}: the folder can't be read", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if number(&path).is_some() {
            found.push(path);
        }
    }
    Ok(found)
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

/// The scalars of one line of `events.jsonl`, framed; nothing for lines without any.
fn records(line: &str) -> anyhow::Result<Vec<u8>> {
    let bad = || format!("not a line of events.jsonl: {line}");
    let Time { time } = serde_json::from_str(line).with_context(bad)?;
    let (step, values) = match serde_json::from_str(line).with_context(bad)? {
        Line::Step { step, loss } => (step, vec![("train/step_loss".to_owned(), loss)]),
        Line::Epoch(record) => {
            let own = [
                ("train/loss", Some(record.train_loss)),
                ("train/accuracy", Some(record.train_accuracy)),
                ("train/learning_rate", record.learning_rate),
                ("train/images_per_second", Some(record.images_per_second)),
                ("test/loss", Some(record.test_loss)),
                ("test/accuracy", Some(record.test_accuracy)),
                ("selection/accuracy", record.selection_accuracy),
            ];
            let own = own.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), value?)));
            let parts = record.parts.into_iter().map(|(name, v)| (format!("parts/{name}"), v));
            (record.epoch as i64, own.chain(parts).collect())
        }
        Line::Other => return Ok(Vec::new()),
    };
    let value = |(tag, value): (String, f64)| Value { tag, simple_value: value as f32 };
    let summary = Summary { value: values.into_iter().map(value).collect() };
    let mut bytes = Vec::new();
    let event = TfEvent { wall_time: time, step, what: Some(What::Summary(summary)) };
    record(&event, &mut bytes);
    Ok(bytes)
}

/// Length, its checksum, the message, its checksum; all little-endian.
fn record(event: &TfEvent, into: &mut Vec<u8>) {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    into.extend(length);
    into.extend(masked_crc(&length).to_le_bytes());
    into.extend(&message);
    into.extend(masked_crc(&message).to_le_bytes());
}

/// CRC-32C, turned and moved so that checksums of data that holds checksums stay good.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
