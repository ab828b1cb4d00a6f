//! Sources: a picture is the same whether it is read by itself or comes in a batch, and whether its source has a block.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use kd_data::{
    Augment, Batch, BatchConfig, Block, Normalization, Picture, Result, Source, Split,
    SyntheticConfig, batches, cifar10_records, cifar100_records, synthetic,
};

/// Normalised so that a network's input is the byte itself.
const BYTES: Normalization = Normalization { mean: [0.0; 3], std: [1.0 / 255.0; 3] };

const AUGMENT: Augment = Augment { crop_padding: 4, flip: true, cutout: 8, ..Augment::OFF };

/// Records of a CIFAR file with any bytes: `labels` of each below `classes`.
fn records(count: usize, labels: usize, classes: usize) -> Vec<u8> {
    let byte = |i: usize| ((i as u32).wrapping_mul(2654435761) >> 24) as u8;
    let record = |n: usize| {
        let labels = (0..labels).map(move |at| ((n * 7 + at) % classes) as u8);
        labels.chain((0..3072).map(move |i| byte(n * 3072 + i)))
    };
    (0..count).flat_map(record).collect()
}

/// A folder of pictures of an odd size, read at a side that is neither theirs nor CIFAR's.
#[cfg(feature = "images")]
fn folder() -> Split {
    let dir = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        for class in 0..3u8 {
            let folder = dir.path().join(split).join(format!("class {class}"));
            std::fs::create_dir_all(&folder).unwrap();
            for n in 0..5u8 {
                let colour = |x, y| image::Rgb([x as u8 * 3, y as u8 * 5, 40 * class + 7 * n]);
                let path = folder.join(format!("{n}.png"));
                image::RgbImage::from_fn(37, 29, colour).save(path).unwrap();
            }
        }
    }
    kd_data::image_folder(dir.path(), 24).unwrap().train
}

/// One of every kind of data set.
fn splits() -> Vec<(&'static str, Split)> {
    let memory = Path::new("memory");
    let drawn = synthetic(&SyntheticConfig { train: 23, test: 0, seed: 3 }).train;
    vec![
        ("cifar10", cifar10_records(&records(23, 1, 10), memory).unwrap()),
        ("cifar100", cifar100_records(&records(23, 2, 20), memory).unwrap()),
        ("synthetic", drawn.clone()),
        ("selected", drawn.select(&[5, 0, 22, 5])),
        #[cfg(feature = "images")]
        ("folder", folder()),
    ]
}

/// A split that hides that it lies in memory as one block, as a source that reads files would have none.
struct OneByOne(Split);

impl Source for OneByOne {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn shape(&self) -> [usize; 3] {
        self.0.shape()
    }
    fn label(&self, index: u32) -> Option<u32> {
        self.0.label(index)
    }
    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        self.0.read(index, into)
    }
    fn identity(&self) -> String {
        self.0.identity()
    }
}

fn all<S: Source + ?Sized + 'static>(source: &Arc<S>, config: &BatchConfig) -> Vec<Batch> {
    batches(source, config, &Device::Cpu).unwrap().map(|batch| batch.unwrap()).collect()
}

fn inputs(batch: &Batch) -> Vec<f32> {
    batch.images.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_picture_that_is_read_is_the_one_in_the_batch() {
    for (name, split) in splits() {
        let split = Arc::new(split);
        let config = BatchConfig {
            batch_size: 7,
            shuffle_seed: Some(1),
            normalization: BYTES,
            ..BatchConfig::default()
        };
        let (mut picture, mut seen) = (Picture::default(), 0);
        for batch in all(&split, &config) {
            let labels = batch.labels.to_vec1::<u32>().unwrap();
            let inputs = inputs(&batch);
            let each = inputs.chunks(split.shape.iter().product());
            for ((&index, label), input) in batch.indices.iter().zip(labels).zip(each) {
                split.read(index, &mut picture).unwrap();
                assert_eq!(picture.shape, split.shape, "{name}");
                let bytes: Vec<u8> = input.iter().map(|value| value.round() as u8).collect();
                assert_eq!(picture.pixels, bytes, "{name}, picture {index}");
                assert_eq!(picture.pixels, split.image(index as usize), "{name}, {index}");
                assert_eq!(split.label(index), Some(label), "{name}, picture {index}");
                seen += 1;
            }
        }
        assert_eq!(seen, split.len(), "{name}");
    }
}

#[test]
fn a_source_without_a_block_gives_the_same_batches_bit_for_bit() {
    for (name, split) in splits() {
        let config = BatchConfig {
            batch_size: 5,
            shuffle_seed: Some(8),
            epoch: 2,
            first_batch: 1,
            augment: AUGMENT,
            ..BatchConfig::default()
        };
        let with = all(&Arc::new(split.clone()), &config);
        // Through a pointer that does not know the type, as a caller with several kinds of sources has one.
        let source: Arc<dyn Source> = Arc::new(OneByOne(split));
        let without = all(&source, &config);
        assert_eq!(with.len(), without.len(), "{name}");
        for (with, without) in with.iter().zip(&without) {
            let bits = |batch| inputs(batch).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(with), bits(without), "{name}");
            assert_eq!((&with.indices, &with.views), (&without.indices, &without.views), "{name}");
            let labels = |batch: &Batch| batch.labels.to_vec1::<u32>().unwrap();
            assert_eq!(labels(with), labels(without), "{name}");
        }
    }
}

#[test]
fn an_identity_tells_sources_apart_by_their_contents() {
    for (name, split) in splits() {
        let identity = split.identity();
        assert_eq!(identity, split.clone().identity(), "{name}");
        assert_eq!(identity, OneByOne(split.clone()).identity(), "{name}");
        let last = split.len() as u32 - 1;
        let swapped: Vec<u32> = (1..=last).chain([0]).collect();
        assert_ne!(identity, split.select(&swapped).identity(), "{name}");
        assert_ne!(identity, split.select(&swapped[1..]).identity(), "{name}");
        let mut relabelled = split.clone();
        relabelled.labels[0] += 1;
        assert_ne!(identity, relabelled.identity(), "{name}");
        let [channels, height, width] = split.shape;
        let flat = Split { shape: [channels, 1, height * width], ..split };
        assert_ne!(identity, flat.identity(), "{name}");
    }
}

/// Sources that do wrong, each in its own way.
#[derive(Clone, Copy)]
enum Wrong {
    Size,
    Label,
    Block,
}

impl Source for Wrong {
    fn len(&self) -> usize {
        6
    }
    fn shape(&self) -> [usize; 3] {
        [3, 2, 2]
    }
    fn label(&self, index: u32) -> Option<u32> {
        (!matches!(self, Wrong::Label) || index != 4).then_some(0)
    }
    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        let small = matches!(self, Wrong::Size) && index == 4;
        into.shape = if small { [3, 1, 2] } else { self.shape() };
        into.pixels = vec![0; into.shape.iter().product()];
        Ok(())
    }
    fn identity(&self) -> String {
        "wrong".into()
    }
    fn block(&self) -> Option<Block<'_>> {
        matches!(self, Wrong::Block).then_some(Block { images: &[0; 60], labels: &[0; 6] })
    }
}

#[test]
fn what_a_source_does_wrong_is_an_error_with_the_pictures_number() {
    let config = BatchConfig { batch_size: 2, ..BatchConfig::default() };
    for (wrong, expected) in [
        (
            Wrong::Size,
            "picture 4 of the source: found shape [3, 1, 2] and 6 bytes, expected the source's shape [3, 2, 2], 12 bytes",
        ),
        (Wrong::Label, "picture 4 of the source: found no label, expected the picture's class"),
    ] {
        let mut batches = batches(&Arc::new(wrong), &config, &Device::Cpu).unwrap();
        assert!(batches.next().unwrap().is_ok() && batches.next().unwrap().is_ok());
        assert_eq!(batches.next().unwrap().unwrap_err().to_string(), expected);
        assert!(batches.next().is_none());
    }
    let error = batches(&Arc::new(Wrong::Block), &config, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("a block of 6 labels and 60 bytes of images"), "{error}");
    let (split, mut picture) = (Split { shape: [3, 2, 2], ..Split::default() }, Picture::default());
    let error = split.read(0, &mut picture).unwrap_err().to_string();
    assert_eq!(
        error,
        "picture 0 of the source: found a split of 0 pictures, expected the number of one of them"
    );
}

#[test]
fn pictures_without_files_are_known_by_their_numbers_in_the_data_set() {
    let config = SyntheticConfig { train: 60, test: 20, seed: 0 };
    let (whole, sources) = (synthetic(&config), kd_data::Sources::from(synthetic(&config)));
    let limits = kd_data::Limits { train: Some(25), test: Some(7), held_out: None };
    let portions = kd_data::Portions::new(sources, &limits, None).unwrap();
    for (source, split, part) in
        [(&portions.train, &whole.train, "train/"), (&portions.test, &whole.test, "test/")]
    {
        let mut picture = Picture::default();
        for index in 0..source.len() as u32 {
            let name = source.name(index).unwrap();
            let number: usize = name.strip_prefix(part).unwrap().parse().unwrap();
            source.read(index, &mut picture).unwrap();
            assert_eq!(picture.pixels, split.image(number), "{name}");
        }
        assert_eq!(source.name(source.len() as u32), None);
    }
}
