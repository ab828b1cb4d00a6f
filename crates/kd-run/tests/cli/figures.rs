//! An epoch's figures are of its images, however they lie in batches; `drop_last`.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;

use kd_run::train::{Outcome, Progress, train};
use serde_json::Value;

use crate::resume::{assert_same, resolved};
use crate::workdir::WorkDir;

/// A student without dropout on 60 images, whose weights stay as they are; `training` is the rest of `[training]`.
fn recipe(dir: &WorkDir, name: &str, training: &str, run: &str) {
    let text = format!(
        "format = 1\nname = '{name}'\n[data]\ndataset = 'synthetic'\ntrain_limit = 60\ntest_limit = 20\n[training]\nepochs = 2\n{training}\n[optimizer]\nname = 'sgd'\nlr = 1e-30\n[[run]]\nname = '{name}'\nmodel = 'student'\ndropout = 0.0\n{run}"
    );
    fs::write(dir.path(&format!("{name}.toml")), text).unwrap();
}

fn first_epoch(dir: &WorkDir, run: &str) -> Value {
    let events = dir.events(run);
    events.into_iter().find(|event| event["event"] == "epoch").unwrap()
}

#[test]
fn an_epochs_loss_and_parts_are_means_over_images() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let kd = "labels = 0.5\n[[run.method]]\nname = 'kd'\nweight = 0.5\n";
    let mut found = BTreeMap::new();
    for batch_size in [60, 59, 16] {
        let name = format!("of-{batch_size}");
        recipe(&dir, &name, &format!("batch_size = {batch_size}"), kd);
        dir.stdout(&format!(
            "distill --recipe {name}.toml --teacher teacher.safetensors --out out"
        ));
        found.insert(batch_size, first_epoch(&dir, &format!("out/{name}")));
    }
    // All images in one step: the figure is theirs, whatever weighs the steps.
    let whole = &found[&60];
    for batch_size in [59, 16] {
        for figure in ["/train_loss", "/parts/labels", "/parts/kd"] {
            let of = |epoch: &Value| epoch.pointer(figure).unwrap().as_f64().unwrap();
            let (expected, found) = (of(whole), of(&found[&batch_size]));
            assert!((found - expected).abs() < 1e-5 * expected, "{figure}: {found}, {expected}");
        }
    }
}

#[test]
fn drop_last_takes_whole_batches_alone_and_a_stopped_run_ends_the_same() {
    let dir = WorkDir::new();
    let training = "batch_size = 16\ndrop_last = true\nschedule = { name = 'cosine' }";
    recipe(&dir, "dropped", training, "");
    dir.stdout("train --recipe dropped.toml --out whole");
    let recorded = String::from_utf8(dir.read("whole/dropped/recipe.toml")).unwrap();
    assert!(recorded.contains("drop_last = true"), "{recorded}");
    let events = dir.events("whole/dropped");
    // Of 60 images 48 make three whole batches.
    assert_eq!(events.last().unwrap()["steps"], 6);
    // The schedule counts the same steps: of six cosine steps the last of the first epoch is the third.
    let rate = first_epoch(&dir, "whole/dropped")["learning_rate"].as_f64().unwrap();
    let expected = 1e-30 * 0.5 * (1.0 + (std::f64::consts::PI * 2.0 / 6.0).cos());
    assert!((rate - expected).abs() < 1e-9 * expected, "{rate}, {expected}");
    let run = resolved(&dir, "whole/dropped", "stopped");
    let outcome = train(&run, &mut |progress| match progress {
        Progress::Step { step: 4, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome.unwrap(), Outcome::Stopped { step: 4 }));
    dir.stdout("train --recipe dropped.toml --out stopped");
    assert_same(&dir, "whole", "stopped", "dropped");
    recipe(&dir, "none", "batch_size = 61\ndrop_last = true", "");
    let message = dir.fails("train --recipe none.toml --out none", 1);
    assert!(
        message.contains("run none: training.drop_last is true and the 60 training"),
        "{message}"
    );
    assert!(message.contains("batch_size at most 60"), "{message}");
}
