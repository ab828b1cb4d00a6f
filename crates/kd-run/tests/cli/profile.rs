//! `kd profile`: networks side by side.

use std::fs;

use kd_models::Architecture;
use serde_json::Value;

use crate::workdir::{WorkDir, weights};

/// Ten passes of one image each: the shortest measurement there is.
const SHORT: &str = "--batch 1 --threads 1 --seconds 0.001";

#[test]
fn networks_stand_side_by_side_and_the_report_shows_them() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    weights(&dir.path("foreign.safetensors"), Architecture::TUTORIAL_TEACHER, 10, 0, false);
    let line = format!("profile out/student.safetensors foreign.safetensors --out out {SHORT}");
    let text = dir.stdout(&line);
    assert!(text.contains("1,186,986") && text.contains("not known"), "{text}");

    let found = dir.json("out/profile.json");
    let [student, teacher] = &found["networks"].as_array().unwrap()[..] else { panic!("{found}") };
    assert_eq!((&student["network"], &student["parameters"]), (&"student".into(), &267_738.into()));
    assert_eq!(student["multiply_adds"], 1_296_896);
    let bytes = fs::metadata(dir.path("out/student.safetensors")).unwrap().len();
    assert_eq!(student["file_bytes"], bytes);
    let [pass] = &student["passes"].as_array().unwrap()[..] else { panic!("{student}") };
    assert_eq!((&pass["batch"], &pass["threads"]), (&1.into(), &1.into()));
    assert!(pass["median_ms"].as_f64().unwrap() > 0.0, "{pass}");
    // The weights alone are 4 bytes a parameter.
    assert!(pass["peak_bytes"].as_u64().unwrap() > 4 * 267_738, "{pass}");
    // The accuracy is that of the run's own evaluation.
    let evaluation = dir.json("out/student/evaluation.json");
    assert_eq!(student["accuracy"]["share"], evaluation["accuracy"]);
    assert_eq!((&teacher["network"], teacher.get("accuracy")), (&"teacher".into(), None));

    // Other weights under the run's name are not what its folder is about.
    weights(&dir.path("out/copy.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 3, true);
    let of_the_run = dir.read("out/student.safetensors");
    fs::rename(dir.path("out/copy.safetensors"), dir.path("out/student.safetensors")).unwrap();
    let text = dir.stdout(&format!("profile out/student.safetensors {SHORT}"));
    assert!(text.contains("not known"), "{text}");
    fs::write(dir.path("out/student.safetensors"), of_the_run).unwrap();

    dir.stdout("report out");
    let page = String::from_utf8(dir.read("out/report.html")).unwrap();
    assert!(page.contains("Accuracy over latency") && page.contains("foreign.safetensors"));
    // Again: its own file is written over.
    let line = format!("profile foreign.safetensors --accuracy 72.5 --out out --json {SHORT}");
    let again: Value = serde_json::from_str(&dir.stdout(&line)).unwrap();
    assert_eq!(again["networks"][0]["accuracy"]["share"], 0.725);
}

#[test]
fn what_can_not_be_profiled_is_said() {
    let dir = WorkDir::new();
    weights(&dir.path("w.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 0, true);
    let message = dir.fails("profile w.safetensors --accuracy 1,2", 2);
    assert!(message.contains("--accuracy has 2 numbers for 1 files"), "{message}");
    let message = dir.fails("profile none.safetensors", 1);
    assert!(message.contains("none.safetensors"), "{message}");
    let message = dir.fails("profile w.safetensors --accuracy 101", 2);
    assert!(message.contains("expected a number from 0 to 100"), "{message}");
    for (flags, expected) in
        [("--seconds 1e20", "at most 3600"), ("--batch 10000000000000", "from 1 to 1000000")]
    {
        let message = dir.fails(&format!("profile w.safetensors {flags}"), 2);
        assert!(message.contains(expected), "{message}");
    }
    fs::create_dir(dir.path("out")).unwrap();
    fs::write(dir.path("out/profile.json"), "{\"mine\": 1}").unwrap();
    let message = dir.fails(&format!("profile w.safetensors --out out {SHORT}"), 1);
    assert!(message.contains("profile.json: exists and was not written by kd"), "{message}");
}
