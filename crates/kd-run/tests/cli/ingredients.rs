//! What a longer recipe is made of: AdamW, averages of weights, mixed images, counted views, test-time flipping. Each ends the same
//! wherever it is interrupted, and is refused where it can't be meant.

use std::ops::ControlFlow;
use std::sync::Arc;

use kd_data::Split;
use kd_run::recipe::Recipe;
use kd_run::resolve::{Choices, resolve};
use kd_run::train::{Outcome, Progress, train};

use crate::resume::{assert_same, resolved};
use crate::workdir::{BATCHES, WorkDir};

/// A recipe of a network that learns from labels alone and, with a teacher, from soft targets alone.
fn recipe(data: &str, training: &str, optimizer: &str) -> String {
    format!(
        "format = 1\nname = 'r'\ndata = {{ {data} }}\ntraining = {{ {training} }}\noptimizer = {{ {optimizer} }}\n
[[run]]\nname = 'alone'\nmodel = 'resnet8'\n
[[run]]\nname = 'taught'\nmodel = 'student'\nteacher = 'teacher.safetensors'\nlabels = 0.0\n[[run.method]]\nname = 'kd'\nweight = 1.0\ntemperature = 2.0\nteacher_temperature = 1.0\n"
    )
}

const MIXED: &str = "augment = { crop_padding = 4, flip = true, mixup = 1.0, cutmix = 1.0, mix_probability = 0.9, views = 2 }";

/// Stops each run after some steps and lets it go on: it must end as the one that was not stopped.
fn ends_the_same_wherever_it_stops(dir: &WorkDir, command: &str, run: &str, stops: &[usize]) {
    let line = format!("{command} --recipe r.toml --run {run} --out");
    dir.train(&format!("{line} whole"));
    for &step in stops {
        let out = format!("{run}-{step}");
        let resolved = resolved(dir, &format!("whole/{run}"), &out);
        let outcome = train(&resolved, &mut |progress| match progress {
            Progress::Step { step: done, .. } if done == step as u64 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(outcome, Ok(Outcome::Stopped { step: at }) if at == step as u64));
        dir.train(&format!("{line} {out}"));
        assert_same(dir, "whole", &out, run);
    }
}

#[test]
fn a_run_of_all_ingredients_ends_the_same_and_its_average_is_what_is_saved() {
    let dir = WorkDir::new();
    let training = "average = { name = 'ema', decay = 0.9, warmup = true }, test_flip = true, schedule = { name = 'cosine', down_to = 0.1, warmup_epochs = 0.5 }";
    let text = recipe(MIXED, training, "name = 'adamw', lr = 0.01, weight_decay = 0.05");
    std::fs::write(dir.path("r.toml"), text).unwrap();
    dir.teacher("teacher.safetensors", 10, 5);
    ends_the_same_wherever_it_stops(&dir, "train", "alone", &[1, BATCHES]);
    ends_the_same_wherever_it_stops(&dir, "distill", "taught", &[BATCHES + 2]);

    let saved = dir.read("whole/alone.safetensors");
    let saved = safetensors::SafeTensors::deserialize(&saved).unwrap();
    let checkpoint = dir.last_checkpoint("whole/alone");
    for name in ["conv1.weight", "linear.bias", "bn1.running_mean", "bn1.running_var"] {
        let found = saved.tensor(name).unwrap().data().to_vec();
        assert_eq!(found, checkpoint[&format!("average/{name}")], "{name}");
        assert_ne!(found, checkpoint[&format!("parameter/{name}")], "{name}");
    }

    // Test-time flipping stands beside the plain figure.
    let evaluation = dir.json("whole/alone/evaluation.json");
    let flipped = &evaluation["test_flip"];
    assert_ne!(flipped["loss"], evaluation["loss"]);
    assert_eq!(
        dir.json("whole/summary.json")["runs"][0]["test_flip_accuracy"],
        flipped["accuracy"]
    );
    let text = dir.stdout(
        "eval --weights whole/alone.safetensors --dataset synthetic --test-limit 40 --flip --json",
    );
    let printed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&printed["test_flip"], &printed["accuracy"]), (flipped, &evaluation["accuracy"]));
    let report = String::from_utf8(dir.read("whole/report.html")).unwrap();
    assert!(report.contains("With test-time flipping"));
    assert!(report.contains("average.decay = 0.9") && report.contains("augment.mixup = 1.0"));
}

#[test]
fn the_mean_of_the_last_epochs_ends_the_same_and_counts_once_it_begins() {
    let dir = WorkDir::new();
    let text = recipe(
        "dataset = 'synthetic'",
        "average = { name = 'last-epochs', epochs = 2 }",
        "lr = 0.01",
    );
    std::fs::write(dir.path("r.toml"), text).unwrap();
    let line = "train --recipe r.toml --run alone --epochs 3 --train-limit 50 --test-limit 40 --batch-size 25 --out";
    dir.stdout(&format!("{line} whole"));
    for step in [2, 4, 5] {
        let out = format!("stopped-{step}");
        let resolved = resolved(&dir, "whole/alone", &out);
        let outcome = train(&resolved, &mut |progress| match progress {
            Progress::Step { step: done, .. } if done == step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(outcome, Ok(Outcome::Stopped { .. })));
        dir.stdout(&format!("{line} {out}"));
        assert_same(&dir, "whole", &out, "alone");
    }
    // The mean of the weights after the second and the third epoch; runs of the same recipe without it have them.
    let plain = recipe("dataset = 'synthetic'", "seed = 0", "lr = 0.01");
    std::fs::write(dir.path("r.toml"), plain).unwrap();
    let values = |file: &str| {
        let bytes = dir.read(file);
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor("conv1.weight").unwrap().data().to_vec();
        data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    dir.stdout(&line.replace("--epochs 3", "--epochs 2").replace("--out", "--out two"));
    dir.stdout(&line.replace("--out", "--out three"));
    let (two, three) = (values("two/alone.safetensors"), values("three/alone.safetensors"));
    let mean = values("whole/alone.safetensors");
    for ((a, b), mean) in two.iter().zip(&three).zip(&mean) {
        assert!(((a + b) / 2.0 - mean).abs() < 1e-6, "{a} {b} {mean}");
    }
    assert_ne!(mean, three);
}

#[test]
fn a_student_with_alpha_0_reads_no_label() {
    let dir = WorkDir::new();
    let text = recipe(
        "dataset = 'synthetic', train_limit = 64, test_limit = 40, augment = { mixup = 1.0 }",
        "epochs = 1, batch_size = 16",
        "lr = 0.01",
    );
    std::fs::write(dir.path("r.toml"), text).unwrap();
    dir.teacher("teacher.safetensors", 10, 5);
    let recipe = Recipe::read(&dir.path("r.toml")).unwrap();
    let trained = |out: &str, other_labels: bool| {
        let (recipe_folder, out_folder) = (Some(dir.path("")), Some(dir.path(out)));
        let choices = Choices { recipe_folder, out: out_folder, ..Choices::default() };
        let mut run = resolve(&recipe, recipe.run("taught").unwrap(), &choices).unwrap().run;
        if other_labels {
            let train = &*run.data.train;
            let block = train.block().unwrap();
            let labels = block.labels.iter().map(|label| (label + 3) % 10).collect();
            let (images, shape) = (block.images.to_vec(), train.shape());
            run.data.train = Arc::new(Split { images, labels, shape, coarse_labels: None });
        }
        train(&run, &mut |_| ControlFlow::Continue(())).unwrap();
        dir.read(&format!("{out}/taught.safetensors"))
    };
    assert!(trained("with", false) == trained("without", true), "labels were learned from");
}

#[test]
fn what_can_not_be_meant_is_refused_with_its_line() {
    let dir = WorkDir::new();
    let mixup = "dataset = 'synthetic', augment = { mixup = 0.2 }";
    let refused = |text: String| {
        std::fs::write(dir.path("r.toml"), text).unwrap();
        dir.train_fails("train --recipe r.toml --run alone --out out", 1)
    };
    let balanced = recipe(
        "dataset = 'synthetic', augment = { flip = true, views = 3 }",
        "sampler = 'balanced'",
        "lr = 0.1",
    );
    let message = refused(balanced);
    assert!(message.contains("r.toml, line 3: data.augment.views: is 3; expected none where training.sampler is balanced"), "{message}");
    for (line, expected) in [
        (
            "class_weights = 'balanced'",
            "run[1].class_weights: is set; expected none beside mixup or cutmix",
        ),
        (
            "teacher = 't'\n[[run.method]]\nname = 'dkd'\nweight = 1.0",
            "run[1].method[1].name: is dkd; expected another method beside mixup",
        ),
        (
            "teacher = 't'\n[[run.method]]\nname = 'crd'\nweight = 1.0",
            "is crd; expected another method beside mixup",
        ),
        (
            "teacher = 't'\ncross_fit = 2\n[[run.method]]\nname = 'kd'\nweight = 1.0",
            "run[1].cross_fit: is 2; expected none beside mixup",
        ),
    ] {
        let text = recipe(mixup, "epochs = 1", "lr = 0.1");
        let text = text.replacen("model = 'resnet8'", &format!("model = 'resnet8'\n{line}"), 1);
        let message = refused(text);
        assert!(message.contains(expected), "{message}");
    }
    for (data, training, optimizer, expected) in [
        (
            "augment = { mixup = -1.0 }",
            "",
            "",
            "data.augment.mixup: is -1; expected 0, or a number from 0.01 to 100",
        ),
        (
            "augment = { mixup = 1.0, mix_probability = 2.0 }",
            "",
            "",
            "data.augment.mix_probability: is 2",
        ),
        (
            "augment = { views = 3 }",
            "",
            "",
            "data.augment.views: is 3; expected none without augmentation",
        ),
        (
            "",
            "average = { name = 'ema', decay = 1.0 }",
            "",
            "training.average.decay: is 1; expected a number from 0 to below 1",
        ),
        ("", "average = { name = 'last-epochs', epochs = 0 }", "", "training.average.epochs: is 0"),
        ("", "average = { name = 'ema' }", "", "missing field `decay`"),
        ("", "", "decay_all = true", "optimizer.decay_all is a setting of adamw"),
        ("", "", "name = 'adamw', momentum = 0.9", "optimizer.momentum is a setting of sgd"),
    ] {
        let message = refused(recipe(data, training, optimizer));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_teachers_temperature_is_a_flag_of_kd() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    dir.train("distill --method kd --teacher teacher.safetensors --temperature 3 --teacher-temperature 1.5 --out out");
    let recipe = String::from_utf8(dir.read("out/kd/recipe.toml")).unwrap();
    assert!(recipe.contains("temperature = 3.0\nteacher_temperature = 1.5"), "{recipe}");
    let line =
        "distill --method dist --teacher teacher.safetensors --teacher-temperature 1.5 --out out";
    let message = dir.train_fails(line, 2);
    assert!(
        message.contains("--teacher-temperature is for the method kd; run \"dist\" has dist"),
        "{message}"
    );
}

/// The parts' sums are rounded otherwise, so that the tensors agree and are not the same.
#[test]
fn a_step_in_parts_is_the_step_of_the_whole_batch() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let data =
        "dataset = 'synthetic', train_limit = 50, test_limit = 40, augment = { mixup = 1.0 }";
    let training = "epochs = 2, batch_size = 16, clip_grad_norm = 1.0";
    let text = recipe(data, training, "name = 'sgd', lr = 0.1, momentum = 0.9");
    let text = text.replace("labels = 0.0", "labels = 0.5\ndropout = 0.0");
    std::fs::write(dir.path("r.toml"), text).unwrap();
    let line = "distill --recipe r.toml --run taught --out";
    dir.stdout(&format!("{line} whole"));
    // The last step of an epoch has two images, fewer than the parts.
    dir.stdout(&format!("{line} parts --accumulate 3"));
    dir.stdout(&format!("{line} one --accumulate 1"));
    let values = |out: &str| {
        let bytes = dir.read(&format!("{out}/taught.safetensors"));
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut values = Vec::new();
        for (name, tensor) in tensors.tensors() {
            let numbers = tensor.data().chunks(4);
            let numbers = numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            values.push((name, numbers.collect::<Vec<_>>()));
        }
        values.sort_by(|a, b| a.0.cmp(&b.0));
        values
    };
    let (whole, parts) = (values("whole"), values("parts"));
    assert_eq!(whole, values("one"));
    assert_ne!(whole, parts);
    for ((name, whole), (_, parts)) in whole.iter().zip(&parts) {
        for (a, b) in whole.iter().zip(parts) {
            assert!((a - b).abs() < 1e-5 + 1e-4 * a.abs(), "{name}: {a} and {b}");
        }
    }
    let epoch = |out: &str| {
        let events = dir.events(&format!("{out}/taught"));
        let epoch = events.iter().rfind(|event| event["event"] == "epoch").unwrap().clone();
        (epoch["train_loss"].as_f64().unwrap(), epoch["train_accuracy"].clone())
    };
    let ((whole, right), (parts, as_right)) = (epoch("whole"), epoch("parts"));
    assert!((whole - parts).abs() < 1e-4 && right == as_right, "{whole} {parts}");
}

#[test]
fn what_can_not_be_computed_in_parts_is_refused_or_warned_of() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let text = recipe("dataset = 'synthetic'", "accumulate = 2", "lr = 0.01");
    for (from, to, expected) in [
        (
            "name = 'kd'\nweight = 1.0\ntemperature = 2.0\nteacher_temperature = 1.0",
            "name = 'dist'\nweight = 1.0",
            "run[2].method[1].name: is dist; expected another method beside training.accumulate",
        ),
        (
            "name = 'kd'\nweight = 1.0\ntemperature = 2.0\nteacher_temperature = 1.0",
            "name = 'ofd'\nweight = 1.0",
            "is ofd; expected another method beside training.accumulate",
        ),
        (
            "name = 'alone'",
            "name = 'alone'\nclass_weights = 'balanced'",
            "run[1].class_weights: is set; expected none beside training.accumulate",
        ),
        (
            "accumulate = 2",
            "accumulate = 0",
            "training.accumulate: is 0; expected at least 1, at most training.batch_size",
        ),
        ("accumulate = 2", "accumulate = 200", "training.accumulate: is 200"),
    ] {
        assert!(text.contains(from));
        std::fs::write(dir.path("r.toml"), text.replace(from, to)).unwrap();
        let message = dir.train_fails("distill --recipe r.toml --run taught --out out", 1);
        assert!(message.contains(expected), "{message}");
    }
    std::fs::write(dir.path("r.toml"), text).unwrap();
    let said = dir.train("train --recipe r.toml --run alone --out out");
    assert!(said.contains("alone: each step is computed in 2 parts, and batch normalisation takes the statistics of a part"), "{said}");
}
