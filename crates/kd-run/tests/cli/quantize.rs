//! `kd quantize`: a network in eight bits, and what that costs.

use std::fs;

use kd_models::Architecture;
use serde_json::Value;

use crate::workdir::{WorkDir, weights};

/// The pictures of a tiny training run.
const DATA: &str = "--dataset synthetic --test-limit 40";

#[test]
fn a_trained_student_keeps_its_answers_in_eight_bits() {
    let dir = WorkDir::new();
    let run = "--dataset synthetic --train-limit 300 --test-limit 200 --epochs 2 --plain --out out";
    dir.stdout(&format!("train --model student {run}"));
    let data = "--dataset synthetic --test-limit 200";
    let line = format!(
        "quantize --weights out/student.safetensors --onnx int8.onnx --pictures 60 --logits l.safetensors --json {data}"
    );
    let found: Value = serde_json::from_str(&dir.stdout(&line)).unwrap();
    let accuracy = &found["accuracy"];
    assert_eq!(accuracy["float"], dir.json("out/student/evaluation.json")["accuracy"]);
    let share = |which: &str| accuracy[which].as_f64().unwrap();
    assert!((share("float") - share("int8")).abs() < 0.03, "{accuracy}");
    assert_eq!((&accuracy["images"], &found["calibrated_on"]), (&200.into(), &60.into()));
    // Four layers, each with less noise than a twentieth of its values.
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for layer in layers {
        assert!(layer["signal_to_noise_db"].as_f64().unwrap() > 26.0, "{layer}");
    }
    let bytes = fs::metadata(dir.path("int8.onnx")).unwrap().len();
    assert_eq!(found["bytes"], bytes);
    assert!(bytes < 300_000, "267,738 parameters as bytes: {bytes}");
    assert!(dir.path("l.safetensors").exists());
    // Written by kd, so it may be written over; a layer stays f32.
    let text = dir.stdout(&format!(
        "quantize --weights out/student.safetensors --onnx int8.onnx --pictures 20 --float classifier.0 --weight-bits 8 {data}"
    ));
    assert!(text.contains("8-bit weights, calibrated on 20 pictures; on processors"), "{text}");
    let larger = fs::metadata(dir.path("int8.onnx")).unwrap().len();
    assert!(larger > 3 * bytes, "most weights are that layer's: {larger}");
}

#[test]
fn what_can_not_be_quantised_is_said() {
    let dir = WorkDir::new();
    weights(&dir.path("w.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 0, true);
    let quantize = |flags: &str| format!("quantize --weights w.safetensors --onnx o.onnx {flags}");
    let message = dir.fails(&quantize(&format!("{DATA} --float features.9")), 1);
    assert!(message.contains("which are features.0, features.3"), "{message}");
    let message = dir.fails(&quantize("--weight-bits 4"), 2);
    assert!(message.contains("7..=8"), "{message}");
    fs::create_dir(dir.path("empty")).unwrap();
    let message = dir.fails(&quantize("--calibrate empty --no-test"), 1);
    assert!(message.contains("empty: the folder holds no PNG"), "{message}");
    weights(&dir.path("other.safetensors"), Architecture::TUTORIAL_STUDENT, 7, 0, true);
    let line = format!("quantize --weights other.safetensors --onnx o.onnx {DATA}");
    let message = dir.fails(&line, 1);
    assert!(message.contains("other classes than the data set"), "{message}");
    fs::write(dir.path("o.onnx"), "mine").unwrap();
    let message = dir.fails(&quantize(DATA), 1);
    assert!(message.contains("o.onnx: exists and was not written by kd"), "{message}");
    assert_eq!(dir.read("o.onnx"), b"mine");
}

#[test]
fn a_folder_of_pictures_is_enough_to_calibrate_on() {
    let dir = WorkDir::new();
    weights(&dir.path("w.safetensors"), Architecture::RESNET8, 10, 0, true);
    fs::create_dir(dir.path("p")).unwrap();
    for index in 0..5u8 {
        let color = image::Rgb([40 * index, 255 - 40 * index, 128]);
        image::RgbImage::from_pixel(32, 32, color)
            .save(dir.path(&format!("p/{index}.png")))
            .unwrap();
    }
    let line = "quantize --weights w.safetensors --onnx o.onnx --calibrate p --no-test --json";
    let found: Value = serde_json::from_str(&dir.stdout(line)).unwrap();
    assert_eq!((&found["calibrated_on"], found.get("accuracy")), (&5.into(), None));
    assert!(dir.path("o.onnx").exists());
}
