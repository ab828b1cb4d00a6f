//! Any pair of networks: ResNets train, stop and go on; every method takes a CNN and a ResNet; weights to start from.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::Device;
use kd_data::Portions;
use kd_loss::{METHODS, MethodConfig, Term};
use kd_models::Architecture;
use kd_run::recipe::{DataConfig, DatasetName, Recipe, RunConfig, RunRecipe, TrainingConfig};
use kd_run::run::{ResolvedRun, Settings};
use kd_run::teacher::{Pretrained, PretrainedConfig};
use kd_run::train::{Outcome, Progress, train};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use crate::resume::{assert_same, resolved};
use crate::workdir::{WorkDir, weights};

/// Four steps of a few images, at a rate that suits a teacher which has hardly learnt.
const FEW: [&str; 12] = [
    "--dataset",
    "synthetic",
    "--train-limit",
    "8",
    "--test-limit",
    "4",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--lr",
    "0.001",
];

fn kd(dir: &WorkDir, line: &str) -> String {
    let output = dir.command(line).args(FEW).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kd {line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every run of recipes/resnet.toml, stopped within its second epoch, ends as one that was not:
/// momentum, running statistics and the schedule go on where they were.
#[test]
fn the_resnet_recipe_trains_and_goes_on_bit_for_bit() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../recipes/resnet.toml");
    let recipe = Recipe::read(&path).unwrap();
    let dir = WorkDir::new();
    for run in &recipe.runs {
        let verb = if run.needs_teacher() { "distill" } else { "train" };
        kd(&dir, &format!("{verb} --run {} --out whole --recipe {}", run.name, path.display()));
        let again = resolved(&dir, &format!("whole/{}", run.name), "stopped");
        assert_eq!(again.recipe.training.schedule, recipe.training.schedule);
        let outcome = train(&again, &mut |progress| match progress {
            Progress::Step { step: 3, .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(outcome, Ok(Outcome::Stopped { step: 3 })), "{outcome:?}");
        let outcome = train(&again, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
        assert_same(&dir, "whole", "stopped", &run.name);
        let state = dir.last_checkpoint(&format!("whole/{}", run.name));
        assert!(state.contains_key("sgd.momentum/conv1.weight"));
        assert!(!state.contains_key("sgd.momentum/bn1.running_mean"));
        let mean = &state["parameter/bn1.running_mean"];
        assert!(mean.iter().any(|&byte| byte != 0), "the running mean has not moved");
        let saved = dir.read(&format!("whole/{}.safetensors", run.name));
        let saved = SafeTensors::deserialize(&saved).unwrap();
        assert_eq!(saved.tensor("bn1.running_mean").unwrap().data(), mean);
    }
}

#[test]
fn an_epochs_event_has_the_learning_rate_of_its_last_step() {
    let dir = WorkDir::new();
    let recipe = "format = 1\nname = \"r\"\n[data]\ndataset = \"synthetic\"\n[training]\nepochs = 4\n\
                  schedule = { name = \"cosine\" }\n[[run]]\nname = \"student\"\nmodel = \"student\"\n";
    std::fs::write(dir.path("r.toml"), recipe).unwrap();
    let small = "--train-limit 100 --test-limit 40 --batch-size 50 --lr 0.002";
    dir.stdout(&format!("train --recipe r.toml {small} --out out"));
    let events = dir.events("out/student");
    let epochs = events.iter().filter(|event| event["event"] == "epoch");
    let rates: Vec<f64> = epochs.map(|event| event["learning_rate"].as_f64().unwrap()).collect();
    // 2 steps an epoch, 8 in all: step s has 0.002 (1 + cos(pi s / 8)) / 2.
    let expected =
        [1, 3, 5, 7].map(|s| 0.001 * (1.0 + (std::f64::consts::PI * f64::from(s) / 8.0).cos()));
    assert_eq!(rates.len(), 4);
    assert!(rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");
}

/// A step of every method, from a CNN to a ResNet and from a ResNet to a CNN.
#[test]
fn every_method_takes_a_step_between_a_cnn_and_a_resnet() {
    let dir = WorkDir::new();
    let images = kd_run::data::load(&data(), &PathBuf::new()).unwrap();
    for (teacher, student) in [
        (Architecture::TUTORIAL_TEACHER, Architecture::RESNET20),
        (Architecture::RESNET20, Architecture::TUTORIAL_STUDENT),
    ] {
        let path = dir.path(&format!("{teacher}.safetensors"));
        weights(&path, teacher, 10, 5, true);
        for info in METHODS {
            let mut method = MethodConfig::from_name(info.name).unwrap();
            if let MethodConfig::Crd(crd) = &mut method {
                (crd.negatives, crd.dim) = (5, 4);
            }
            let take_step = |method| {
                let mut run = RunConfig::on_labels(info.name, student);
                let weight = info.about.weight;
                run.methods = vec![Term { weight, schedule: Default::default(), method }];
                let out = dir.path(&format!("{teacher}-{student}"));
                train(&one_step(run, &images, Some(&path), out), &mut |_| ControlFlow::Continue(()))
            };
            let mut outcome = take_step(method.clone());
            if let (MethodConfig::Cosine(cosine), Architecture::RESNET20) = (&mut method, student) {
                // Its last map has more values than the teacher's; its last vector fits.
                let message = format!("{:#}", outcome.unwrap_err());
                assert!(
                    message.contains("[64, 8, 8]") && message.contains("[32, 8, 8]"),
                    "{message}"
                );
                cosine.student = Some("pool".into());
                std::fs::remove_dir_all(dir.path(&format!("{teacher}-{student}/cosine"))).unwrap();
                outcome = take_step(method);
            }
            let outcome = outcome.unwrap_or_else(|error| {
                panic!("{} from {teacher} to {student}: {error:#}", info.name)
            });
            assert!(matches!(outcome, Outcome::Finished(_)), "{outcome:?}");
        }
    }
}

fn data() -> DataConfig {
    DataConfig {
        dataset: DatasetName::Synthetic,
        train_limit: Some(10),
        test_limit: Some(4),
        ..DataConfig::default()
    }
}

/// The run with a single step.
fn one_step(
    run: RunConfig,
    images: &Portions,
    teacher: Option<&Path>,
    out: PathBuf,
) -> ResolvedRun {
    let normalization = data().normalization();
    let config = PretrainedConfig::new(&images.classes, images.input(), normalization);
    let load = |path: &Path| Pretrained::load(path, &config).unwrap();
    ResolvedRun {
        recipe: RunRecipe {
            name: "pair".into(),
            data: data(),
            training: TrainingConfig { epochs: 1, batch_size: 10, ..Default::default() },
            optimizer: Default::default(),
            run,
        },
        out,
        data: images.clone(),
        teacher: teacher.map(load),
        teacher_logits: None,
        initial: None,
        device: Device::Cpu,
        settings: Settings::default(),
    }
}

fn tensors(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    tensors.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// Frozen layers keep every bit, running statistics too; the rest is trained; all goes on bit for bit.
#[test]
fn a_run_starts_from_given_weights_and_frozen_layers_stay() {
    let dir = WorkDir::new();
    weights(&dir.path("hundred.safetensors"), Architecture::RESNET8, 100, 3, true);
    // Running statistics that are not the fresh ones.
    kd(&dir, "train --model resnet8 --out before --name start");
    let line = "train --model resnet8 --init before/start.safetensors --freeze conv1,bn1,layer1";
    let said = kd(&dir, &format!("{line} --out whole"));
    assert!(said.contains("resnet8: starts from before/start.safetensors\n"), "{said}");
    let before = tensors(&dir.read("before/start.safetensors"));
    let after = tensors(&dir.read("whole/resnet8.safetensors"));
    for (name, tensor) in &before {
        let frozen = ["conv1.", "bn1.", "layer1."].iter().any(|prefix| name.starts_with(prefix));
        assert_eq!(tensor == &after[name], frozen, "{name}");
    }
    let recipe = String::from_utf8(dir.read("whole/resnet8/recipe.toml")).unwrap();
    let hash = sha256(&dir.read("before/start.safetensors"));
    for expected in [
        "/before/start.safetensors\"".to_string(),
        format!("init_sha256 = \"{hash}\""),
        "freeze = [\"conv1\", \"bn1\", \"layer1\"]".to_string(),
    ] {
        assert!(recipe.contains(&expected), "{expected} is not in {recipe}");
    }
    let again = resolved(&dir, "whole/resnet8", "stopped");
    let outcome = train(&again, &mut |progress| match progress {
        Progress::Step { step: 1, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Ok(Outcome::Stopped { step: 1 })), "{outcome:?}");
    kd(&dir, &format!("{line} --out stopped"));
    assert_same(&dir, "whole", "stopped", "resnet8");

    // Another number of classes: the last layer is as in a run that starts fresh, before its first step.
    let line = "train --model resnet8 --out";
    let said = kd(&dir, &format!("{line} new --init hundred.safetensors --freeze conv1"));
    assert!(
        said.contains("except for linear, which starts fresh: the file classifies 100 classes; the data has 10"),
        "{said}"
    );
    let first = |out: &str| {
        let checkpoint = dir.path(&format!("{out}/resnet8/checkpoints/step-000000000.safetensors"));
        tensors(&std::fs::read(checkpoint).unwrap())
    };
    kd(&dir, &format!("{line} fresh --keep-checkpoints 9"));
    kd(&dir, &format!("{line} first --keep-checkpoints 9 --init hundred.safetensors"));
    let (fresh, started) = (first("fresh"), first("first"));
    let given = tensors(&dir.read("hundred.safetensors"));
    for (name, tensor) in &started {
        let Some(name) = name.strip_prefix("parameter/") else { continue };
        let from = if name.starts_with("linear") {
            &fresh[&format!("parameter/{name}")]
        } else {
            &given[name]
        };
        assert_eq!(tensor, from, "{name}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_can_not_be_started_from_or_frozen_is_said() {
    let dir = WorkDir::new();
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 3, true);
    weights(&dir.path("hundred.safetensors"), Architecture::RESNET8, 100, 3, true);
    for (line, expected) in [
        (
            "train --model resnet8 --init student.safetensors",
            "these are the weights of a student, not of a resnet8",
        ),
        ("train --model resnet8 --init nothing.safetensors", "nothing.safetensors"),
        (
            "train --model resnet8 --freeze layer4",
            "the resnet8 has no layer \"layer4\"; it has conv1, bn1, layer1.0.conv1,",
        ),
        (
            "train --model resnet8 --freeze linear --init hundred.safetensors",
            "linear can't be frozen: it starts fresh, because the initial weights classify another number of classes",
        ),
        ("train --model student --freeze features,classifier", "no layer is left to train"),
        (
            "train --model student --lr-scale feature=0.1",
            "lr_scale: the student has no layer \"feature\"; it has features.0,",
        ),
        (
            "train --model student --freeze features --lr-scale features=0.1",
            "0.1 for \"features\" changes nothing: all of it is frozen,",
        ),
        (
            "train --model student --lr-scale features=0.1,features=0.2",
            "--lr-scale: `features` has two shares; expected one",
        ),
    ] {
        let message = dir.train_fails(&format!("{line} --out out"), 1);
        assert!(message.contains(expected), "{line}: {message}");
    }
    for (line, expected) in [
        (
            "train --model student --unfreeze-at 1",
            "unfreeze_at: is 1; expected none without freeze: no layer is frozen",
        ),
        (
            "train --model student --freeze features --unfreeze-at 2",
            "unfreeze_at: is 2; expected 1 to 1: the run has 2 epochs",
        ),
        (
            "train --model student --lr-scale features=0",
            "expected layers, each with a number above 0",
        ),
    ] {
        let message = dir.train_fails(&format!("{line} --out out"), 2);
        assert!(message.contains(expected), "{line}: {message}");
    }
}

/// Layers stay as they are until they are unfrozen, running statistics too, and are trained then; all goes on bit for bit.
#[test]
fn frozen_layers_are_trained_after_the_epochs_that_are_said() {
    let dir = WorkDir::new();
    let line = "train --model resnet8 --freeze conv1,bn1,layer1 --unfreeze-at 1 --lr-scale conv1=0.1,layer1=0.3";
    let said = kd(&dir, &format!("{line} --out whole --keep-checkpoints 9"));
    assert!(
        said.contains(
            "resnet8: conv1, bn1, layer1 are frozen for 1 epoch and trained from epoch 2 on\n"
        ),
        "{said}"
    );
    assert!(said.contains("shares of the learning rate: conv1 at 0.1, layer1 at 0.3\n"), "{said}");
    let [start, first, second] = [0, 2, 4].map(|step| {
        let file = format!("whole/resnet8/checkpoints/step-{step:09}.safetensors");
        tensors(&dir.read(&file))
    });
    for (name, tensor) in &start {
        let Some(parameter) = name.strip_prefix("parameter/") else { continue };
        let late = ["conv1.", "bn1.", "layer1."].iter().any(|one| parameter.starts_with(one));
        assert_eq!(tensor == &first[name], late, "{name}");
        assert_ne!(first[name], second[name], "{name}");
        let moments = format!("adam.first/{parameter}");
        if !parameter.contains("running") {
            assert_eq!(first.contains_key(&moments), !late, "{name}");
            assert!(second.contains_key(&moments), "{name}");
        }
    }
    let said = kd(
        &dir,
        "train --recipe whole/resnet8/recipe.toml --run resnet8 --freeze conv1,layer1.0.bn1 --lr-scale layer1=0.3 --out other",
    );
    assert!(said.contains("the recipe's unfreeze_at = 1 does not count"), "{said}");
    // Before, at and after the step at which the layers are unfrozen.
    for step in 1..=3 {
        let out = format!("stopped-{step}");
        let outcome =
            train(&resolved(&dir, "whole/resnet8", &out), &mut |progress| match progress {
                Progress::Step { step: done, .. } if done == step => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            });
        assert!(matches!(outcome, Ok(Outcome::Stopped { .. })), "{outcome:?}");
        kd(&dir, &format!("{line} --out {out}"));
        assert_same(&dir, "whole", &out, "resnet8");
    }
}

/// Adam's first step moves each weight by the learning rate: its gradient divided by its absolute value, nearly.
#[test]
fn layers_are_trained_at_their_share_of_the_learning_rate() {
    let dir = WorkDir::new();
    let line = "train --model resnet8 --batch-size 8 --epochs 1 --keep-checkpoints 9";
    let moved = |more: &str, out: &str| {
        let words = "--dataset synthetic --train-limit 8 --test-limit 4 --lr 0.001";
        dir.stdout(&format!("{line} {words} {more} --out {out}"));
        let at = |step: usize| {
            let file = format!("{out}/resnet8/checkpoints/step-{step:09}.safetensors");
            tensors(&dir.read(&file))
        };
        let (before, after) = (at(0), at(1));
        move |name: &str| {
            let of = |tensors: &BTreeMap<String, Vec<u8>>| -> Vec<f32> {
                let bytes = tensors[&format!("parameter/{name}")].chunks_exact(4);
                bytes.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
            };
            let pairs = of(&before).into_iter().zip(of(&after));
            pairs.map(|(a, b)| (b - a).abs()).fold(0.0, f32::max)
        }
    };
    let whole = moved("", "whole");
    let scaled = moved("--lr-scale layer1=0.25,layer1.0.conv2=0.5", "scaled");
    for (name, share) in
        [("conv1.weight", 1.0), ("layer1.0.conv1.weight", 0.25), ("layer1.0.conv2.weight", 0.5)]
    {
        let (whole, scaled) = (whole(name), scaled(name));
        assert!((whole - 0.001).abs() < 2e-6, "{name}: {whole}");
        assert!((scaled - share * whole).abs() < 2e-6, "{name}: {scaled} {whole}");
    }
}

/// The sizes are PyTorch's (parity/networks.py): sums over `parameters()`.
#[test]
fn networks_are_listed_with_their_sizes_and_places() {
    let dir = WorkDir::new();
    let list: serde_json::Value = serde_json::from_str(&dir.stdout("networks --json")).unwrap();
    let list = list.as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|network| network["name"].as_str().unwrap()).collect();
    let all: Vec<&str> = Architecture::all().map(Architecture::name).collect();
    assert_eq!(names, all);
    let of = |name: &str| list.iter().find(|network| network["name"] == name).unwrap();
    let student = of("student");
    assert_eq!(student["family"], "tutorial");
    assert_eq!(student["input"], serde_json::json!([3, 32, 32]));
    assert_eq!(student["parameters"], 267_738);
    assert_eq!(student["multiply_adds"], 1_296_896);
    let place = serde_json::json!({ "name": "features.5", "shape": [16, 8, 8] });
    assert!(student["places"].as_array().unwrap().contains(&place), "{student}");
    assert_eq!(of("resnet56")["parameters"], 853_018);
    let text = dir.stdout("networks");
    for expected in [
        "teacher: family tutorial, images 3x32x32, 10 classes, 1,186,986 parameters, ",
        "resnet20: family cifar_resnet, images 3x32x32, 10 classes, 269,722 parameters, ",
        "mobilenet_v2_035: family mobilenet_v2, images 3x224x224, 1,000 classes, 1,677,128 parameters, ",
        "    places: stem 16x32x32, layer1.pre 16x32x32, layer1 16x32x32, layer2.pre 32x16x16, layer2 32x16x16, layer3.pre 64x8x8, layer3 64x8x8, pool 64\n",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}
