//! Pictures in WebDataset's tar archives, written by the crate tar.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use flate2::write::GzEncoder;
use image::RgbImage;
use kd_data::{
    BatchConfig, Error, FilesConfig, Interpolation, PrepareConfig, Prepared, Room, Scaling,
    Sources, TestOn, batches, picture_shards, prepare,
};

/// The bytes of a picture file that shows its number.
pub(super) fn picture(number: u32) -> Vec<u8> {
    let colour = |x: u32, y: u32| image::Rgb([(number * 20) as u8, (x * 9) as u8, (y * 9) as u8]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = RgbImage::from_fn(20 + number % 3, 20, colour);
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// An archive of these files.
pub(super) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *contents).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A shard of the pictures with these numbers; the label is the number modulo 3, as `label` writes it.
fn shard(numbers: std::ops::Range<u32>, label: impl Fn(u32) -> (&'static str, String)) -> Vec<u8> {
    // Longer than a header has room for.
    let folder = "a-folder-of-more-than-a-hundred-letters/".repeat(4);
    let files = numbers.flat_map(|number| {
        let (ending, text) = label(number % 3);
        let key = format!("{folder}{number:04}");
        [
            (format!("{key}.txt"), b"a caption".to_vec()),
            (format!("{key}.png"), picture(number)),
            (format!("{key}.{ending}"), text.into_bytes()),
        ]
    });
    let files: Vec<(String, Vec<u8>)> = files.collect();
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    archive(&files)
}

fn config() -> FilesConfig {
    FilesConfig {
        scaling: Scaling::to(20),
        split: None,
        test_on: TestOn::Test,
        skip_broken: false,
        room: Room::new(0),
    }
}

fn read(dir: &Path, test: Option<&str>) -> kd_data::Result<(Sources, Vec<String>)> {
    picture_shards(dir, "train-{00..01}.tar", test, &config())
}

/// Two shards to train on and one to test on.
fn three(dir: &Path, label: impl Fn(u32) -> (&'static str, String)) {
    fs::write(dir.join("train-00.tar"), shard(0..7, &label)).unwrap();
    fs::write(dir.join("train-01.tar"), shard(7..12, &label)).unwrap();
    fs::write(dir.join("test.tar"), shard(12..15, &label)).unwrap();
}

#[test]
fn shards_hold_pictures_and_labels_packed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path(), |class| ("cls", format!("{class}\n")));
    let (sources, notes) = read(dir.path(), Some("test.tar")).unwrap();
    assert_eq!((sources.train.len(), sources.test.len()), (12, 3));
    assert_eq!(sources.classes, ["0", "1", "2"]);
    assert!(
        notes[0].contains("passed over 12 files") && notes[0].contains("0000.txt"),
        "{notes:?}"
    );
    let mut found = kd_data::Picture::default();
    for number in 0..12 {
        assert_eq!(sources.train.label(number), Some(number % 3));
        sources.train.read_whole(number, &mut found).unwrap();
        let expected = image::load_from_memory(&picture(number)).unwrap().into_rgb8();
        assert_eq!(found.shape, [3, 20, expected.width() as usize]);
        let pixel = |at: usize| {
            expected.get_pixel(at as u32 % expected.width(), at as u32 / expected.width())
        };
        let size = found.pixels.len() / 3;
        assert!((0..size).all(|at| (0..3).all(|c| found.pixels[c * size + at] == pixel(at).0[c])));
    }
    let all = |sources: &Sources| {
        let config = BatchConfig { batch_size: 5, shuffle_seed: Some(1), ..BatchConfig::default() };
        let batches = batches(&sources.train, &config, &Device::Cpu).unwrap();
        let bits = batches.flat_map(|batch| {
            let images = batch.unwrap().images.flatten_all().unwrap();
            images.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits)
        });
        bits.collect::<Vec<_>>()
    };
    let (expected, sha256) = (all(&sources), sources.sha256.clone());

    // Packed shards and labels in JSON are the same pictures.
    three(dir.path(), |class| ("json", format!(r#"{{"width": 20, "label": {class}}}"#)));
    for name in ["train-00", "train-01"] {
        let path = dir.path().join(format!("{name}.tar"));
        let packed = File::create(dir.path().join(format!("{name}.tar.gz"))).unwrap();
        let mut packed = GzEncoder::new(packed, flate2::Compression::fast());
        packed.write_all(&fs::read(&path).unwrap()).unwrap();
        packed.finish().unwrap();
        fs::remove_file(path).unwrap();
    }
    let packed = picture_shards(dir.path(), "train-*.tar.gz", Some("test.tar"), &config());
    let (packed, notes) = packed.unwrap();
    assert!(notes[0].contains("2 shards are packed with gzip"), "{notes:?}");
    assert!(all(&packed) == expected && packed.sha256 != sha256);

    let split = FilesConfig { split: Some(0.25), ..config() };
    let (split, _) = picture_shards(dir.path(), "train-*.tar.gz", None, &split).unwrap();
    assert_eq!((split.train.len(), split.test.len()), (9, 3));
    assert_eq!(split.test.class_counts(3), [1, 1, 1]);
}

#[test]
fn classes_have_names_of_their_own_or_those_of_a_list() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path(), |class| ("cls", ["żaba", "Ärmel", "猫"][class as usize].into()));
    let (sources, _) = read(dir.path(), Some("test.tar")).unwrap();
    assert_eq!(sources.classes, ["Ärmel", "żaba", "猫"]);
    assert_eq!((0..3).map(|n| sources.train.label(n).unwrap()).collect::<Vec<_>>(), [1, 0, 2]);
    fs::write(dir.path().join("test.tar"), shard(0..3, |_| ("cls", "dog".into()))).unwrap();
    let message = read(dir.path(), Some("test.tar")).unwrap_err().to_string();
    assert!(
        message.contains("test.tar: found class \"dog\", which no picture to train"),
        "{message}"
    );

    three(dir.path(), |class| ("cls", class.to_string()));
    fs::write(dir.path().join("classes.txt"), "a\nb\nc\n").unwrap();
    let (sources, notes) = read(dir.path(), Some("test.tar")).unwrap();
    assert_eq!(sources.classes, ["a", "b", "c"]);
    assert!(notes.iter().any(|note| note.contains("classes.txt")), "{notes:?}");
    for (list, expected) in [
        ("a\nb\n", "2 lines, 2 of them different"),
        ("a\nb\na\n", "3 lines, 2 of them different"),
        ("a\nb\nc\nd\n", "no picture of class \"d\" to train on"),
    ] {
        fs::write(dir.path().join("classes.txt"), list).unwrap();
        let message = read(dir.path(), None).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn what_is_wrong_with_a_shard_is_said_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let number = |class: u32| ("cls", class.to_string());
    three(dir.path(), number);
    let whole = fs::read(dir.path().join("train-01.tar")).unwrap();
    let one = picture(0);
    let of = |files: &[(&str, &[u8])]| archive(files);
    let mut lying = whole.clone();
    // The length in the first member's own header, behind that of its long name: 512, 512 for the name, 124 for the field.
    lying[1024 + 124..][..11].copy_from_slice(b"77777777777");
    lying[1024 + 148..][..8].fill(b' ');
    let sum: u32 = lying[1024..][..512].iter().map(|byte| u32::from(*byte)).sum();
    lying[1024 + 148..][..8].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (
            whole[..2000].to_vec(),
            "at byte 2000: found the end of the file without an archive's end",
        ),
        (whole[..2700].to_vec(), "the archive is cut off, or its header lies"),
        (lying, "the archive is cut off, or its header lies"),
        (vec![0xff; 1024], "512 bytes that are no header of a tar archive"),
        (b"<html>".repeat(200), "512 bytes that are no header of a tar archive"),
        (Vec::new(), "at byte 0: found the end of the file"),
        (of(&[("a.cls", b"1")]), "train-01.tar: found no picture in this shard"),
        (of(&[("a.png", &one)]), "train-01.tar/a.png: found a picture without a label"),
        (of(&[("a.png", &one), ("a.jpg", &one)]), "a.jpg: found a second picture beside a.png"),
        (of(&[("a.png", &one), ("a.cls", b"")]), "a.cls: found \"\", expected a class's number"),
        (of(&[("a.png", &one), ("a.cls", b"\xff\xfe")]), "a.cls: found no UTF-8"),
        (of(&[("a.png", &one), ("a.cls", b"70000")]), "a.cls: found \"70000\""),
        (of(&[("a.png", &one), ("a.cls", b"cat")]), "a class's number at"),
        (of(&[("a.png", &one), ("a.cls", b"2.0")]), "a.cls: found \"2.0\", expected a class's"),
        (of(&[("a.png", &one), ("a.json", b"{\"cls\": -1}")]), "a.json: found -1, expected"),
        (of(&[("a.png", &one), ("a.json", b"{\"cls\": 2.0}")]), "a.json: found 2.0, expected"),
        (of(&[("a.png", &one), ("a.json", b"{")]), "a.json: found EOF"),
        (of(&[("a.png", &one), ("a.json", b"{\"label\": [1]}")]), "a.json: found [1], expected"),
        (b"\x1f\x8b\x08\0rubbish".to_vec(), "what can't be unpacked"),
    ];
    for (contents, expected) in cases {
        fs::write(dir.path().join("train-01.tar"), contents).unwrap();
        let message = read(dir.path(), Some("test.tar")).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    fs::remove_file(dir.path().join("train-01.tar")).unwrap();
    let message = read(dir.path(), None).unwrap_err().to_string();
    assert!(message.contains("train-01.tar: not found; expected a tar archive"), "{message}");
}

/// macOS writes a hidden file beside each; a link has no contents; a folder's long name is not the next file's.
#[test]
fn other_members_within_a_sample_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path(), |class| ("cls", class.to_string()));
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, contents: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        match kind {
            tar::EntryType::Symlink => archive.append_link(&mut header, name, "a.png"),
            _ => archive.append_data(&mut header, name, contents),
        }
        .unwrap();
    };
    add(tar::EntryType::Directory, &"f/".repeat(80), b"");
    add(tar::EntryType::Regular, "a.png", b"no picture");
    add(tar::EntryType::Regular, "._a.cls", b"\0\0");
    add(tar::EntryType::Symlink, "b.png", b"");
    add(tar::EntryType::Regular, "a.cls", b"1");
    fs::write(dir.path().join("train-01.tar"), archive.into_inner().unwrap()).unwrap();
    let (sources, notes) = read(dir.path(), Some("test.tar")).unwrap();
    assert_eq!((sources.train.len(), sources.train.label(7)), (8, Some(1)));
    assert!(notes[0].contains("passed over 9 files"), "{notes:?}");
    let message = sources.train.read(7, &mut kd_data::Picture::default()).unwrap_err().to_string();
    assert!(message.contains("train-01.tar/a.png: "), "{message}");
}

#[test]
fn a_shard_that_is_named_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path(), |class| ("cls", class.to_string()));
    let message =
        |train, test| picture_shards(dir.path(), train, test, &config()).err().unwrap().to_string();
    let twice = message("{train-00,test,./train-00}.tar", None);
    assert!(twice.contains("train-00.tar: found this shard twice in train_shards"), "{twice}");
    let both = message("t*.tar", Some("test.tar"));
    assert!(
        both.contains("test.tar: found this shard in test_shards and in train_shards"),
        "{both}"
    );
}

#[test]
fn a_broken_picture_and_a_shard_that_changes_are_errors_when_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path(), |class| ("cls", class.to_string()));
    let path = dir.path().join("train-01.tar");
    let mut bytes = fs::read(&path).unwrap();
    // The second picture's end, which begins with the name of its last chunk.
    let end = bytes.windows(4).enumerate().filter(|(_, window)| window == b"IEND").nth(1).unwrap();
    let end = end.0;
    bytes[end - 20..end].fill(0);
    fs::write(&path, &bytes).unwrap();
    let (sources, _) = read(dir.path(), Some("test.tar")).unwrap();
    let mut picture = kd_data::Picture::default();
    let error = sources.train.read(8, &mut picture).unwrap_err();
    assert!(matches!(error, Error::Picture { .. }));
    let message = error.to_string();
    assert!(
        message.contains("train-01.tar/a-folder-") && message.contains("/0008.png:"),
        "{message}"
    );
    let leave_out = FilesConfig { skip_broken: true, ..config() };
    let (without, _) =
        picture_shards(dir.path(), "train-{00..01}.tar", Some("test.tar"), &leave_out).unwrap();
    assert_eq!((without.train.len(), without.skipped.len()), (11, 1));
    // The pictures behind it keep the names that they have without --skip-broken.
    let name = |sources: &Sources, index| sources.train.name(index).unwrap();
    assert_eq!([name(&without, 7), name(&without, 8)], ["train-01.tar/0", "train-01.tar/2"]);
    assert_eq!(name(&without, 8), name(&sources, 9));
    assert!(without.skipped[0].path.ends_with("0008.png") && without.sha256 != sources.sha256);

    fs::write(&path, &bytes[..bytes.len() - 512]).unwrap();
    let message = sources.train.read(7, &mut picture).unwrap_err().to_string();
    assert!(message.contains("must stay as it is while it is used"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = sources.train.read(7, &mut picture).unwrap_err().to_string();
    assert!(message.contains("train-01.tar: found no such file"), "{message}");
    assert!(sources.train.read(0, &mut picture).is_ok());
    assert!(Arc::clone(&sources.train).read(12, &mut picture).is_err());
}

/// Prepared pictures are those of the data to the byte, a second call writes nothing, and one that was broken off goes on.
#[test]
fn prepared_pictures_are_the_same_and_preparing_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path(), |class| ("cls", ["a", "b", "c"][class as usize].into()));
    let scaling = Scaling { size: 12, resize: 14, interpolation: Interpolation::Bicubic };
    let files = FilesConfig { scaling, ..config() };
    let (sources, _) =
        picture_shards(dir.path(), "train-{00..01}.tar", Some("test.tar"), &files).unwrap();
    let out = dir.path().join("prepared");
    let settings =
        PrepareConfig { resize: 14, interpolation: Interpolation::Bicubic, shard_pictures: 5 };
    let run = |settings: &PrepareConfig| prepare(&sources, settings, &out, &mut |_, _| {});
    let expected = Prepared { pictures: [12, 3], shards: 4, found: 0 };
    assert_eq!(run(&settings).unwrap(), expected);
    let read = || picture_shards(&out, "train-*.tar", Some("test-*.tar"), &files).unwrap().0;
    let found = read();
    assert_eq!(found.classes, sources.classes);
    let (mut a, mut b) = (kd_data::Picture::default(), kd_data::Picture::default());
    for (found, source) in [(&found.train, &sources.train), (&found.test, &sources.test)] {
        assert_eq!(found.len(), source.len());
        for number in 0..source.len() as u32 {
            found.read(number, &mut a).unwrap();
            source.read(number, &mut b).unwrap();
            assert!(a == b && found.label(number) == source.label(number), "{number}");
            found.read_whole(number, &mut a).unwrap();
            assert_eq!(a.shape[1].min(a.shape[2]), 14);
        }
    }
    assert_eq!(run(&settings).unwrap(), Prepared { found: 4, ..expected });

    // As if the process had ended after the second shard, and within the third.
    let manifest = out.join("prepared.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let third = text.match_indices("    {").nth(2).unwrap().0;
    let cut = text[..third].trim_end().trim_end_matches(',');
    fs::write(&manifest, format!("{cut}]}}")).unwrap();
    fs::write(out.join("train-000002.tar"), "half").unwrap();
    assert_eq!(run(&settings).unwrap(), Prepared { found: 2, ..expected });
    assert_eq!(read().sha256, found.sha256);

    // As if it had ended while the first description was written; and in the first shard.
    let begun = dir.path().join("begun");
    fs::create_dir(&begun).unwrap();
    fs::write(begun.join("prepared.json.7.partial"), "{").unwrap();
    let again = || prepare(&sources, &settings, &begun, &mut |_, _| {});
    let first = fs::read(dir.path().join("train-00.tar")).unwrap();
    fs::write(dir.path().join("train-00.tar"), "").unwrap();
    let message = again().unwrap_err().to_string();
    assert!(message.contains("must stay as it is"), "{message}");
    fs::write(begun.join("train-000000.tar.7.partial"), "half").unwrap();
    fs::write(dir.path().join("train-00.tar"), first).unwrap();
    assert_eq!(again().unwrap(), expected);

    let halves = FilesConfig { split: Some(0.5), ..files.clone() };
    let (halves, _) = picture_shards(dir.path(), "train-*.tar", None, &halves).unwrap();
    let message = prepare(&halves, &settings, &out, &mut |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("12 of them to train on and 3 to test on"), "{message}");
    let message = run(&PrepareConfig { resize: 13, ..settings }).unwrap_err().to_string();
    assert!(message.contains("scaled to 14 pixels (bicubic), 5 to a shard"), "{message}");
    let mut changed = fs::read(out.join("test-000000.tar")).unwrap();
    changed[700] ^= 1;
    fs::write(out.join("test-000000.tar"), changed).unwrap();
    let message = run(&settings).unwrap_err().to_string();
    assert!(message.contains("test-000000.tar: found another shard"), "{message}");
    let message = prepare(&sources, &settings, dir.path(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("expected an empty folder"), "{message}");
}

/// A link has no contents of its own, so that it is no picture; headers without an end, and what unpacks to much more than a picture can, are
/// errors.
#[test]
fn links_are_passed_over_and_endless_headers_and_packed_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let samples: Vec<(String, Vec<u8>)> = (0..4)
        .flat_map(|n| {
            [(format!("{n}.png"), picture(n)), (format!("{n}.cls"), vec![b'0' + n as u8 % 2])]
        })
        .collect();
    let mut linked = tar::Builder::new(Vec::new());
    for (name, contents) in &samples {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        linked.append_data(&mut header, name, &contents[..]).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    linked.append_link(&mut header, "5.png", "0.png").unwrap();
    fs::write(dir.path().join("a.tar"), linked.into_inner().unwrap()).unwrap();
    let read = |name: &str| picture_shards(dir.path(), name, None, &config());
    let (found, notes) = read("a.tar").unwrap();
    assert_eq!(found.train.len(), 4);
    assert!(notes[0].contains("passed over 1 files") && notes[0].ends_with("a.tar/5.png"));

    let mut endless = tar::Builder::new(Vec::new());
    let comment = vec![b'x'; 900_000];
    for _ in 0..5 {
        let settings = [("comment", &comment[..])];
        endless.append_pax_extensions(settings).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(samples[0].1.len() as u64);
    endless.append_data(&mut header, "0.png", &samples[0].1[..]).unwrap();
    fs::write(dir.path().join("b.tar"), endless.into_inner().unwrap()).unwrap();
    let message = read("b.tar").err().unwrap().to_string();
    assert!(
        message.contains("bytes of headers before one member, expected 4 MiB at most"),
        "{message}"
    );

    let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..80 {
        packed.write_all(&vec![0; 1 << 20]).unwrap();
    }
    fs::write(dir.path().join("c.tar"), packed.finish().unwrap()).unwrap();
    let message = read("c.tar").err().unwrap().to_string();
    assert!(message.contains("c.tar: at byte 0: found more than"), "{message}");
    assert!(message.contains("expected at most 64 times as many, and 64 MiB"), "{message}");
}
