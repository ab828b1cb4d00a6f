//! The recipes of the repository mean what they meant.

use std::collections::BTreeMap;
use std::path::Path;

use kd_run::recipe::Recipe;
use serde_json::Value;

/// What `kd recipe FILE --json` of version 0.1.0 printed for each file in `recipes/`: every setting of every run, defaults
/// filled in. A setting that came later is left out of what is written as long as it has its default.
const OLD: &str = include_str!("fixtures/recipes-0.1.0.json");

#[test]
fn every_recipe_gives_the_runs_that_it_gave_in_version_0_1_0() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    if !folder.exists() {
        eprintln!("skipped: this is not the repository");
        return;
    }
    let old: BTreeMap<String, Value> = serde_json::from_str(OLD).unwrap();
    assert_eq!(old.len(), 21);
    for (file, expected) in old {
        let recipe = Recipe::read(&folder.join(&file)).unwrap();
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), expected, "{file}");
    }
}
