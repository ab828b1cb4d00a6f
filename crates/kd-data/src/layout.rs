//! What lies where in a folder of pictures: which of its folders are trained on and tested on, and whether pictures have classes.

use std::path::Path;

use crate::folder::class_folders;
use crate::one_line::shown;
use crate::picture_files::TestOn;
use crate::{Error, Result, images};

/// Which pictures a folder has for what.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The pictures to train on; `None` where there are none.
    pub(crate) train: Option<Place>,
    /// The pictures to test on, which have classes; `None` where there are none.
    pub(crate) tested: Option<Place>,
    /// Sentences about what is missing and what takes its place.
    pub(crate) notes: Vec<String>,
}

/// A folder with pictures, below the data set's.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its name; empty for the data set's folder itself.
    pub(crate) name: &'static str,
    /// The names of the folders of its classes; none where its pictures lie in it without a class.
    pub(crate) classes: Vec<String>,
}

impl Layout {
    /// The classes of the data set: those that are trained on, else those that are tested on.
    pub(crate) fn classes(&self) -> Vec<String> {
        let with_classes = |place: &&Place| !place.classes.is_empty();
        let place = self.train.iter().chain(&self.tested).find(with_classes);
        place.map(|place| place.classes.clone()).unwrap_or_default()
    }
}

/// Looks at the folders `train`, `test`, `val` and `validation` in `dir`, of which any may be missing; where all are, pictures that lie
/// in `dir` itself are to be trained on.
///
/// # Errors
/// When there is no picture, there are two folders of validation pictures or none although they are asked for, or a folder can't be read.
pub(crate) fn layout(dir: &Path, test_on: TestOn) -> Result<Layout> {
    let is_there = |name: &&str| dir.join(name).is_dir();
    let mut notes = Vec::new();
    let validation = ["val", "validation"].into_iter().filter(is_there);
    let validation = match &validation.collect::<Vec<_>>()[..] {
        [] => None,
        [one] => Some(*one),
        _ => {
            return Err(Error::Folder {
                path: dir.into(),
                found: "both val and validation".into(),
                expected: "one folder of validation pictures".into(),
            });
        }
    };
    let test = Some("test").filter(is_there);
    let train = match Some("train").filter(is_there) {
        Some(train) => Some(train),
        None if test.or(validation).is_some() => None,
        None if holds_pictures_alone(dir)? => Some(""),
        None => {
            return Err(Error::Missing {
                path: dir.join("train"),
                expected: "a folder with a folder of pictures for each class".into(),
                advice: "give the folder in which train/CLASS/* lie; if there is one folder for each class and none above them, say what share of the pictures is tested on, such as split = 0.2 in a recipe's [data]".into(),
            });
        }
    };
    let tested = match (test_on, test, validation) {
        (TestOn::Test, Some(test), _) => Some(test),
        (TestOn::Test, None, Some(validation)) => {
            notes.push(format!(
                "{}: there is no folder test; the pictures in {validation} are tested on",
                shown(dir)
            ));
            Some(validation)
        }
        (TestOn::Test, None, None) => None,
        (TestOn::Validation, _, Some(validation)) => Some(validation),
        (TestOn::Validation, _, None) => {
            return Err(Error::Missing {
                path: dir.join("validation"),
                expected: "a folder val or validation with pictures to test on".into(),
                advice: "add it, or leave out test_on".into(),
            });
        }
    };
    let train = train.map(|train| place(dir, train, &mut notes)).transpose()?;
    let tested = tested.map(|tested| place(dir, tested, &mut notes)).transpose()?;
    let tested = match tested {
        Some(Place { name, classes }) if classes.is_empty() && holds_pictures(&dir.join(name))? => {
            notes.push(format!(
                "{}: the pictures in {name} lie in no folders of classes: nothing is measured on them",
                shown(dir)
            ));
            None
        }
        tested => tested,
    };
    match &train {
        None => notes.push(format!("{}: there is no folder train", shown(dir))),
        Some(Place { name, classes }) if classes.is_empty() => {
            let folder = dir.join(name);
            if !holds_pictures(&folder)? {
                return Err(Error::Folder {
                    path: folder,
                    found: "neither folders nor pictures".into(),
                    expected: "a folder with pictures for each class, or pictures that have none"
                        .into(),
                });
            }
            notes.push(format!(
                "{}: the pictures lie in no folders of classes: they have no labels",
                shown(&folder)
            ));
        }
        Some(_) => {}
    }
    Ok(Layout { train, tested, notes })
}

/// The classes of the folder `name`, and a note about pictures that lie beside their folders. A folder of nothing is one of no class.
fn place(dir: &Path, name: &'static str, notes: &mut Vec<String>) -> Result<Place> {
    let folder = dir.join(name);
    let classes = if name.is_empty() { Vec::new() } else { class_folders(&folder)? };
    let loose = if classes.is_empty() { 0 } else { loose_pictures(&folder)? };
    if loose > 0 {
        notes.push(format!(
            "{}: passed over {loose} pictures that lie beside the folders of the classes",
            shown(&folder)
        ));
    }
    Ok(Place { name, classes })
}

/// Whether pictures lie in a folder and no folder does.
fn holds_pictures_alone(dir: &Path) -> Result<bool> {
    Ok(dir.is_dir() && class_folders(dir)?.is_empty() && holds_pictures(dir)?)
}

fn holds_pictures(folder: &Path) -> Result<bool> {
    Ok(loose_pictures(folder)? > 0)
}

/// How many files of a folder have a picture's name or look like one.
fn loose_pictures(folder: &Path) -> Result<usize> {
    let entries = images::entries(folder)?;
    let is_picture = |path: &Path| {
        !path.is_dir()
            && (images::is_named_like_a_picture(path) || images::begins_like_a_picture(path))
    };
    Ok(entries.iter().filter(|(path, _)| is_picture(path)).count())
}
