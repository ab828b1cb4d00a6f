//! Pictures of one's own in memory, in a folder for each class or without classes.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::labels::cut;
use crate::layout::{Layout, Place, layout};
use crate::names::name_below;
use crate::picture_files::{TestOn, refuse_other_folders};
use crate::source::NO_LABEL;
use crate::{Dataset, Error, Result, Skipped, Split};
use crate::{images, labels};
use kd_record::hash::hex;

/// The most classes that a network tells apart.
pub(crate) const MAX_CLASSES: usize = 65536;

/// How [`image_folder_as`] reads a folder.
#[derive(Clone, Copy, Debug)]
pub struct FolderConfig {
    /// Height and width in pixels that the pictures are scaled to, 1 to 4096.
    pub side: usize,
    /// Of one folder for each class without `train` above them: the share of each class's pictures that is tested on.
    pub split: Option<f64>,
    /// Which pictures are tested on where there are both kinds.
    pub test_on: TestOn,
    /// Whether pictures that can't be read are left out.
    pub skip_broken: bool,
}

impl FolderConfig {
    /// Pictures of this side, in `train` and `test`, which must all be readable.
    pub fn new(side: usize) -> Self {
        Self { side, split: None, test_on: TestOn::Test, skip_broken: false }
    }
}

/// Reads pictures from `dir` in the layout of torchvision's `ImageFolder`: `train/CLASS/*.png` and
/// `test/CLASS/*.png`, PNG, JPEG, WebP, BMP or GIF, scaled to `side` x `side` pixels as [`images`] says. The classes are the folders'
/// names, numbered in the names' order; pictures in folders below a class's folder belong to it. All are held in
/// memory: at 32x32 that is 3 KiB each.
///
/// The data set's hash covers pixels, labels and the classes' names.
///
/// # Errors
/// When `side` is zero or above 4096, a folder can't be read or has no pictures, `train` and `test` have different classes,
/// there are fewer than 2 classes or more than 65536, or pictures can't be read: all of them are named.
pub fn image_folder(dir: &Path, side: usize) -> Result<Dataset> {
    Ok(image_folder_as(dir, &FolderConfig::new(side))?.0)
}

/// As [`image_folder`], without the pictures that can't be read: [`Dataset::skipped`] names them, in the order of split, class and
/// name.
///
/// The data set's hash then covers the paths of the skipped pictures, too. Without any it is that of [`image_folder`].
///
/// # Errors
/// As [`image_folder`]'s, except for pictures that can't be read: they are an error only where a class has no other in `train` or
/// in `test`.
pub fn image_folder_without_broken(dir: &Path, side: usize) -> Result<Dataset> {
    Ok(image_folder_as(dir, &FolderConfig { skip_broken: true, ..FolderConfig::new(side) })?.0)
}

/// As [`image_folder`], where any of `train`, `test`, and `val` or `validation` may be missing, one folder for each class may be cut by
/// [`FolderConfig::split`], and pictures may lie in no folder of a class: those have no labels. What is missing, what takes its place and
/// what was passed over is returned as sentences.
///
/// # Errors
/// As [`image_folder`]'s; with [`FolderConfig::skip_broken`] as [`image_folder_without_broken`]'s.
pub fn image_folder_as(dir: &Path, config: &FolderConfig) -> Result<(Dataset, Vec<String>)> {
    images::check_side(config.side)?;
    let layout = match config.split {
        None => layout(dir, config.test_on)?,
        Some(share) => {
            refuse_other_folders(dir, share)?;
            let classes = class_folders(dir)?;
            Layout { train: Some(Place { name: "", classes }), tested: None, notes: Vec::new() }
        }
    };
    let (mut dataset, mut broken) = read_both(dir, &layout, config.side)?;
    if !config.skip_broken {
        match broken.len() {
            0 => {}
            1 => return Err(broken.remove(0).1),
            _ => {
                let broken = broken.into_iter().map(|(_, error)| error).collect();
                return Err(Error::Pictures { dir: dir.into(), broken });
            }
        }
    } else {
        refuse_emptied(dir, &layout, &dataset, &broken)?;
        let skipped = broken.into_iter().map(|(path, error)| {
            Skipped::of(path.strip_prefix(dir).map_or(path.clone(), Path::to_path_buf), error)
        });
        dataset.skipped = skipped.collect();
    }
    if let Some(share) = config.split {
        let [kept, tested] = cut(&dataset.train.labels, dataset.classes.len(), share);
        let names = dataset.names.take().map(|[all, _]| {
            [&kept, &tested].map(|chosen| {
                chosen.iter().map(|&number| all[number as usize].clone()).collect::<Vec<String>>()
            })
        });
        let test = dataset.train.select(&tested);
        dataset = Dataset { train: dataset.train.select(&kept), test, names, ..dataset };
    }
    Ok((dataset, layout.notes))
}

/// Refuses a class that has no picture left after those that can't be read were left out.
fn refuse_emptied(
    dir: &Path,
    layout: &Layout,
    dataset: &Dataset,
    broken: &[(PathBuf, Error)],
) -> Result<()> {
    let mut emptied = Vec::new();
    for (place, split) in [(&layout.train, &dataset.train), (&layout.tested, &dataset.test)] {
        let Some(place) = place else { continue };
        let counts = split.class_counts(place.classes.len()).into_iter().zip(&place.classes);
        let none = counts.filter(|(count, _)| *count == 0);
        emptied.extend(none.map(|(_, class)| dir.join(place.name).join(class)));
        if place.classes.is_empty() && split.is_empty() {
            emptied.push(dir.join(place.name));
        }
    }
    let [first, others @ ..] = &emptied[..] else { return Ok(()) };
    let error = broken.iter().find(|(path, _)| path.starts_with(first));
    let error = error.map_or(String::new(), |(_, error)| format!(", the first because of {error}"));
    let others: String = others.iter().map(|path| format!(", nor in {}", path.display())).collect();
    Err(Error::Folder {
        path: first.clone(),
        found: format!("no picture that can be read{others}{error}"),
        expected: "at least one of each class in train and in test".into(),
    })
}

/// Reads both splits without the pictures that can't be read, each of which is returned with what is wrong with it.
fn read_both(dir: &Path, layout: &Layout, side: usize) -> Result<(Dataset, Vec<(PathBuf, Error)>)> {
    let classes = layout.classes();
    let without = |place: &Option<Place>| place.as_ref().is_some_and(|it| it.classes.is_empty());
    if !(without(&layout.train) && layout.tested.is_none()) {
        check_count(&dir.join(layout.train.as_ref().map_or("", |train| train.name)), &classes)?;
    }
    if let (Some(Place { classes: trained, .. }), Some(tested)) = (&layout.train, &layout.tested)
        && !trained.is_empty()
    {
        check_test_classes(&dir.join(tested.name), trained)?;
    }
    let empty = || (Split { shape: [3, side, side], ..Split::default() }, Vec::new(), Vec::new());
    let read = |place: &Option<Place>| match place {
        None => Ok(empty()),
        Some(Place { name, classes }) => read(&dir.join(name), classes, side),
    };
    let (train, train_files, mut broken) = read(&layout.train)?;
    let (test, test_files, broken_too) = read(&layout.tested)?;
    let names = [train_files, test_files]
        .map(|files| files.iter().map(|file| name_below(file, dir)).collect());
    broken.extend(broken_too);
    let mut hash = Sha256::new();
    for split in [&train, &test] {
        hash.update(&split.images);
        hash.update(labels::bytes(&split.labels));
    }
    for class in &classes {
        hash.update(class);
        hash.update(b"\n");
    }
    for (path, _) in &broken {
        // No name holds the byte that ends a path here, and no class's name the one between its parts.
        for part in path.strip_prefix(dir).unwrap_or(path) {
            hash.update(b"/");
            hash.update(part.as_encoded_bytes());
        }
        hash.update(b"\0");
    }
    let (name, sha256, skipped) = ("folder".into(), hex(hash), Vec::new());
    let names = Some(names);
    Ok((Dataset { name, classes, train, test, sha256, skipped, names }, broken))
}

/// The names of the folders in `folder`, sorted.
pub(crate) fn class_folders(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Err(Error::Missing {
            path: folder.into(),
            expected:
                "a folder with a folder of pictures (PNG, JPEG, WebP, BMP or GIF) for each class"
                    .into(),
            advice: "give the folder in which train/CLASS/* and test/CLASS/* lie".into(),
        });
    }
    let mut names = Vec::new();
    for (path, kind) in images::entries(folder)? {
        if images::leads_nowhere(&path, kind) {
            return Err(Error::Folder {
                path,
                found: "a link that leads nowhere, which may have been a class".into(),
                expected: "a link to a folder of pictures, or none".into(),
            });
        }
        if !path.is_dir() {
            continue;
        }
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if !name.contains(char::is_control) => names.push(name.to_owned()),
            _ => {
                return Err(Error::Folder {
                    path,
                    found: "a name that no class can have".into(),
                    expected: "UTF-8 without control characters".into(),
                });
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Refuses too few or too many classes.
pub(crate) fn check_count(dir: &Path, classes: &[String]) -> Result<()> {
    match (2..=MAX_CLASSES).contains(&classes.len()) {
        true => Ok(()),
        false => Err(Error::Folder {
            path: dir.into(),
            found: format!("{} folders", classes.len()),
            expected: format!("one for each class, 2 to {MAX_CLASSES}"),
        }),
    }
}

/// Refuses a `test` that does not have the classes of `train`.
fn check_test_classes(test: &Path, classes: &[String]) -> Result<()> {
    let names = class_folders(test)?;
    let wrong = |name: &str, found: &str, expected: &str| Error::Folder {
        path: test.join(name),
        found: found.into(),
        expected: expected.into(),
    };
    if let Some(name) = classes.iter().find(|name| !names.contains(name)) {
        return Err(wrong(name, "no such folder", "the classes of train in test as well"));
    }
    match names.iter().find(|name| !classes.contains(name)) {
        Some(name) => Err(wrong(name, "a class that train lacks", "the classes of train alone")),
        None => Ok(()),
    }
}

/// The pictures that were read, their files, and the files that can't be read, each with what is wrong with it.
type Read = (Split, Vec<PathBuf>, Vec<(PathBuf, Error)>);

/// Reads the pictures of all classes in `folder`, class by class and in the order of their names; without classes those in it, which have no
/// labels.
fn read(folder: &Path, classes: &[String], side: usize) -> Result<Read> {
    let mut files = Vec::new();
    if classes.is_empty() {
        files.extend(images::files(folder)?.into_iter().map(|path| (path, NO_LABEL)));
    }
    for (label, class) in classes.iter().enumerate() {
        let folder = folder.join(class);
        let found = images::files(&folder)?;
        if found.is_empty() {
            let expected = "PNG, JPEG, WebP, BMP or GIF files of this class".into();
            return Err(Error::Folder { path: folder, found: "no pictures".into(), expected });
        }
        files.extend(found.into_iter().map(|path| (path, label as u32)));
    }
    let read: Vec<_> = files.par_iter().map(|(path, _)| images::read(path, side)).collect();
    let mut images = Vec::with_capacity(files.len() * 3 * side * side);
    let (mut labels, mut broken) = (Vec::with_capacity(files.len()), Vec::new());
    let mut whole = Vec::with_capacity(files.len());
    for ((path, label), picture) in files.into_iter().zip(read) {
        match picture {
            Ok(picture) => {
                images.extend(picture.pixels);
                labels.push(label);
                whole.push(path);
            }
            Err(error) => broken.push((path, error)),
        }
    }
    Ok((Split { images, labels, coarse_labels: None, shape: [3, side, side] }, whole, broken))
}
