//! What a run learns from: labels, methods, a teacher, weights that it starts from.
//!
//! The start event records it; for a run of version 0.1, which did not, [`guess`](crate::guess) stands in.

use std::path::Path;

use serde::{Deserialize, Serialize};

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
    /// The other teachers of a run that has several, whose outputs are combined; `teacher` is the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_teachers: Vec<WeightsSource>,
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
    /// Whose weights they are: the run's name, or the file where no run beside left it.
    pub fn shown(&self) -> String {
        self.run.clone().unwrap_or_else(|| self.file.clone())
    }

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
    /// All weights that the run's methods learn from, in the recipe's order.
    pub fn teachers(&self) -> impl Iterator<Item = &WeightsSource> {
        self.teacher.iter().chain(&self.further_teachers)
    }

    /// Who teaches, where these are several: the names of runs in the same folder, or files. Empty where there is one teacher or none.
    pub fn several_teachers(&self) -> Vec<String> {
        match self.further_teachers.is_empty() {
            true => Vec::new(),
            false => self.teachers().map(WeightsSource::shown).collect(),
        }
    }

    /// Whether the run learns from a teacher.
    pub fn is_taught(&self) -> bool {
        self.methods.iter().any(|method| method.asks_teacher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
