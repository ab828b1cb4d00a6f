//! The raw figures of every run, in one small JSON file: what the table is made from.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{Planned, stem};

const FORMAT: u32 = 1;

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    /// Of all runs; `None` before the first has ended.
    pub dataset: Option<Dataset>,
    pub arms: Vec<Arm>,
    pub runs: Vec<Run>,
}

/// The images that the runs saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    pub name: String,
    /// Of the whole data set.
    pub sha256: String,
    /// Images that the accuracy is of.
    pub test: u64,
    /// Whether these were taken out of the training images.
    #[serde(default)]
    pub held_out: bool,
    #[serde(default)]
    pub warning: Option<String>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    pub name: String,
    /// The recipe's file name without its ending, and its run.
    pub recipe: String,
    pub run: String,
    /// Whether others learn from it.
    pub teaches: bool,
    pub model: String,
    /// Joined by "+"; `None` on the labels alone.
    pub method: Option<String>,
    pub settings: Value,
}

/// One trained network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub arm: String,
    pub seed: u64,
    /// Of the weights that the run ended with, on the test images.
    pub accuracy: f64,
    pub loss: f64,
    /// After each epoch.
    pub test_accuracy: Vec<f64>,
    pub train_loss: Vec<f64>,
    pub train_accuracy: Vec<f64>,
    /// Spent on training.
    pub seconds: f64,
    /// What its teacher says of the images that it teaches with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherSays>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherSays {
    /// Share of right answers.
    pub accuracy: f64,
    /// Of its softmax, mean, in nats.
    pub entropy: f64,
}

impl Arm {
    pub fn of(planned: &Planned) -> Self {
        let run = &planned.settings["run"];
        let methods: Vec<&str> = run["method"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|method| method["name"].as_str())
            .collect();
        Self {
            name: planned.name.clone(),
            recipe: stem(&planned.recipe),
            run: planned.run.clone(),
            teaches: planned.teaches,
            model: run["model"].as_str().unwrap_or_default().to_owned(),
            method: (!methods.is_empty()).then(|| methods.join("+")),
            settings: planned.settings.clone(),
        }
    }
}

impl Record {
    /// Reads the file; an empty record where there is none.
    pub fn read_or_new(path: &Path) -> anyhow::Result<Self> {
        match path.exists() {
            true => Self::read(path),
            false => Ok(Self { format: FORMAT, ..Self::default() }),
        }
    }

    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("{}: can't be read", path.display()))?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{}: not the raw figures of a comparison", path.display()))?;
        ensure!(
            record.format == FORMAT,
            "{}: format is {}; expected {FORMAT}",
            path.display(),
            record.format
        );
        for run in &record.runs {
            let known = record.arms.iter().any(|arm| arm.name == run.arm);
            ensure!(known, "{}: a run of {:?}, which is no arm", path.display(), run.arm);
            let share = (0.0..=1.0).contains(&run.accuracy);
            ensure!(
                share,
                "{}: {} with seed {} has accuracy {}; expected 0 to 1",
                path.display(),
                run.arm,
                run.seed,
                run.accuracy
            );
        }
        Ok(record)
    }

    /// Writes the file aside and renames it; one arm or run a line, so that git shows what is new.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        fn lines<T: Serialize>(items: &[T]) -> serde_json::Result<String> {
            let lines: Result<Vec<_>, _> = items.iter().map(serde_json::to_string).collect();
            Ok(lines?.join(",\n"))
        }
        let text = format!(
            "{{\"format\":{},\"dataset\":{},\n\"arms\":[\n{}\n],\n\"runs\":[\n{}\n]}}\n",
            self.format,
            serde_json::to_string(&self.dataset)?,
            lines(&self.arms)?,
            lines(&self.runs)?
        );
        write_whole(path, &text)
    }

    /// Adds an arm, or checks that the one of its name is the same.
    pub fn add_arm(&mut self, arm: Arm, path: &Path) -> anyhow::Result<()> {
        let Some(there) = self.arms.iter_mut().find(|there| there.name == arm.name) else {
            self.arms.push(arm);
            return Ok(());
        };
        let mut differing = Vec::new();
        differences("", &there.settings, &arm.settings, &mut differing);
        ensure!(
            differing.is_empty(),
            "{}: its figures of {} are of other settings ({}); name another file with --json, or another --out",
            path.display(),
            arm.name,
            differing.join(", ")
        );
        there.teaches |= arm.teaches;
        Ok(())
    }

    pub fn has(&self, arm: &str, seed: u64) -> bool {
        self.runs.iter().any(|run| run.arm == arm && run.seed == seed)
    }

    /// Adds a run that was on these images.
    pub fn add_run(&mut self, run: Run, dataset: Dataset) -> anyhow::Result<()> {
        let images = |of: &Dataset| (of.name.clone(), of.sha256.clone(), of.test, of.held_out);
        if let Some(there) = &self.dataset {
            ensure!(
                images(there) == images(&dataset),
                "{} with seed {} was tested on {} images of {} ({}), the others on {} of {} ({}): figures on different images can't be compared",
                run.arm,
                run.seed,
                dataset.test,
                dataset.name,
                dataset.sha256,
                there.test,
                there.name,
                there.sha256
            );
        }
        self.dataset = Some(dataset);
        let arm_place =
            |name: &str| self.arms.iter().position(|arm| arm.name == name).unwrap_or(usize::MAX);
        let place = (arm_place(&run.arm), run.seed);
        let at = self.runs.partition_point(|other| (arm_place(&other.arm), other.seed) < place);
        self.runs.insert(at, run);
        Ok(())
    }
}

/// Writes beside the file and renames, so that a reader never finds half of it.
pub fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("{}: can't be written", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(failed)?;
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".part");
    let write = || {
        let mut file = fs::File::create(&aside)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().with_context(failed)
}

/// The keys in which two settings differ, with both values.
fn differences(key: &str, there: &Value, asked: &Value, found: &mut Vec<String>) {
    let below = |name: &str| if key.is_empty() { name.into() } else { format!("{key}.{name}") };
    match (there, asked) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                differences(&below(name), &there[name], &asked[name], found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&below(&(index + 1).to_string()), a, b, found);
            }
        }
        _ if there != asked => found.push(format!("{key}: {there} there, {asked} asked for")),
        _ => {}
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(in super::super) fn arm(name: &str, teaches: bool, method: Option<&str>) -> Arm {
        Arm {
            name: name.into(),
            recipe: "r".into(),
            run: name.into(),
            teaches,
            model: if teaches { "teacher" } else { "student" }.into(),
            method: method.map(str::to_owned),
            settings: json!({"training": {"epochs": 10}}),
        }
    }

    pub(in super::super) fn run(arm: &str, seed: u64, accuracy: f64) -> Run {
        Run {
            arm: arm.into(),
            seed,
            accuracy,
            loss: 1.0,
            test_accuracy: vec![accuracy],
            train_loss: vec![1.5],
            train_accuracy: vec![0.5],
            seconds: 1.25,
            teacher: None,
        }
    }

    pub(in super::super) fn dataset() -> Dataset {
        Dataset {
            name: "synthetic".into(),
            sha256: "ab".into(),
            test: 40,
            held_out: false,
            warning: None,
        }
    }

    #[test]
    fn a_record_reads_back_and_has_a_line_for_each_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/figures.json");
        let mut record = Record::read_or_new(&path).unwrap();
        record.add_arm(arm("kd", false, Some("kd")), &path).unwrap();
        record.add_arm(arm("dkd", false, Some("dkd")), &path).unwrap();
        for (name, seed) in [("dkd", 1), ("kd", 2), ("dkd", 0), ("kd", 0)] {
            record.add_run(run(name, seed, 0.1 + 0.2), dataset()).unwrap();
        }
        let order: Vec<_> = record.runs.iter().map(|run| (run.arm.as_str(), run.seed)).collect();
        assert_eq!(order, [("kd", 0), ("kd", 2), ("dkd", 0), ("dkd", 1)]);
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("\"seed\"")).count(), 4, "{text}");
        assert!(record.has("kd", 2) && !record.has("kd", 1));
    }

    #[test]
    fn other_settings_under_the_same_name_are_refused_with_both_values() {
        let mut record = Record::default();
        record.add_arm(arm("kd", false, None), Path::new("f.json")).unwrap();
        let mut other = arm("kd", false, None);
        other.settings = json!({"training": {"epochs": 20}});
        let message = record.add_arm(other, Path::new("f.json")).unwrap_err().to_string();
        assert!(message.contains("training.epochs: 10 there, 20 asked for"), "{message}");
    }

    #[test]
    fn figures_on_other_images_are_refused() {
        let mut record = Record::default();
        record.add_arm(arm("kd", false, None), Path::new("f.json")).unwrap();
        record.add_run(run("kd", 0, 0.5), dataset()).unwrap();
        let held_out = Dataset { held_out: true, ..dataset() };
        assert!(record.add_run(run("kd", 1, 0.5), held_out).is_err());
    }
}
