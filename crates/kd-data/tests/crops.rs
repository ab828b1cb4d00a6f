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

#[test]
fn a_picture_that_would_become_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("line.png");
    RgbImage::new(20_000, 1).save(&path).unwrap();
    let scaling = Scaling { resize: 256, size: 224, interpolation: Interpolation::Bicubic };
    let message = read_scaled(&path, &scaling).unwrap_err().to_string();
    assert!(message.contains("line.png") && message.contains("5120000x256"), "{message}");
    let wrong = Scaling { resize: 100, ..scaling };
    let message = read_scaled(&path, &wrong).unwrap_err().to_string();
    assert!(message.contains("size is 224"), "{message}");
}
