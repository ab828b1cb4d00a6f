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

use kd_record::event::{Timed, parse_line, unix_seconds};
use kd_record::write::write_whole;
use kd_record::{EpochRecord, Error, Event, Result, RunFolder};
use prost::Message;

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

/// The open file.
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Writes the file of a run's folder anew from the text of its `events.jsonl`.
    ///
    /// # Errors
    /// When a line is no event, or a file can't be written or removed.
    pub fn rewrite(folder: &RunFolder, events: &str) -> Result<Self> {
        let old = earlier(folder)?;
        let newest = old.iter().filter_map(|path| number(path)).max().unwrap_or(0);
        let now = unix_seconds();
        // Above the earlier ones even where a clock was set back.
        let name = format!("{PREFIX}{}{SUFFIX}", (now as u64).max(newest + 1));
        let path = folder.path.join(name);
        let mut timed = Vec::new();
        for (index, line) in events.lines().enumerate() {
            let found = parse_line(line).map_err(|error| {
                let found = format!("not an event: {error}");
                Error::corrupt(&folder.events(), Some(index + 1), found)
            })?;
            timed.extend(found);
        }
        let begun = timed.first().map(|first| first.time).filter(|time| *time > 0.0);
        let mut bytes = Vec::new();
        for what in
            [What::FileVersion(VERSION.to_owned()), What::SessionLog(SessionLog { status: 1 })]
        {
            let event = TfEvent { wall_time: begun.unwrap_or(now), step: 0, what: Some(what) };
            record(&event, &mut bytes);
        }
        for timed in &timed {
            records(timed, &mut bytes);
        }
        write_whole(&path, &bytes)?;
        for path in old {
            let done = match number(&path) == Some(newest) {
                true => File::create(&path).map(drop),
                false => fs::remove_file(&path),
            };
            done.map_err(Error::io(&path, "can't be removed"))?;
        }
        let file = File::options().append(true).open(&path);
        let file = file.map_err(Error::io(&path, "can't be opened"))?;
        Ok(Self { path, file })
    }

    /// Adds a line of `events.jsonl`.
    ///
    /// # Errors
    /// When it is no event, or the file can't be written.
    pub fn add(&mut self, line: &str) -> Result<()> {
        let timed = parse_line(line).map_err(|error| {
            Error::corrupt(&self.path, None, format!("given what is not an event: {error}"))
        })?;
        let mut bytes = Vec::new();
        if let Some(timed) = timed {
            records(&timed, &mut bytes);
        }
        self.file.write_all(&bytes).map_err(Error::io(&self.path, "can't be written"))
    }
}

/// Files of this kind that are in a run's folder already; others in the folder are not touched.
///
/// # Errors
/// When the folder can't be read.
pub fn earlier(folder: &RunFolder) -> Result<Vec<PathBuf>> {
    let reading = |cause| Error::io(&folder.path, "the folder can't be read")(cause);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder.path).map_err(reading)? {
        let path = entry.map_err(reading)?.path();
        if number(&path).is_some() {
            found.push(path);
        }
    }
    Ok(found)
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

/// The scalars of one event, framed; nothing for events without any.
fn records(timed: &Timed, into: &mut Vec<u8>) {
    let (step, values) = match &timed.event {
        Event::Step { step, loss, .. } => {
            (*step as i64, vec![("train/step_loss".to_owned(), *loss)])
        }
        Event::Epoch(record) => (record.epoch as i64, of_epoch(record)),
        Event::Start(_) | Event::Teacher(_) | Event::End { .. } | Event::Extended(_) => return,
    };
    let value = |(tag, value): (String, f64)| Value { tag, simple_value: value as f32 };
    let summary = Summary { value: values.into_iter().map(value).collect() };
    let event = TfEvent { wall_time: timed.time, step, what: Some(What::Summary(summary)) };
    record(&event, into);
}

fn of_epoch(record: &EpochRecord) -> Vec<(String, f64)> {
    let own = [
        ("train/loss", Some(record.train_loss)),
        ("train/accuracy", record.train_accuracy),
        ("train/learning_rate", record.learning_rate),
        ("train/images_per_second", Some(record.images_per_second)),
        ("test/loss", record.test_loss),
        ("test/accuracy", record.test_accuracy),
        ("selection/accuracy", record.selection_accuracy),
    ];
    let own = own.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), value?)));
    let parts = record.parts.iter().map(|(name, value)| (format!("parts/{name}"), *value));
    own.chain(parts).collect()
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
