//! Whether a path may be written: no input is an output, and no file of anybody else's is written over.
//!
//! What kd wrote is recognised by what it holds, not by its name: a weights file by kd's metadata, an ONNX file by its producer,
//! a report by its heading.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::layout::{PARTIAL, RunFolder};
use crate::{Error, Result};

/// An ONNX file's producer stands within as many bytes.
const LONGEST_START: u64 = 4 << 10;
/// Texts of kd's and JSON are shorter.
const LONGEST_TEXT: u64 = 256 << 20;
/// safetensors itself refuses longer headers.
const LONGEST_HEADER: u64 = 100 << 20;

/// What a kind of file is recognised by as written by kd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A safetensors file with this metadata entry.
    Safetensors(&'static str),
    /// An ONNX file whose producer is kd.
    Onnx,
    /// A JSON object with all these keys.
    Json(&'static [&'static str]),
    /// A text that holds all these texts.
    Text(&'static [&'static str]),
}

/// A network's weights.
pub const WEIGHTS: Kind = Kind::Safetensors("kd");
/// Logits and labels, as `kd eval --logits` writes them.
pub const LOGITS: Kind = Kind::Safetensors("kd-logits");
/// A report's page, of any version.
pub const PAGE: Kind = Kind::Text(&["<title>Distillation", "<link rel=\"icon\" href=\"data:,\"/>"]);
/// The report for programs, `summary.json`, as [`Summary`](crate::Summary) describes it.
pub const SUMMARY: Kind = Kind::Json(&["format", "dataset", "runs"]);
/// The JSON of `kd compare`, as [`Comparison`](crate::Comparison) describes it.
pub const COMPARISON: Kind = Kind::Json(&["title", "head", "rows", "notes"]);
/// The JSON of `kd profile`, as [`Profile`](crate::Profile) describes it.
pub const PROFILE: Kind = Kind::Json(&["format", "version", "networks"]);
/// A comparison's table in Markdown.
pub const MARKDOWN: Kind = Kind::Text(&["\n| arm | seeds | ", "\nGap closed: (arm - "]);
/// A manual page of kd or of one of its commands.
pub const MANUAL_PAGE: Kind = Kind::Text(&["\n.TH kd"]);

/// A file that somebody asks kd to write.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Where it is to be written.
    pub path: &'a Path,
    /// What is to be written.
    pub kind: Kind,
    /// The files that the same command reads or also writes, each with the flag that names it.
    pub others: &'a [(&'a str, &'a Path)],
    /// Whether a file that kd did not write is replaced; `None` for a command without `--force`.
    pub force: Option<bool>,
}

impl Output<'_> {
    /// Whether the file may be written: it is none of the command's other files, under whatever spelling or link, and either
    /// absent, written by kd, or to be replaced by force.
    ///
    /// # Errors
    /// [`Error::OtherFile`] and [`Error::NotOurs`] when it may not; when what lies there can't be read.
    pub fn check(&self) -> Result<()> {
        check_others(self.path, self.others)?;
        let refused = |found: &str, cure: &'static str| {
            Err(Error::NotOurs { path: self.path.to_owned(), found: found.to_owned(), cure })
        };
        match fs::metadata(self.path) {
            Err(_) if leads_nowhere(self.path) => {
                refused("is a link that leads nowhere", "take it away, or choose another name")
            }
            Err(_) => Ok(()),
            Ok(there) if there.is_dir() => refused("is a folder", "choose another name"),
            Ok(there) if !there.is_file() => refused("is no regular file", "choose another name"),
            Ok(_) if self.force == Some(true) || is_ours(self.path, self.kind)? => Ok(()),
            Ok(_) => refused(
                "exists and was not written by kd",
                match self.force {
                    Some(_) => "move it away, choose another name, or replace it with --force",
                    None => "move it away, or choose another name or folder",
                },
            ),
        }
    }
}

/// Whether `path` is none of a command's other files, under whatever spelling or link; each comes with the flag that names it.
///
/// # Errors
/// [`Error::OtherFile`] when it is one of them.
pub fn check_others(path: &Path, others: &[(&str, &Path)]) -> Result<()> {
    match others.iter().find(|(_, other)| same_file(path, other)) {
        Some((flag, _)) => {
            Err(Error::OtherFile { path: path.to_owned(), flag: (*flag).to_owned() })
        }
        None => Ok(()),
    }
}

/// Whether a run may write into its folder and its weights file beside it: whatever lies there must be the run's own. A folder
/// that no run has begun in may hold only what a run leaves that was killed at its start.
///
/// # Errors
/// [`Error::NotOurs`] when something else is there; when it can't be read.
pub fn check_run(folder: &RunFolder) -> Result<()> {
    let refused = |path: PathBuf, found: String| {
        Err(Error::NotOurs {
            path,
            found: format!("exists and is not of this run{found}"),
            cure: "move it away, or choose another --out or --name",
        })
    };
    let weights = folder.weights();
    if leads_nowhere(&weights) {
        return refused(weights, ": it is a link that leads nowhere".into());
    }
    if weights.exists() {
        if !is_ours(&weights, WEIGHTS)? {
            return refused(weights, ": kd did not write it".into());
        }
        // The evaluation, or what stands in its place, is written just before the weights.
        let ends = folder.evaluation().exists() || folder.not_tested().exists();
        if !(folder.has_begun() && ends) {
            let run = folder.path.display();
            return refused(weights, format!(": {run} holds no run that has written its weights"));
        }
    }
    if folder.has_begun() || folder.recipe().exists() {
        return Ok(());
    }
    let entries = match fs::read_dir(&folder.path) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(Error::io(&folder.path, "the folder can't be read")(cause)),
    };
    for entry in entries {
        let path = entry.map_err(Error::io(&folder.path, "the folder can't be read"))?.path();
        let partial = path.extension().is_some_and(|extension| extension == PARTIAL);
        let empty_of_checkpoints = path == folder.checkpoints() && is_empty(&path);
        if !(partial || empty_of_checkpoints || path == crate::layout::lock(&folder.path)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return refused(folder.path.clone(), format!(": it holds {name}"));
        }
    }
    Ok(())
}

/// Whether `path` is a link whose target is missing: nobody can tell whose file would take its place.
fn leads_nowhere(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink()) && !path.exists()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether both paths lead to one file or folder, through whatever links and spellings. Of a file that is not there the place is
/// compared.
pub fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a_is), Ok(b_is)) => same_entry(&a_is, &b_is).unwrap_or_else(|| place(a) == place(b)),
        _ => place(a) == place(b),
    }
}

/// Whether `path` is `folder` or lies in it, through whatever links and spellings.
pub fn lies_in(path: &Path, folder: &Path) -> bool {
    place(path).starts_with(place(folder))
}

/// Whether both are one entry of a file system; `None` where the system doesn't say.
#[cfg(unix)]
fn same_entry(a: &fs::Metadata, b: &fs::Metadata) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    Some((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

#[cfg(not(unix))]
fn same_entry(_: &fs::Metadata, _: &fs::Metadata) -> Option<bool> {
    None
}

/// The whole path without links, `.` and `..`; what is not there yet is taken as it is spelled.
fn place(path: &Path) -> PathBuf {
    if let Ok(place) = path.canonicalize() {
        return place;
    }
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut place = PathBuf::new();
    for component in whole.components() {
        match component {
            Component::ParentDir => _ = place.pop(),
            component => place.push(component),
        }
        if let Ok(there) = place.canonicalize() {
            place = there;
        }
    }
    place
}

/// Whether kd wrote this file.
fn is_ours(path: &Path, kind: Kind) -> Result<bool> {
    let reading = |cause| Error::io(path, "can't be read")(cause);
    let mut file = File::open(path).map_err(reading)?;
    if let Kind::Safetensors(entry) = kind {
        return has_entry(&mut file, entry).map_err(reading);
    }
    let mut bytes = Vec::new();
    let most = if kind == Kind::Onnx { LONGEST_START } else { LONGEST_TEXT };
    file.take(most).read_to_end(&mut bytes).map_err(reading)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(match kind {
        Kind::Safetensors(_) => false,
        Kind::Onnx => is_from_kd(&bytes),
        Kind::Text(parts) => parts.iter().all(|part| text.contains(part)),
        Kind::Json(keys) => match serde_json::from_str(&text) {
            Ok(serde_json::Value::Object(found)) => keys.iter().all(|key| found.contains_key(*key)),
            _ => false,
        },
    })
}

/// Whether a safetensors file has this metadata entry. The format: the header's length in 8 bytes, little-endian, then the header,
/// a JSON object whose `__metadata__` holds the entries.
fn has_entry(file: &mut File, entry: &str) -> std::io::Result<bool> {
    let mut length = [0; 8];
    match file.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Ok(false);
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap_or_default();
    Ok(header["__metadata__"].get(entry).is_some())
}

/// Whether an ONNX file names kd as its producer: field 2 of `ModelProto` (`onnx.proto`), which stands before the graph.
fn is_from_kd(mut bytes: &[u8]) -> bool {
    const PRODUCER: u64 = 2;
    while let Some(key) = number(&mut bytes) {
        // The lowest three bits say how the field's end is found.
        let length = match key & 7 {
            0 => {
                if number(&mut bytes).is_none() {
                    return false;
                }
                continue;
            }
            1 => Some(8),
            2 => number(&mut bytes).and_then(|length| usize::try_from(length).ok()),
            5 => Some(4),
            _ => None,
        };
        let Some((value, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else {
            return false;
        };
        if key >> 3 == PRODUCER {
            return value == b"kd";
        }
        bytes = rest;
    }
    false
}

/// Takes a protobuf number off the front: seven bits a byte, the lowest first, until a byte without its highest bit.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for place in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(7 * place)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(metadata: &str) -> Vec<u8> {
        let header = format!("{{{metadata}}}");
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    }

    fn refusal(path: &Path, kind: Kind, others: &[(&str, &Path)], force: Option<bool>) -> String {
        Output { path, kind, others, force }.check().unwrap_err().to_string()
    }

    #[cfg(unix)]
    #[test]
    fn an_output_that_is_an_input_is_refused_under_any_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let input = path("a.safetensors");
        fs::write(&input, weights("\"__metadata__\":{\"kd\":\"{}\"}")).unwrap();
        fs::create_dir(path("sub")).unwrap();
        std::os::unix::fs::symlink(&input, path("link")).unwrap();
        std::os::unix::fs::symlink(path("sub"), path("folder-link")).unwrap();
        fs::hard_link(&input, path("hard")).unwrap();
        for spelling in [
            "a.safetensors",
            "./a.safetensors",
            "sub/../a.safetensors",
            "link",
            "hard",
            "folder-link/../a.safetensors",
        ] {
            for force in [None, Some(false), Some(true)] {
                let message = refusal(&path(spelling), WEIGHTS, &[("--weights", &input)], force);
                assert!(message.contains("is also the file of --weights"), "{message}");
            }
        }
        // Of files that are not there yet the place counts.
        assert!(same_file(&path("sub/../new/b"), &path("new/./b")));
        assert!(same_file(&path("folder-link/b"), &path("sub/b")));
        assert!(!same_file(&path("b"), &path("sub/b")));
        assert!(lies_in(&path("folder-link/x/y"), &path("sub")));
        assert!(!lies_in(&path("subfolder"), &path("sub")));
    }

    #[test]
    fn what_kd_wrote_is_replaced_and_nothing_else_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let check = |kind, force| Output { path: &path, kind, others: &[], force }.check();
        check(WEIGHTS, Some(false)).unwrap();
        let onnx = |producer: &str| {
            [&[8, 9, 66, 2, 16, 17, 18, producer.len() as u8][..], producer.as_bytes(), &[58, 0]]
                .concat()
        };
        let page = "<!DOCTYPE html><title>Distillation on CIFAR-10</title><link rel=\"icon\" href=\"data:,\"/>";
        for (kind, ours, foreign) in [
            (
                WEIGHTS,
                weights("\"__metadata__\":{\"kd\":\"{}\"}"),
                weights("\"__metadata__\":{\"format\":\"pt\"}"),
            ),
            (WEIGHTS, weights("\"__metadata__\":{\"kd\":\"{}\"}"), weights("")),
            (LOGITS, weights("\"__metadata__\":{\"kd-logits\":\"1\"}"), b"kd-logits".to_vec()),
            (Kind::Onnx, onnx("kd"), onnx("pytorch")),
            (Kind::Onnx, onnx("kd"), b"my notes".to_vec()),
            (PAGE, page.into(), b"<!DOCTYPE html><title>My thesis</title>".to_vec()),
            (
                SUMMARY,
                b"{\"format\":1,\"dataset\":{},\"runs\":[]}".to_vec(),
                b"{\"format\":1}".to_vec(),
            ),
            (MANUAL_PAGE, b".\\\" x\n.TH kd-train 1\n".to_vec(), b".TH ls 1\n".to_vec()),
        ] {
            fs::write(&path, ours).unwrap();
            check(kind, Some(false)).unwrap();
            for foreign in [foreign, Vec::new(), vec![0xff; 100]] {
                fs::write(&path, foreign).unwrap();
                let message = refusal(&path, kind, &[], Some(false));
                assert!(message.contains("was not written by kd; move it away"), "{message}");
                assert!(message.contains("--force"), "{message}");
                assert!(!refusal(&path, kind, &[], None).contains("--force"));
                check(kind, Some(true)).unwrap();
            }
        }
        // No force replaces a folder.
        assert!(refusal(folder.path(), WEIGHTS, &[], Some(true)).contains("is a folder"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("student.safetensors");
        std::os::unix::fs::symlink("another-disk/student.safetensors", &path).unwrap();
        for force in [None, Some(false), Some(true)] {
            let error = Output { path: &path, kind: WEIGHTS, others: &[], force }.check();
            let error = error.unwrap_err().to_string();
            assert!(error.contains("is a link that leads nowhere; take it away"), "{error}");
        }
        let run = crate::OutFolder::new(folder.path()).run("student");
        let error = check_run(&run).unwrap_err().to_string();
        assert!(error.contains("not of this run: it is a link that leads nowhere"), "{error}");
    }

    #[test]
    fn a_run_takes_only_its_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path().join("teacher"));
        let refused = || check_run(&run).unwrap_err().to_string();
        check_run(&run).unwrap();
        // Weights of the same name that the run did not write.
        fs::write(run.weights(), weights("")).unwrap();
        assert!(
            refused().contains("teacher.safetensors: exists and is not of this run: kd did not")
        );
        fs::write(run.weights(), weights("\"__metadata__\":{\"kd\":\"{}\"}")).unwrap();
        assert!(refused().contains("holds no run that has written its weights"), "{}", refused());
        fs::create_dir(&run.path).unwrap();
        fs::write(run.events(), "").unwrap();
        assert!(refused().contains("holds no run that has written its weights"), "{}", refused());
        fs::write(run.evaluation(), "").unwrap();
        check_run(&run).unwrap();
        // A folder of the same name that no run has begun in.
        for name in ["events.jsonl", "evaluation.json"] {
            fs::remove_file(run.path.join(name)).unwrap();
        }
        fs::remove_file(run.weights()).unwrap();
        fs::write(run.path.join(".lock"), "").unwrap();
        fs::write(run.path.join("recipe.toml.12.partial"), "").unwrap();
        fs::create_dir(run.checkpoints()).unwrap();
        check_run(&run).unwrap();
        fs::write(run.path.join("notes.txt"), "mine").unwrap();
        assert!(refused().contains("teacher: exists and is not of this run: it holds notes.txt"));
    }
}
