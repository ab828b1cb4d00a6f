//! `--tensorboard`: the file's framing, checksums and messages, read here without the code that wrote
//! them. The real TensorBoard reads one in `parity/tensorboard_file.py`.

use std::ops::ControlFlow;

use kd_run::train::{Outcome, Progress, train};

use crate::resume::resolved;
use crate::workdir::WorkDir;

/// CRC-32C bit by bit (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn masked(bytes: &[u8]) -> u32 {
    let crc = crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The messages of the framed records.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(word(8), masked(&bytes[..8]), "the length's checksum");
        let message = &bytes[12..12 + length];
        assert_eq!(word(12 + length), masked(message), "the message's checksum");
        found.push(message);
        bytes = &bytes[16 + length..];
    }
    found
}

/// Number, wire type and bytes of each field of a protobuf message; numbers as eight bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, 0, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, key & 7, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    found
}

/// Time, step, tag and value of each scalar of a run's only file that isn't empty.
fn scalars(dir: &WorkDir, run: &str) -> Vec<(f64, u64, String, f32)> {
    let entries = std::fs::read_dir(dir.path(run)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
    assert!(files.len() <= 2, "{files:?}");
    files.retain(|path| std::fs::metadata(path).unwrap().len() > 0);
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = std::fs::read(&files[0]).unwrap();
    let messages = messages(&bytes);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let version = fields(messages[0]);
    assert!(version.contains(&(3, 2, b"brain.Event:2".to_vec())), "{version:?}");
    // A session's start: field 7 with status 1.
    assert!(fields(messages[1]).contains(&(7, 2, vec![8, 1])), "{:?}", messages[1]);
    let mut found = Vec::new();
    for message in &messages[2..] {
        let of = fields(message);
        let field = |wanted: u64| &of.iter().find(|(number, ..)| *number == wanted).unwrap().2;
        let time = f64::from_bits(number(field(1)));
        for (_, _, value) in fields(field(5)) {
            let value = fields(&value);
            assert_eq!((value[0].0, value[1].0, value[1].1), (1, 2, 5));
            let scalar = f32::from_le_bytes(value[1].2[..].try_into().unwrap());
            let tag = String::from_utf8(value[0].2.clone()).unwrap();
            found.push((time, number(field(2)), tag, scalar));
        }
    }
    found
}

#[test]
fn the_checksum_is_the_standards() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}

#[test]
fn the_file_holds_the_events_scalars_once_also_after_a_stop() {
    let dir = WorkDir::new();
    dir.train("train --model student --out whole --tensorboard");
    let mut run = resolved(&dir, "whole/student", "stopped");
    run.settings.tensorboard = true;
    run.settings.event_steps = 5;
    let outcome = train(&run, &mut |progress| match progress {
        Progress::Step { step: 12, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Ok(Outcome::Stopped { step: 12 })));
    let at_stop = scalars(&dir, "stopped/student");
    dir.train("train --model student --out stopped --tensorboard");
    let found = scalars(&dir, "stopped/student");
    assert_eq!(found[..at_stop.len()], at_stop);

    let events = String::from_utf8(dir.read("stopped/student/events.jsonl")).unwrap();
    let mut expected = Vec::new();
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        let time = event["time"].as_f64().unwrap();
        let mut add = |step: &str, tag: &str, value: &serde_json::Value| {
            let (step, value) = (event[step].as_u64().unwrap(), value.as_f64().unwrap() as f32);
            expected.push((time, step, tag.to_owned(), value));
        };
        match event["event"].as_str().unwrap() {
            "step" => add("step", "train/step_loss", &event["loss"]),
            "epoch" => {
                add("epoch", "train/loss", &event["train_loss"]);
                add("epoch", "train/accuracy", &event["train_accuracy"]);
                add("epoch", "train/learning_rate", &event["learning_rate"]);
                add("epoch", "train/images_per_second", &event["images_per_second"]);
                add("epoch", "test/loss", &event["test_loss"]);
                add("epoch", "test/accuracy", &event["test_accuracy"]);
                add("epoch", "parts/labels", &event["parts"]["labels"]);
            }
            _ => {}
        }
    }
    assert!(expected.iter().any(|(_, step, tag, _)| (*step, &**tag) == (5, "train/step_loss")));
    assert!(expected.iter().all(|(time, ..)| *time > 1.7e9));
    assert_eq!(found, expected);

    // Of a finished run the file is made anew from its events.
    let before = scalars(&dir, "whole/student");
    for entry in std::fs::read_dir(dir.path("whole/student")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("tfevents") {
            std::fs::remove_file(path).unwrap();
        }
    }
    dir.train("train --model student --out whole --tensorboard");
    assert_eq!(scalars(&dir, "whole/student"), before);
}
