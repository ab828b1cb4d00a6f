//! Pictures of any size brought to one, beside what torchvision makes of the same pixels through PIL (`parity/make_transforms.py`), and
//! as batches.
#![cfg(feature = "images")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use kd_data::{
    Augment, Batch, BatchConfig, Change, ColorJitter, Crop, Interpolation, Jitter, MixConfig,
    Normalization, Op, Picture, Policy, RandAugment, RandomErasing, ResizedCrop, Result, Room,
    Scaled, Scaling, Source, View, batches,
};

/// The picture of `parity/make_transforms.py`.
fn picture(width: usize, height: usize) -> Picture {
    let byte = |i: usize| {
        let noise = (i as u32).wrapping_mul(2654435761) >> 24;
        (noise / 2 + (i / 3 % width * 127 / width) as u32) as u8
    };
    let plane = |channel| (0..width * height).map(move |at| byte(3 * at + channel));
    Picture { shape: [3, height, width], pixels: (0..3).flat_map(plane).collect() }
}

/// The pixels of a fixture, plane by plane.
fn planes(path: &Path) -> Vec<u8> {
    let found = image::open(path).unwrap().into_rgb8();
    (0..3).flat_map(|c| found.pixels().map(|pixel| pixel.0[c]).collect::<Vec<_>>()).collect()
}

/// The fixtures and the parts of their names.
fn fixtures() -> Vec<(PathBuf, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transforms");
    let path = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path();
    let parts = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let parts = name.split(['-', 'x']).map(str::to_owned).collect();
        (path, parts)
    };
    folder.read_dir().unwrap().map(path).map(parts).collect()
}

#[test]
fn scaled_pictures_are_torchvisions_to_within_a_grey_level() {
    let mut checked = 0;
    for (path, parts) in fixtures() {
        let interpolation: Interpolation = parts[0].parse().unwrap();
        let number = |at: usize| parts[at].parse::<usize>().unwrap();
        let mut found = Picture::default();
        if parts[1] == "crop" {
            let [top, left, height, width] = [2, 3, 4, 5].map(|at| number(at) as u32);
            let crop = Crop { top, left, height, width };
            crop.scale(&picture(61, 47), [number(6); 2], interpolation, &mut found);
        } else {
            let scaling = Scaling { size: number(4), resize: number(3), interpolation };
            scaling.apply(&picture(number(1), number(2)), &mut found);
        }
        let expected = planes(&path);
        assert_eq!(found.pixels.len(), expected.len(), "{path:?}");
        let apart = found.pixels.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
        let largest = apart.clone().max().unwrap();
        let differing = apart.filter(|difference| *difference > 0).count();
        assert!(largest <= 1, "{path:?}: {largest}");
        assert!(differing * 50 < expected.len(), "{path:?}: {differing} of {}", expected.len());
        checked += 1;
    }
    assert_eq!(checked, 12);
}

/// Pictures of many sizes, some of them very long.
struct Many;

impl Source for Many {
    fn len(&self) -> usize {
        23
    }
    fn shape(&self) -> [usize; 3] {
        [3, 0, 0]
    }
    fn label(&self, index: u32) -> Option<u32> {
        Some(index % 300)
    }
    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        *into = match index {
            3 => picture(1, 1),
            4 => picture(4000, 2),
            5 => picture(1, 900),
            _ => picture(20 + 7 * index as usize, 90 - 3 * index as usize),
        };
        Ok(())
    }
    fn identity(&self) -> String {
        "many".into()
    }
}

fn scaled(room: u64) -> Arc<dyn Source> {
    let scaling = Scaling { size: 24, resize: 28, interpolation: Interpolation::Bicubic };
    Arc::new(Scaled::new(Arc::new(Many), scaling, Room::new(room)).unwrap())
}

fn all(source: &Arc<dyn Source>, config: &BatchConfig) -> Vec<Batch> {
    batches(source, config, &Device::Cpu).unwrap().map(|batch| batch.unwrap()).collect()
}

fn bits(batch: &Batch) -> Vec<u32> {
    let values: Vec<f32> = batch.images.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

const CROPPED: Augment = Augment {
    resized_crop: Some(ResizedCrop {
        scale: [0.2, 1.0],
        ratio: [0.5, 2.0],
        interpolation: Interpolation::Bilinear,
    }),
    crop_padding: 2,
    flip: true,
    color_jitter: Some(ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }),
    policy: Some(Policy::RandAugment(RandAugment { num_ops: 2, magnitude: 9 })),
    random_erasing: Some(RandomErasing { p: 0.5, scale: [0.02, 0.33], ratio: [0.3, 3.3] }),
    cutout: 5,
};

#[test]
fn batches_are_the_same_for_any_threads_memory_and_beginning() {
    let config = BatchConfig {
        batch_size: 5,
        shuffle_seed: Some(4),
        epoch: 3,
        augment: CROPPED,
        mix: MixConfig { cutmix: 1.0, mixup: 0.4, probability: 0.7 },
        ..BatchConfig::default()
    };
    let run = |threads, room, first_batch| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| all(&scaled(room), &BatchConfig { first_batch, ..config }))
    };
    let expected = run(1, 0, 0);
    for (threads, room, first) in [(4, 0, 0), (3, u64::MAX, 2), (2, 30_000, 4)] {
        let found = run(threads, room, first);
        assert_eq!(found.len() + first, 5);
        for (found, expected) in found.iter().zip(&expected[first..]) {
            assert_eq!(bits(found), bits(expected), "{threads} {room} {first}");
            assert_eq!((&found.views, &found.indices), (&expected.views, &expected.indices));
        }
    }
}

#[test]
fn a_view_can_be_shown_again() {
    let config = BatchConfig {
        batch_size: 23,
        shuffle_seed: Some(4),
        augment: CROPPED,
        ..BatchConfig::default()
    };
    let source = scaled(u64::MAX);
    let [batch] = &all(&source, &config)[..] else { panic!() };
    let (mut whole, mut cut) = (Picture::default(), Picture::default());
    let found = bits(batch);
    for (place, (&index, view)) in batch.indices.iter().zip(&batch.views).enumerate() {
        source.read_whole(index, &mut whole).unwrap();
        view.crop.unwrap().scale(&whole, [24, 24], Interpolation::Bilinear, &mut cut);
        let mut input = vec![0.0; 3 * 24 * 24];
        view.apply(&cut.pixels, [24, 24], 5, &Normalization::default(), &mut input);
        let input: Vec<u32> = input.into_iter().map(f32::to_bits).collect();
        assert_eq!(input, found[place * input.len()..][..input.len()], "picture {index}");
    }
    let crops: std::collections::BTreeSet<_> = batch.views.iter().map(|view| view.crop).collect();
    assert!(crops.len() > 15, "{crops:?}");
}

#[test]
fn without_random_changes_a_batch_has_what_is_read() {
    let source = scaled(0);
    let config = BatchConfig { batch_size: 23, ..BatchConfig::default() };
    let [batch] = &all(&source, &config)[..] else { panic!() };
    let table = Normalization::default();
    let mut picture = Picture::default();
    let found = bits(batch);
    for index in 0..23 {
        source.read(index, &mut picture).unwrap();
        assert_eq!(picture.shape, [3, 24, 24]);
        for (at, &byte) in picture.pixels.iter().enumerate() {
            let expected = table.apply(at / 576, byte).to_bits();
            assert_eq!(found[index as usize * 1728 + at], expected);
        }
    }
    assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), (0..23).collect::<Vec<u32>>());
}

/// The picture of `augment.txt`'s lines: 33 x 26 pixels.
fn changed(line: &str) -> Vec<u8> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut view = View::default();
    if words[0] == "jitter" {
        let number = |at: usize| words[at].parse::<i32>().unwrap();
        let order = [1, 2, 3, 4].map(|at| number(at) as u8);
        view.jitter = Some(Jitter { order, amounts: [5, 6, 7, 8].map(number) });
    } else {
        let op = Op::ALL.into_iter().find(|op| format!("{op:?}") == words[1]).unwrap();
        let level = words[2].parse().unwrap();
        let (wide, negative) = (words[0] == "wide", words[3] == "-");
        view.changes[0] = Some(Change { op, level, negative, wide });
    }
    let plain = Normalization { mean: [0.0; 3], std: [1.0 / 255.0; 3] };
    let mut input = vec![f32::NAN; 3 * 26 * 33];
    view.apply(&picture(33, 26).pixels, [26, 33], 0, &plain, &mut input);
    input.iter().map(|value| value.round() as u8).collect()
}

/// Every change of `RandAugment`, `TrivialAugmentWide` and `ColorJitter` is that of torchvision on PIL pictures
/// (`parity/make_augment.py`), to the byte.
#[test]
fn changes_of_colour_and_shape_are_torchvisions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/augment");
    let lines = std::fs::read_to_string(folder.join("augment.txt")).unwrap();
    let all = image::open(folder.join("augment.png")).unwrap().into_rgb8();
    assert_eq!(lines.lines().count() as u32 * 26, all.height());
    for (number, line) in lines.lines().enumerate() {
        let expected =
            |c: usize, y: usize, x: usize| all.get_pixel(x as u32, (number * 26 + y) as u32).0[c];
        for (at, found) in changed(line).into_iter().enumerate() {
            let (channel, y, x) = (at / (26 * 33), at / 33 % 26, at % 33);
            let expected = expected(channel, y, x);
            assert_eq!(found, expected, "{line}: channel {channel}, row {y}, column {x}");
        }
    }
}

/// What is erased is the mean colour, 0 after normalisation, in the rectangle and nowhere else.
#[test]
fn an_erased_rectangle_is_the_mean_colour() {
    let view =
        View { erased: Some(Crop { top: 3, left: 2, height: 5, width: 7 }), ..View::default() };
    let normalization = Normalization::default();
    let mut input = vec![f32::NAN; 3 * 20 * 30];
    view.apply(&[200; 1800], [20, 30], 0, &normalization, &mut input);
    for (at, value) in input.into_iter().enumerate() {
        let inside = (3..8).contains(&(at / 30 % 20)) && (2..9).contains(&(at % 30));
        let expected = if inside { 0.0 } else { normalization.apply(at / 600, 200) };
        assert_eq!(value, expected, "{at}");
    }
}
