//! Pictures without classes, and folders of which some are missing.

use std::fs;
use std::path::Path;

use candle_core::Device;
use kd_data::{
    BatchConfig, FilesConfig, FolderConfig, Interpolation, Limits, NO_LABEL, Portions,
    PrepareConfig, Result, Source, Sources, TestOn, batches, image_folder_as, picture_files,
    picture_shards, prepare,
};

use super::shards::{archive, picture};
use super::{FILES, config, folder};

/// The folder read as its files are wanted, and in memory; with the sentences about it.
fn both(dir: &Path, test_on: TestOn) -> [Result<(Sources, Vec<String>)>; 2] {
    let in_memory = FolderConfig { test_on, ..FolderConfig::new(8) };
    let in_memory = image_folder_as(dir, &in_memory).map(|(found, notes)| (found.into(), notes));
    [picture_files(dir, &FilesConfig { test_on, ..config() }), in_memory]
}

fn names(source: &dyn Source) -> Vec<String> {
    (0..source.len() as u32).map(|index| source.name(index).unwrap()).collect()
}

#[test]
fn pictures_without_folders_of_classes_have_no_labels() {
    for files in [&["train/b.png", "train/a.jpg"][..], &["b.png", "a.jpg"]] {
        let dir = folder(files);
        fs::write(dir.path().join(".hidden.png"), "").unwrap();
        for found in both(dir.path(), TestOn::Test) {
            let (found, notes) = found.unwrap();
            assert!(notes[0].contains("lie in no folders of classes"), "{notes:?}");
            assert!(
                found.classes.is_empty() && found.test.is_empty() && !found.train.is_labelled()
            );
            assert_eq!(names(&*found.train), [files[1], files[0]]);
            let mut epoch = batches(&found.train, &BatchConfig::default(), &Device::Cpu).unwrap();
            let labels = epoch.next().unwrap().unwrap().labels.to_vec1::<u32>().unwrap();
            assert_eq!(labels, [NO_LABEL; 2]);
            let limits = |train, held_out| Limits { train, held_out, ..Limits::default() };
            let portions = Portions::new(found.clone(), &limits(Some(1), None), None).unwrap();
            assert_eq!((portions.train.len(), portions.train_labels().unwrap()), (1, vec![]));
            let error = Portions::new(found, &limits(None, Some(1)), None).unwrap_err();
            assert!(error.to_string().starts_with("data.held_out goes by the classes"), "{error}");
        }
    }
}

#[test]
fn pictures_without_labels_are_tested_on_those_with_labels() {
    let dir = folder(&["train/1.png", "train/2.png", "test/cat/3.png", "test/dog/4.png"]);
    for found in both(dir.path(), TestOn::Test) {
        let found = found.unwrap().0;
        assert_eq!((found.train.len(), found.train.is_labelled()), (2, false));
        assert_eq!(found.classes, ["cat", "dog"]);
        assert_eq!(found.test.labels().unwrap(), [0, 1]);
        let portions = Portions::new(found, &Limits::default(), None).unwrap();
        assert!(portions.for_run("t", None, None).unwrap().class_warnings.is_empty());
    }
    let dir = folder(&["train/cat/1.png", "train/dog/2.png", "test/3.png"]);
    for found in both(dir.path(), TestOn::Test) {
        let (found, notes) = found.unwrap();
        assert!(found.test.is_empty() && found.train.is_labelled());
        assert!(notes[0].contains("in test lie in no folders of classes: nothing is measured"));
    }
}

#[test]
fn any_folder_may_be_missing_and_what_takes_its_place_is_said() {
    let of = |from: &str, to: &str| FILES.map(|name| name.replace(from, to));
    let taken = |files: &[String], test_on| {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let dir = folder(&files);
        both(dir.path(), test_on).map(|found| {
            let (found, notes) = found.unwrap();
            let first = |source: &dyn Source| source.name(0).unwrap_or_default();
            (first(&*found.train), first(&*found.test), found.classes, notes.join("\n"))
        })
    };
    let classes = ["cat", "dog"].map(String::from);
    for (files, train, test, said) in [
        (of("test/", "val/"), "train/cat/a.png", "val/cat/e.bmp", "pictures in val are tested on"),
        (of("train/", "test/"), "", "test/cat/a.png", "there is no folder train"),
        (of("test/", "train/"), "train/cat/a.png", "", ""),
        (of("/", "/"), "train/cat/a.png", "test/cat/e.bmp", ""),
    ] {
        for (of_train, of_test, found, notes) in taken(&files, TestOn::Test) {
            assert_eq!((&*of_train, &*of_test, &found[..]), (train, test, &classes[..]));
            assert!(notes.contains(said) && notes.is_empty() == said.is_empty(), "{notes}");
        }
    }
    let with_both = [&FILES[..], &["validation/cat/v.png", "validation/dog/w.png"]].concat();
    let with_both: Vec<String> = with_both.iter().map(|name| name.to_string()).collect();
    for (_, test, ..) in taken(&with_both, TestOn::Validation) {
        assert_eq!(test, "validation/cat/v.png");
    }
    // Pictures beside the folders of the classes are counted; a folder of nothing is an error.
    let dir = folder(&[&FILES[..], &["train/loose.png"]].concat());
    for found in both(dir.path(), TestOn::Test) {
        let notes = found.unwrap().1;
        assert!(notes[0].contains("passed over 1 pictures that lie beside"), "{notes:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("train")).unwrap();
    for found in both(dir.path(), TestOn::Test) {
        let error = found.err().unwrap().to_string();
        assert!(error.contains("train: found neither folders nor pictures"), "{error}");
    }
}

/// In memory as when files are read as they are wanted, the same pictures of one folder for each class are tested on.
#[test]
fn one_folder_is_cut_alike_in_memory() {
    let files: Vec<String> =
        (0..12).map(|n| format!("{}/{n}.png", ["cat", "dog"][n % 2])).collect();
    let dir = folder(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let of_files = picture_files(dir.path(), &FilesConfig { split: Some(0.3), ..config() });
    let of_files = of_files.unwrap().0;
    let in_memory = FolderConfig { split: Some(0.3), ..FolderConfig::new(8) };
    let in_memory: Sources = image_folder_as(dir.path(), &in_memory).unwrap().0.into();
    for (a, b) in [(&of_files.train, &in_memory.train), (&of_files.test, &in_memory.test)] {
        assert_eq!((names(&**a), a.labels().unwrap()), (names(&**b), b.labels().unwrap()));
    }
    assert_eq!(in_memory.test.len(), 4);
}

#[test]
fn shards_without_labels_are_read_and_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, three) = (picture(0), picture(1), picture(2));
    let json = b"{\"caption\": \"a cat\"}".to_vec();
    let write = |name: &str, files: &[(&str, &[u8])]| {
        fs::write(dir.path().join(name), archive(files)).unwrap();
    };
    write("plain.tar", &[("a.png", &one), ("a.json", &json), ("b.png", &two)]);
    write("named.tar", &[("c.png", &three), ("c.cls", b"cat"), ("d.png", &two), ("d.cls", b"dog")]);
    write("mixed.tar", &[("a.png", &one), ("a.cls", b"0"), ("b.png", &two)]);
    let read = |train: &str, test: Option<&str>| picture_shards(dir.path(), train, test, &config());
    let (found, notes) = read("plain.tar", Some("named.tar")).unwrap();
    assert!(notes[0].ends_with("the pictures in the shards have no labels"), "{notes:?}");
    assert_eq!((found.train.len(), found.train.label(0)), (2, None));
    assert_eq!(
        (&found.classes[..], found.test.labels().unwrap()),
        (&["cat", "dog"].map(String::from)[..], vec![0, 1])
    );
    let (found, notes) = read("named.tar", Some("plain.tar")).unwrap();
    assert!(found.test.is_empty() && notes[0].contains("nothing is measured on them"), "{notes:?}");
    let error = read("mixed.tar", None).unwrap_err().to_string();
    assert!(
        error.contains("mixed.tar/b.png: found a picture without a label, and others with one"),
        "{error}"
    );
    let split = FilesConfig { split: Some(0.5), ..config() };
    let error = picture_shards(dir.path(), "plain.tar", None, &split).unwrap_err().to_string();
    assert!(error.starts_with("split goes by the classes"), "{error}");

    let (found, _) = read("plain.tar", None).unwrap();
    let settings =
        PrepareConfig { resize: 28, interpolation: Interpolation::Bilinear, shard_pictures: 9 };
    let out = dir.path().join("prepared");
    prepare(&found, &settings, &out, &mut |_, _| {}).unwrap();
    assert!(!out.join("classes.txt").exists());
    let (again, _) = picture_shards(&out, "train-*.tar", None, &config()).unwrap();
    let pixels = |source: &dyn Source, index| {
        let mut picture = kd_data::Picture::default();
        source.read(index, &mut picture).unwrap();
        picture
    };
    assert_eq!((again.train.len(), again.train.is_labelled()), (2, false));
    assert_eq!(names(&*again.train), ["plain.tar/0", "plain.tar/1"]);
    assert!((0..2).all(|index| pixels(&*again.train, index) == pixels(&*found.train, index)));
}
