//! `kd eval` and `kd report`.

use candle_core::Device;
use kd_models::Architecture;
use serde_json::Value;

use crate::workdir::{WorkDir, weights};

const DATA: &str = "--dataset synthetic --test-limit 40";

#[test]
fn evaluation_agrees_with_the_runs_own() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    let text = dir
        .stdout(&format!("eval --model student --weights out/student.safetensors {DATA} --json"));
    let printed: Value = serde_json::from_str(&text).unwrap();
    let own = dir.json("out/student/evaluation.json");
    let figures = ["accuracy", "loss", "balanced_accuracy", "macro_f1"];
    for key in figures.into_iter().chain(["classes", "confusion", "per_class_accuracy"]) {
        assert_eq!(printed[key], own[key], "{key}");
        assert!(!own[key].is_null(), "{key}");
    }
    let summary = dir.json("out/summary.json");
    for key in ["accuracy", "balanced_accuracy", "macro_f1"] {
        assert_eq!(summary["runs"][0][format!("test_{key}")], own[key], "{key}");
    }
    assert_eq!(printed["model"], "student");
    assert_eq!(printed["dataset"]["test"], 40);
    // The file says which network it is; for people there is a table.
    let table = dir.stdout(&format!("eval --weights out/student.safetensors {DATA}"));
    let accuracy = 100.0 * own["accuracy"].as_f64().unwrap();
    assert!(table.contains(&format!("test accuracy {accuracy:.2} %")), "{table}");
    let f1 = 100.0 * own["macro_f1"].as_f64().unwrap();
    // The test images are even over the classes.
    let both = format!("balanced accuracy {accuracy:.2} %, macro F1 {f1:.2} %, test loss");
    assert!(table.contains(&both), "{table}");
    assert_eq!(table.lines().count(), 3 + 10, "{table}");
}

#[test]
fn a_class_without_test_images_has_no_accuracy() {
    let dir = WorkDir::new();
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 0, true);
    let line = "eval --weights student.safetensors --dataset synthetic --test-limit 7";
    let output = dir.command(line).output().unwrap();
    let (table, warning) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let none = table.lines().filter(|line| line.contains(" none ")).count();
    assert_eq!((none, table.matches(" %").count()), (3, 3 + 7), "{table}");
    assert!(table.contains("% (of the 7 of 10 classes with test images), macro F1"), "{table}");
    assert!(warning.contains("no test image is of the classes `"), "{warning}");
    let printed: Value = serde_json::from_str(&dir.stdout(&format!("{line} --json"))).unwrap();
    let shares = printed["per_class_accuracy"].as_array().unwrap();
    assert_eq!(shares.iter().filter(|share| share.is_null()).count(), 3, "{shares:?}");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let dir = WorkDir::new();
    weights(&dir.path("hundred.safetensors"), Architecture::TUTORIAL_STUDENT, 100, 0, true);
    let message =
        dir.fails(&format!("eval --weights hundred.safetensors --model student {DATA}"), 1);
    assert!(message.contains("classify 100 classes; the data has 10"), "{message}");
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 0, true);
    let message =
        dir.fails(&format!("eval --weights student.safetensors --model teacher {DATA}"), 1);
    assert!(message.contains("weights of a student, not of a teacher"), "{message}");
    let message = dir.fails(&format!("eval --weights none.safetensors {DATA}"), 1);
    assert!(message.contains("none.safetensors: can't be read"), "{message}");
}

#[test]
fn what_was_done_to_read_anothers_weights_is_said() {
    let dir = WorkDir::new();
    let plain = dir.path("plain.safetensors");
    weights(&plain, Architecture::TUTORIAL_STUDENT, 10, 0, false);
    let tensors = candle_core::safetensors::load(&plain, &Device::Cpu).unwrap();
    let wrapped = tensors.into_iter().map(|(name, tensor)| (format!("module.{name}"), tensor));
    candle_core::safetensors::save(&wrapped.collect(), dir.path("wrapped.pth")).unwrap();
    let said = |line: &str| {
        let output = dir.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for line in [
        format!("eval --model student {DATA} --weights"),
        "export --model student --onnx x.onnx --weights".to_string(),
    ] {
        let (same, nothing) = said(&format!("{line} plain.safetensors"));
        assert!(!nothing.contains("module."), "{nothing}");
        let (found, note) = said(&format!("{line} wrapped.pth"));
        assert_eq!(found, same);
        assert!(note.contains("wrapped.pth: kd takes the tensors under `module.`"), "{note}");
    }
    for line in [
        "train --model student --init",
        "distill --method kd --model student --teacher-model student --teacher",
    ] {
        let few = format!("--train-limit 40 --epochs 1 --out out {DATA}");
        let (notes, _) = said(&format!("{line} wrapped.pth {few}"));
        assert!(notes.contains("wrapped.pth: kd takes the tensors under `module.`"), "{notes}");
    }
}

#[test]
fn a_report_shows_the_runs_of_a_folder() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    let accuracy = dir.json("out/summary.json")["runs"][0]["test_accuracy"].as_f64().unwrap();
    std::fs::remove_file(dir.path("out/report.html")).unwrap();
    let table = dir.stdout("report out");
    assert!(table.contains(&format!("{:.2}", 100.0 * accuracy)), "{table}");
    assert!(dir.path("out/report.html").exists());
    let printed: Value = serde_json::from_str(&dir.stdout("report out --json")).unwrap();
    assert_eq!(printed, Value::Array(vec![dir.json("out/summary.json")]));
    let message = dir.fails("report nothing-here", 1);
    assert!(message.contains("nothing-here"), "{message}");
}
