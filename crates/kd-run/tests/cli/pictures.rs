//! `kd predict`, and training on one's own pictures.

use std::fs;
use std::path::Path;

use image::RgbImage;
use kd_models::Architecture;
use serde_json::Value;

use crate::workdir::{WorkDir, damage, weights};

/// Saves image `i` of a split.
pub(crate) fn save(split: &kd_data::Split, i: usize, path: &Path) {
    let pixels = split.image(i);
    let pixel = |x, y| image::Rgb([0, 1, 2].map(|c| pixels[c * 1024 + (y * 32 + x) as usize]));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_fn(32, 32, pixel).save(path).unwrap();
}

fn synthetic() -> kd_data::Dataset {
    // A smaller set begins a larger one.
    kd_data::synthetic(&kd_data::SyntheticConfig { train: 120, test: 40, seed: 0 })
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn answers_are_those_of_the_same_images_in_the_data_set() {
    let dir = WorkDir::new();
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 1, true);
    dir.teacher("teacher.safetensors", 10, 5);
    let data = synthetic();
    for i in 0..40 {
        save(&data.test, i, &dir.path(&format!("pictures/{i:02}.png")));
    }
    let line = "predict --weights student.safetensors --teacher teacher.safetensors";
    let printed = json(&dir.stdout(&format!("{line} --json pictures")));
    assert_eq!(printed["classes"].as_array().unwrap().len(), 10);
    assert_eq!(
        (&printed["model"]["model"], &printed["teacher"]["model"]),
        (&"student".into(), &"teacher".into())
    );
    assert_eq!(
        (printed["images"].as_array().unwrap().len(), &printed["errors"]),
        (40, &json("[]"))
    );

    for (name, at) in [("student", ""), ("teacher", "/teacher")] {
        dir.stdout(&format!(
            "eval --weights {name}.safetensors --dataset synthetic --logits {name}.logits"
        ));
        let file = dir.read(&format!("{name}.logits"));
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let values = file.tensor("logits").unwrap().data();
        for i in 0..40 {
            let row: Vec<f64> = values[i * 40..][..40]
                .chunks_exact(4)
                .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())).exp())
                .collect();
            let sum: f64 = row.iter().sum();
            let image = printed["images"].pointer(&format!("/{i}{at}")).unwrap();
            let label = image["label"].as_u64().unwrap() as usize;
            for (class, power) in row.iter().enumerate() {
                let found = image["probabilities"][class].as_f64().unwrap();
                assert!((found - power / sum).abs() < 1e-6, "{name} {i} {class}: {found}");
                assert!(row[label] >= *power, "{name} {i}");
            }
            assert_eq!(image["confidence"], image["probabilities"][label]);
        }
    }

    let table = dir.stdout(&format!("{line} pictures/03.png pictures/04.png"));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].trim_start().starts_with("student") && lines[0].ends_with("teacher"));
    let third = &printed["images"][3];
    let answer = |of: &Value| {
        format!(
            "{} {:5.1} %",
            of["class"].as_str().unwrap(),
            100.0 * of["confidence"].as_f64().unwrap()
        )
    };
    assert!(
        lines[1].starts_with("pictures/03.png") && lines[1].contains(&answer(third)),
        "{table}"
    );
    assert!(lines[1].contains(&answer(&third["teacher"])), "{table}");
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_are_answered() {
    let dir = WorkDir::new();
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 1, true);
    let data = synthetic();
    save(&data.test, 0, &dir.path("good.png"));
    save(&data.test, 1, &dir.path("damaged.png"));
    damage(&dir.path("damaged.png"));
    fs::create_dir(dir.path("empty")).unwrap();
    let files = "damaged.png none.png good.png empty";
    let output = dir.command(&format!("predict --weights student.safetensors {files}")).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3));
    let answers = String::from_utf8(output.stdout).unwrap();
    assert!(answers.lines().count() == 1 && answers.starts_with("good.png"), "{answers}");
    let errors = String::from_utf8(output.stderr).unwrap();
    for expected in
        ["error: damaged.png: ", "error: none.png: ", "error: empty: the folder holds no PNG"]
    {
        assert!(errors.contains(expected), "{errors}");
    }
    assert!(errors.ends_with("error: 3 of the pictures could not be read\n"), "{errors}");

    let mut command = dir.command(&format!("predict --json --weights student.safetensors {files}"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let printed = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(printed["images"][0]["path"], "good.png");
    assert_eq!(printed["errors"].as_array().unwrap().len(), 3);
}

#[test]
fn every_picture_of_a_folder_that_cannot_be_read_is_named() {
    let dir = WorkDir::new();
    let data = synthetic();
    for (i, path) in
        ["train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png"].into_iter().enumerate()
    {
        let path = dir.path(&format!("pictures/{path}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        save(&data.test, i, &path);
    }
    for path in ["train/b/1.png", "test/a/2.png"] {
        damage(&dir.path(&format!("pictures/{path}")));
    }
    let line = "train --model student --dataset folder --data pictures --out out --epochs 1";
    let message = dir.fails(line, 1);
    assert!(message.contains("2 pictures can't be read"), "{message}");
    for path in ["train/b/1.png", "test/a/2.png"] {
        assert!(message.contains(&format!("{path}: expected a whole PNG")), "{message}");
    }
}

#[test]
fn control_characters_in_names_do_not_reach_the_terminal() {
    let dir = WorkDir::new();
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 1, true);
    save(&synthetic().test, 0, &dir.path("pictures/clear\u{1b}[2J.png"));
    let table = dir.stdout("predict --weights student.safetensors pictures");
    assert!(table.contains("clear?[2J.png") && !table.contains('\u{1b}'), "{table}");
}

#[test]
fn networks_that_do_not_fit_are_refused() {
    let dir = WorkDir::new();
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 1, true);
    dir.teacher("hundred.safetensors", 100, 5);
    save(&synthetic().test, 0, &dir.path("a.png"));
    let line = "predict --weights student.safetensors a.png";
    let message = dir.fails(&format!("{line} --teacher hundred.safetensors"), 2);
    assert!(message.contains("classify different classes"), "{message}");
    let message = dir.fails(&format!("{line} --model teacher"), 1);
    assert!(message.contains("weights of a student, not of a teacher"), "{message}");
    // A file of PyTorch's: the number of classes is the last layer's, and names are not known.
    weights(&dir.path("bare.safetensors"), Architecture::TUTORIAL_TEACHER, 7, 1, false);
    let printed = json(&dir.stdout("predict --json --weights bare.safetensors a.png"));
    assert_eq!(printed["classes"], json(r#"["0","1","2","3","4","5","6"]"#));
}

#[test]
fn a_network_learns_ones_own_pictures_in_folders() {
    let dir = WorkDir::new();
    let data = synthetic();
    for (split, name) in [(&data.train, "train"), (&data.test, "test")] {
        // Three of the ten classes.
        for i in (0..split.len()).filter(|&i| split.labels[i] < 3) {
            let class = ["disc", "ring", "box"][split.labels[i] as usize];
            save(split, i, &dir.path(&format!("mine/{name}/{class}/{i}.png")));
        }
    }
    let flags = "--dataset folder --data mine --epochs 1 --batch-size 8 --out out";
    dir.stdout(&format!("train --model teacher {flags}"));
    dir.stdout(&format!("distill --method kd {flags}"));
    let evaluation = dir.json("out/kd/evaluation.json");
    assert_eq!(evaluation["classes"], json(r#"["box","disc","ring"]"#));
    let recipe = String::from_utf8(dir.read("out/kd/recipe.toml")).unwrap();
    let hash = kd_data::image_folder(&dir.path("mine"), kd_data::images::SIDE).unwrap().sha256;
    assert!(recipe.contains("dataset = \"folder\"") && recipe.contains(&hash), "{recipe}");
    let printed = json(&dir.stdout("predict --json --weights out/kd.safetensors mine/test/ring"));
    assert_eq!(printed["classes"], evaluation["classes"]);
    dir.stdout("export --weights out/kd.safetensors --onnx out/kd.onnx");
    assert!(String::from_utf8_lossy(&dir.read("out/kd.onnx")).contains(r#"["box","disc","ring"]"#));

    // The recipe is for these pictures.
    save(&data.test, 0, &dir.path("mine/test/ring/more.png"));
    let message = dir.fails("train --recipe out/teacher/recipe.toml --data mine --out other", 1);
    assert!(message.contains("the recipe was made for other data"), "{message}");
    fs::remove_dir_all(dir.path("mine/test/box")).unwrap();
    let message = dir.fails(&format!("train --model student {flags}"), 1);
    assert!(message.contains("box: found no such folder"), "{message}");
}
