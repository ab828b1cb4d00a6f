//! The recipes of the repository mean what they meant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kd_loss::{Setup, helper_parameters};
use kd_models::{Graph, ModelConfig};
use kd_run::recipe::{Recipe, RunConfig};
use serde_json::Value;

use crate::workdir::WorkDir;

/// What `kd recipe FILE --json` of version 0.1.0 printed for each file in `recipes/`: every setting of every run, defaults
/// filled in. A setting that came later is left out of what is written as long as it has its default.
const OLD: &str = include_str!("fixtures/recipes-0.1.0.json");

/// The numbers of recipes that were nobody's in 0.1.0 and are their authors' since: file, run, key of the first method, old and new value.
const CHANGED: [(&str, &str, &str, f64, f64); 5] = [
    ("methods/correlation-congruence.toml", "correlation-congruence", "weight", 0.02, 100.0),
    ("methods/dist.toml", "dist", "weight", 1.0, 2.0),
    ("methods/dist.toml", "dist", "temperature", 1.0, 4.0),
    ("methods/logit-standardization.toml", "logit-standardization-dkd", "alpha", 1.0, 9.0),
    ("methods/logit-standardization.toml", "logit-standardization-dkd", "beta", 8.0, 72.0),
];

/// A recipe as `kd recipe --json` prints it; by way of the text, in which an f32 has the digits that were written.
fn as_json(recipe: &Recipe) -> Value {
    serde_json::from_str(&serde_json::to_string(recipe).unwrap()).unwrap()
}

#[test]
fn every_recipe_gives_the_runs_that_it_gave_in_version_0_1_0() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    if !folder.exists() {
        eprintln!("skipped: this is not the repository");
        return;
    }
    let old: BTreeMap<String, Value> = serde_json::from_str(OLD).unwrap();
    assert_eq!(old.len(), 21);
    for (file, mut expected) in old {
        // What spells its numbers out means the same as then.
        let spelled_out = Recipe::parse(&toml::to_string(&expected).unwrap(), &file).unwrap();
        assert_eq!(as_json(&spelled_out), expected, "{file}");
        for (_, run, key, before, after) in CHANGED.iter().filter(|changed| changed.0 == file) {
            let runs = expected["run"].as_array_mut().unwrap();
            let run = runs.iter_mut().find(|found| found["name"] == *run).unwrap();
            let value = &mut run["method"][0][key];
            assert_eq!(value, before, "{file}: {key}");
            *value = Value::from(*after);
        }
        let recipe = Recipe::read(&folder.join(&file)).unwrap();
        assert_eq!(as_json(&recipe), expected, "{file}");
    }
}

fn places(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    graph.places().into_iter().map(|place| (place.name, place.shape)).collect()
}

/// The recipes in recipes/cifar100: the networks have the places that are named, the methods fit their shapes, and what a first stage
/// freezes is there. No weights are made.
#[test]
fn every_run_of_the_published_pairs_fits_its_networks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/cifar100");
    if !folder.exists() {
        eprintln!("skipped: this is not the repository");
        return;
    }
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|file| !file.ends_with("pairs.toml")).collect();
    assert_eq!(files.len(), 13);
    for file in files {
        let recipe = Recipe::read(&file).unwrap();
        let graph = |run: &RunConfig| ModelConfig::new(run.model, 100).graph().unwrap();
        let mut taught = 0;
        for run in &recipe.runs {
            let what = format!("{}, run {}", file.display(), run.name);
            let student = graph(run);
            for layer in &run.freeze {
                let below = format!("{layer}.");
                let frozen = |name: &str| name.starts_with(&below);
                assert!(student.parameters().any(|spec| frozen(&spec.name)), "{what}: {layer}");
            }
            let [teacher] = run.teachers() else { continue };
            taught += 1;
            let setup = Setup {
                student: places(&student),
                teacher: places(&graph(recipe.run(teacher).unwrap())),
                classes: 100,
                train_labels: (0..200).map(|image| image % 100).collect(),
            };
            for term in &run.methods {
                let method = term.method.resolve(&setup).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(method, term.method, "{what}: a place was left to a default");
                helper_parameters(&method, &setup).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
        }
        // 21 methods in one stage, AB and FSP in a first one.
        assert_eq!(taught, 23, "{}", file.display());
    }
}

#[test]
fn a_run_has_a_learning_rate_of_its_own_and_a_published_figure_changes_nothing_of_it() {
    let dir = WorkDir::new();
    let recipe = |lr: &str, more: &str| {
        let text = format!(
            "format = 1\nname = 'r'\n[optimizer]\nlr = {lr}\n[[run]]\nname = 'student'\nmodel = 'student'\n{more}"
        );
        std::fs::write(dir.path("r.toml"), &text).unwrap();
        text
    };
    let line = "train --recipe r.toml --run student --out out";
    recipe("0.002", "");
    dir.train(line);
    let recorded = String::from_utf8(dir.read("out/student/recipe.toml")).unwrap();
    let published = "published = { accuracy = 69.06, source = 'README', epoch = 'last' }\n";
    let text = recipe("0.5", &format!("lr = 0.002\n{published}"));
    // The same run: it is finished, and its record stays.
    let events = dir.read("out/student/events.jsonl");
    dir.train(line);
    assert!(dir.read("out/student/events.jsonl") == events, "nothing was trained");
    assert_eq!(String::from_utf8(dir.read("out/student/recipe.toml")).unwrap(), recorded);
    assert!(!recorded.contains("published") && recorded.contains("lr = 0.002"), "{recorded}");
    let message = dir.train_fails(&format!("{line} --lr 0.003"), 1);
    assert!(message.contains("optimizer.lr (0.002 there, 0.003 asked for)"), "{message}");

    for (from, to, expected) in [
        (
            "accuracy = 69.06",
            "accuracy = 690.6",
            "r.toml, line 9: run[1].published.accuracy: is 690.6; expected a percentage from 0 to 100",
        ),
        ("'README'", "' '", "run[1].published.source: is empty; expected where the figure stands"),
        ("'last'", "'best'", "best-on-test"),
        ("lr = 0.002", "lr = 0.0", "run[1].lr: is 0; expected a number above 0"),
    ] {
        let error = Recipe::parse(&text.replace(from, to), "r.toml").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
