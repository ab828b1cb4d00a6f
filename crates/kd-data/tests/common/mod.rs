//! Generated data sets in the binary layouts.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tempfile::TempDir;

pub(crate) const CIFAR10_FILES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];

/// Byte `at` of a generated file: labels in range, pixels that differ in every direction.
pub(crate) fn byte(file: usize, record: usize, at: usize, label_classes: &[u8]) -> u8 {
    match label_classes.get(at) {
        Some(&classes) => ((record * 7 + file + at) % usize::from(classes)) as u8,
        None => {
            let pixel = at - label_classes.len();
            let (channel, y, x) = (pixel / 1024, pixel / 32 % 32, pixel % 32);
            (record * 31 + file * 101 + channel * 57 + y * 5 + x * 3 + y * x) as u8
        }
    }
}

pub(crate) fn write(dir: &Path, files: &[(&str, usize)], label_classes: &[u8]) {
    for (number, (name, records)) in files.iter().enumerate() {
        let length = label_classes.len() + 3072;
        let mut bytes = Vec::with_capacity(records * length);
        for record in 0..*records {
            bytes.extend((0..length).map(|at| byte(number, record, at, label_classes)));
        }
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// A whole CIFAR-10 in generated files, shared by the tests that run at the same time and removed
/// after the last of them.
pub(crate) fn cifar10() -> Arc<TempDir> {
    static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        write(dir.path(), &CIFAR10_FILES.map(|name| (name, 10_000)), &[10]);
        *shared = Arc::downgrade(&dir);
        dir
    })
}
