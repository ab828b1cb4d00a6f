//! Pictures of one's own, in a folder for each class.

use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::images;
use crate::{Dataset, Error, Result, Split};

/// The most classes: labels are bytes.
const MAX_CLASSES: usize = 256;

/// Reads pictures from `dir` in the layout of torchvision's `ImageFolder`: `train/CLASS/*.png` and
/// `test/CLASS/*.png`, PNG or JPEG, scaled to `side` x `side` pixels as [`images`] says. The classes are the folders'
/// names, numbered in the names' order; pictures in folders below a class's folder belong to it. All are held in
/// memory: at 32x32 that is 3 KiB each.
///
/// The data set's hash covers pixels, labels and the classes' names.
///
/// # Errors
/// When `side` is zero or above 4096, a folder is missing or has no pictures, `train` and `test` have different classes,
/// there are fewer than 2 classes or more than 256, or pictures can't be read: all of them are named.
pub fn image_folder(dir: &Path, side: usize) -> Result<Dataset> {
    images::check_side(side)?;
    let classes = classes(&dir.join("train"))?;
    check_test_classes(&dir.join("test"), &classes)?;
    let (train, mut broken) = read(&dir.join("train"), &classes, side)?;
    let (test, broken_too) = read(&dir.join("test"), &classes, side)?;
    broken.extend(broken_too);
    if broken.len() > 1 {
        return Err(Error::Pictures { dir: dir.into(), broken });
    }
    if let Some(broken) = broken.pop() {
        return Err(broken);
    }
    let mut hash = Sha256::new();
    for split in [&train, &test] {
        hash.update(&split.images);
        hash.update(&split.labels);
    }
    for class in &classes {
        hash.update(class);
        hash.update(b"\n");
    }
    Ok(Dataset { name: "folder".into(), classes, train, test, sha256: hex(hash) })
}

/// The names of the folders in `folder`, sorted.
fn class_folders(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Err(Error::Missing {
            path: folder.into(),
            expected: "a folder with a folder of PNG or JPEG files for each class".into(),
            advice: "give the folder in which train/CLASS/*.png and test/CLASS/*.png lie".into(),
        });
    }
    let mut names = Vec::new();
    for (path, _) in images::entries(folder)? {
        if !path.is_dir() {
            continue;
        }
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if !name.contains('\n') => names.push(name.to_owned()),
            _ => {
                return Err(Error::Folder {
                    path,
                    found: "a name that no class can have".into(),
                    expected: "UTF-8 on one line".into(),
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

/// Reads the pictures of all classes in `folder`, class by class, and what is wrong with those that can't be read, in the names'
/// order.
fn read(folder: &Path, classes: &[String], side: usize) -> Result<(Split, Vec<Error>)> {
    let mut files = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let folder = folder.join(class);
        let found = images::files(&folder)?;
        if found.is_empty() {
            let expected = "PNG or JPEG files of this class".into();
            return Err(Error::Folder { path: folder, found: "no pictures".into(), expected });
        }
        files.extend(found.into_iter().map(|path| (path, label as u8)));
    }
    let read: Vec<_> = files.par_iter().map(|(path, _)| images::read(path, side)).collect();
    let mut images = Vec::with_capacity(files.len() * 3 * side * side);
    let mut broken = Vec::new();
    for picture in read {
        match picture {
            Ok(picture) => images.extend(picture.pixels),
            Err(error) => broken.push(error),
        }
    }
    let labels = files.iter().map(|(_, label)| *label).collect();
    Ok((Split { images, labels, coarse_labels: None, shape: [3, side, side] }, broken))
}
