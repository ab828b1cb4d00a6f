//! What a shard holds: where each picture lies, and its label as the shard has it.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use serde::Deserialize;

use super::tar::{Archive, Broken, Member};
use crate::folder::MAX_CLASSES;
use crate::images::{MAX_BYTES, PICTURE_ENDINGS};
use crate::one_line::on_one_line;
use crate::source::NO_LABEL;
use crate::{Error, Result};

/// A picture in a shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Where its bytes begin, from the archive's start.
    pub(super) offset: u64,
    /// How many bytes the picture has.
    pub(super) bytes: u32,
    /// How many bytes before them its header begins.
    pub(super) head: u32,
    /// The number of its class, or of its class's name among the shard's; [`NO_LABEL`] of a picture without one.
    pub(super) label: u32,
    /// Its number among the shard's pictures, from 0; those that can't be read count.
    pub(super) number: u32,
}

/// The samples of a shard.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) entries: Vec<Entry>,
    /// The classes' names, where labels are names: `label` of an entry is a place in this list.
    pub(super) names: Vec<String>,
    /// The first sample whose label is a number, and the first whose label is a name.
    pub(super) number: Option<String>,
    pub(super) name: Option<String>,
    /// The classes' names by number, where the file says them.
    pub(super) class_names: Option<Vec<String>>,
    /// The first picture without a label.
    pub(super) unlabelled: Option<String>,
    /// How many members were passed over, and the first of them.
    pub(super) passed_over: (usize, Option<String>),
}

/// A label as a sample has it.
enum Label {
    Number(u32),
    Name(String),
}

/// A sample of which not all members may have been seen.
#[derive(Default)]
struct Sample {
    key: String,
    picture: Option<Member>,
    label: Option<Label>,
    /// The label of `key.json`, which counts where there is no `key.cls`.
    described: Option<Label>,
}

/// The most bytes of a label: a class's name in `key.cls`, a description in `key.json`.
const LONGEST_LABEL: [u64; 2] = [4096, 1 << 20];

/// What is read of `key.json`; the first that is there is the label.
#[derive(Deserialize)]
struct Description {
    label: Option<serde_json::Value>,
    cls: Option<serde_json::Value>,
    class: Option<serde_json::Value>,
}

/// Looks through the archive of `len` bytes that begins where `file` stands; `path` names it in messages.
///
/// # Errors
/// When the archive is broken, a sample has two pictures, or a picture's label can't be understood.
pub(super) fn look_through(path: &Path, file: File, len: u64) -> Result<Index> {
    let broken = |broken: Broken| Error::Malformed {
        path: path.into(),
        offset: broken.offset,
        found: broken.found,
        expected: broken.expected.into(),
        advice: "fetch or write the shard again".into(),
    };
    let mut archive = Archive::new(file, len);
    let mut places = HashMap::new();
    let (mut index, mut sample) = (Index::default(), Sample::default());
    while let Some(member) = archive.member().map_err(broken)? {
        let parts = key_and_ending(&member.name).filter(|_| !member.is_link);
        let Some((key, ending)) = parts else {
            index.pass_over(&member.name);
            continue;
        };
        if key != sample.key {
            let whole =
                std::mem::replace(&mut sample, Sample { key: key.into(), ..Sample::default() });
            index.add(whole, &mut places);
        }
        let wrong = |found: String, expected: &str| wrong(path, &member.name, found, expected);
        let is_picture = PICTURE_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known));
        if is_picture {
            if let Some(other) = &sample.picture {
                let found = format!("a second picture beside {}", on_one_line(&other.name));
                return Err(wrong(found, "one picture for each key"));
            }
            if member.bytes > MAX_BYTES {
                let found = format!("{} bytes", member.bytes);
                return Err(wrong(found, "a picture file of at most 256 MiB"));
            }
            sample.picture = Some(member);
        } else if ending.eq_ignore_ascii_case("cls") || ending.eq_ignore_ascii_case("json") {
            let is_json = ending.eq_ignore_ascii_case("json");
            if member.bytes > LONGEST_LABEL[usize::from(is_json)] {
                let found = format!("{} bytes", member.bytes);
                return Err(wrong(found, "a class's number or name, or a short description"));
            }
            let contents = archive.contents(&member).map_err(broken)?;
            match is_json {
                true => sample.described = described(&contents).map_err(|(f, e)| wrong(f, e))?,
                false => sample.label = Some(of_text(&contents).map_err(|(f, e)| wrong(f, e))?),
            }
        } else {
            index.pass_over(&member.name);
        }
    }
    index.add(sample, &mut places);
    index.entries.shrink_to_fit();
    Ok(index)
}

/// The error of a member of a shard.
pub(super) fn wrong(path: &Path, member: &str, found: String, expected: &str) -> Error {
    Error::Folder { path: path.join(on_one_line(member)), found, expected: expected.into() }
}

/// WebDataset's parts of a name: all up to the first dot behind the last slash, and what follows the dot. `None` where there is no dot, and for a
/// hidden file: some systems write one beside each file, within its sample.
fn key_and_ending(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[base..].find('.').filter(|dot| *dot > 0)?;
    Some((&name[..base + dot], &name[base + dot + 1..]))
}

type Found = (String, &'static str);

/// The label that `key.cls` holds.
fn of_text(contents: &[u8]) -> std::result::Result<Label, Found> {
    const EXPECTED: &str = "a class's number from 0 in digits, or its name in UTF-8";
    let text = std::str::from_utf8(contents).map_err(|_| ("no UTF-8".into(), EXPECTED))?;
    label(text.trim()).ok_or((format!("{:?}", text.trim()), EXPECTED))
}

fn label(text: &str) -> Option<Label> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.parse().ok().filter(|number| (*number as usize) < MAX_CLASSES);
        return number.map(Label::Number);
    }
    // "-1" and "2.0" are meant as numbers; "infinity" is a name.
    let is_number = text.parse::<f64>().is_ok() && text.contains(|c: char| c.is_ascii_digit());
    let is_name = !text.is_empty() && !is_number && !text.contains(char::is_control);
    is_name.then(|| Label::Name(text.to_owned()))
}

/// The label that `key.json` holds; `None` where it holds other things.
fn described(contents: &[u8]) -> std::result::Result<Option<Label>, Found> {
    const EXPECTED: &str = "a class's whole number from 0, or its name, as label, cls or class";
    let description: Description =
        serde_json::from_slice(contents).map_err(|error| (format!("{error}"), "a JSON object"))?;
    let Description { label: first, cls, class } = description;
    let Some(value) = first.or(cls).or(class) else { return Ok(None) };
    let found = match &value {
        serde_json::Value::String(text) => label(text.trim()),
        serde_json::Value::Number(number) => label(&number.to_string()),
        _ => None,
    };
    found.map(Some).ok_or((value.to_string(), EXPECTED))
}

impl Index {
    fn pass_over(&mut self, name: &str) {
        self.passed_over.0 += 1;
        self.passed_over.1.get_or_insert_with(|| name.to_owned());
    }

    /// Adds a sample that is whole.
    fn add(&mut self, sample: Sample, places: &mut HashMap<String, u32>) {
        let Sample { key, picture, label, described } = sample;
        let Some(picture) = picture else {
            if label.is_some() || described.is_some() {
                self.pass_over(&format!("{key}.cls"));
            }
            return;
        };
        let Member { offset, bytes, head, .. } = picture;
        let label = match label.or(described) {
            Some(Label::Number(number)) => {
                self.number.get_or_insert(key);
                number
            }
            Some(Label::Name(name)) => {
                self.name.get_or_insert(key);
                *places.entry(name).or_insert_with_key(|name| {
                    self.names.push(name.clone());
                    self.names.len() as u32 - 1
                })
            }
            None => {
                self.unlabelled.get_or_insert(picture.name);
                NO_LABEL
            }
        };
        let number = self.entries.len() as u32;
        self.entries.push(Entry { offset, bytes: bytes as u32, head: head as u32, label, number });
    }
}
