//! What a run learns from: labels, methods, a teacher, weights that it starts from.
//!
//! The start event records it. Version 0.1 did not, and [`Roles::guessed`], [`named_as_teacher`] and [`guessed_teacher`] make of its names what that
//! version's report made of them; nobody else guesses.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::Start;
use crate::layout::{OutFolder, part_name};

/// What a run learns from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roles {
    /// Weight of the cross-entropy with the labels in the loss; absent where nobody recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<f64>,
    /// What is added to it, in the recipe's order; empty for a run that learns from the labels alone.
    #[serde(default)]
    pub methods: Vec<MethodRole>,
    /// Whose outputs the methods use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<WeightsSource>,
    /// Weights that the run starts from in place of fresh ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<WeightsSource>,
}

/// A method by which a run learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodRole {
    /// The method's name in recipes.
    pub name: String,
    /// Its weight in the loss; absent where nobody recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Whether it uses a teacher; label smoothing, a control, does not.
    pub asks_teacher: bool,
}

/// A file with weights, and whose they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsSource {
    /// The file, as seen from the run's folder if it lies below the same output folder.
    pub file: String,
    /// The run in the same output folder that left it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// SHA-256 of the file; of cross-fitted teachers, the SHA-256 of their files' SHA-256s.
    pub sha256: String,
    /// The number of cross-fitted teachers, each trained without the part of the images that it answers for; their files have
    /// the part's number behind the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<usize>,
}

impl WeightsSource {
    /// The weights in `file`, as seen from the folder of a run in `out`.
    pub fn new(out: &OutFolder, file: String, sha256: &str, parts: Option<usize>) -> Self {
        let beside = Path::new(&file).strip_prefix("..").unwrap_or(Path::new(""));
        let name = beside.with_extension("").display().to_string();
        // Of cross-fitted teachers, the one that has seen all images need not be there.
        let folder = parts.map_or(name.clone(), |parts| part_name(&name, 1, parts));
        let in_out = beside.components().count() == 1 && out.run(&folder).has_begun();
        let sha256 = sha256.to_owned();
        Self { run: in_out.then_some(name), file, sha256, parts }
    }
}

impl Roles {
    /// Whether the run learns from a teacher.
    pub fn is_taught(&self) -> bool {
        self.methods.iter().any(|method| method.asks_teacher)
    }

    /// What version 0.1 let one guess: every method but label smoothing asks a teacher, whoever that is.
    pub fn guessed(start: &Start) -> Self {
        let names = start.method.iter().flat_map(|names| names.split('+'));
        let methods = names.map(|name| MethodRole {
            name: name.to_owned(),
            weight: None,
            asks_teacher: name != "label-smoothing",
        });
        Self { labels: None, methods: methods.collect(), teacher: None, init: None }
    }
}

impl Start {
    /// What the run learns from, as recorded, or for a run of version 0.1 as guessed from the methods' names.
    pub fn roles(&self) -> Cow<'_, Roles> {
        match &self.roles {
            Some(roles) => Cow::Borrowed(roles),
            None => Cow::Owned(Roles::guessed(self)),
        }
    }
}

/// Whether a run of version 0.1 is to be taken for a teacher by its name.
pub fn named_as_teacher(start: &Start) -> bool {
    start.run == "teacher"
}

/// The place of the teacher among runs none of which records one, as version 0.1's report found it: the first that learns from
/// the labels alone and whose name or network is called "teacher".
pub fn guessed_teacher<'a>(starts: impl IntoIterator<Item = &'a Start>) -> Option<usize> {
    starts.into_iter().position(|start| {
        start.roles().methods.is_empty() && (named_as_teacher(start) || start.model == "teacher")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(run: &str, model: &str, method: Option<&str>) -> Start {
        let mut start: Start = serde_json::from_str(
            r#"{"run":"","model":"","parameters":1,"device":"cpu","seed":0,
                "dataset":{"name":"synthetic","train":1,"test":1,"sha256":""}}"#,
        )
        .unwrap();
        (start.run, start.model, start.method) =
            (run.into(), model.into(), method.map(str::to_owned));
        start
    }

    #[test]
    fn version_0_1_lets_methods_and_teacher_be_guessed_from_names() {
        let runs = [
            start("kd", "teacher", Some("kd+attention-transfer")),
            start("smooth", "student", Some("label-smoothing")),
            start("big", "resnet56", None),
            start("teacher", "resnet20", None),
        ];
        let roles: Vec<_> = runs.iter().map(|start| start.roles().into_owned()).collect();
        let names: Vec<_> = roles[0].methods.iter().map(|method| method.name.as_str()).collect();
        assert_eq!(names, ["kd", "attention-transfer"]);
        assert!(roles[0].is_taught() && !roles[1].is_taught() && !roles[2].is_taught());
        assert_eq!(guessed_teacher(&runs), Some(3));
        assert_eq!(guessed_teacher(&runs[..3]), None);
    }

    #[test]
    fn weights_are_a_runs_where_that_run_lies_in_the_same_folder() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutFolder::new(folder.path());
        for run in ["big", "t-part-1-of-2"] {
            std::fs::create_dir(out.run(run).path).unwrap();
            std::fs::write(out.run(run).events(), "").unwrap();
        }
        let run = |file: &str, parts| WeightsSource::new(&out, file.into(), "ab", parts).run;
        assert_eq!(run("../big.safetensors", None).as_deref(), Some("big"));
        assert_eq!(run("../t.safetensors", Some(2)).as_deref(), Some("t"));
        for file in ["../t.safetensors", "../deep/big.safetensors", "/big.safetensors", ".."] {
            assert_eq!(run(file, None), None, "{file}");
        }
    }

    #[test]
    fn what_is_recorded_is_not_guessed() {
        let mut recorded = start("kd", "student", Some("label-smoothing"));
        let json = r#"{"labels":0.5,"methods":[{"name":"kd","weight":0.25,"asks_teacher":true}],
            "teacher":{"file":"../big.safetensors","run":"big","sha256":"ab"}}"#;
        recorded.roles = Some(serde_json::from_str(json).unwrap());
        let roles = recorded.roles();
        assert!(roles.is_taught() && roles.init.is_none());
        assert_eq!(roles.teacher.as_ref().unwrap().run.as_deref(), Some("big"));
        let text = serde_json::to_string(&recorded).unwrap();
        assert_eq!(serde_json::from_str::<Start>(&text).unwrap(), recorded);
    }
}
