//! The names of the classes of pictures in shards, and the numbers that their labels get by them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::Part;
use super::index::Index;
use crate::folder::MAX_CLASSES;
use crate::one_line::shown;
use crate::source::NO_LABEL;
use crate::{Error, Result};

/// The classes' names that the files say themselves, which must be the same in all of them.
fn own_names(train: &Part, test: &Part) -> Result<Option<Vec<String>>> {
    let shards = || train.shards.iter().chain(&test.shards);
    let Some(first) = shards().find(|shard| shard.index.class_names.is_some()) else {
        return Ok(None);
    };
    let names = &first.index.class_names;
    let other = shards().find(|shard| shard.index.class_names != *names);
    match other {
        None => Ok(names.clone()),
        Some(other) => Err(Error::Folder {
            path: other.path.clone(),
            found: "other names of classes, or none".into(),
            expected: format!("those of {}", shown(&first.path)),
        }),
    }
}

/// The classes' names, by which the labels of both parts are then numbered.
pub(super) fn classes(
    dir: &Path,
    train: &mut Part,
    test: &mut Part,
    notes: &mut Vec<String>,
) -> Result<Vec<String>> {
    let shards = || train.shards.iter().chain(&test.shards);
    let first = |of: fn(&Index) -> &Option<String>| {
        shards().find_map(|shard| of(&shard.index).as_ref().map(|key| shown(&shard.path.join(key))))
    };
    if let (Some(number), Some(name)) = (first(|i| &i.number), first(|i| &i.name)) {
        return Err(Error::Folder {
            path: dir.into(),
            found: format!("a class's number at {number} and a class's name at {name}"),
            expected: "numbers alone, or names alone".into(),
        });
    }
    if first(|index| &index.name).is_some() {
        // Pictures without labels have no names of classes; those that are tested on may have.
        let whose = if train.shards.iter().any(|shard| shard.index.name.is_some()) {
            &*train
        } else {
            &*test
        };
        let names = whose.shards.iter().flat_map(|shard| &shard.index.names);
        let names: Vec<String> = names.collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let place = |name: &String| names.binary_search(name).ok();
        for shard in &test.shards {
            if let Some(name) = shard.index.names.iter().find(|name| place(name).is_none()) {
                return Err(Error::Folder {
                    path: shard.path.clone(),
                    found: format!("class {name:?}, which no picture to train on has"),
                    expected: "the classes of the shards to train on alone".into(),
                });
            }
        }
        for part in [train, test] {
            part.renumber(|index, label| {
                place(&index.names[label as usize]).unwrap_or_default() as u32
            });
        }
        return counted(dir, names);
    }
    let last = |part: &Part| {
        part.entries().map(|(_, entry)| entry.label).filter(|label| *label != NO_LABEL).max()
    };
    let count = last(train).max(last(test)).map_or(0, |last| last as usize + 1);
    let listed = ["classes.txt", "classnames.txt"].map(|name| dir.join(name));
    let Some(path) = listed.into_iter().find(|path| path.is_file()) else {
        if let Some(names) = own_names(train, test)? {
            let distinct: BTreeSet<_> = names.iter().collect();
            if names.len() < count || distinct.len() < names.len() {
                return Err(Error::Folder {
                    path: dir.into(),
                    found: format!(
                        "{} names of classes in the files, {} of them different, and the labels 0 to {}",
                        names.len(),
                        distinct.len(),
                        count.max(1) - 1
                    ),
                    expected: "a name of its own for each label".into(),
                });
            }
            return counted(dir, names);
        }
        return counted(dir, (0..count).map(|number| number.to_string()).collect());
    };
    let mut text = String::new();
    File::open(&path)
        .and_then(|file| file.take(64 << 20).read_to_string(&mut text))
        .map_err(|source| Error::Io { path: path.clone(), source })?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    let distinct: BTreeSet<_> = names.iter().collect();
    let good = |name: &String| !name.is_empty() && !name.contains(char::is_control);
    if names.len() < count || distinct.len() < names.len() || !names.iter().all(good) {
        let (lines, distinct) = (names.len(), distinct.len());
        return Err(Error::Folder {
            path,
            found: format!("{lines} lines, {distinct} of them different"),
            expected: format!(
                "a name of its own in each line for at least {count} classes, as many as the labels have"
            ),
        });
    }
    notes.push(format!("{}: the classes have the names in this file", shown(&path)));
    counted(dir, names)
}

/// Refuses too few or too many classes.
fn counted(dir: &Path, names: Vec<String>) -> Result<Vec<String>> {
    match (2..=MAX_CLASSES).contains(&names.len()) {
        true => Ok(names),
        false => Err(Error::Folder {
            path: dir.into(),
            found: format!("{} classes", names.len()),
            expected: format!("2 to {MAX_CLASSES}"),
        }),
    }
}
