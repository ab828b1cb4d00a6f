//! Pictures of one's own, in a folder for each class.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::names::name_below;
use crate::{Dataset, Error, Result, Skipped, Split};
use crate::{images, labels};
use kd_record::hash::hex;

/// The most classes that a network tells apart.
pub(crate) const MAX_CLASSES: usize = 65536;

/// Reads pictures from `dir` in the layout of torchvision's `ImageFolder`: `train/CLASS/*.png` and
/// `test/CLASS/*.png`, PNG, JPEG, WebP, BMP or GIF, scaled to `side` x `side` pixels as [`images`] says. The classes are the folders'
/// names, numbered in the names' order; pictures in folders below a class's folder belong to it. All are held in
/// memory: at 32x32 that is 3 KiB each.
///
/// The data set's hash covers pixels, labels and the classes' names.
///
/// # Errors
/// When `side` is zero or above 4096, a folder is missing or has no pictures, `train` and `test` have different classes,
/// there are fewer than 2 classes or more than 65536, or pictures can't be read: all of them are named.
pub fn image_folder(dir: &Path, side: usize) -> Result<Dataset> {
    let (dataset, mut broken) = read_both(dir, side)?;
    match broken.len() {
        0 => Ok(dataset),
        1 => Err(broken.remove(0).1),
        _ => {
            let broken = broken.into_iter().map(|(_, error)| error).collect();
            Err(Error::Pictures { dir: dir.into(), broken })
        }
    }
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
    let (dataset, broken) = read_both(dir, side)?;
    let mut emptied = Vec::new();
    for (name, split) in [("train", &dataset.train), ("test", &dataset.test)] {
        let counts = split.class_counts(dataset.classes.len()).into_iter().zip(&dataset.classes);
        let none = counts.filter(|(count, _)| *count == 0);
        emptied.extend(none.map(|(_, class)| dir.join(name).join(class)));
    }
    if let [first, others @ ..] = &emptied[..] {
        let error = broken.iter().find(|(path, _)| path.starts_with(first));
        let error =
            error.map_or(String::new(), |(_, error)| format!(", the first because of {error}"));
        let others: String =
            others.iter().map(|path| format!(", nor in {}", path.display())).collect();
        return Err(Error::Folder {
            path: first.clone(),
            found: format!("no picture that can be read{others}{error}"),
            expected: "at least one of each class in train and in test".into(),
        });
    }
    let skipped = broken.into_iter().map(|(path, error)| {
        Skipped::of(path.strip_prefix(dir).map_or(path.clone(), Path::to_path_buf), error)
    });
    Ok(Dataset { skipped: skipped.collect(), ..dataset })
}

/// Reads both splits without the pictures that can't be read, each of which is returned with what is wrong with it.
fn read_both(dir: &Path, side: usize) -> Result<(Dataset, Vec<(PathBuf, Error)>)> {
    images::check_side(side)?;
    let classes = classes(&dir.join("train"))?;
    check_test_classes(&dir.join("test"), &classes)?;
    let (train, train_files, mut broken) = read(&dir.join("train"), &classes, side)?;
    let (test, test_files, broken_too) = read(&dir.join("test"), &classes, side)?;
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

/// The classes, which are the folders in `train`.
fn classes(train: &Path) -> Result<Vec<String>> {
    let names = class_folders(train)?;
    if !(2..=MAX_CLASSES).contains(&names.len()) {
        return Err(Error::Folder {
            path: train.into(),
            found: format!("{} folders", names.len()),
            expected: format!("one for each class, 2 to {MAX_CLASSES}"),
        });
    }
    Ok(names)
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

/// Reads the pictures of all classes in `folder`, class by class and in the order of their names.
fn read(folder: &Path, classes: &[String], side: usize) -> Result<Read> {
    let mut files = Vec::new();
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
