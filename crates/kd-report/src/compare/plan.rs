//! Recipes -> the arms to compare, and the runs that each needs first.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::published::Published;
use crate::{Error, Result};

/// Changes to every recipe, as flags of `kd` and in the settings that are recorded.
///
/// Each is `None` where the recipes are to say it.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The data set's name.
    pub dataset: Option<String>,
    /// Epochs of each run.
    pub epochs: Option<usize>,
    /// Images in a step.
    pub batch_size: Option<usize>,
    /// Train on this many images.
    pub train_limit: Option<usize>,
    /// Test on this many images.
    pub test_limit: Option<usize>,
    /// Take this many training images out and test on them.
    pub held_out: Option<usize>,
    /// Whether pictures that can't be read are left out, also where the recipes don't say so.
    pub skip_broken: bool,
}

impl Overrides {
    /// Table and key in a recipe, flag of `kd`, value.
    fn all(&self) -> Vec<(&'static str, &'static str, &'static str, Value)> {
        let dataset = self.dataset.clone().map(Value::from);
        let number = |value: Option<usize>| value.map(Value::from);
        [
            ("data", "dataset", "--dataset", dataset),
            ("training", "epochs", "--epochs", number(self.epochs)),
            ("training", "batch_size", "--batch-size", number(self.batch_size)),
            ("data", "train_limit", "--train-limit", number(self.train_limit)),
            ("data", "test_limit", "--test-limit", number(self.test_limit)),
            ("data", "held_out", "--held-out", number(self.held_out)),
            ("data", "skip_broken", "--skip-broken", self.skip_broken.then_some(Value::Bool(true))),
        ]
        .into_iter()
        .filter_map(|(table, key, flag, value)| Some((table, key, flag, value?)))
        .collect()
    }

    /// The same as flags of `kd train` and `kd distill`.
    pub fn flags(&self) -> Vec<String> {
        let text = |value: Value| match value {
            // The presence of a switch is its value.
            Value::Bool(_) => None,
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        };
        let flags = self.all().into_iter();
        flags
            .flat_map(|(_, _, flag, value)| [Some(flag.to_owned()), text(value)])
            .flatten()
            .collect()
    }

    fn apply(&self, recipe: &mut Value) {
        for (table, key, _, value) in self.all() {
            recipe[table][key] = value;
        }
        if self.epochs.is_some() {
            // The flag is over a run's own number as well.
            for run in recipe["run"].as_array_mut().into_iter().flatten() {
                run.as_object_mut().and_then(|fields| fields.remove("epochs"));
            }
        }
    }
}

/// A teacher of a planned run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlannedTeacher {
    /// The planned run of this name.
    Run(String),
    /// A weights file, as the recipe names it: relative to the recipe's folder.
    File(String),
}

/// A network to train for each seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Its name here, and in a seed's folder.
    pub name: String,
    /// The recipe's file.
    pub recipe: PathBuf,
    /// The name of the recipe's run.
    pub run: String,
    /// Who teaches it, in the recipe's order.
    pub teachers: Vec<PlannedTeacher>,
    /// Name of the planned run whose weights it starts from; `None` also where the recipe names a file.
    pub init: Option<String>,
    /// Whether `kd distill` trains it.
    pub distilled: bool,
    /// Whether others learn from it.
    pub teaches: bool,
    /// How many parts the training images are cut into for cross-fitted targets.
    pub cross_fit: Option<usize>,
    /// All that the run's result depends on, except the seed: the recipe's tables, and the run without its name.
    pub settings: Value,
    /// What others published of it, which is no setting.
    pub published: Option<Published>,
}

/// The arms of all recipes, each given with its file and as JSON with every default filled in (what `kd recipe --json` prints).
///
/// The same run in several recipes (their common teacher, the student alone) is one arm; another run of a name that is taken
/// gets the recipe's name before its own. An arm comes after those whose weights it needs.
///
/// # Errors
/// When runs wait for each other's weights, when two different runs would have the same name, when there is no run.
pub fn plan(recipes: &[(PathBuf, Value)], overrides: &Overrides) -> Result<Vec<Planned>> {
    let mut planned: Vec<Planned> = Vec::new();
    for (path, resolved) in recipes {
        let mut resolved = resolved.clone();
        overrides.apply(&mut resolved);
        let wrong = |found: &str| Error::Comparison(format!("{}: {found}", path.display()));
        let no_recipe = || wrong("not a recipe as `kd recipe --json` prints it");
        let runs = resolved["run"].as_array().ok_or_else(no_recipe)?.clone();
        let text = |run: &Value, key: &str| run[key].as_str().map(str::to_owned);
        // The recipe's names -> the plan's.
        let mut names: Vec<(String, String)> = Vec::new();
        let mut waiting: Vec<Value> = runs.clone();
        while !waiting.is_empty() {
            let is_waiting = |name: &str| waiting.iter().any(|run| run["name"] == name);
            let waits = |run: &Value, key: &str| named(run, key).any(&is_waiting);
            let ready =
                waiting.iter().position(|run| !waits(run, "teacher") && !waits(run, "init"));
            let Some(ready) = ready else {
                return Err(wrong("its runs wait for each other's weights"));
            };
            let run = waiting.remove(ready);
            let own_name = text(&run, "name").ok_or_else(no_recipe)?;
            // A run's name here; `None` for a file.
            let planned_name = |named: &str| {
                names.iter().find(|(own, _)| own == named).map(|(_, name)| name.clone())
            };
            let teacher = |name: &str| match planned_name(name) {
                Some(run) => PlannedTeacher::Run(run),
                None => PlannedTeacher::File(name.to_owned()),
            };
            let teachers: Vec<PlannedTeacher> = named(&run, "teacher").map(teacher).collect();
            let init = text(&run, "init").and_then(|init| planned_name(&init));
            let taught = |other: &Value| named(other, "teacher").any(|name| name == own_name);
            let settings = settings(&resolved, &run, &teachers, init.as_deref());
            let published = match &run["published"] {
                Value::Null => None,
                found => match serde_json::from_value(found.clone()) {
                    Ok(published) => Some(published),
                    Err(error) => {
                        return Err(wrong(&format!("published of run {own_name}: {error}")));
                    }
                },
            };
            let mut one = Planned {
                name: own_name.clone(),
                recipe: path.clone(),
                run: own_name.clone(),
                distilled: !run["teacher"].is_null() || !run["teacher_logits"].is_null(),
                teaches: runs.iter().any(taught),
                teachers,
                init,
                cross_fit: run["cross_fit"].as_u64().map(|parts| parts as usize),
                settings,
                published,
            };
            if planned.iter().any(|other| other.name == one.name && other.settings != one.settings)
            {
                one.name = format!("{}-{own_name}", stem(path));
            }
            names.push((own_name, one.name.clone()));
            match planned.iter_mut().find(|other| other.name == one.name) {
                Some(same) if same.settings == one.settings => {
                    same.teaches |= one.teaches;
                    same.published = same.published.take().or(one.published);
                }
                Some(other) => {
                    return Err(Error::Comparison(format!(
                        "{} and {}: two different runs would be called {}; rename one",
                        other.recipe.display(),
                        path.display(),
                        one.name
                    )));
                }
                None => planned.push(one),
            }
        }
    }
    match planned.is_empty() {
        true => Err(Error::Comparison("the recipes have no runs".into())),
        false => Ok(planned),
    }
}

/// The names that a run has under a key: one, or a list of them, or none.
fn named<'a>(run: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    let several = run[key].as_array().into_iter().flatten();
    run[key].as_str().into_iter().chain(several.filter_map(Value::as_str))
}

fn settings(recipe: &Value, run: &Value, teachers: &[PlannedTeacher], init: Option<&str>) -> Value {
    let mut run = run.clone();
    let names = teachers.iter().map(|teacher| match teacher {
        PlannedTeacher::Run(name) | PlannedTeacher::File(name) => Value::from(name.as_str()),
    });
    let mut names: Vec<Value> = names.collect();
    let teacher = match names.len() {
        0 => None,
        1 => names.pop(),
        _ => Some(Value::Array(names)),
    };
    let (mut training, mut optimizer) = (recipe["training"].clone(), recipe["optimizer"].clone());
    if let Some(fields) = run.as_object_mut() {
        fields.remove("name");
        fields.remove("published");
        for (key, name) in [("teacher", teacher), ("init", init.map(Value::from))] {
            if let Some(name) = name {
                fields.insert(key.into(), name);
            }
        }
        if let Some(epochs) = fields.remove("epochs") {
            training["epochs"] = epochs;
        }
        if let Some(lr) = fields.remove("lr") {
            optimizer["lr"] = lr;
        }
    }
    if let Some(fields) = training.as_object_mut() {
        fields.remove("seed");
    }
    serde_json::json!({
        "data": recipe["data"], "training": training, "optimizer": optimizer, "run": run,
    })
}

/// The name of a recipe's file without its ending.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn recipe(epochs: u64, runs: Value) -> Value {
        json!({"format": 1, "name": "r", "data": {"dataset": "cifar10"},
               "training": {"epochs": epochs, "seed": 0}, "optimizer": {"lr": 0.1}, "run": runs})
    }

    fn names(recipes: &[(PathBuf, Value)]) -> Vec<String> {
        let plan = plan(recipes, &Overrides::default()).unwrap();
        plan.into_iter().map(|planned| planned.name).collect()
    }

    #[test]
    fn a_run_that_recipes_share_is_planned_once_and_teachers_come_first() {
        let kd = json!({"name": "kd", "model": "student", "teacher": "teacher"});
        let teacher = json!({"name": "teacher", "model": "teacher"});
        let dkd = json!({"name": "dkd", "model": "student", "teacher": "teacher"});
        let a = ("a.toml".into(), recipe(10, json!([kd, teacher])));
        let b = ("b.toml".into(), recipe(10, json!([teacher, dkd])));
        let plan = plan(&[a, b], &Overrides::default()).unwrap();
        let names: Vec<_> = plan.iter().map(|planned| planned.name.as_str()).collect();
        assert_eq!(names, ["teacher", "kd", "dkd"]);
        assert!(plan[0].teaches && !plan[0].distilled);
        assert!(plan[2].distilled && plan[2].teachers == [PlannedTeacher::Run("teacher".into())]);
        let stored = json!([{"name": "kd", "model": "student", "teacher_logits": "answers"}]);
        let plan = super::plan(&[("c.toml".into(), recipe(10, stored))], &Overrides::default());
        let plan = plan.unwrap();
        assert!(
            plan[0].distilled && plan[0].teachers.is_empty(),
            "its teacher is a file of logits"
        );
    }

    #[test]
    fn different_runs_of_one_name_are_told_apart_with_what_they_teach() {
        let runs = json!([{"name": "teacher"}, {"name": "kd", "teacher": "teacher"}]);
        let recipes =
            [("a.toml".into(), recipe(10, runs.clone())), ("x/long.toml".into(), recipe(20, runs))];
        assert_eq!(names(&recipes), ["teacher", "kd", "long-teacher", "long-kd"]);
        let plan = plan(&recipes, &Overrides::default()).unwrap();
        assert_eq!(plan[3].teachers, [PlannedTeacher::Run("long-teacher".into())]);
        assert_eq!((plan[3].run.as_str(), plan[3].distilled), ("kd", true));
    }

    #[test]
    fn flags_change_what_is_recorded_and_what_kd_is_told() {
        let overrides = Overrides {
            dataset: Some("synthetic".into()),
            held_out: Some(500),
            ..Overrides::default()
        };
        let one = [("a.toml".into(), recipe(10, json!([{"name": "student"}])))];
        let settings = &plan(&one, &overrides).unwrap()[0].settings;
        assert_eq!(settings["data"], json!({"dataset": "synthetic", "held_out": 500}));
        assert!(settings["training"].get("seed").is_none());
        assert_eq!(overrides.flags(), ["--dataset", "synthetic", "--held-out", "500"]);
    }

    #[test]
    fn a_run_comes_after_the_one_whose_weights_it_starts_from() {
        let runs = json!([{"name": "tuned", "init": "first", "teacher": "t.safetensors"}, {"name": "first"},
                          {"name": "other", "init": "w.safetensors"}]);
        let recipes = [
            ("a.toml".into(), recipe(10, json!([{"name": "first"}]))),
            ("b.toml".into(), recipe(2, runs)),
        ];
        let plan = plan(&recipes, &Overrides::default()).unwrap();
        let found: Vec<_> = plan
            .iter()
            .map(|one| (one.name.as_str(), one.init.as_deref(), one.distilled))
            .collect();
        assert_eq!(
            found,
            [
                ("first", None, false),
                ("b-first", None, false),
                ("tuned", Some("b-first"), true),
                ("other", None, false)
            ]
        );
        assert_eq!(plan[2].settings["run"]["init"], "b-first");
        assert_eq!(plan[3].settings["run"]["init"], "w.safetensors");
    }

    #[test]
    fn a_runs_own_epochs_are_recorded_unless_a_flag_says_otherwise() {
        let runs = json!([{"name": "early", "epochs": 4}, {"name": "student"}]);
        let recipes = [("a.toml".into(), recipe(10, runs))];
        let epochs = |overrides: &Overrides| -> Vec<Value> {
            let plan = plan(&recipes, overrides).unwrap();
            assert!(plan.iter().all(|one| one.settings["run"].get("epochs").is_none()));
            plan.iter().map(|one| one.settings["training"]["epochs"].clone()).collect()
        };
        assert_eq!(epochs(&Overrides::default()), [4, 10]);
        assert_eq!(epochs(&Overrides { epochs: Some(2), ..Overrides::default() }), [2, 2]);
    }

    #[test]
    fn a_runs_own_learning_rate_is_recorded_and_a_published_figure_is_no_setting() {
        let published = json!({"accuracy": 70.66, "source": "paper", "epoch": "last"});
        let runs = json!([{"name": "slow", "lr": 0.01}, {"name": "kd", "published": published}]);
        let plain = json!([{"name": "kd"}]);
        let recipes = [("a.toml".into(), recipe(10, plain)), ("b.toml".into(), recipe(10, runs))];
        let plan = plan(&recipes, &Overrides::default()).unwrap();
        // The run with and that without the figure are one arm.
        let names: Vec<_> = plan.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["kd", "slow"]);
        assert_eq!(plan[0].settings["run"], json!({}));
        assert_eq!(plan[0].published.as_ref().unwrap().accuracy, 70.66);
        assert_eq!(
            (&plan[1].settings["run"], &plan[1].settings["optimizer"]["lr"]),
            (&json!({}), &json!(0.01))
        );
        let wrong =
            json!([{"name": "kd", "published": {"accuracy": 1, "source": "s", "epoch": "first"}}]);
        let error = super::plan(&[("c.toml".into(), recipe(1, wrong))], &Overrides::default());
        let message = error.unwrap_err().to_string();
        assert!(
            message.contains("c.toml: published of run kd") && message.contains("best-on-test"),
            "{message}"
        );
    }

    #[test]
    fn a_circle_is_an_error() {
        let runs = json!([{"name": "a", "teacher": "b"}, {"name": "b", "init": "a"}]);
        let error = plan(&[("a.toml".into(), recipe(1, runs))], &Overrides::default());
        assert!(error.unwrap_err().to_string().contains("wait for each other's weights"));
    }
}
