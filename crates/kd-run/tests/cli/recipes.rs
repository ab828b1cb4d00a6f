//! The recipes of the repository mean what they meant.

use std::collections::BTreeMap;
use std::path::Path;

use kd_run::recipe::Recipe;
use serde_json::Value;

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
