//! Every recipe in recipes/methods, and recipes/best.toml, trains, stops, goes on and ends the same; `kd methods` lists what there is.

use std::ops::ControlFlow;
use std::path::PathBuf;

use kd_models::Architecture;
use kd_run::recipe::Recipe;
use kd_run::train::{Outcome, Progress, train};
use serde_json::Value;

use crate::resume::{assert_same, resolved};
use crate::workdir::WorkDir;

/// Three steps of a few images.
const FEW: [&str; 10] = [
    "--dataset",
    "synthetic",
    "--train-limit",
    "40",
    "--test-limit",
    "20",
    "--epochs",
    "1",
    "--batch-size",
    "16",
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../recipes/methods")
}

fn check(file: &str) {
    let path = folder().join(format!("{file}.toml"));
    let recipe = Recipe::read(&path).unwrap();
    assert_eq!(path.file_stem().unwrap(), &*recipe.name);
    let dir = WorkDir::new();
    std::fs::create_dir(dir.path("whole")).unwrap();
    for teacher in recipe.runs.iter().filter(|run| run.model == Architecture::TUTORIAL_TEACHER) {
        dir.teacher(&format!("whole/{}.safetensors", teacher.name), 10, 5);
    }
    let runs: Vec<_> = recipe.runs.iter().filter(|run| !run.methods.is_empty()).collect();
    assert!(!runs.is_empty(), "{file} has no method");
    for run in runs {
        let verb = if run.needs_teacher() { "distill" } else { "train" };
        let line = format!("{verb} --run {} --out whole --recipe", run.name);
        let output = dir.command(&line).arg(&path).args(FEW).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kd {line}: {errors}");

        let again = resolved(&dir, &format!("whole/{}", run.name), "stopped");
        let outcome = train(&again, &mut |progress| match progress {
            Progress::Step { step: 2, .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(outcome, Ok(Outcome::Stopped { step: 2 })), "{outcome:?}");
        let outcome = train(&again, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(outcome, Ok(Outcome::Finished(_))), "{outcome:?}");
        assert_same(&dir, "whole", "stopped", &run.name);
        // What the method learned along the way is no part of the student.
        let weights = dir.read(&format!("whole/{}.safetensors", run.name));
        let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
        assert_eq!(weights.len(), 8, "{:?}", weights.names());
    }
}

macro_rules! recipes {
    ($($test:ident $file:literal,)*) => {
        $(
            #[test]
            fn $test() {
                check($file);
            }
        )*

        const FILES: &[&str] = &[$($file,)*];
    };
}

recipes! {
    activation_boundaries "activation-boundaries",
    attention_transfer "attention-transfer",
    correlation_congruence "correlation-congruence",
    cosine "cosine",
    crd "crd",
    dist "dist",
    dkd "dkd",
    factor_transfer "factor-transfer",
    fitnet "fitnet",
    fsp "fsp",
    kd "kd",
    label_smoothing "label-smoothing",
    logit_standardization "logit-standardization",
    mlkd "mlkd",
    nst "nst",
    ofd "ofd",
    pkt "pkt",
    regressor "regressor",
    reviewkd "reviewkd",
    rkd "rkd",
    similarity_preserving "similarity-preserving",
    soft_targets "soft-targets",
    ttm "ttm",
    vid "vid",
    wttm "wttm",
}

#[test]
fn best() {
    check("../best");
}

#[test]
fn no_recipe_is_left_out() {
    let mut there: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    there.sort();
    assert_eq!(there, FILES);
    // And each method is in some recipe.
    let recipes: Vec<Recipe> = there
        .iter()
        .map(|file| Recipe::read(&folder().join(format!("{file}.toml"))).unwrap())
        .collect();
    for info in kd_loss::METHODS {
        let mut terms = recipes.iter().flat_map(|r| &r.runs).flat_map(|run| &run.methods);
        assert!(terms.any(|term| term.method.name() == info.name), "{}", info.name);
    }
}

#[test]
fn kd_methods_lists_each_with_its_options() {
    let dir = WorkDir::new();
    let text = dir.stdout("methods");
    let list: Value = serde_json::from_str(&dir.stdout("methods --json")).unwrap();
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), kd_loss::METHODS.len());
    for method in list {
        let name = method["name"].as_str().unwrap();
        let summary = method["summary"].as_str().unwrap();
        assert!(text.contains(&format!("  {name}: {summary}")), "{name} is not in {text}");
        let source = method["source"].as_str().unwrap();
        assert!(
            source.len() > 20 && text.contains(&format!("      from {source}\n")),
            "{name}: {source}"
        );
        for option in method["options"].as_array().unwrap() {
            let option = option["name"].as_str().unwrap();
            assert!(text.contains(&format!("      {option}: ")), "{name}: {option}");
        }
    }
    let kd = list.iter().find(|method| method["name"] == "kd").unwrap();
    assert_eq!(kd["kind"], "response");
    // The tutorial's temperature with the tutorial's weights.
    assert_eq!(kd["options"][0]["default"], 2.0);
    assert_eq!((&kd["weight"], &kd["labels"]), (&Value::from(0.25), &Value::from(0.75)));
}

/// The recipes have the list's weights and options, but for those that say in their head whose other ones they have.
#[test]
fn recipes_have_the_weights_and_options_of_the_list() {
    let others = ["kd-t4", "soft-targets", "logit-standardization", "logit-standardization-dkd"];
    for file in FILES {
        let recipe = Recipe::read(&folder().join(format!("{file}.toml"))).unwrap();
        let with_methods = recipe.runs.iter().filter(|run| !run.methods.is_empty());
        for run in with_methods.filter(|run| !others.contains(&&*run.name)) {
            for term in &run.methods {
                let name = term.method.name();
                let info = kd_loss::METHODS.iter().find(|info| info.name == name).unwrap();
                assert_eq!(
                    (term.weight, run.labels),
                    (info.about.weight, info.about.labels),
                    "{name}"
                );
                let mut found = serde_json::to_value(&term.method).unwrap();
                // Places are the recipe's own.
                for place in ["student", "teacher"] {
                    found.as_object_mut().unwrap().remove(place);
                }
                let default = kd_loss::MethodConfig::from_name(name).unwrap();
                assert_eq!(found, serde_json::to_value(default).unwrap(), "{name}");
            }
        }
    }
    let standardized = Recipe::read(&folder().join("logit-standardization.toml")).unwrap();
    let found = |name: &str| {
        let run = standardized.runs.iter().find(|run| run.name == name).unwrap();
        let options = serde_json::to_value(&run.methods[0].method).unwrap();
        (run.labels, run.methods[0].weight, options)
    };
    // --logit-stand --base-temp 2 --kd-weight 9; CE_WEIGHT = 0.1, and 1.0 of DKD, whose ALPHA = 1.0 and BETA = 8.0 are multiplied by 9.
    let (labels, weight, options) = found("logit-standardization");
    assert_eq!((labels, weight), (0.1, 9.0));
    assert_eq!(options["temperature"], 2.0);
    let (labels, weight, options) = found("logit-standardization-dkd");
    assert_eq!((labels, weight), (1.0, 1.0));
    assert_eq!(
        (&options["temperature"], &options["alpha"]),
        (&Value::from(2.0), &Value::from(9.0))
    );
    assert_eq!(options["beta"], 72.0);
}

/// Hints at two places are two terms of one method: each is told by itself.
#[test]
fn two_terms_of_a_method_are_told_apart() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let hint = |student: &str, teacher: &str| {
        format!(
            "[[run.method]]\nname = 'fitnet'\nweight = 1.0\nstudent = '{student}'\nteacher = '{teacher}'\n"
        )
    };
    let recipe = format!(
        "format = 1\nname = 'two'\n[[run]]\nname = 'two'\nmodel = 'student'\n{}{}",
        hint("features.2", "features.4"),
        hint("features.5", "features.9")
    );
    std::fs::write(dir.path("two.toml"), recipe).unwrap();
    let line = "distill --recipe two.toml --teacher teacher.safetensors --out out";
    let output = dir.command(line).args(FEW).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events = dir.events("out/two");
    let epoch = events.iter().find(|event| event["event"] == "epoch").unwrap();
    let part = |name: &str| epoch["parts"][name].as_f64().unwrap_or_else(|| panic!("{epoch}"));
    let sum = part("labels") + part("fitnet") + part("fitnet 2");
    assert!((sum - epoch["train_loss"].as_f64().unwrap()).abs() < 1e-4 * sum, "{epoch}");
}
