//! CIFAR's binary records: an error, or exactly the bytes that went in.

#![no_main]

use std::path::Path;

use kd_data::{Split, cifar10_records, cifar100_records};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let name = Path::new("fuzzed");
    check(data, cifar10_records(data, name), &[10]);
    check(data, cifar100_records(data, name), &[20, 100]);
    // Few inputs are long enough by themselves: the same, stretched to whole records.
    for labels in [&[10][..], &[20, 100]] {
        if data.is_empty() {
            continue;
        }
        let records = 1 + data.len() % 3;
        let stretched: Vec<u8> =
            data.iter().copied().cycle().take(records * (labels.len() + 3072)).collect();
        let read = if labels.len() == 1 { cifar10_records } else { cifar100_records };
        check(&stretched, read(&stretched, name), labels);
    }
});

fn check(data: &[u8], read: kd_data::Result<Split>, labels: &[u8]) {
    let record = labels.len() + 3072;
    let valid = data.len() % record == 0
        && data
            .chunks(record)
            .all(|record| record.iter().zip(labels).all(|(label, classes)| label < classes));
    match read {
        Ok(split) => {
            assert!(valid);
            assert_eq!(split.len() * record, data.len());
            for (index, record) in data.chunks(record).enumerate() {
                assert_eq!(split.labels[index], u32::from(record[labels.len() - 1]));
                assert_eq!(split.image(index), &record[labels.len()..]);
            }
        }
        Err(error) => {
            assert!(!valid);
            assert!(error.to_string().contains("fuzzed"));
        }
    }
}
