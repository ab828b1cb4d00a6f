//! Pictures scaled and cut, beside what torchvision's `Resize` and `CenterCrop` make of them as PIL pictures
//! (parity/make_crops.py).
#![cfg(feature = "images")]

use std::path::Path;

use image::RgbImage;
use kd_data::images::{self, read_scaled};
use kd_data::{Interpolation, Scaling};

#[test]
fn a_scaled_picture_is_torchvisions_to_within_one_grey_level() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crops");
    let (mut checked, mut equal, mut all) = (0, 0, 0);
    for path in images::files(&folder).unwrap() {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let [name, resize, size, how] = stem.split('-').collect::<Vec<_>>()[..] else {
            continue;
        };
        let interpolation = match how {
            "bilinear" => Interpolation::Bilinear,
            "bicubic" => Interpolation::Bicubic,
            other => panic!("{other}"),
        };
        let (resize, size) = (resize.parse().unwrap(), size.parse().unwrap());
        let scaling = Scaling { resize, size, interpolation };
        let found = read_scaled(&folder.join(format!("{name}.png")), &scaling).unwrap();
        // Expected pictures have the size already, so nothing is scaled.
        let expected = read_scaled(&path, &Scaling { resize: size, ..scaling }).unwrap();
        assert_eq!((found.shape, found.pixels.len()), ([3, size, size], 3 * size * size));
        for (at, (a, b)) in found.pixels.iter().zip(&expected.pixels).enumerate() {
            assert!(a.abs_diff(*b) <= 1, "{}: byte {at} is {a}, expected {b}", path.display());
            equal += usize::from(a == b);
            all += 1;
        }
        checked += 1;
    }
    assert_eq!(checked, 24);
    assert!(equal * 100 >= all * 95, "{equal} of {all} bytes are equal");
}

/// Scaled whole it would have 5120000 x 256 pixels; only those of the square are made.
#[test]
fn a_picture_of_any_length_is_scaled_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("line.png");
    let colour = |x: u32, _| image::Rgb([(x >= 10_000) as u8 * 200, 30, 255]);
    RgbImage::from_fn(20_000, 1, colour).save(&path).unwrap();
    let scaling = Scaling { resize: 256, size: 224, interpolation: Interpolation::Bicubic };
    let found = read_scaled(&path, &scaling).unwrap();
    let (red, rest) = found.pixels.split_at(224 * 224);
    assert!(rest[..224 * 224].iter().all(|value| *value == 30));
    assert!(red.chunks_exact(224).all(|row| row == &red[..224]));
    // The middle is where the colour changes; a bicubic edge is as wide as four old pixels, so all of it is on the way.
    assert!(red[..224].is_sorted() && red[0] < 40 && red[223] > 160, "{:?}", &red[..224]);
    let wrong = Scaling { resize: 100, ..scaling };
    let message = read_scaled(&path, &wrong).unwrap_err().to_string();
    assert!(message.contains("resize is 100; expected 224 (the size)"), "{message}");
}
