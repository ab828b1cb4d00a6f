//! CIFAR-10 and CIFAR-100: the binary versions, and the Python versions, which torchvision unpacks. The former are as described by their authors
//! (<https://www.cs.toronto.edu/~kriz/cifar.html>): records of one label (CIFAR-100: coarse, then
//! fine) and 3072 bytes, red, green and blue, each row by row. The latter have the same images in the same order.

mod pickle;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Dataset, Error, Result, Split};
use kd_record::hash::hex;

/// Channels, height and width of an image.
const SHAPE: [usize; 3] = [3, 32, 32];
/// Bytes of an image.
const PIXELS: usize = 3072;

/// The classes of CIFAR-10, by label.
pub const CIFAR10_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The classes of CIFAR-100, by fine label.
#[rustfmt::skip]
pub const CIFAR100_CLASSES: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
    "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar",
    "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile",
    "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster",
    "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster",
    "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
];

/// The 20 groups of CIFAR-100's classes, by coarse label.
#[rustfmt::skip]
pub const CIFAR100_COARSE_CLASSES: [&str; 20] = [
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables",
    "household_electrical_devices", "household_furniture", "insects", "large_carnivores",
    "large_man-made_outdoor_things", "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates", "people",
    "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
];

/// How one of the two data sets lies on disk.
struct Layout {
    /// What [`Dataset::name`] says.
    name: &'static str,
    /// Its name in messages.
    title: &'static str,
    /// The folder's name in the published archive.
    folder: &'static str,
    /// The files with the images to train on, then the one to test on, and how many records each has.
    files: &'static [(&'static str, usize)],
    /// The label bytes that a record begins with, and how many classes each tells apart; the last one is the image's class.
    labels: &'static [(&'static str, u8)],
    classes: &'static [&'static str],
    /// The folder of the Python version in its archive.
    python: &'static str,
    /// The names of the lists that the Python version has the labels in, in the order of `labels`.
    lists: &'static [&'static str],
    /// Files of the other data set, and the advice where one is found.
    strangers: &'static [(&'static str, &'static str)],
}

const CIFAR10: Layout = Layout {
    name: "cifar10",
    title: "CIFAR-10",
    folder: "cifar-10-batches-bin",
    files: &[
        ("data_batch_1.bin", 10_000),
        ("data_batch_2.bin", 10_000),
        ("data_batch_3.bin", 10_000),
        ("data_batch_4.bin", 10_000),
        ("data_batch_5.bin", 10_000),
        ("test_batch.bin", 10_000),
    ],
    labels: &[("label", 10)],
    classes: &CIFAR10_CLASSES,
    python: "cifar-10-batches-py",
    lists: &["labels"],
    strangers: &[("train.bin", "this looks like CIFAR-100, read it as cifar100")],
};

const CIFAR100: Layout = Layout {
    name: "cifar100",
    title: "CIFAR-100",
    folder: "cifar-100-binary",
    files: &[("train.bin", 50_000), ("test.bin", 10_000)],
    labels: &[("coarse label", 20), ("fine label", 100)],
    classes: &CIFAR100_CLASSES,
    python: "cifar-100-python",
    lists: &["coarse_labels", "fine_labels"],
    strangers: &[("data_batch_1.bin", "this looks like CIFAR-10, read it as cifar10")],
};

/// Reads CIFAR-10 from `dir`: the folder with `data_batch_1.bin` to `data_batch_5.bin` and
/// `test_batch.bin`, or the folder that `cifar-10-batches-bin` lies in; or the Python version that torchvision unpacks, whose files have the
/// same names without an ending and lie in `cifar-10-batches-py`. Both are one data set with one SHA-256.
///
/// # Errors
/// All six files are read and checked in full. A file that is missing, too short, too long, not a batch
/// file or holds a label out of range is an error that says file, offset, what was found and what was expected.
pub fn cifar10(dir: &Path) -> Result<Dataset> {
    read(dir, &CIFAR10)
}

/// Reads CIFAR-100 from `dir`: the folder with `train.bin` and `test.bin`, or the folder that
/// `cifar-100-binary` lies in, or those of the Python version, `train` and `test` in `cifar-100-python`. Labels are the 100 fine ones; the 20 coarse ones are in
/// [`Split::coarse_labels`].
///
/// # Errors
/// As for [`cifar10`].
pub fn cifar100(dir: &Path) -> Result<Dataset> {
    read(dir, &CIFAR100)
}

/// CIFAR-10 without its files: black images, as many and of the same classes, to plan a run by. The SHA-256 is empty.
pub fn blank_cifar10() -> Dataset {
    blank(&CIFAR10)
}

/// CIFAR-100 in the same way.
pub fn blank_cifar100() -> Dataset {
    blank(&CIFAR100)
}

fn blank(layout: &Layout) -> Dataset {
    let split = |files: &[(&str, usize)]| {
        let count: usize = files.iter().map(|(_, records)| records).sum();
        let labels = (0..count).map(|image| (image % layout.classes.len()) as u32).collect();
        Split { images: vec![0; count * PIXELS], labels, coarse_labels: None, shape: SHAPE }
    };
    let (train, test) = layout.files.split_at(layout.files.len() - 1);
    Dataset {
        name: layout.name.into(),
        classes: layout.classes.iter().map(|&class| class.into()).collect(),
        train: split(train),
        test: split(test),
        sha256: String::new(),
        skipped: Vec::new(),
        names: None,
    }
}

/// Reads any number of CIFAR-10's records from memory; `name` stands for the file's in errors.
///
/// # Errors
/// As for [`cifar10`].
pub fn cifar10_records(bytes: &[u8], name: &Path) -> Result<Split> {
    records(bytes, name, &CIFAR10)
}

/// Reads any number of CIFAR-100's records from memory; `name` stands for the file's in errors.
///
/// # Errors
/// As for [`cifar10`].
pub fn cifar100_records(bytes: &[u8], name: &Path) -> Result<Split> {
    records(bytes, name, &CIFAR100)
}

fn records(bytes: &[u8], name: &Path, layout: &Layout) -> Result<Split> {
    let count = bytes.len().div_ceil(layout.record());
    check(bytes, name, layout, count)?;
    let mut split = empty(count, layout);
    append(bytes, layout, &mut split);
    Ok(split)
}

fn read(dir: &Path, layout: &Layout) -> Result<Dataset> {
    let (folder, version) = find(dir, layout)?;
    let (test_file, train_files) = match layout.files {
        [train @ .., test] => (test, train),
        [] => unreachable!("a layout has files"),
    };
    let mut train = empty(train_files.iter().map(|(_, records)| records).sum(), layout);
    let mut test = empty(test_file.1, layout);
    let mut hash = Sha256::new();
    // Two buffers, so that the next file is read while this one is hashed; memory for all files at once would have to be
    // cleared by the system first, which takes longer than to read them.
    let (mut bytes, mut next) = (Vec::new(), Vec::new());
    read_checked(&folder, layout, version, 0, &mut bytes)?;
    for index in 0..layout.files.len() {
        let split = if index < train_files.len() { &mut train } else { &mut test };
        let ((), read) = rayon::join(
            || hash.update(&bytes),
            || {
                append(&bytes, layout, split);
                match index + 1 < layout.files.len() {
                    true => read_checked(&folder, layout, version, index + 1, &mut next),
                    false => Ok(()),
                }
            },
        );
        read?;
        std::mem::swap(&mut bytes, &mut next);
    }
    Ok(Dataset {
        name: layout.name.into(),
        classes: layout.classes.iter().map(|&class| class.into()).collect(),
        train,
        test,
        sha256: hex(hash),
        skipped: Vec::new(),
        names: None,
    })
}

/// Reads the file `index` of the layout into `bytes`, in place of what is there, and checks it.
fn read_checked(
    folder: &Path,
    layout: &Layout,
    version: Version,
    index: usize,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    let (name, records) = layout.files[index];
    let path = folder.join(version.file(name));
    match version {
        Version::Binary => read_file(&path, layout, records, bytes)?,
        Version::Python => *bytes = read_pickle(&path, layout, records)?,
    }
    check(bytes, &path, layout, records)
}

/// Which of the published archives a folder is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Binary,
    Python,
}

impl Version {
    /// The name of a file whose name in the binary version this is.
    fn file(self, binary: &'static str) -> &'static str {
        match self {
            Self::Binary => binary,
            Self::Python => binary.trim_end_matches(".bin"),
        }
    }
}

/// The most bytes of a file of the Python version: those of CIFAR-100 have 156 MB.
const LONGEST_PICKLE: u64 = 256 << 20;

/// Reads a file of the Python version as the records that the binary version has.
fn read_pickle(path: &Path, layout: &Layout, records: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let opened =
        File::open(path).and_then(|file| file.take(LONGEST_PICKLE).read_to_end(&mut bytes));
    if let Err(source) = opened {
        return Err(match source.kind() {
            std::io::ErrorKind::NotFound => Error::Missing {
                path: path.into(),
                expected: format!("a pickle of {records} images"),
                advice: layout.unpack_again(),
            },
            _ => Error::Io { path: path.into(), source },
        });
    }
    let malformed = |offset: usize, found: String, expected: String| Error::Malformed {
        path: path.into(),
        offset: offset as u64,
        found,
        expected,
        advice: layout.unpack_again(),
    };
    let batch = pickle::read(&bytes, layout.lists)
        .map_err(|wrong| malformed(wrong.offset, wrong.found, wrong.expected.into()))?;
    let counts: Vec<usize> = batch.labels.iter().map(Vec::len).collect();
    if batch.pixels.len() != PIXELS * records || counts.iter().any(|count| *count != records) {
        let found = format!("{} bytes of pixels and {counts:?} labels", batch.pixels.len());
        let expected = format!("{records} images of {PIXELS} bytes, and a label for each");
        return Err(malformed(0, found, expected));
    }
    let mut all = Vec::with_capacity(layout.record() * records);
    for (number, pixels) in batch.pixels.chunks_exact(PIXELS).enumerate() {
        all.extend(batch.labels.iter().map(|labels| labels[number]));
        all.extend_from_slice(pixels);
    }
    Ok(all)
}

/// The folder with the batches, which is `dir` or a published folder in it, and which version they are of: the binary one where both
/// are there.
fn find(dir: &Path, layout: &Layout) -> Result<(PathBuf, Version)> {
    for (version, folder) in [(Version::Binary, layout.folder), (Version::Python, layout.python)] {
        let is_batch = |(name, _): &(&'static str, usize)| dir.join(version.file(name)).is_file();
        if layout.files.iter().any(is_batch) {
            return Ok((dir.into(), version));
        }
        let inner = dir.join(folder);
        if inner.is_dir() {
            return Ok((inner, version));
        }
    }
    let stranger = layout.strangers.iter().find(|(name, _)| dir.join(name).exists());
    let advice = match stranger {
        Some((_, advice)) => (*advice).into(),
        None => format!("give the folder with {}'s files, or its parent", layout.title),
    };
    let first = layout.files[0].0;
    if dir.is_dir() {
        let expected = format!("it here, or the folder {} or {}", layout.folder, layout.python);
        return Err(Error::Missing { path: dir.join(first), expected, advice });
    }
    let expected = format!("a folder with {first}, {} or {} in it", layout.folder, layout.python);
    Err(Error::Missing { path: dir.into(), expected, advice })
}

/// Reads the file's contents, or at most one byte more than it should have, into `bytes`, in place of what is there.
fn read_file(path: &Path, layout: &Layout, records: usize, bytes: &mut Vec<u8>) -> Result<()> {
    let io = |source| Error::Io { path: path.into(), source };
    let length = layout.record() * records;
    let metadata = match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Missing {
                path: path.into(),
                expected: format!("{records} records, {length} bytes"),
                advice: layout.unpack_again(),
            });
        }
        metadata => metadata.map_err(io)?,
    };
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a folder" } else { "no regular file" };
        return Err(Error::Malformed {
            path: path.into(),
            offset: 0,
            found: found.into(),
            expected: format!("a file of {length} bytes"),
            advice: layout.unpack_again(),
        });
    }
    // A file of any length may lie here: its length is reported without reading all of it.
    if metadata.len() > length as u64 {
        let mut head = [0; 16];
        let read = File::open(path).and_then(|mut file| file.read(&mut head)).map_err(io)?;
        return Err(wrong_length(&head[..read], metadata.len(), path, layout, records));
    }
    bytes.clear();
    bytes.reserve_exact(length + 1);
    File::open(path)
        .and_then(|file| file.take(length as u64 + 1).read_to_end(bytes))
        .map_err(io)?;
    Ok(())
}

/// Checks length and labels.
fn check(bytes: &[u8], path: &Path, layout: &Layout, records: usize) -> Result<()> {
    if bytes.len() != layout.record() * records {
        return Err(wrong_length(bytes, bytes.len() as u64, path, layout, records));
    }
    for (number, record) in bytes.chunks_exact(layout.record()).enumerate() {
        for (at, (&found, (name, classes))) in record.iter().zip(layout.labels).enumerate() {
            if found >= *classes {
                return Err(Error::Malformed {
                    path: path.into(),
                    offset: (number * layout.record() + at) as u64,
                    found: format!("{name} {found} in record {number}"),
                    expected: format!("0 to {}", classes - 1),
                    advice: layout.unpack_again(),
                });
            }
        }
    }
    Ok(())
}

fn wrong_length(head: &[u8], length: u64, path: &Path, layout: &Layout, records: usize) -> Error {
    let expected = (layout.record() * records) as u64;
    let malformed = |offset, found, expected, advice| Error::Malformed {
        path: path.into(),
        offset,
        found,
        expected,
        advice,
    };
    let whole = format!("{records} records of {} bytes", layout.record());
    if let Some((kind, advice)) = foreign(head) {
        return malformed(0, kind.into(), format!("{whole}, {expected} bytes"), advice.into());
    }
    if length < expected {
        let found = match length {
            0 => "an empty file".into(),
            _ => format!("the end of the file after {} records", length / layout.record() as u64),
        };
        return malformed(
            length,
            found,
            format!("{whole}, {expected} bytes"),
            layout.unpack_again(),
        );
    }
    malformed(
        expected,
        format!("{} bytes more", length - expected),
        format!("the end of the file after {whole}"),
        layout.unpack_again(),
    )
}

/// What kind a file of the wrong length is, judged by its first bytes, and what to do about it.
fn foreign(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const RENAME: &str = "it is of the Python version: unpack that archive into a folder of its own, its names have no .bin";
    const KINDS: [(&[u8], &str, &str); 7] = [
        (b"\x1f\x8b", "a gzip archive", "unpack it first"),
        (b"PK\x03\x04", "a zip archive", "unpack it first"),
        (b"\x80\x02", "a Python pickle", RENAME),
        (b"\x80\x03", "a Python pickle", RENAME),
        (b"\x80\x04", "a Python pickle", RENAME),
        (b"<", "HTML or XML", "download the file again, this is a page and not the data"),
        (b"version https://git-lfs", "a Git LFS pointer", "fetch the file that it stands for"),
    ];
    KINDS
        .iter()
        .find(|(magic, ..)| head.starts_with(magic))
        .map(|&(_, kind, advice)| (kind, advice))
}

/// A split without images, with room for so many.
fn empty(images: usize, layout: &Layout) -> Split {
    let coarse = (layout.labels.len() > 1).then(|| Vec::with_capacity(images));
    Split {
        images: Vec::with_capacity(images * PIXELS),
        labels: Vec::with_capacity(images),
        coarse_labels: coarse,
        shape: SHAPE,
    }
}

/// Appends the records of a checked file.
fn append(bytes: &[u8], layout: &Layout, split: &mut Split) {
    let class = layout.labels.len() - 1;
    for record in bytes.chunks_exact(layout.record()) {
        split.labels.push(u32::from(record[class]));
        if let Some(coarse) = &mut split.coarse_labels {
            coarse.extend(record[..class].iter().map(|&label| u32::from(label)));
        }
        split.images.extend_from_slice(&record[class + 1..]);
    }
}

impl Layout {
    /// Bytes of a record.
    const fn record(&self) -> usize {
        self.labels.len() + PIXELS
    }

    fn unpack_again(&self) -> String {
        format!(
            "unpack {}'s archive again (remove the folder, and `cargo xtask data` does)",
            self.title
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether these bytes are valid by the format's definition, written as simply as possible.
    fn is_valid(bytes: &[u8], layout: &Layout, records: usize) -> bool {
        let record = PIXELS + layout.labels.len();
        bytes.len() == record * records
            && (0..records).all(|n| {
                (0..layout.labels.len()).all(|at| bytes[n * record + at] < layout.labels[at].1)
            })
    }

    fn read_bytes(bytes: &[u8], layout: &Layout, records: usize) -> Result<Split> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batch.bin");
        std::fs::write(&path, bytes).unwrap();
        let mut read = vec![7; 5];
        read_file(&path, layout, records, &mut read)?;
        check(&read, &path, layout, records)?;
        let mut split = empty(records, layout);
        append(&read, layout, &mut split);
        Ok(split)
    }

    fn agrees_with_the_format(bytes: &[u8], layout: &Layout, records: usize) {
        match read_bytes(bytes, layout, records) {
            Ok(split) => {
                assert!(is_valid(bytes, layout, records));
                let labels = layout.labels.len();
                assert_eq!(split.len(), records);
                for n in 0..records {
                    let record = &bytes[n * (PIXELS + labels)..][..PIXELS + labels];
                    assert_eq!(split.image(n), &record[labels..]);
                    assert_eq!(split.labels[n], u32::from(record[labels - 1]));
                    assert_eq!(split.coarse_labels.as_ref().map(|coarse| coarse[n]), {
                        (labels == 2).then(|| u32::from(record[0]))
                    });
                }
            }
            Err(Error::Malformed { offset, found, expected, .. }) => {
                assert!(!is_valid(bytes, layout, records));
                assert!(offset <= bytes.len() as u64 && !found.is_empty() && !expected.is_empty());
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Three records with any labels and pixels, cut or lengthened by a few bytes.
    fn nearly_records(labels: usize) -> impl Strategy<Value = Vec<u8>> {
        let label = prop_oneof![4 => 0..10u8, 1 => any::<u8>()];
        let record = (prop::collection::vec(label, labels), any::<u8>(), any::<u8>()).prop_map(
            |(mut record, start, step)| {
                record
                    .extend((0..PIXELS).map(|i| start.wrapping_add((i as u8).wrapping_mul(step))));
                record
            },
        );
        let change = prop_oneof![3 => Just(0isize), 1 => -4000..4000isize];
        (prop::collection::vec(record, 3), change).prop_map(|(records, change)| {
            let mut bytes = records.concat();
            bytes.resize(bytes.len().saturating_add_signed(change), 1);
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_an_error_or_read_correctly(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            agrees_with_the_format(&bytes, &CIFAR10, 0);
            agrees_with_the_format(&bytes, &CIFAR10, 1);
            agrees_with_the_format(&bytes, &CIFAR100, 1);
        }

        #[test]
        fn cifar10_records_are_an_error_or_read_correctly(bytes in nearly_records(1)) {
            agrees_with_the_format(&bytes, &CIFAR10, 3);
        }

        #[test]
        fn cifar100_records_are_an_error_or_read_correctly(bytes in nearly_records(2)) {
            agrees_with_the_format(&bytes, &CIFAR100, 3);
        }
    }

    #[test]
    fn records_in_memory_are_read_like_files() {
        let name = Path::new("memory");
        let two = cifar10_records(&[vec![3; 3073], vec![9; 3073]].concat(), name).unwrap();
        assert_eq!((two.len(), &two.labels[..]), (2, &[3, 9][..]));
        assert!(cifar10_records(&[], name).unwrap().is_empty());
        let error = cifar10_records(&[1; 3072], name).unwrap_err().to_string();
        assert!(error.contains("memory") && error.contains("1 records of 3073 bytes"), "{error}");
        let error = cifar100_records(&[20; 3074], name).unwrap_err().to_string();
        assert!(error.contains("coarse label 20"), "{error}");
    }

    #[test]
    fn class_names_are_all_there() {
        for names in [&CIFAR10_CLASSES[..], &CIFAR100_CLASSES, &CIFAR100_COARSE_CLASSES] {
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), names.len());
        }
        // CIFAR-100's fine and coarse classes are numbered in alphabetical order.
        assert!(CIFAR100_CLASSES.is_sorted() && CIFAR100_COARSE_CLASSES.is_sorted());
    }
}
