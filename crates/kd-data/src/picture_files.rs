//! Pictures of one's own of any size and number, in a folder for each class, read when they are wanted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::folder::{check_count, class_folders};
use crate::labels::cut;
use crate::layout::{Place, layout};
use crate::names::name_below;
use crate::one_line::shown;
use crate::portions::Sources;
use crate::scaled::{Room, Scaled};
use crate::scaling::Scaling;
use crate::source::{NO_LABEL, Picture, Source, select};
use crate::{Error, Result, Skipped, images};
use kd_record::hash::hex;

/// How [`picture_files`] reads a folder, and [`picture_shards`](crate::picture_shards) shards.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// The squares that the pictures become.
    pub scaling: Scaling,
    /// Of one folder for each class without `train` above them, or of shards to train on alone: the share of each class's pictures that is
    /// tested on.
    pub split: Option<f64>,
    /// Which pictures are tested on where there are both kinds.
    pub test_on: TestOn,
    /// Whether every picture is read once beforehand, so that those that can't be read are left out.
    pub skip_broken: bool,
    /// Memory for decoded pictures.
    pub room: Arc<Room>,
}

/// Which pictures of a folder are tested on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestOn {
    /// Those in `test`; where there is no such folder, those in `val` or `validation`.
    #[default]
    Test,
    /// Those in `val` or `validation`: for choosing settings without looking at the test pictures.
    Validation,
}

impl TestOn {
    /// Whether it is the one that recipes need not name.
    pub fn is_test(&self) -> bool {
        *self == Self::Test
    }
}

/// The pictures in `dir`, in the layout of torchvision's `ImageFolder`: `train/CLASS/*` and `test/CLASS/*`, `val/CLASS/*` or
/// `validation/CLASS/*`; or, with [`FilesConfig::split`], `CLASS/*`. The classes are the folders' names, numbered in the names' order;
/// pictures in folders below a class's folder belong to it, in folders that are linked as well. A file is a picture where its name ends
/// like one's or its contents begin like one's. Only names and lengths of files are read; a picture is decoded when it is asked for.
///
/// Any of these folders may be missing; where all are, pictures that lie in `dir` itself are to be trained on. Pictures that lie in `train` or
/// `dir` and in no folder of a class have no labels; the classes are then those that are tested on, or none.
///
/// The data set is known by the SHA-256 of the classes' names and of each file's path, length and class.
///
/// What was passed over, and which pictures are tested on where that may not be expected, is returned as sentences.
///
/// # Errors
/// When there is no picture, a folder can't be read, a class has no picture, there are fewer than 2 classes or more than 65536, a test picture
/// is of a class that is not trained on, or a file is empty or a link that leads nowhere; with [`FilesConfig::skip_broken`] these are
/// left out. A file that turns out to be broken, or is no longer what it was, is an error when it is read.
pub fn picture_files(dir: &Path, config: &FilesConfig) -> Result<(Sources, Vec<String>)> {
    config.scaling.check()?;
    let mut notes = Vec::new();
    let mut found = match config.split {
        None => of_split_folders(dir, config.test_on, &mut notes)?,
        Some(share) => of_one_folder(dir, share)?,
    };
    notes.extend(found.passed_over(dir));
    let mut hash = Sha256::new();
    hash.update("picture files\n");
    found.classes.iter().for_each(|class| hash.update(format!("{class}\n")));
    let mut skipped = Vec::new();
    for part in [&mut found.train, &mut found.test] {
        hash.update((part.files.len() as u64).to_le_bytes());
        part.files.iter().for_each(|file| file.add_to(&mut hash));
        if config.skip_broken {
            leave_out_broken(dir, part);
        }
        part.broken.sort_by(|a, b| a.0.cmp(&b.0));
        // No name holds the byte that ends a path here.
        for (path, _) in &part.broken {
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update(b"\0");
        }
    }
    let sha256 = hex(hash);
    let broken: Vec<(PathBuf, Error)> =
        [&mut found.train, &mut found.test].into_iter().flat_map(|p| p.broken.drain(..)).collect();
    if config.skip_broken {
        skipped.extend(broken.into_iter().map(|(path, error)| Skipped::of(path, error)));
    } else if !broken.is_empty() {
        let mut broken: Vec<Error> = broken.into_iter().map(|(_, error)| error).collect();
        return Err(match broken.len() {
            1 => broken.remove(0),
            _ => Error::Pictures { dir: dir.into(), broken },
        });
    }
    check_classes(dir, &found)?;
    let source = |part: Part| -> Result<Arc<dyn Source>> {
        let files = part.files.into_iter().map(|file| File { path: dir.join(file.path), ..file });
        let (files, dir) = (files.collect(), dir.to_owned());
        let files = Arc::new(Files { files, dir, identity: sha256.clone() });
        Ok(Arc::new(Scaled::new(files, config.scaling, Arc::clone(&config.room))?))
    };
    let (name, classes) = ("folder".into(), found.classes);
    let (train, test): (Arc<dyn Source>, Arc<dyn Source>) = match found.share {
        None => (source(found.train)?, source(found.test)?),
        Some(share) => {
            let labels: Vec<u32> = found.train.files.iter().map(|file| file.label).collect();
            let [train, test] = cut(&labels, classes.len(), share);
            // Both are choices from one source, so that a picture has one place in memory.
            let all = source(found.train)?;
            (select(&all, &train), select(&all, &test))
        }
    };
    Ok((Sources { name, classes, train, test, sha256: sha256.clone(), skipped }, notes))
}

/// What a folder holds.
struct Found {
    classes: Vec<String>,
    train: Part,
    test: Part,
    /// Whether the pictures to train on lie in folders of classes.
    labelled: bool,
    /// The share of `train` that is tested on, where all are in one folder.
    share: Option<f64>,
}

/// The files of one kind.
#[derive(Default)]
struct Part {
    files: Vec<File>,
    /// What can't be a picture although its name says so.
    broken: Vec<(PathBuf, Error)>,
    /// Files that are no pictures, and links to folders that they lie in.
    passed_over: Vec<PathBuf>,
}

/// A picture's file.
struct File {
    path: PathBuf,
    /// Its length in bytes when the folder was looked through.
    bytes: u64,
    /// The number of its class, or [`NO_LABEL`].
    label: u32,
}

impl File {
    fn add_to(&self, hash: &mut Sha256) {
        // Components, so that a folder has one hash on every system.
        for part in &self.path {
            hash.update(b"/");
            hash.update(part.as_encoded_bytes());
        }
        hash.update(b"\0");
        hash.update(self.bytes.to_le_bytes());
        hash.update(self.label.to_le_bytes());
    }
}

impl Found {
    /// How many files were passed over, and the first of them.
    fn passed_over(&self, dir: &Path) -> Option<String> {
        const NAMED: usize = 5;
        let all: Vec<&PathBuf> =
            self.train.passed_over.iter().chain(&self.test.passed_over).collect();
        let named: Vec<String> = all.iter().take(NAMED).map(|path| shown(path)).collect();
        let more = match all.len() {
            0 => return None,
            count if count > NAMED => format!(" and {} more", count - NAMED),
            _ => String::new(),
        };
        Some(format!(
            "{}: passed over what is no picture, or a link to a folder that it lies in ({} in all): {}{more}",
            shown(dir),
            all.len(),
            named.join(", ")
        ))
    }
}

/// `train`, and `test`, `val` or `validation` beside it; any may be missing.
fn of_split_folders(dir: &Path, test_on: TestOn, notes: &mut Vec<String>) -> Result<Found> {
    let layout = layout(dir, test_on)?;
    let classes = layout.classes();
    notes.extend(layout.notes);
    if let (Some(train), Some(tested)) = (&layout.train, &layout.tested)
        && let Some(name) = tested.classes.iter().find(|name| !classes.contains(name))
    {
        return Err(Error::Folder {
            path: dir.join(tested.name).join(name),
            found: format!("a class that {} lacks", train.name),
            expected: format!("the classes of {} alone", train.name),
        });
    }
    let part = |place: &Option<Place>| match place {
        None => Ok(Part::default()),
        Some(Place { name, classes: own }) if own.is_empty() => without_classes(dir, name),
        Some(Place { name, .. }) => look_through(dir, name, &classes),
    };
    let (train, test) = (part(&layout.train)?, part(&layout.tested)?);
    let labelled = layout.train.is_some_and(|train| !train.classes.is_empty());
    Ok(Found { classes, train, test, labelled, share: None })
}

/// A folder for each class, of whose pictures the share `share` is tested on.
fn of_one_folder(dir: &Path, share: f64) -> Result<Found> {
    refuse_other_folders(dir, share)?;
    let classes = class_folders(dir)?;
    let train = look_through(dir, "", &classes)?;
    Ok(Found { classes, train, test: Part::default(), labelled: true, share: Some(share) })
}

/// Refuses a share that is none, and one of a folder in which pictures are cut already.
pub(crate) fn refuse_other_folders(dir: &Path, share: f64) -> Result<()> {
    if !(share > 0.0 && share < 1.0) {
        let (found, expected) = (share.to_string(), "a share between 0 and 1".into());
        return Err(Error::Config { field: "split", found, expected });
    }
    for name in ["train", "test"] {
        if dir.join(name).is_dir() {
            return Err(Error::Folder {
                path: dir.join(name),
                found: format!("a folder {name} although split is set"),
                expected: "a folder for each class; leave out split where the pictures are cut into train and test".into(),
            });
        }
    }
    Ok(())
}

/// The pictures in the folder `name` of `dir`, which have no labels, in the order of their paths.
fn without_classes(dir: &Path, name: &str) -> Result<Part> {
    let mut part = Part::default();
    walk(dir, Path::new(name), NO_LABEL, &mut Vec::new(), &mut part)?;
    part.files.sort_by(|a, b| a.path.cmp(&b.path));
    part.passed_over.sort();
    Ok(part)
}

/// The files of all classes in the folder `name` of `dir`, class by class and in the order of their paths, which are relative to `dir`.
fn look_through(dir: &Path, name: &str, classes: &[String]) -> Result<Part> {
    let folders: Vec<(u32, PathBuf)> =
        (0..).zip(classes).map(|(label, class)| (label, Path::new(name).join(class))).collect();
    let parts = folders.into_par_iter().map(|(label, folder)| {
        let mut part = Part::default();
        if dir.join(&folder).is_dir() {
            walk(dir, &folder, label, &mut Vec::new(), &mut part)?;
        }
        part.files.sort_by(|a, b| a.path.cmp(&b.path));
        part.passed_over.sort();
        Ok(part)
    });
    let mut all = Part::default();
    for part in parts.collect::<Result<Vec<Part>>>()? {
        all.files.extend(part.files);
        all.broken.extend(part.broken);
        all.passed_over.extend(part.passed_over);
    }
    Ok(all)
}

/// Collects the pictures in `folder`, a path relative to `dir`, and below it; `above` are the real paths of the folders on the way.
fn walk(
    dir: &Path,
    folder: &Path,
    label: u32,
    above: &mut Vec<PathBuf>,
    part: &mut Part,
) -> Result<()> {
    let whole = dir.join(folder);
    let real = fs::canonicalize(&whole).map_err(|source| Error::Io { path: whole, source })?;
    if above.contains(&real) {
        part.passed_over.push(folder.into());
        return Ok(());
    }
    above.push(real);
    for (path, _) in images::entries(&dir.join(folder))? {
        let relative = folder.join(path.file_name().unwrap_or_default());
        let named = images::is_named_like_a_picture(&path);
        let about = match fs::metadata(&path) {
            Ok(about) => about,
            Err(source) => {
                let error = match fs::read_link(&path) {
                    Ok(target) => {
                        let reason = format!("it is a link to {}: {source}", target.display());
                        Error::Picture { path, reason }
                    }
                    Err(_) => Error::Io { path, source },
                };
                part.broken.push((relative, error));
                continue;
            }
        };
        if about.is_dir() {
            walk(dir, &relative, label, above, part)?;
        } else if about.is_file() && about.len() == 0 && named {
            let reason = "the file is empty".into();
            part.broken.push((relative, Error::Picture { path, reason }));
        } else if about.is_file() && (named || images::begins_like_a_picture(&path)) {
            part.files.push(File { path: relative, bytes: about.len(), label });
        } else {
            part.passed_over.push(relative);
        }
    }
    above.pop();
    Ok(())
}

/// Reads every picture once and takes those out that can't be read.
fn leave_out_broken(dir: &Path, part: &mut Part) {
    let files = std::mem::take(&mut part.files);
    let read = |file: &File| images::read_whole(&dir.join(&file.path), &mut Picture::default());
    let read: Vec<Result<()>> = files.par_iter().map(read).collect();
    for (file, read) in files.into_iter().zip(read) {
        match read {
            Ok(()) => part.files.push(file),
            Err(error) => part.broken.push((file.path, error)),
        }
    }
}

/// Refuses too few or too many classes, and one without a picture to train on.
fn check_classes(dir: &Path, found: &Found) -> Result<()> {
    if found.train.files.is_empty() && found.test.files.is_empty() {
        return Err(Error::Folder {
            path: dir.into(),
            found: "no picture that can be read".into(),
            expected: "pictures to train on".into(),
        });
    }
    if found.classes.is_empty() && !found.labelled {
        return Ok(());
    }
    check_count(dir, &found.classes)?;
    if !found.labelled {
        return Ok(());
    }
    let mut counts = vec![0usize; found.classes.len()];
    found.train.files.iter().for_each(|file| counts[file.label as usize] += 1);
    refuse_empty_classes(dir, &found.classes, &counts)
}

/// Refuses a class without a picture to train on; `counts` are those of each class.
pub(crate) fn refuse_empty_classes(dir: &Path, classes: &[String], counts: &[usize]) -> Result<()> {
    let emptied = classes.iter().zip(counts).find(|(_, count)| **count == 0);
    match emptied {
        None => Ok(()),
        Some((class, _)) => Err(Error::Folder {
            path: dir.into(),
            found: format!("no picture of class {class:?} to train on"),
            expected: "at least one of each class, or none of its name or number".into(),
        }),
    }
}

/// Picture files of any size: a source of them as they are.
struct Files {
    files: Vec<File>,
    /// The data set's folder, in which all of them lie.
    dir: PathBuf,
    /// SHA-256 of the data set.
    identity: String,
}

impl Source for Files {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn shape(&self) -> [usize; 3] {
        [3, 0, 0]
    }

    fn label(&self, index: u32) -> Option<u32> {
        self.files.get(index as usize).map(|file| file.label).filter(|label| *label != NO_LABEL)
    }

    fn name(&self, index: u32) -> Option<String> {
        Some(name_below(&self.files.get(index as usize)?.path, &self.dir))
    }

    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        let Some(File { path, bytes, .. }) = self.files.get(index as usize) else {
            return Err(Error::Source {
                index,
                found: format!("a folder of {} pictures", self.files.len()),
                expected: "the number of one of them".into(),
            });
        };
        let changed = |found: String| Error::Folder {
            path: path.clone(),
            found,
            expected: format!(
                "the file of {bytes} bytes that was there when the folder was looked through: it must stay as it is while it is used; bring the file back, or begin a new run"
            ),
        };
        match fs::metadata(path) {
            Ok(about) if about.len() == *bytes => images::read_whole(path, into),
            Ok(about) => Err(changed(format!("a file of {} bytes", about.len()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(changed("no such file".into()))
            }
            Err(source) => Err(Error::Io { path: path.clone(), source }),
        }
    }

    fn identity(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.identity);
        self.files.iter().for_each(|file| file.add_to(&mut hash));
        hex(hash)
    }

    fn memory(&self) -> u64 {
        let of = |file: &File| (file.path.as_os_str().len() + size_of::<File>() + 16) as u64;
        self.files.iter().map(of).sum()
    }
}
