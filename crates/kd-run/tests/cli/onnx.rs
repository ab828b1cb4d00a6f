//! A teacher in an ONNX file, a network of PyTorch's: with the feature `onnx`, and ONNX Runtime's library where `ORT_DYLIB_PATH` says.

use std::fs;
use std::path::Path;

use kd_record::PictureLogits;
use serde_json::Value;

use crate::workdir::WorkDir;

/// What ONNX Runtime computed in Python: parity/make_onnx.py writes both files.
const TEACHER: &[u8] = include_bytes!("fixtures/teacher.onnx");
const VALUES: &str = include_str!("fixtures/teacher-onnx.json");

/// The library has to be there: what is not run must not look as if it had passed.
fn needs_library() {
    let named = std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| Path::new(&path).is_file());
    assert!(
        named,
        "ORT_DYLIB_PATH has to name ONNX Runtime's library for this test: `pip install onnxruntime` brings libonnxruntime.so.*"
    );
}

/// The teacher, what timm would say beside it, and pictures of one colour each, in two classes.
fn prepare() -> (WorkDir, Vec<Vec<f64>>) {
    needs_library();
    let dir = WorkDir::new();
    fs::create_dir(dir.path("hub")).unwrap();
    fs::write(dir.path("hub/teacher.onnx"), TEACHER).unwrap();
    let config = r#"{"architecture": "convnext_pico", "pretrained_cfg": {"input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, "label_names": ["b", "a"]}"#;
    fs::write(dir.path("hub/config.json"), config).unwrap();
    let values: Value = serde_json::from_str(VALUES).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    for (at, colour) in values["colours"].as_array().unwrap().iter().enumerate() {
        let colour: Vec<u8> = colour.as_array().unwrap().iter().map(|c| number(c) as u8).collect();
        for split in ["train", "test"] {
            let path = dir.path(&format!("mine/{split}/{}/{at}.png", ["a", "b"][at / 2]));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let pixel = image::Rgb([colour[0], colour[1], colour[2]]);
            image::RgbImage::from_pixel(32, 32, pixel).save(path).unwrap();
        }
    }
    let rows = values["logits"].as_array().unwrap().iter();
    let rows = rows.map(|row| row.as_array().unwrap().iter().map(number).collect()).collect();
    (dir, rows)
}

const RUN: &str = "--epochs 2 --batch-size 2 --lr 0.001 --dataset folder --data mine";

#[test]
fn logits_are_those_of_onnx_runtime_in_python_in_the_datas_order_of_classes() {
    let (dir, expected) = prepare();
    let said = dir.stdout("eval --weights hub/teacher.onnx --dataset folder --data mine --on train --logits answers --json");
    let printed: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&printed["model"], &printed["dataset"]["train"]), (&"onnx".into(), &4.into()));
    let found = PictureLogits::read(&dir.path("answers")).unwrap();
    assert_eq!((&found.classes[0][..], &found.names[2][..]), ("a", "train/b/2.png"));
    for (row, expected) in found.logits.chunks(2).zip(expected) {
        // The file's classes are b and a.
        for (value, expected) in row.iter().rev().zip(expected) {
            assert!((f64::from(*value) - expected).abs() < 1e-5, "{value} {expected}");
        }
    }
}

#[test]
fn a_student_learns_from_logits_and_from_tensors_inside_of_the_graph() {
    let (dir, _) = prepare();
    let distill = |out: &str, teacher: &str| {
        dir.stdout(&format!("distill --method kd --out {out} {teacher} {RUN}"));
        dir.read(&format!("{out}/kd.safetensors"))
    };
    let by_name = distill("a", "--teacher hub/teacher.onnx --teacher-output logits");
    let by_place = distill("b", "--teacher hub/teacher.onnx");
    assert!(by_name == by_place);
    let recorded = String::from_utf8(dir.read("a/kd/recipe.toml")).unwrap();
    assert!(
        recorded.contains("teacher_output = \"logits\"") && !recorded.contains("teacher_model")
    );

    // The convolution's values before the activation are no output of the file.
    let recipe = "format = 1\nname = \"r\"\n[data]\ndataset = \"folder\"\n[training]\nepochs = 1\nbatch_size = 2\n[[run]]\nname = \"small\"\nmodel = \"student\"\nteacher = \"hub/teacher.onnx\"\n[[run.method]]\nname = \"attention-transfer\"\nweight = 1.0\nstudent = [\"features.5\"]\nteacher = [\"PLACE\"]\n";
    let of = |place: &str| fs::write(dir.path("r.toml"), recipe.replace("PLACE", place)).unwrap();
    let run = "distill --recipe r.toml --run small --data mine --out d";
    of("nonsense");
    let message = dir.fails(run, 1);
    assert!(
        message.contains("it has no tensor nonsense")
            && message.contains("its outputs are logits, maps"),
        "{message}"
    );
    of("/conv/Conv_output_0");
    dir.stdout(run);
}

#[test]
fn what_an_onnx_file_lacks_is_said() {
    let (dir, _) = prepare();
    fs::write(dir.path("text.onnx"), "no model").unwrap();
    for (teacher, expected) in [
        ("text.onnx", "text.onnx: ONNX Runtime refuses it"),
        ("none.onnx", "none.onnx"),
        (
            "hub/teacher.onnx --teacher-output maps",
            "its output maps [images, 4, 8, 8] is no row of logits",
        ),
        (
            "hub/teacher.onnx --teacher-output 7",
            "there is no output 7: its outputs are logits, maps",
        ),
        (
            "hub/teacher.onnx --size 24",
            "its input images takes images [3, 32, 32]; the data's are [3, 24, 24]",
        ),
    ] {
        let line = format!("distill --method kd --out out --teacher {teacher} {RUN}");
        let message = dir.fails(&line, 1);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let line = format!("distill --method kd --out out --teacher hub/teacher.onnx {RUN}");
    let mut command = dir.command(&line);
    let output = command.env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so").output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && message.contains("`pip install onnxruntime`"),
        "{message}"
    );
}
