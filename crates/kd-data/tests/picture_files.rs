//! Folders of picture files that are read when they are wanted: what is found in them, what is passed over, and what is wrong.
#![cfg(feature = "images")]

#[cfg(feature = "parquet")]
#[path = "picture_files/parquet.rs"]
mod parquet;
#[path = "picture_files/shards.rs"]
mod shards;
#[path = "picture_files/unlabelled.rs"]
mod unlabelled;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use image::RgbImage;
use kd_data::{
    BatchConfig, Error, FilesConfig, Limits, Picture, Portions, Result, Room, Scaling, Source,
    Sources, TestOn, batches, images, picture_files,
};
use tempfile::TempDir;

/// Saves a picture that `number` and the size tell from others.
fn save(path: &Path, number: u32, (width, height): (u32, u32)) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let colour = |x, y| image::Rgb([(x * 5 + number) as u8, (y * 3) as u8, (number * 40) as u8]);
    RgbImage::from_fn(width, height, colour).save(path).unwrap();
}

/// A folder with these pictures in it.
fn folder(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (number, file) in (0..).zip(files) {
        save(&dir.path().join(file), number, (40 + 7 * number, 31));
    }
    dir
}

const FILES: [&str; 6] = [
    "train/cat/a.png",
    "train/cat/sub/b.jpg",
    "train/dog/c.webp",
    "train/dog/d.gif",
    "test/cat/e.bmp",
    "test/dog/f.png",
];

fn config() -> FilesConfig {
    FilesConfig {
        scaling: Scaling { size: 24, resize: 28, ..Scaling::to(24) },
        split: None,
        test_on: TestOn::Test,
        skip_broken: false,
        room: Room::new(1 << 20),
    }
}

fn read(dir: &TempDir) -> Result<(Sources, Vec<String>)> {
    picture_files(dir.path(), &config())
}

fn error(found: Result<(Sources, Vec<String>)>) -> String {
    found.err().unwrap().to_string()
}

fn labels(source: &Arc<dyn Source>) -> Vec<u32> {
    source.labels().unwrap()
}

#[test]
fn pictures_of_every_format_and_size_are_found_and_become_squares() {
    let dir = folder(&FILES);
    let (found, notes) = read(&dir).unwrap();
    assert_eq!(
        (found.name.as_str(), &found.classes[..]),
        ("folder", &["cat", "dog"].map(String::from)[..])
    );
    assert_eq!((labels(&found.train), labels(&found.test)), (vec![0, 0, 1, 1], vec![0, 1]));
    assert!(notes.is_empty(), "{notes:?}");
    let mut picture = Picture::default();
    for source in [&found.train, &found.test] {
        assert_eq!(source.shape(), [3, 24, 24]);
        for index in 0..source.len() as u32 {
            source.read(index, &mut picture).unwrap();
            assert_eq!(picture.shape, [3, 24, 24]);
            source.read_whole(index, &mut picture).unwrap();
            assert_eq!(picture.shape[1], 31);
        }
    }
    // The lossless ones have the pixels that were saved.
    found.train.read_whole(0, &mut picture).unwrap();
    assert_eq!(picture.shape, [3, 31, 40]);
    assert_eq!((picture.pixels[41], picture.pixels[31 * 40 + 41]), (5, 3));
}

/// A square scaled to 24 is what `kd predict` makes of the file, to a grey level: two ways to the same picture.
#[test]
fn a_square_without_resize_is_what_a_single_file_becomes() {
    let dir = folder(&FILES);
    let path = dir.path().join(FILES[0]);
    save(&path, 1, (45, 45));
    let config = FilesConfig { scaling: Scaling::to(24), ..config() };
    let (found, _) = picture_files(dir.path(), &config).unwrap();
    let mut picture = Picture::default();
    found.train.read(0, &mut picture).unwrap();
    let alone = images::read(&path, 24).unwrap();
    let mut apart = picture.pixels.iter().zip(&alone.pixels).map(|(a, b)| a.abs_diff(*b));
    assert!(apart.all(|difference| difference <= 1));
}

#[test]
fn validation_pictures_are_tested_on_where_they_are_asked_for_or_alone() {
    let dir = folder(&[&FILES[..], &["validation/cat/v.png", "validation/dog/w.png"]].concat());
    assert!(read(&dir).unwrap().1.is_empty());
    let asked = FilesConfig { test_on: TestOn::Validation, ..config() };
    let (found, _) = picture_files(dir.path(), &asked).unwrap();
    assert_eq!(found.test.len(), 2);
    assert_ne!(found.sha256, read(&dir).unwrap().0.sha256);
    fs::remove_dir_all(dir.path().join("test")).unwrap();
    let (found, notes) = read(&dir).unwrap();
    assert_eq!(found.test.len(), 2);
    assert!(
        notes[0].ends_with("there is no folder test; the pictures in validation are tested on"),
        "{notes:?}"
    );
    fs::create_dir(dir.path().join("val")).unwrap();
    assert!(error(read(&dir)).contains("found both val and validation"));
    for name in ["val", "validation"] {
        fs::remove_dir_all(dir.path().join(name)).unwrap();
    }
    assert_eq!(read(&dir).unwrap().0.test.len(), 0);
    assert!(error(picture_files(dir.path(), &asked)).contains("or leave out test_on"));
}

#[test]
fn one_folder_is_cut_class_by_class_and_the_same_each_time() {
    let names = |class: &str, count| {
        (0..count).map(move |n| format!("{class}/{n}.png")).collect::<Vec<_>>()
    };
    let files = [names("many", 20), names("few", 3), names("one", 1)].concat();
    let dir = folder(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let config = FilesConfig { split: Some(0.25), ..config() };
    let (found, _) = picture_files(dir.path(), &config).unwrap();
    assert_eq!(found.train.class_counts(3), [2, 15, 1]);
    assert_eq!(found.test.class_counts(3), [1, 5, 0]);
    let (again, _) = picture_files(dir.path(), &config).unwrap();
    assert_eq!(found.test.identity(), again.test.identity());
    let portions = Portions::new(found, &Limits::default(), None).unwrap();
    assert!(portions.warning.unwrap().contains("no test image is of class `one`"));
    assert!(
        error(read(&dir))
            .contains("say what share of the pictures is tested on, such as split = 0.2")
    );
    let wrong = FilesConfig { split: Some(1.0), ..config };
    assert!(error(picture_files(dir.path(), &wrong)).contains("split is 1; expected a share"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_circles_noticed() {
    use std::os::unix::fs::symlink;
    let dir = folder(&FILES);
    let elsewhere = folder(&["far/x.png", "far/y.png"]);
    symlink(elsewhere.path().join("far"), dir.path().join("train/cat/linked")).unwrap();
    symlink(dir.path().join("train/dog"), dir.path().join("train/dog/again")).unwrap();
    symlink(elsewhere.path().join("far"), dir.path().join("train/elk")).unwrap();
    let (found, notes) = read(&dir).unwrap();
    assert_eq!(found.train.class_counts(3), [4, 2, 2]);
    assert!(notes[0].contains("(1 in all)") && notes[0].ends_with("train/dog/again"), "{notes:?}");
    symlink("nowhere", dir.path().join("train/cat/lost.png")).unwrap();
    let message = error(read(&dir));
    assert!(
        message.contains("lost.png") && message.contains("it is a link to nowhere"),
        "{message}"
    );
}

#[test]
fn files_of_unknown_endings_are_looked_into_and_counted() {
    let dir = folder(&FILES);
    let cat = dir.path().join("train/cat");
    fs::copy(cat.join("a.png"), cat.join("h.jfif")).unwrap();
    fs::copy(cat.join("sub/b.jpg"), cat.join("no ending")).unwrap();
    fs::write(cat.join("notes.txt"), "two cats").unwrap();
    fs::write(cat.join(".hidden"), "").unwrap();
    let (found, notes) = read(&dir).unwrap();
    assert_eq!(found.train.class_counts(2), [4, 2]);
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].contains("passed over what is no picture") && notes[0].contains("(1 in all)"),
        "{notes:?}"
    );
    assert!(notes[0].ends_with("train/cat/notes.txt"), "{notes:?}");
}

#[test]
fn names_may_be_of_any_alphabet() {
    let dir = folder(&[
        "train/кот/снимок 1.png",
        "train/犬/写真.jpg",
        "test/кот/é.png",
        "test/犬/🐕.png",
    ]);
    let (found, _) = read(&dir).unwrap();
    assert_eq!(found.classes, ["кот", "犬"]);
    let mut picture = Picture::default();
    (0..2).for_each(|index| found.train.read(index, &mut picture).unwrap());
}

#[test]
fn broken_and_empty_files_are_errors_with_their_names_or_left_out() {
    let dir =
        folder(&[&FILES[..], &["train/cat/x.png", "train/cat/y.jpg", "train/dog/z.png"]].concat());
    let whole = read(&dir).unwrap().0;
    fs::write(dir.path().join("train/cat/x.png"), "").unwrap();
    assert!(error(read(&dir)).contains(
        "x.png: expected a whole PNG, JPEG, WebP, BMP or GIF file, but the file is empty"
    ));
    // Cut off: found when it is decoded, by its batch.
    let path = dir.path().join("train/cat/y.jpg");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    save(&dir.path().join("train/cat/x.png"), 3, (20, 20));
    let (found, _) = read(&dir).unwrap();
    assert_ne!(found.sha256, whole.sha256);
    let failed = batches(&found.train, &BatchConfig::default(), &Device::Cpu)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert!(matches!(&failed, Error::Picture { path, .. } if path.ends_with("y.jpg")), "{failed}");
    // A header that announces 60000 x 60000 pixels.
    let mut lying = fs::read(dir.path().join("train/dog/z.png")).unwrap();
    lying[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    fs::write(dir.path().join("train/dog/z.png"), lying).unwrap();
    let config = FilesConfig { skip_broken: true, ..config() };
    let (found, _) = picture_files(dir.path(), &config).unwrap();
    let skipped: Vec<String> = found.skipped.iter().map(|skipped| skipped.line()).collect();
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    assert!(skipped[0].starts_with("train/cat/y.jpg: "), "{skipped:?}");
    assert!(skipped[1].starts_with("train/dog/z.png: "), "{skipped:?}");
    assert_eq!(found.train.class_counts(2), [3, 2]);
    batches(&found.train, &BatchConfig::default(), &Device::Cpu)
        .unwrap()
        .for_each(|b| drop(b.unwrap()));
}

#[test]
fn a_picture_of_too_many_pixels_is_refused_with_the_limit_and_the_cure() {
    let dir = folder(&FILES);
    let path = dir.path().join("train/cat/large.bmp");
    // A BMP's header alone, of 20000 x 20000 pixels.
    save(&path, 0, (2, 2));
    let mut bytes = fs::read(&path).unwrap();
    bytes[18..26].copy_from_slice(&[0x20, 0x4e, 0, 0, 0x20, 0x4e, 0, 0]);
    fs::write(&path, bytes).unwrap();
    let (found, _) = read(&dir).unwrap();
    let index = 1;
    let message = found.train.read(index, &mut Picture::default()).unwrap_err().to_string();
    assert!(
        message.contains("large.bmp")
            && message.contains("20000x20000, more than 268435456 bytes; scale it down"),
        "{message}"
    );
}

#[test]
fn a_folder_that_changes_while_it_is_used_is_an_error() {
    let dir = folder(&FILES);
    let config = FilesConfig { room: Room::new(0), ..config() };
    let (found, _) = picture_files(dir.path(), &config).unwrap();
    let mut picture = Picture::default();
    found.train.read(0, &mut picture).unwrap();
    let path = dir.path().join("train/cat/a.png");
    let bytes = fs::read(&path).unwrap();
    save(&path, 9, (90, 90));
    let message = found.train.read(0, &mut picture).unwrap_err().to_string();
    assert!(
        message.contains(&format!(
            "a.png: found a file of {} bytes",
            fs::metadata(&path).unwrap().len()
        )),
        "{message}"
    );
    assert!(message.contains("it must stay as it is while it is used"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = found.train.read(0, &mut picture).unwrap_err().to_string();
    assert!(message.contains("a.png: found no such file"), "{message}");
    fs::write(&path, bytes).unwrap();
    found.train.read(0, &mut picture).unwrap();
    assert_eq!(picture_files(dir.path(), &config).unwrap().0.sha256, found.sha256);
}

#[test]
fn classes_that_do_not_fit_are_named() {
    let dir = folder(&[&FILES[..], &["test/elk/g.png"]].concat());
    assert!(error(read(&dir)).contains("elk: found a class that train lacks"));
    // A class that is trained on and not tested is a warning of the portions.
    let dir = folder(&[&FILES[..], &["train/elk/g.png"]].concat());
    let portions = Portions::new(read(&dir).unwrap().0, &Limits::default(), None).unwrap();
    assert!(portions.warning.unwrap().contains("no test image is of class `elk`"));
    fs::create_dir(dir.path().join("train/fox")).unwrap();
    assert!(error(read(&dir)).contains("no picture of class \"fox\" to train on"));
    let dir = folder(&["train/cat/a.png", "test/cat/b.png"]);
    assert!(error(read(&dir)).contains("found 1 folders, expected one for each class"));
    assert!(
        error(picture_files(Path::new("nowhere"), &config()))
            .contains("give the folder in which train/CLASS/* lie")
    );
}

/// Labels above 255, held out and limited, stay with their pictures.
#[test]
fn hundreds_of_classes_keep_their_labels() {
    let files: Vec<String> = (0..300)
        .flat_map(|class| [format!("train/c{class:03}/a.png"), format!("train/c{class:03}/b.png")])
        .collect();
    let dir = tempfile::tempdir().unwrap();
    for (number, file) in (0..).zip(&files) {
        save(&dir.path().join(file), number, (2, 2));
    }
    let scaling = Scaling::to(1);
    let (found, _) = picture_files(dir.path(), &FilesConfig { scaling, ..config() }).unwrap();
    let limits = Limits { held_out: Some(300), ..Limits::default() };
    let portions = Portions::new(found, &limits, None).unwrap();
    for source in [&portions.train, &portions.test] {
        let all: Vec<u32> = batches(source, &BatchConfig::default(), &Device::Cpu)
            .unwrap()
            .flat_map(|batch| batch.unwrap().labels.to_vec1::<u32>().unwrap())
            .collect();
        assert_eq!(all, (0..300).collect::<Vec<u32>>());
    }
    assert_eq!(portions.part(1, 2).unwrap().len(), 150);
}
