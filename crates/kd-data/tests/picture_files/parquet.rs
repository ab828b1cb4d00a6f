//! Pictures in Parquet files as the hubs have them, written by pyarrow (parity/make_parquet.py).
#![cfg(feature = "parquet")]

use std::fs;
use std::path::{Path, PathBuf};

use kd_data::{FilesConfig, Picture, Result, Sources, picture_shards};

use super::config;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn read(dir: &Path, train: &str, test: Option<&str>) -> Result<(Sources, Vec<String>)> {
    picture_shards(dir, train, test, &FilesConfig { split: None, ..config() })
}

#[test]
fn pictures_labels_and_the_names_of_classes_are_those_that_pyarrow_wrote() {
    let (found, notes) =
        read(Path::new(FIXTURES), "hub-train-{0..1}.parquet", Some("hub-test.parquet")).unwrap();
    assert_eq!(found.classes, ["cat", "dog", "elk"]);
    assert_eq!(found.train.labels().unwrap(), [0, 1, 2, 0, 1, 2, 0, 1]);
    assert_eq!(found.test.labels().unwrap(), [1, 2]);
    assert_eq!(found.train.name(6).unwrap(), "hub-train-1.parquet/1");
    assert!(notes[0].contains("2 shards are packed with gzip or are Parquet files"), "{notes:?}");
    let mut picture = Picture::default();
    for (source, first) in [(&found.train, 0), (&found.test, 8)] {
        for index in 0..source.len() as u32 {
            source.read_whole(index, &mut picture).unwrap();
            assert_eq!(picture.shape, [3, 9, 12]);
            let at =
                |channel: usize, y: usize, x: usize| picture.pixels[(channel * 9 + y) * 12 + x];
            assert_eq!(
                [at(0, 4, 7), at(1, 4, 7), at(2, 4, 7)],
                [(first + index as u8) * 20, 63, 36]
            );
        }
    }
    // Without the key of the hub the classes are their numbers.
    let (found, _) = read(Path::new(FIXTURES), "hub-plain.parquet", None).unwrap();
    assert_eq!((&found.classes[..], found.train.len()), (&["0", "1"].map(String::from)[..], 3));
    // A label below 0 and one that is missing are none.
    let (found, _) = read(Path::new(FIXTURES), "hub-unlabelled.parquet", None).unwrap();
    assert!(found.classes.is_empty() && !found.train.is_labelled() && found.train.len() == 3);
}

#[test]
fn files_that_are_none_and_damaged_ones_are_errors_wherever_they_are_damaged() {
    let error = |dir: &Path, name: &str| read(dir, name, None).err().map(|error| error.to_string());
    let message = error(Path::new(FIXTURES), "hub-text.parquet").unwrap();
    assert!(
        message.contains("found the columns text, expected one column of pictures"),
        "{message}"
    );
    let message = error(Path::new(FIXTURES), "hub-{train-1,plain}.parquet").unwrap();
    assert!(
        message.contains("hub-plain.parquet: found other names of classes, or none"),
        "{message}"
    );
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("x.parquet");
    let whole = fs::read(Path::new(FIXTURES).join("hub-train-1.parquet")).unwrap();
    for cut in [5, 60, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let message = error(dir.path(), "x.parquet").unwrap();
        assert!(message.contains("x.parquet: at byte 0: found"), "{message}");
    }
    // A byte changed anywhere gives another picture, or an error: never a panic that leaves the reader.
    for at in (4..whole.len()).step_by(7) {
        let mut changed = whole.clone();
        changed[at] ^= 0x55;
        fs::write(&path, &changed).unwrap();
        let Ok((found, _)) = read(dir.path(), "x.parquet", None) else { continue };
        let read = (0..found.train.len() as u32)
            .map(|index| found.train.read_whole(index, &mut Picture::default()));
        read.for_each(drop);
    }
}
