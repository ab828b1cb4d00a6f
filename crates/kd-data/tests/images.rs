//! Pictures from files: beside Pillow's result for the same files, and in folders of classes.
#![cfg(feature = "images")]

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use kd_data::images::SIDE;
use kd_data::{Error, Limits, Portions, Result, image_folder, image_folder_without_broken, images};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures")
}

#[test]
fn pictures_of_every_kind_are_what_pillow_makes_of_them() {
    let mut checked = 0;
    for path in images::files(&fixtures()).unwrap() {
        let mut expected = path.clone().into_os_string();
        expected.push(".expected");
        let (found, expected) =
            (images::read(&path, SIDE).unwrap(), images::read(Path::new(&expected), SIDE).unwrap());
        assert_eq!((found.shape, found.pixels.len()), ([3, 32, 32], 3 * 32 * 32));
        let difference = |(a, b): (&u8, &u8)| a.abs_diff(*b);
        let largest = found.pixels.iter().zip(&expected.pixels).map(difference).max().unwrap();
        // Rounding; for JPEG two decoders.
        let most = if path.extension().unwrap() == "jpg" { 3 } else { 1 };
        assert!(largest <= most, "{}: {largest}", path.display());
        checked += 1;
    }
    assert_eq!(checked, 19);
}

#[test]
fn a_picture_of_the_side_asked_for_keeps_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let colour = |x, y| image::Rgb([x as u8, y as u8, (7 * x + y) as u8]);
    for side in [32, 20] {
        RgbImage::from_fn(side, side, colour).save(&path).unwrap();
        let picture = images::read(&path, side as usize).unwrap();
        assert_eq!(picture.shape, [3, side as usize, side as usize]);
        let last = side - 1;
        for (x, y) in [(0, 0), (last, 0), (5, 9), (last, last)] {
            for channel in 0..3 {
                let found = picture.pixels[((channel * side + y) * side + x) as usize];
                assert_eq!(found, colour(x, y).0[channel as usize], "{side} {channel} {y} {x}");
            }
        }
    }
}

#[test]
fn a_side_that_no_picture_can_have_is_refused() {
    let path = fixtures().join("wide.png");
    for side in [0, 4097, usize::MAX] {
        let expected = format!("data setting side is {side}; expected 1 to 4096 pixels");
        assert_eq!(images::read(&path, side).unwrap_err().to_string(), expected);
        assert_eq!(image_folder(&fixtures(), side).unwrap_err().to_string(), expected);
    }
}

fn message<T>(result: Result<T>, path: &Path) -> String {
    let Err(error) = result else { panic!("{} was taken", path.display()) };
    let message = error.to_string();
    assert!(message.starts_with(&path.display().to_string()), "{message}");
    message
}

#[test]
fn what_is_no_picture_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let jpeg = fs::read(fixtures().join("orientation-6.jpg")).unwrap();
    let png = fs::read(fixtures().join("wide.png")).unwrap();
    let mut damaged = png.clone();
    damaged[png.len() / 2] ^= 0xff;
    let cases: [(&[u8], &str); 8] = [
        (b"", "empty"),
        (b"hello", "none of these"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0\0\0", "not supported"),
        (b"GIF89a\x01\0\x01\0\0\0\0;", "expected a whole PNG, JPEG, WebP, BMP or GIF file, but"),
        (&jpeg[..jpeg.len() - 200], "cut off"),
        (&png[..png.len() / 2], "expected a whole PNG, JPEG, WebP, BMP or GIF file, but"),
        (&damaged, "expected a whole PNG, JPEG, WebP, BMP or GIF file, but"),
        (&png[..20], "expected a whole PNG, JPEG, WebP, BMP or GIF file, but"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let message = message(images::read(&path, SIDE), &path);
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let absent = dir.path().join("none.png");
    message(images::read(&absent, SIDE), &absent);
    message(images::read(dir.path(), SIDE), dir.path());
}

#[test]
fn a_header_that_announces_gigabytes_is_refused_before_they_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb");
    // Of a PNG: width and height are at 16, the header's check sum is at 29.
    let mut png = fs::read(fixtures().join("wide.png")).unwrap();
    png[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    fs::write(&path, png).unwrap();
    let text = message(images::read(&path, SIDE), &path);
    assert!(text.contains("65535x65535") || text.contains("limit"), "{text}");
    // Of a JPEG: five bytes behind the frame's marker.
    let mut jpeg = fs::read(fixtures().join("grey.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    fs::write(&path, jpeg).unwrap();
    let text = message(images::read(&path, SIDE), &path);
    assert!(text.contains("65535x65535"), "{text}");
}

/// PNG's, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { 0xedb8_8320 ^ (sum >> 1) } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, &byte| (0..8).fold(sum ^ u32::from(byte), |sum, _| step(sum)))
}

/// One picture in `colour` at each of the paths.
fn picture_folder(files: &[(&str, [u8; 3])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, colour) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(40, 32, image::Rgb(*colour)).save(path).unwrap();
    }
    dir
}

const FILES: [(&str, [u8; 3]); 6] = [
    ("train/zebra/b.png", [1, 2, 3]),
    ("train/zebra/a.png", [4, 5, 6]),
    ("train/ant/new/c.PNG", [7, 8, 9]),
    ("train/ant/.hidden.png", [0, 0, 0]),
    ("test/ant/x.png", [10, 11, 12]),
    ("test/zebra/y.png", [13, 14, 15]),
];

#[test]
fn classes_are_the_folders_by_name() {
    let dir = picture_folder(&FILES);
    fs::write(dir.path().join("train/ant/notes.txt"), "not a picture").unwrap();
    fs::write(dir.path().join("train/notes.txt"), "not a class").unwrap();
    let data = image_folder(dir.path(), SIDE).unwrap();
    assert_eq!(data.classes, ["ant", "zebra"]);
    assert_eq!((&data.train.labels[..], &data.test.labels[..]), (&[0, 1, 1][..], &[0, 1][..]));
    assert_eq!(data.train.shape, [3, 32, 32]);
    // By class, then by file name; all of red, then green, then blue.
    let firsts: Vec<u8> = (0..3).map(|i| data.train.image(i)[0]).collect();
    assert_eq!(firsts, [7, 4, 1]);
    assert_eq!([data.test.image(1)[0], data.test.image(1)[1024]], [13, 14]);
    assert!(data.test.to_tensors(&candle_core::Device::Cpu).is_ok());

    // The hash is of what is learned from.
    assert_eq!(image_folder(picture_folder(&FILES).path(), SIDE).unwrap().sha256, data.sha256);
    let mut other = FILES;
    other[1].1 = [4, 5, 7];
    assert_ne!(image_folder(picture_folder(&other).path(), SIDE).unwrap().sha256, data.sha256);
    for split in ["train", "test"] {
        fs::rename(dir.path().join(split).join("zebra"), dir.path().join(split).join("zoo"))
            .unwrap();
    }
    assert_ne!(image_folder(dir.path(), SIDE).unwrap().sha256, data.sha256);
}

#[test]
fn broken_pictures_are_left_out_where_it_is_asked_for_and_named() {
    let dir = picture_folder(&FILES);
    let whole = image_folder(dir.path(), SIDE).unwrap();
    let same = image_folder_without_broken(dir.path(), SIDE).unwrap();
    assert_eq!(same, whole);
    fs::write(dir.path().join("train/ant/more.jpg"), "no picture").unwrap();
    fs::write(dir.path().join("test/zebra/a.png"), "").unwrap();
    assert!(image_folder(dir.path(), SIDE).is_err());
    let found = image_folder_without_broken(dir.path(), SIDE).unwrap();
    let named: Vec<_> =
        found.skipped.iter().map(|s| (s.path.to_str().unwrap(), &*s.reason)).collect();
    assert_eq!(
        named,
        [
            ("train/ant/more.jpg", "its contents are none of these"),
            ("test/zebra/a.png", "the file is empty")
        ]
    );
    assert_eq!((&found.train, &found.test), (&whole.train, &whole.test));
    // The hash covers what was skipped: by name, wherever the folder lies.
    assert_ne!(found.sha256, whole.sha256);
    fs::rename(dir.path().join("train/ant/more.jpg"), dir.path().join("train/ant/most.jpg"))
        .unwrap();
    let other = image_folder_without_broken(dir.path(), SIDE).unwrap();
    assert_ne!(other.sha256, found.sha256);
    let elsewhere = picture_folder(&FILES);
    for name in ["train/ant/more.jpg", "test/zebra/a.png"] {
        fs::write(elsewhere.path().join(name), "broken in another way").unwrap();
    }
    let again = image_folder_without_broken(elsewhere.path(), SIDE).unwrap();
    assert_eq!(again.sha256, found.sha256);
    // A class that loses all its pictures is an error.
    for name in ["train/zebra/a.png", "train/zebra/b.png", "test/ant/x.png"] {
        fs::write(dir.path().join(name), "broken").unwrap();
    }
    let text =
        message(image_folder_without_broken(dir.path(), SIDE), &dir.path().join("train/zebra"));
    assert!(text.contains("found no picture that can be read, nor in "), "{text}");
    assert!(text.contains("test/ant, the first because of "), "{text}");
    assert!(text.contains("train/zebra/a.png: "), "{text}");
}

/// A file's name may hold a line end or an escape sequence; a list, a message and a terminal line stay whole.
#[cfg(unix)]
#[test]
fn names_with_control_characters_stay_on_one_line() {
    let dir = picture_folder(&FILES);
    fs::write(dir.path().join("train/ant/a\nb\u{1b}[31m.png"), "no picture").unwrap();
    let found = image_folder_without_broken(dir.path(), SIDE).unwrap();
    let shown = "train/ant/a\\nb\\u{1b}[31m.png";
    assert_eq!(found.skipped[0].line(), format!("{shown}: its contents are none of these"));
    let sentence =
        Portions::new(found, &Limits::default(), None).unwrap().skipped_sentence().unwrap();
    assert_eq!(sentence, format!("1 picture that can't be read is left out: {shown}"));
    let error = image_folder(dir.path(), SIDE).unwrap_err().to_string();
    assert!(error.contains(shown) && !error.contains(char::is_control), "{error:?}");
    // A class's name goes into files, tables and messages, so that it may not hold any.
    fs::remove_dir_all(dir.path().join("train/ant")).unwrap();
    fs::rename(dir.path().join("train/zebra"), dir.path().join("train/ze\tbra")).unwrap();
    let error = image_folder(dir.path(), SIDE).unwrap_err().to_string();
    assert!(error.contains("ze\\tbra: found a name that no class can have"), "{error:?}");
}

/// What can't be reached is a picture that can't be read, not one that isn't there.
#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_named_and_counted() {
    use std::os::unix::fs::symlink;

    let dir = picture_folder(&FILES);
    let whole = image_folder(dir.path(), SIDE).unwrap();
    // Neither is a picture's name.
    symlink("gone", dir.path().join("train/ant/notes.txt")).unwrap();
    symlink("gone", dir.path().join("train/ant/.hid.png")).unwrap();
    assert_eq!(image_folder(dir.path(), SIDE).unwrap(), whole);
    symlink("../zebra/a.png", dir.path().join("train/ant/linked.png")).unwrap();
    assert_eq!(image_folder(dir.path(), SIDE).unwrap().train.len(), whole.train.len() + 1);
    fs::remove_file(dir.path().join("train/ant/linked.png")).unwrap();

    symlink("/nowhere/at/all.png", dir.path().join("train/ant/gone.png")).unwrap();
    symlink("self.JPG", dir.path().join("test/zebra/self.JPG")).unwrap();
    symlink("../../batch1", dir.path().join("train/zebra/batch1")).unwrap();
    let error = image_folder(dir.path(), SIDE).unwrap_err().to_string();
    assert!(error.contains("3 pictures can't be read"), "{error}");
    assert!(error.contains("gone.png: ") && error.contains("a link to /nowhere/at/all.png: "));
    let found = image_folder_without_broken(dir.path(), SIDE).unwrap();
    let named: Vec<_> = found.skipped.iter().map(|s| s.path.to_str().unwrap()).collect();
    assert_eq!(named, ["train/ant/gone.png", "train/zebra/batch1", "test/zebra/self.JPG"]);
    assert_eq!((&found.train, &found.test), (&whole.train, &whole.test));
    // Beside the classes' folders it may have been a class.
    symlink("/nowhere", dir.path().join("train/yak")).unwrap();
    let text =
        message(image_folder_without_broken(dir.path(), SIDE), &dir.path().join("train/yak"));
    assert!(text.contains("found a link that leads nowhere"), "{text}");
}

#[test]
fn a_folder_that_is_laid_out_otherwise_is_named() {
    let broken = |change: fn(&Path), at: &str, expected: &str| {
        let dir = picture_folder(&FILES);
        change(dir.path());
        let text = message(image_folder(dir.path(), SIDE), &dir.path().join(at));
        assert!(text.contains(expected), "{text}");
    };
    // Where there is no `test`, the pictures of `val` are tested on.
    let dir = picture_folder(&FILES);
    let tested = image_folder(dir.path(), SIDE).unwrap().test.len();
    fs::rename(dir.path().join("test"), dir.path().join("val")).unwrap();
    assert_eq!(image_folder(dir.path(), SIDE).unwrap().test.len(), tested);
    broken(|dir| fs::remove_dir_all(dir.join("test/ant")).unwrap(), "test/ant", "no such folder");
    broken(|dir| fs::create_dir(dir.join("test/bee")).unwrap(), "test/bee", "that train lacks");
    broken(|dir| fs::remove_dir_all(dir.join("train/ant")).unwrap(), "train", "found 1 folders");
    broken(|dir| fs::remove_file(dir.join("test/ant/x.png")).unwrap(), "test/ant", "no pictures");
    broken(
        |dir| fs::write(dir.join("train/zebra/b.png"), "b").unwrap(),
        "train/zebra/b.png",
        "none of these",
    );
    broken(
        |dir| fs::write(dir.join("train/ant/a.webp"), "b").unwrap(),
        "train/ant/a.webp",
        "none of these",
    );
    let missing = image_folder(Path::new("nowhere"), SIDE).unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
}
