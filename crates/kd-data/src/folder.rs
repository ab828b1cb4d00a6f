//! One's own pictures, in folders of classes.

use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::cifar::hex;
use crate::images::{self, SIDE};
use crate::{Dataset, Error, Result, Split};

/// Labels are bytes.
const MAX_CLASSES: usize = 256;

/// Reads pictures from `dir` in the layout of torchvision's `ImageFolder`: `train/CLASS/*.png` and
/// `test/CLASS/*.png`, PNG or JPEG, scaled to 32x32 as [`images`] says. The classes are the folders'
/// names, numbered in the names' order; pictures in folders below a class's count to it. All are held in
/// memory, 3 KiB each.
///
/// The data set's hash covers pixels, labels and the classes' names.
///
/// # Errors
/// When a folder is missing or has no pictures, `train` and `test` have other classes, there are fewer
/// than 2 or more than 256, or a picture can't be read; the first in the names' order is named.
pub fn image_folder(dir: &Path) -> Result<Dataset> {
    let classes = classes(&dir.join("train"))?;
    check_test_classes(&dir.join("test"), &classes)?;
    let train = read(&dir.join("train"), &classes)?;
    let test = read(&dir.join("test"), &classes)?;
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

/// The folders in `folder`, by name.
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
                    found: "a name that can't be a class's".into(),
                    expected: "UTF-8 of one line".into(),
                });
            }
        }
    }
    names.sort();
    Ok(names)
}

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

fn check_test_classes(test: &Path, classes: &[String]) -> Result<()> {
    let names = class_folders(test)?;
    let wrong = |name: &str, found: &str, expected: &str| Error::Folder {
        path: test.join(name),
        found: found.into(),
        expected: expected.into(),
    };
    if let Some(name) = classes.iter().find(|name| !names.contains(name)) {
        return Err(wrong(name, "no such folder", "the classes of train in test too"));
    }
    match names.iter().find(|name| !classes.contains(name)) {
        Some(name) => Err(wrong(name, "a class that train lacks", "the classes of train alone")),
        None => Ok(()),
    }
}

fn read(folder: &Path, classes: &[String]) -> Result<Split> {
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
    // Collected before the first error is taken, so that it is the same one each time.
    let read: Vec<Result<Vec<u8>>> = files.par_iter().map(|(path, _)| images::read(path)).collect();
    let mut images = Vec::with_capacity(files.len() * 3 * SIDE * SIDE);
    for picture in read {
        images.extend(picture?);
    }
    let labels = files.iter().map(|(_, label)| *label).collect();
    Ok(Split { images, labels, coarse_labels: None, shape: [3, SIDE, SIDE] })
}
