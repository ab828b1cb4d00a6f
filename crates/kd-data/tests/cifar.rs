//! The reader on whole generated data sets: what is right is read right, each kind of damage is
//! told apart, with file, offset, what was found and what was expected.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use common::CIFAR10_FILES;
use kd_data::{Error, Result, Split, cifar10, cifar100};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const BATCH: u64 = 30_730_000;

/// A CIFAR-10 of which `file` may be changed: the others are links to whole ones.
fn cifar10_but(file: &str) -> TempDir {
    let whole = common::cifar10();
    let dir = tempfile::tempdir().unwrap();
    for name in CIFAR10_FILES {
        let (from, to) = (whole.path().join(name), dir.path().join(name));
        if name == file {
            fs::copy(from, to).unwrap();
        } else {
            fs::hard_link(from, to).unwrap();
        }
    }
    dir
}

/// The message, after checking that the error is of this file and offset.
fn malformed<T>(result: Result<T>, file: &str, at: u64) -> String {
    let Err(error) = result else { panic!("{file} was taken for whole") };
    let message = error.to_string();
    let Error::Malformed { path, offset, .. } = error else { panic!("{message}") };
    assert!(path.ends_with(file), "{message}");
    assert_eq!(offset, at, "{message}");
    assert!(message.contains(&format!("{file}: at byte {at}: found ")), "{message}");
    message
}

fn resize(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn put(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

fn agrees(split: &Split, file: usize, first: usize, records: usize, label_classes: &[u8]) {
    let labels = label_classes.len();
    for record in (0..records).step_by(97).chain([records - 1]) {
        let expected = |at| common::byte(file, record, at, label_classes);
        let i = first + record;
        assert_eq!(split.labels[i], u32::from(expected(labels - 1)));
        assert_eq!(split.coarse_labels.as_ref().map(|coarse| coarse[i]), {
            (labels == 2).then(|| u32::from(expected(0)))
        });
        let image = split.image(i);
        assert!((0..3072).all(|at| image[at] == expected(labels + at)), "image {i}");
    }
}

#[test]
fn cifar10_is_read_entry_by_entry() {
    let dir = common::cifar10();
    let dataset = cifar10(dir.path()).unwrap();
    assert_eq!((dataset.train.len(), dataset.test.len()), (50_000, 10_000));
    assert_eq!((dataset.name.as_str(), dataset.train.shape), ("cifar10", [3, 32, 32]));
    assert_eq!((dataset.classes.len(), dataset.classes[3].as_str()), (10, "cat"));
    for file in 0..5 {
        agrees(&dataset.train, file, file * 10_000, 10_000, &[10]);
    }
    agrees(&dataset.test, 5, 0, 10_000, &[10]);
    let contents = CIFAR10_FILES.map(|name| fs::read(dir.path().join(name)).unwrap());
    let sha256: String =
        Sha256::digest(contents.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(dataset.sha256, sha256);
}

#[test]
fn the_parent_folder_will_do() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cifar-10-batches-bin");
    fs::rename(cifar10_but("").keep(), &folder).unwrap();
    assert_eq!(cifar10(parent.path()).unwrap(), cifar10(&folder).unwrap());
}

#[test]
fn cifar100_is_read_with_both_labels_and_refused_where_one_is_out_of_range() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cifar-100-binary");
    fs::create_dir(&folder).unwrap();
    common::write(&folder, &[("train.bin", 50_000), ("test.bin", 10_000)], &[20, 100]);
    let dataset = cifar100(parent.path()).unwrap();
    assert_eq!((dataset.train.len(), dataset.test.len()), (50_000, 10_000));
    assert_eq!((dataset.name.as_str(), dataset.classes.len()), ("cifar100", 100));
    agrees(&dataset.train, 0, 0, 50_000, &[20, 100]);
    agrees(&dataset.test, 1, 0, 10_000, &[20, 100]);

    put(&folder.join("train.bin"), 2 * 3074 + 1, &[100]);
    let message = malformed(cifar100(&folder), "train.bin", 2 * 3074 + 1);
    assert!(message.contains("found fine label 100 in record 2, expected 0 to 99"), "{message}");
    put(&folder.join("train.bin"), 2 * 3074, &[20]);
    let message = malformed(cifar100(&folder), "train.bin", 2 * 3074);
    assert!(message.contains("found coarse label 20 in record 2, expected 0 to 19"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    for file in CIFAR10_FILES {
        let dir = cifar10_but(file);
        fs::remove_file(dir.path().join(file)).unwrap();
        let error = cifar10(dir.path()).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Missing { path, .. } if path.ends_with(file)), "{message}");
        assert!(message.contains("not found; expected 10000 records, 30730000 bytes"), "{message}");
    }
}

#[test]
fn a_missing_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = cifar10(&dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(message.contains("nowhere: not found; expected a folder with"), "{message}");
}

#[test]
fn an_empty_folder_is_an_error_that_says_what_belongs_there() {
    let dir = tempfile::tempdir().unwrap();
    let message = cifar10(dir.path()).unwrap_err().to_string();
    assert!(message.contains("data_batch_1.bin: not found; expected it here"), "{message}");
    assert!(message.contains("cifar-10-batches-bin"), "{message}");
}

#[test]
fn the_other_data_set_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("train.bin")).unwrap();
    let message = cifar10(dir.path()).unwrap_err().to_string();
    assert!(message.contains("looks like CIFAR-100"), "{message}");
}

/// A file of the Python version, as its authors' scripts wrote them: `pickle.dump(..., protocol=2)` of Python 2.
fn pickled(bytes: &[u8]) -> Vec<u8> {
    let records = bytes.len() / 3073;
    let mut out =
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x07a batchq\x03U\x06labelsq\x04]q\x05(".to_vec();
    bytes.chunks_exact(3073).for_each(|record| out.extend([b'K', record[0]]));
    out.extend(b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01M");
    out.extend((records as u16).to_le_bytes());
    out.extend(b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T");
    out.extend((3072 * records as u32).to_le_bytes());
    bytes.chunks_exact(3073).for_each(|record| out.extend(&record[1..]));
    out.extend(b"tbU\x09filenamesq\x0c]q\x0d(U\x05a.pngq\x0eh\x0eeu.");
    out
}

#[test]
fn the_python_version_is_the_same_data_set() {
    let whole = common::cifar10();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cifar-10-batches-py");
    fs::create_dir(&folder).unwrap();
    for name in CIFAR10_FILES {
        let bytes = fs::read(whole.path().join(name)).unwrap();
        fs::write(folder.join(name.trim_end_matches(".bin")), pickled(&bytes)).unwrap();
    }
    assert!(cifar10(parent.path()).unwrap() == cifar10(whole.path()).unwrap());

    let batch = folder.join("data_batch_2");
    let bytes = fs::read(&batch).unwrap();
    fs::write(&batch, &bytes[..1000]).unwrap();
    let message = malformed(cifar10(&folder), "data_batch_2", 1000);
    assert!(message.contains("found the end of the file"), "{message}");
    for (from, to, at, expected) in [
        (&b"U\x06labels"[..], &b"U\x06lebels"[..], 0, "no list of labels named labels"),
        (b"K\x03U\x01|", b"Z\x03U\x01|", 20_158, "the opcode 0x5a"),
        (b"tb\x89T", b"tb\x88T", 30_740_187, "columns come first"),
    ] {
        let place = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let mut changed = bytes.clone();
        changed[place..][..to.len()].copy_from_slice(to);
        fs::write(&batch, changed).unwrap();
        let message = malformed(cifar10(&folder), "data_batch_2", at);
        assert!(message.contains(expected), "{message}");
    }
    let deep = [b"\x80\x02N".to_vec(), vec![0x85; 3_000_000], b".".to_vec()].concat();
    let lists = [b"\x80\x02".to_vec(), b"]".repeat(40), b"a".repeat(40)].concat();
    for (contents, at, expected) in [
        (deep, 20, "more than 16 lists"),
        (lists, 58, "more than 16 lists"),
        ([b"\x80\x02".to_vec(), vec![b'N'; 1_500_000]].concat(), 1_000_001, "1000000 opcodes"),
        ([b"\x80\x02".to_vec(), vec![b'('; 1_500_000]].concat(), 1_000_001, "1000000 opcodes"),
    ] {
        fs::write(&batch, contents).unwrap();
        let message = malformed(cifar10(&folder), "data_batch_2", at);
        assert!(message.contains(expected), "{message}");
    }
    fs::remove_file(&batch).unwrap();
    let message = cifar10(&folder).unwrap_err().to_string();
    assert!(message.contains("data_batch_2: not found; expected a pickle"), "{message}");
}

#[test]
fn a_short_file_is_an_error_at_its_end() {
    let dir = cifar10_but("data_batch_3.bin");
    resize(&dir.path().join("data_batch_3.bin"), BATCH - 1);
    let message = malformed(cifar10(dir.path()), "data_batch_3.bin", BATCH - 1);
    assert!(message.contains("the end of the file after 9999 records"), "{message}");
    assert!(message.contains("expected 10000 records of 3073 bytes, 30730000 bytes"), "{message}");
}

#[test]
fn an_over_long_file_is_an_error_where_it_should_end() {
    let dir = cifar10_but("test_batch.bin");
    resize(&dir.path().join("test_batch.bin"), BATCH + 3073);
    let message = malformed(cifar10(dir.path()), "test_batch.bin", BATCH);
    assert!(message.contains("found 3073 bytes more"), "{message}");
}

#[test]
fn an_empty_file_is_an_error() {
    let dir = cifar10_but("data_batch_2.bin");
    resize(&dir.path().join("data_batch_2.bin"), 0);
    let message = malformed(cifar10(dir.path()), "data_batch_2.bin", 0);
    assert!(message.contains("found an empty file"), "{message}");
}

#[test]
fn a_foreign_file_is_recognised() {
    for (bytes, kind) in [
        (&b"<!DOCTYPE html><title>404</title>"[..], "HTML"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
        (b"\x80\x02}q\x01(U\x0bbatch_label", "pickle"),
    ] {
        let dir = cifar10_but("data_batch_1.bin");
        fs::write(dir.path().join("data_batch_1.bin"), bytes).unwrap();
        let message = malformed(cifar10(dir.path()), "data_batch_1.bin", 0);
        assert!(message.contains(kind), "{message}");
        // Longer than a batch, too.
        resize(&dir.path().join("data_batch_1.bin"), BATCH + 1);
        assert!(malformed(cifar10(dir.path()), "data_batch_1.bin", 0).contains(kind));
    }
}

#[test]
fn a_label_out_of_range_is_an_error_at_its_byte_even_in_the_last_record() {
    for (file, record) in [("data_batch_1.bin", 0), ("data_batch_5.bin", 9_999)] {
        let dir = cifar10_but(file);
        put(&dir.path().join(file), record * 3073, &[10]);
        let message = malformed(cifar10(dir.path()), file, record * 3073);
        let expected = format!("found label 10 in record {record}, expected 0 to 9");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn of_several_damaged_files_the_first_is_named() {
    let dir = cifar10_but("data_batch_4.bin");
    resize(&dir.path().join("data_batch_4.bin"), 7);
    fs::remove_file(dir.path().join("test_batch.bin")).unwrap();
    malformed(cifar10(dir.path()), "data_batch_4.bin", 7);
}

#[test]
fn a_folder_in_a_files_place_is_an_error() {
    let dir = cifar10_but("data_batch_4.bin");
    fs::remove_file(dir.path().join("data_batch_4.bin")).unwrap();
    fs::create_dir(dir.path().join("data_batch_4.bin")).unwrap();
    let message = malformed(cifar10(dir.path()), "data_batch_4.bin", 0);
    assert!(message.contains("found a folder, expected a file of 30730000 bytes"), "{message}");
}

#[test]
fn a_file_in_the_folders_place_is_an_error() {
    let dir = common::cifar10();
    let message = cifar10(&dir.path().join("test_batch.bin")).unwrap_err().to_string();
    assert!(message.contains("test_batch.bin: "), "{message}");
    assert!(message.contains("a folder with data_batch_1.bin"), "{message}");
}
