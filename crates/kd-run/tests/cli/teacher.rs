//! Distillation: the teacher's file, its cached outputs, and fair comparison.

use candle_core::{Device, Tensor};
use kd_models::{Architecture, ModelConfig};

use crate::workdir::{WorkDir, damage, weights};

const KD: &str = "distill --teacher teacher.safetensors --method kd";

#[test]
fn a_method_of_no_weight_leaves_the_student_as_on_labels_alone() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    dir.train("train --model student --out out");
    for method in ["kd", "cosine", "regressor"] {
        dir.train(&format!(
            "distill --teacher teacher.safetensors --method {method} --alpha 1 --out out"
        ));
        // Initial weights, batch order and dropout are the same, and so is every step.
        let same =
            dir.read("out/student.safetensors") == dir.read(&format!("out/{method}.safetensors"));
        assert!(same, "{method}");
    }
    dir.train(&format!("{KD} --name half --alpha 0.5 --out out"));
    assert_ne!(dir.read("out/student.safetensors"), dir.read("out/half.safetensors"));
}

#[test]
fn the_recipe_of_a_distilled_run_names_its_teacher_and_weights() {
    let dir = WorkDir::new();
    std::fs::create_dir(dir.path("out")).unwrap();
    dir.teacher("out/teacher.safetensors", 10, 5);
    // Without --teacher it is the recipe's run of that name.
    dir.train("distill --method kd --temperature 4 --alpha 0.3 --out out");
    let recipe: toml::Table =
        String::from_utf8(dir.read("out/kd/recipe.toml")).unwrap().parse().unwrap();
    let run = &recipe["run"][0];
    assert_eq!(run["teacher"].as_str(), Some("../teacher.safetensors"));
    assert_eq!(run["teacher_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(run["labels"].as_float(), Some(0.3));
    assert_eq!(run["method"][0]["weight"].as_float(), Some(0.7));
    assert_eq!(run["method"][0]["temperature"].as_float(), Some(4.0));
    let run = &dir.json("out/summary.json")["runs"][0];
    assert_eq!((&run["name"], &run["method"]), (&"kd".into(), &"kd".into()));
    let epoch = &dir.events("out/kd")[2];
    let parts = &epoch["parts"];
    let sum = 0.3 * parts["labels"].as_f64().unwrap() + 0.7 * parts["kd"].as_f64().unwrap();
    assert!((sum - epoch["train_loss"].as_f64().unwrap()).abs() < 1e-5, "{epoch}");

    // Moved as a whole, it still finds its teacher.
    std::fs::rename(dir.path("out"), dir.path("moved")).unwrap();
    dir.stdout("distill --recipe moved/kd/recipe.toml --out again");
    assert_eq!(dir.read("moved/kd.safetensors"), dir.read("again/kd.safetensors"));
}

#[test]
fn the_teachers_outputs_are_computed_once_and_used_by_every_run() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    dir.train(&format!("{KD} --out out"));
    let cached = dir.cached("out");
    assert_eq!(cached.len(), 1);
    let teacher = &dir.events("out/kd")[1];
    assert_eq!((&teacher["event"], &teacher["cached"][0]), (&"teacher".into(), &"logits".into()));
    // An altered copy with a right checksum would be used: here, only that the file is not written again.
    let written = || std::fs::metadata(&cached[0]).unwrap().modified().unwrap();
    let before = written();
    dir.train(&format!("{KD} --name other --seed 9 --out out"));
    assert_eq!((dir.cached("out"), written()), (cached.clone(), before));

    // Another teacher has outputs of its own, in the same folder.
    dir.teacher("teacher.safetensors", 10, 6);
    dir.train(&format!("{KD} --name third --out out"));
    assert_eq!(dir.cached("out").len(), 2);
    // A feature map beside the logits.
    dir.train("distill --teacher teacher.safetensors --method cosine --out out");
    assert_eq!(dir.cached("out").len(), 3);
}

#[test]
fn damaged_cached_outputs_are_noticed_and_made_anew() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    dir.train(&format!("{KD} --out out"));
    let cached = dir.cached("out").remove(0);
    let whole = std::fs::read(&cached).unwrap();
    let cut = &whole[..whole.len() - 5];
    damage(&cached);
    for (name, bytes) in
        [("a", std::fs::read(&cached).unwrap()), ("b", cut.to_vec()), ("c", vec![])]
    {
        std::fs::write(&cached, bytes).unwrap();
        let said = dir.train(&format!("{KD} --name {name} --out out"));
        assert!(said.contains("can't be used") && said.contains("computing them anew"), "{said}");
        assert!(std::fs::read(&cached).unwrap() == whole, "{name}: not made anew");
        assert_eq!(dir.read(&format!("out/{name}.safetensors")), dir.read("out/kd.safetensors"));
    }
}

#[test]
fn what_does_not_fit_the_memory_is_computed_in_each_step() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let line = "distill --teacher teacher.safetensors --method cosine";
    dir.train(&format!("{line} --out cached"));
    dir.train(&format!("{line} --cache-memory 0 --out computed"));
    assert!(dir.cached("computed").is_empty());
    let teacher = &dir.events("computed/cosine")[1];
    assert_eq!(
        (&teacher["computed"][0], &teacher["cached"].as_array().unwrap().len()),
        (&"features.9".into(), &0)
    );
    let loss =
        |out: &str| dir.json(&format!("{out}/summary.json"))["runs"][0]["test_loss"].as_f64();
    let difference = loss("cached").unwrap() - loss("computed").unwrap();
    assert!(difference.abs() < 1e-4, "{difference}");
}

#[test]
fn with_augmentation_nothing_is_cached() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let recipe = kd_run::recipe::TUTORIAL.replace("flip = false", "flip = true");
    std::fs::write(dir.path("flipped.toml"), recipe).unwrap();
    dir.train(&format!("{KD} --recipe flipped.toml --out out"));
    assert!(dir.cached("out").is_empty());
    assert_eq!(dir.events("out/kd")[1]["computed"][0], "logits");
}

#[test]
fn a_teacher_that_does_not_fit_is_refused_with_its_reason() {
    let dir = WorkDir::new();
    let message = dir.train_fails(&format!("{KD} --out out"), 1);
    assert!(message.contains("teacher.safetensors: can't be read"), "{message}");

    std::fs::write(dir.path("teacher.safetensors"), b"\x10\0\0\0\0\0\0\0no safetensors!").unwrap();
    let message = dir.train_fails(&format!("{KD} --out out"), 1);
    assert!(message.contains("teacher.safetensors: not a whole safetensors file"), "{message}");

    #[cfg(unix)]
    {
        let message = dir.train_fails("distill --teacher /dev/zero --method kd --out out", 1);
        assert!(message.contains("/dev/zero: it is not a regular file"), "{message}");
    }
    dir.teacher("teacher.safetensors", 10, 5);
    let bytes = dir.read("teacher.safetensors");
    std::fs::write(dir.path("teacher.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    let message = dir.train_fails(&format!("{KD} --out out"), 1);
    assert!(message.contains("not a whole safetensors file"), "{message}");

    dir.teacher("teacher.safetensors", 100, 5);
    let message = dir.train_fails(&format!("{KD} --out out"), 1);
    assert!(message.contains("classify 100 classes; the data has 10"), "{message}");

    weights(&dir.path("teacher.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 5, true);
    let message = dir.train_fails(&format!("{KD} --teacher-model teacher --out out"), 1);
    assert!(message.contains("weights of a student, not of a teacher"), "{message}");

    assert!(!dir.path("out/kd").exists(), "nothing was begun");
}

#[test]
fn a_student_can_teach_and_a_file_of_pytorchs_is_taken() {
    let dir = WorkDir::new();
    weights(&dir.path("described.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 5, true);
    weights(&dir.path("bare.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 5, false);
    dir.train("distill --teacher described.safetensors --method kd --out a");
    dir.train("distill --teacher bare.safetensors --teacher-model student --method kd --out b");
    assert_eq!(dir.read("a/kd.safetensors"), dir.read("b/kd.safetensors"));
    // Nobody says what it is: a teacher is expected.
    let message = dir.train_fails("distill --teacher bare.safetensors --method kd --out c", 1);
    assert!(message.contains("bare.safetensors: "), "{message}");
}

#[test]
fn a_teacher_whose_outputs_are_not_finite_is_named() {
    let dir = WorkDir::new();
    // Finite weights whose products are not.
    let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, 10);
    let parameters = kd_models::init(&config, 1, &Device::Cpu).unwrap();
    let huge = |(name, var): (&String, &candle_core::Var)| -> (String, Tensor) {
        (name.clone(), (var.as_detached_tensor() * 1e30).unwrap())
    };
    let tensors = parameters.iter().map(huge).collect();
    candle_core::safetensors::save(&tensors, dir.path("teacher.safetensors")).unwrap();
    let line = format!("{KD} --teacher-model student --out out");
    let message = dir.train_fails(&line, 1);
    let expected = "teacher.safetensors: the teacher can't be used: its logits for training image";
    assert!(message.contains(expected), "{message}");
    // Computed in each step, they are found by the first step's loss.
    let message = dir.train_fails(&format!("{line} --cache-memory 0 --name other"), 1);
    assert!(
        message.contains("step 1: the loss is") && message.contains("the teacher's weights"),
        "{message}"
    );
    assert!(!message.contains("a lower learning rate"), "{message}");
}
