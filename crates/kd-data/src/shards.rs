//! Pictures in WebDataset's shards: tar archives with `KEY.jpg` and `KEY.cls` or `KEY.json` for each picture, read where they lie.

mod classes;
mod index;
#[cfg(feature = "parquet")]
mod parquet;
mod pattern;
pub(crate) mod tar;
mod unpacked;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use self::classes::classes;
use self::index::{Entry, Index};
use self::unpacked::{Unpacked, unpack};
use crate::labels::cut;
use crate::names::name_below;
use crate::one_line::shown;
use crate::picture_files::{FilesConfig, refuse_empty_classes};
use crate::portions::Sources;
use crate::scaled::Scaled;
use crate::source::{NO_LABEL, Picture, Source, select};
use crate::{Error, Result, Skipped, images};
use kd_record::hash::hex;

/// The pictures in the shards that `train` and `test` name in `dir`: WebDataset's tar archives, packed with gzip or not. `train` and `test` are
/// patterns such as `train-{000..015}.tar`, `{a,b}.tar` or `train/*.tar`. A sample's members follow each other and have one key, which is their name
/// up to the first dot; its picture ends in `.jpg`, `.jpeg`, `.png`, `.webp`, `.bmp` or `.gif`, and its class is what `KEY.cls` holds, or what
/// `KEY.json` has as `label`, `cls` or `class`: a number from 0, or a name. Where no picture has either, the pictures have no labels; the classes
/// are then those that are tested on, or none.
///
/// With the feature `parquet` a shard may also be a Parquet file as the hubs have them: a column `image` whose `bytes` are a picture's file, a column
/// `label` with its class's number (below 0: none), and the classes' names in the key `huggingface`.
///
/// Names are numbered in their order. Numbers have the names of the lines of `classes.txt` or `classnames.txt` in `dir`, or else are their own
/// names. Only headers and labels are read; of each picture 24 bytes are kept, and it is decoded when it is asked for. What is packed with gzip is
/// unpacked to a temporary file.
///
/// The data set is known by the SHA-256 of the classes' names, of the shards' names and lengths, and of each picture's place and class. What was
/// passed over or unpacked is returned as sentences.
///
/// # Errors
/// When a shard is missing, cut off or no tar archive, some pictures have a label and others none, classes are numbers here and names there, there are fewer
/// than 2 classes or more than 65536, a class has no picture to train on, or a test picture is of a class that is not trained on. A picture that
/// turns out to be broken is an error when it is read; with [`FilesConfig::skip_broken`] all are read beforehand, and such are left out.
pub fn picture_shards(
    dir: &Path,
    train: &str,
    test: Option<&str>,
    config: &FilesConfig,
) -> Result<(Sources, Vec<String>)> {
    config.scaling.check()?;
    let train = pattern::files(dir, train, "train_shards")?;
    let test = test.map(|test| pattern::files(dir, test, "test_shards")).transpose()?;
    let test = test.unwrap_or_default();
    refuse_twice(dir, &train, &test)?;
    let [mut train, mut test] = [Part::open(dir, train)?, Part::open(dir, test)?];
    let mut notes = Vec::new();
    notes.extend([&train, &test].into_iter().filter_map(|part| part.unpacked(dir)));
    notes.extend([&train, &test].into_iter().filter_map(|part| part.passed_over(dir)));
    let labelled = train.is_labelled()?;
    if !test.is_labelled()? {
        notes.push(format!(
            "{}: the pictures in the shards to test on have no labels: nothing is measured on them",
            shown(dir)
        ));
        test = Part { shards: Vec::new() };
    }
    if !labelled {
        notes.push(format!("{}: the pictures in the shards have no labels", shown(dir)));
        if config.split.is_some() {
            return Err(Error::Unlabelled { setting: "split".into() });
        }
    }
    let classes = match labelled || !test.shards.is_empty() {
        true => classes(dir, &mut train, &mut test, &mut notes)?,
        false => Vec::new(),
    };
    let mut hash = Sha256::new();
    hash.update("picture shards\n");
    classes.iter().for_each(|class| hash.update(format!("{class}\n")));
    let mut skipped = Vec::new();
    for part in [&mut train, &mut test] {
        part.add_to(&mut hash);
        if config.skip_broken {
            part.leave_out_broken(dir, &mut hash, &mut skipped)?;
        }
    }
    if labelled {
        let mut counts = vec![0; classes.len()];
        train.entries().for_each(|(_, entry)| counts[entry.label as usize] += 1);
        refuse_empty_classes(dir, &classes, &counts)?;
    }
    let sha256 = hex(hash);
    let source = |part: Part, which: &str| -> Result<Arc<dyn Source>> {
        let shards = Arc::new(Shards::new(part, format!("{sha256} {which}")));
        Ok(Arc::new(Scaled::new(shards, config.scaling, Arc::clone(&config.room))?))
    };
    let (train, test): (Arc<dyn Source>, Arc<dyn Source>) = match config.split {
        None => (source(train, "train")?, source(test, "test")?),
        Some(share) => {
            let labels: Vec<u32> = train.entries().map(|(_, entry)| entry.label).collect();
            let [kept, tested] = cut(&labels, classes.len(), share);
            let all = source(train, "train")?;
            (select(&all, &kept), select(&all, &tested))
        }
    };
    let name = "shards".into();
    Ok((Sources { name, classes, train, test, sha256: sha256.clone(), skipped }, notes))
}

/// Refuses a file that is named twice, by whatever paths.
fn refuse_twice(dir: &Path, train: &[PathBuf], test: &[PathBuf]) -> Result<()> {
    let named = train.iter().map(|name| ("train_shards", name));
    let named = named.chain(test.iter().map(|name| ("test_shards", name)));
    let mut seen = HashMap::new();
    for (field, name) in named {
        let path = dir.join(name);
        // What isn't there is an error when it is opened.
        let Ok(whole) = path.canonicalize() else { continue };
        if let Some((other_field, other)) = seen.insert(whole, (field, name)) {
            let found = match (other_field == field, other == name) {
                (true, true) => format!("this shard twice in {field}"),
                (true, false) => format!("this shard twice in {field}, as {}, too", shown(other)),
                (false, _) => {
                    format!("this shard in {field} and in {other_field}, as {}", shown(other))
                }
            };
            let expected = "each shard once: change the patterns".into();
            return Err(Error::Folder { path, found, expected });
        }
    }
    Ok(())
}

/// The shards that are trained on, or those that are tested on.
struct Part {
    shards: Vec<Shard>,
}

/// An archive and what it holds.
struct Shard {
    /// As the pattern names it, relative to the data's folder.
    name: PathBuf,
    path: PathBuf,
    /// The file's length when it was looked through.
    bytes: u64,
    /// Where the contents lie unpacked, if the archive is packed.
    unpacked: Option<Unpacked>,
    index: Index,
}

impl Part {
    /// Opens the shards with these names and looks through them, several at a time.
    fn open(dir: &Path, names: Vec<PathBuf>) -> Result<Self> {
        // Each thread unpacks into one file, since a process may have only so many open: 1,024 on many systems.
        let each = names.len().div_ceil(rayon::current_num_threads()).max(1);
        let shards = names.par_chunks(each).map(|names| {
            let mut aside = None;
            let shards = names.iter().map(|name| Shard::open(dir, name.clone(), &mut aside));
            shards.collect::<Result<Vec<Shard>>>()
        });
        let shards = shards.collect::<Result<Vec<Vec<Shard>>>>()?;
        Ok(Self { shards: shards.into_iter().flatten().collect() })
    }

    /// Each picture with its shard.
    fn entries(&self) -> impl Iterator<Item = (&Shard, &Entry)> {
        self.shards.iter().flat_map(|shard| shard.index.entries.iter().map(move |e| (shard, e)))
    }

    /// Whether the pictures have labels, as they have where there are none.
    ///
    /// # Errors
    /// When some have labels and others have none.
    fn is_labelled(&self) -> Result<bool> {
        let without = |shard: &'_ Shard| {
            let name = shard.index.unlabelled.as_ref()?;
            Some((shard.path.clone(), name.clone()))
        };
        let mut labels = self.shards.iter().map(|shard| &shard.index);
        match self.shards.iter().find_map(without) {
            None => Ok(true),
            Some(_) if labels.all(|index| index.number.is_none() && index.name.is_none()) => {
                Ok(false)
            }
            Some((path, name)) => Err(index::wrong(
                &path,
                &name,
                "a picture without a label, and others with one".into(),
                "its class beside it, as KEY.cls or in KEY.json, or no label in any of the shards",
            )),
        }
    }

    fn add_to(&self, hash: &mut Sha256) {
        hash.update((self.shards.len() as u64).to_le_bytes());
        for shard in &self.shards {
            for part in &shard.name {
                hash.update(b"/");
                hash.update(part.as_encoded_bytes());
            }
            hash.update(b"\0");
            hash.update(shard.bytes.to_le_bytes());
            hash.update((shard.index.entries.len() as u64).to_le_bytes());
            for entry in &shard.index.entries {
                hash.update(entry.offset.to_le_bytes());
                hash.update(entry.bytes.to_le_bytes());
                hash.update(entry.label.to_le_bytes());
            }
        }
    }

    /// How many shards were unpacked, and to how many bytes.
    fn unpacked(&self, dir: &Path) -> Option<String> {
        let unpacked = self.shards.iter().filter_map(|shard| shard.unpacked.as_ref());
        let bytes: u64 = unpacked.clone().map(|unpacked| unpacked.bytes).sum();
        let count = unpacked.count();
        (count > 0).then(|| {
            format!(
                "{}: {count} shards are packed with gzip or are Parquet files; they are unpacked to {} MiB of temporary files in {}",
                shown(dir),
                bytes.div_ceil(1 << 20),
                shown(&std::env::temp_dir())
            )
        })
    }

    /// How many members were passed over, and the first of them.
    fn passed_over(&self, dir: &Path) -> Option<String> {
        let count: usize = self.shards.iter().map(|shard| shard.index.passed_over.0).sum();
        let first = self.shards.iter().find_map(|shard| {
            let name = shard.index.passed_over.1.as_ref()?;
            Some(shown(&shard.name.join(name)))
        })?;
        Some(format!(
            "{}: passed over {count} files in shards that are neither picture nor label, links, or a label without a picture; the first is {first}",
            shown(dir)
        ))
    }

    /// Reads every picture once and takes those out that can't be read.
    fn leave_out_broken(
        &mut self,
        dir: &Path,
        hash: &mut Sha256,
        skipped: &mut Vec<Skipped>,
    ) -> Result<()> {
        for shard in &mut self.shards {
            let entries = std::mem::take(&mut shard.index.entries);
            let read = |entry: &Entry| shard.read(entry, &mut Picture::default());
            let read: Vec<Result<()>> = entries.par_iter().map(read).collect();
            for (entry, read) in entries.into_iter().zip(read) {
                match read {
                    Ok(()) => shard.index.entries.push(entry),
                    Err(error @ (Error::Picture { .. } | Error::Io { .. })) => {
                        hash.update(entry.offset.to_le_bytes());
                        let path = shard.member(&entry);
                        let path = path.strip_prefix(dir).map_or(path.clone(), Path::to_path_buf);
                        skipped.push(Skipped::of(path, error));
                    }
                    Err(other) => return Err(other),
                }
            }
        }
        Ok(())
    }

    /// Numbers the classes as `of` says, which is given a shard and its own number of a class.
    fn renumber(&mut self, of: impl Fn(&Index, u32) -> u32) {
        for shard in &mut self.shards {
            let mut entries = std::mem::take(&mut shard.index.entries);
            for entry in entries.iter_mut().filter(|entry| entry.label != NO_LABEL) {
                entry.label = of(&shard.index, entry.label);
            }
            shard.index.entries = entries;
        }
    }
}

impl Shard {
    /// Opens a shard and looks through it. What is packed is unpacked behind what is in `aside`, a file that the first such shard makes.
    fn open(dir: &Path, name: PathBuf, aside: &mut Option<Arc<Mutex<File>>>) -> Result<Self> {
        let path = dir.join(&name);
        let about = match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Missing {
                    path,
                    expected: "a tar archive, packed with gzip or not".into(),
                    advice: "give the shards that are there: train_shards and test_shards in a recipe's [data] are relative to the data's folder".into(),
                });
            }
            about => about.map_err(|source| Error::Io { path: path.clone(), source })?,
        };
        let io = |source| Error::Io { path: path.clone(), source };
        let mut file = File::open(&path).map_err(io)?;
        let mut magic = [0; 4];
        let begins = about.is_file() && file.read_exact(&mut magic).is_ok();
        let is_packed = begins && magic[..2] == [0x1f, 0x8b];
        if begins && magic == *b"PAR1" {
            let (index, unpacked) = from_parquet(&path, file, aside)?;
            let unpacked = Some(unpacked);
            return Self { name, path, bytes: about.len(), unpacked, index }.not_empty();
        }
        let (index, unpacked) = match is_packed {
            false => {
                file.rewind().map_err(io)?;
                (index::look_through(&path, file, about.len())?, None)
            }
            true => {
                let unpacked = unpack(&path, aside)?;
                let contents = unpacked.reader().map_err(io)?;
                (index::look_through(&path, contents, unpacked.bytes)?, Some(unpacked))
            }
        };
        Self { name, path, bytes: about.len(), unpacked, index }.not_empty()
    }

    /// Refuses a shard without pictures.
    fn not_empty(self) -> Result<Self> {
        if self.index.entries.is_empty() {
            let expected = "KEY.jpg and KEY.cls or KEY.json for each picture".into();
            let found = "no picture in this shard".into();
            return Err(Error::Folder { path: self.path, found, expected });
        }
        Ok(self)
    }

    /// So many bytes of the archive.
    fn bytes(&self, offset: u64, count: usize) -> Result<Vec<u8>> {
        let io = |source| Error::Io { path: self.path.clone(), source };
        let read = |file: &mut File, offset: u64| {
            let mut bytes = vec![0; count];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        if let Some(Unpacked { file, start, .. }) = &self.unpacked {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            return read(&mut file, start + offset).map_err(io);
        }
        let changed = |found: String| Error::Folder {
            path: self.path.clone(),
            found,
            expected: format!(
                "the shard of {} bytes that was there when the run began: it must stay as it is while it is used; bring it back, or begin a new run",
                self.bytes
            ),
        };
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(changed("no such file".into()));
            }
            file => file.map_err(io)?,
        };
        let len = file.metadata().map_err(io)?.len();
        match len == self.bytes {
            true => read(&mut file, offset).map_err(io),
            false => Err(changed(format!("a file of {len} bytes"))),
        }
    }

    /// Reads a picture.
    fn read(&self, entry: &Entry, into: &mut Picture) -> Result<()> {
        let bytes = self.bytes(entry.offset, entry.bytes as usize)?;
        images::decode_whole(&self.path, &bytes, into).map_err(|error| match error {
            Error::Picture { reason, .. } => Error::Picture { path: self.member(entry), reason },
            other => other,
        })
    }

    /// The names that a picture's headers have: in the archive, and before it was put there.
    fn names(&self, entry: &Entry) -> Option<(String, Option<String>)> {
        let begin = entry.offset - u64::from(entry.head);
        tar::names(&self.bytes(begin, entry.head as usize).ok()?)
    }

    /// A picture's place for messages: the shard, and its name in it.
    fn member(&self, entry: &Entry) -> PathBuf {
        let name = self.names(entry).map(|(name, _)| name);
        self.path.join(name.unwrap_or_else(|| match entry.head {
            0 => format!("row {}", entry.number),
            _ => format!("byte {}", entry.offset),
        }))
    }
}

/// The pictures of a Parquet file.
#[cfg(feature = "parquet")]
use self::parquet::look_through as from_parquet;

/// Refuses a Parquet file, which this build can't read.
#[cfg(not(feature = "parquet"))]
fn from_parquet(
    path: &Path,
    _: File,
    _: &mut Option<Arc<Mutex<File>>>,
) -> Result<(Index, Unpacked)> {
    Err(Error::Folder {
        path: path.into(),
        found: "a Parquet file".into(),
        expected: "a tar archive: this kd was built without the feature parquet, which reads such files (`cargo install kd-run --features parquet`)".into(),
    })
}

/// The pictures of several shards, of any size: a source of them as they are.
struct Shards {
    part: Part,
    /// For each shard the number of its first picture.
    first: Vec<u32>,
    len: usize,
    /// What tells the pictures from those of other shards.
    identity: String,
}

impl Shards {
    fn new(part: Part, identity: String) -> Self {
        let (mut first, mut len) = (Vec::new(), 0);
        for shard in &part.shards {
            first.push(len as u32);
            len += shard.index.entries.len();
        }
        Self { part, first, len, identity }
    }

    fn find(&self, index: u32) -> Option<(&Shard, &Entry)> {
        let shard = self.first.partition_point(|first| *first <= index).checked_sub(1)?;
        let entries = &self.part.shards[shard].index.entries;
        Some((&self.part.shards[shard], entries.get((index - self.first[shard]) as usize)?))
    }
}

impl Source for Shards {
    fn len(&self) -> usize {
        self.len
    }

    fn shape(&self) -> [usize; 3] {
        [3, 0, 0]
    }

    fn label(&self, index: u32) -> Option<u32> {
        self.find(index).map(|(_, entry)| entry.label).filter(|label| *label != NO_LABEL)
    }

    fn name(&self, index: u32) -> Option<String> {
        let (shard, entry) = self.find(index)?;
        // A name of its own takes more than the one header that each picture has.
        let own = (entry.head > 512).then(|| shard.names(entry)?.1).flatten();
        if own.is_some() {
            return own;
        }
        Some(format!("{}/{}", name_below(&shard.name, Path::new("")), entry.number))
    }

    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        let (shard, entry) = self.find(index).ok_or_else(|| Error::Source {
            index,
            found: format!("shards of {} pictures", self.len),
            expected: "the number of one of them".into(),
        })?;
        shard.read(entry, into)
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn memory(&self) -> u64 {
        let of = |shard: &Shard| {
            (size_of::<Shard>() + size_of::<Entry>() * shard.index.entries.len()) as u64
        };
        self.part.shards.iter().map(of).sum()
    }
}
