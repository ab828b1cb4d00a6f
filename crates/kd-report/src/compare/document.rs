//! The raw figures of every run, in one small JSON file: what the table is made from.

use std::path::Path;

use kd_record::read::read_json;
use kd_record::write::{create_folder, write_whole};
use kd_record::{Evaluation, Events, RunFolder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::figure::Figure;
use super::plan::{Planned, stem};
use super::published::Published;
use crate::{Error, Result};

const FORMAT: u32 = 1;
/// A thousand runs of a thousand epochs are far smaller.
const MAX_BYTES: u64 = 1 << 30;

/// What `figures.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The version of this description: 1.
    pub format: u32,
    /// The images of all runs; `None` before the first has ended.
    pub dataset: Option<Dataset>,
    /// What is compared.
    pub arms: Vec<Arm>,
    /// Arm by arm, each in the order of its seeds.
    pub runs: Vec<Run>,
}

/// The images that the runs saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// The data set's name.
    pub name: String,
    /// SHA-256 of the whole data set.
    pub sha256: String,
    /// Images that the accuracy is of.
    pub test: u64,
    /// Whether these were taken out of the training images, to choose settings.
    #[serde(default)]
    pub held_out: bool,
    /// Why the images may not be the published ones.
    #[serde(default)]
    pub warning: Option<String>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// The arm's name.
    pub name: String,
    /// The recipe's file name without its ending.
    pub recipe: String,
    /// The name of the recipe's run.
    pub run: String,
    /// Whether others learn from it.
    pub teaches: bool,
    /// The network's name.
    pub model: String,
    /// The methods' names joined by "+"; `None` on the labels alone.
    pub method: Option<String>,
    /// All that the runs' results depend on, except the seed.
    pub settings: Value,
    /// What others published of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
}

/// One trained network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The arm's name.
    pub arm: String,
    /// The run's seed.
    pub seed: u64,
    /// Share of correct predictions on the test images, of the weights that the run ended with.
    pub accuracy: f64,
    /// [Balanced accuracy](Evaluation::balanced_accuracy) of the same weights; versions before 0.3 did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balanced_accuracy: Option<f64>,
    /// [Macro F1](Evaluation::macro_f1) of the same weights; versions before 0.3 did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
    /// Cross-entropy on the test images, of the same weights.
    pub loss: f64,
    /// Test accuracy after each epoch.
    pub test_accuracy: Vec<f64>,
    /// Training loss of each epoch.
    pub train_loss: Vec<f64>,
    /// Training accuracy of each epoch; none where the training images have no labels.
    pub train_accuracy: Vec<f64>,
    /// Wall-clock seconds spent training.
    pub seconds: f64,
    /// How good the run's teacher is on the images that it teaches with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherFigures>,
}

/// How good a teacher is on training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherFigures {
    /// Share of correct predictions.
    pub accuracy: f64,
    /// Mean entropy of the teacher's softmax, in nats.
    pub entropy: f64,
}

impl Arm {
    /// The arm of a planned run.
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
            published: planned.published.clone(),
        }
    }
}

impl Run {
    /// The figures that a finished run's folder holds, and the images that it saw.
    ///
    /// # Errors
    /// When the run has not ended, or a file is missing or damaged.
    pub fn read(
        folder: &RunFolder,
        arm: &str,
        seed: u64,
        held_out: bool,
    ) -> Result<(Self, Dataset)> {
        let evaluation = Evaluation::read(&folder.evaluation())?;
        let events = Events::read(&folder.events())?;
        let Some(start) = events.start.filter(|_| !events.epochs.is_empty()) else {
            let found = "it reports no epochs";
            return Err(kd_record::Error::corrupt(&folder.events(), None, found).into());
        };
        let quality = events.teacher.and_then(|teacher| teacher.quality);
        let epochs = || events.epochs.iter();
        let run = Self {
            arm: arm.to_owned(),
            seed,
            accuracy: evaluation.accuracy,
            balanced_accuracy: Some(evaluation.balanced_accuracy),
            macro_f1: Some(evaluation.macro_f1),
            loss: evaluation.loss,
            test_accuracy: epochs().filter_map(|epoch| epoch.test_accuracy.map(short)).collect(),
            train_loss: epochs().map(|epoch| short(epoch.train_loss)).collect(),
            train_accuracy: epochs().filter_map(|epoch| epoch.train_accuracy.map(short)).collect(),
            seconds: short(epochs().map(|epoch| epoch.seconds).sum()),
            teacher: quality.map(|quality| TeacherFigures {
                accuracy: quality.accuracy,
                entropy: quality.entropy,
            }),
        };
        let (name, sha256) = (start.dataset.name, start.dataset.sha256);
        let (test, warning) = (start.dataset.test as u64, start.dataset.warning);
        Ok((run, Dataset { name, sha256, test, held_out, warning }))
    }
}

/// Six decimals are more than the figures mean, and keep the file small.
fn short(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl Figures {
    /// Reads the file; a document without arms where there is none.
    ///
    /// # Errors
    /// When the file is there and can't be read, or is something else.
    pub fn read_or_new(path: &Path) -> Result<Self> {
        match path.exists() {
            true => Self::read(path),
            false => Ok(Self { format: FORMAT, ..Self::default() }),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it can't be read, or is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |found| Err(kd_record::Error::corrupt(path, None, found).into());
        let figures: Self = read_json(path, MAX_BYTES, "the raw figures of a comparison")?;
        if figures.format != FORMAT {
            return bad(format!("format is {}; expected {FORMAT}", figures.format));
        }
        for run in &figures.runs {
            if !figures.arms.iter().any(|arm| arm.name == run.arm) {
                return bad(format!("a run of {:?}, which is no arm", run.arm));
            }
            if let Some(epoch) =
                run.test_accuracy.iter().find(|value| !(0.0..=1.0).contains(*value))
            {
                let (arm, seed) = (&run.arm, run.seed);
                return bad(format!(
                    "{arm} with seed {seed} has an epoch of accuracy {epoch}; expected 0 to 1"
                ));
            }
            for figure in Figure::ALL {
                let value = figure.of(run).filter(|value| !(0.0..=1.0).contains(value));
                if let Some(value) = value {
                    return bad(format!(
                        "{} with seed {} has {} {value}; expected 0 to 1",
                        run.arm,
                        run.seed,
                        figure.title()
                    ));
                }
            }
        }
        Ok(figures)
    }

    /// Writes the file, one arm or run a line, so that git shows what is new.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        fn lines<T: Serialize>(items: &[T]) -> serde_json::Result<String> {
            let lines: serde_json::Result<Vec<_>> =
                items.iter().map(serde_json::to_string).collect();
            Ok(lines?.join(",\n"))
        }
        let text = || -> serde_json::Result<String> {
            Ok(format!(
                "{{\"format\":{},\"dataset\":{},\n\"arms\":[\n{}\n],\n\"runs\":[\n{}\n]}}\n",
                self.format,
                serde_json::to_string(&self.dataset)?,
                lines(&self.arms)?,
                lines(&self.runs)?
            ))
        };
        let text = text().map_err(|error| {
            let found = format!("the figures can't be written as JSON: {error}");
            kd_record::Error::corrupt(path, None, found)
        })?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            create_folder(folder)?;
        }
        Ok(write_whole(path, text.as_bytes())?)
    }

    /// Adds an arm, or checks that the one of its name has the same settings, and takes over its published figure; `path` is the
    /// file's, for the message.
    ///
    /// # Errors
    /// When the document has an arm of that name with other settings; they are named.
    pub fn add_arm(&mut self, arm: Arm, path: &Path) -> Result<()> {
        let Some(there) = self.arms.iter_mut().find(|there| there.name == arm.name) else {
            self.arms.push(arm);
            return Ok(());
        };
        let mut differing = Vec::new();
        differences("", &there.settings, &arm.settings, &mut differing);
        if !differing.is_empty() {
            return Err(Error::Comparison(format!(
                "{}: its figures of {} are of other settings ({}); name another file with --json, or another --out",
                path.display(),
                arm.name,
                differing.join(", ")
            )));
        }
        there.teaches |= arm.teaches;
        there.published = arm.published.or(there.published.take());
        Ok(())
    }

    /// Whether there are figures of an arm's run with that seed.
    pub fn has(&self, arm: &str, seed: u64) -> bool {
        self.runs.iter().any(|run| run.arm == arm && run.seed == seed)
    }

    /// Adds a run that was on these images.
    ///
    /// # Errors
    /// When the others were on other images.
    pub fn add_run(&mut self, run: Run, dataset: Dataset) -> Result<()> {
        let images = |of: &Dataset| (of.name.clone(), of.sha256.clone(), of.test, of.held_out);
        if let Some(there) = self.dataset.as_ref().filter(|there| images(there) != images(&dataset))
        {
            return Err(Error::Comparison(format!(
                "{} with seed {} was tested on {} images of {} ({}), the others on {} of {} ({}): figures on different images can't be compared",
                run.arm,
                run.seed,
                dataset.test,
                dataset.name,
                dataset.sha256,
                there.test,
                there.name,
                there.sha256
            )));
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
            published: None,
        }
    }

    pub(in super::super) fn run(arm: &str, seed: u64, accuracy: f64) -> Run {
        Run {
            arm: arm.into(),
            seed,
            accuracy,
            balanced_accuracy: Some(accuracy - 0.1),
            macro_f1: None,
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
    fn figures_read_back_and_has_a_line_for_each_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/figures.json");
        let mut figures = Figures::read_or_new(&path).unwrap();
        figures.add_arm(arm("kd", false, Some("kd")), &path).unwrap();
        figures.add_arm(arm("dkd", false, Some("dkd")), &path).unwrap();
        for (name, seed) in [("dkd", 1), ("kd", 2), ("dkd", 0), ("kd", 0)] {
            figures.add_run(run(name, seed, 0.1 + 0.2), dataset()).unwrap();
        }
        let order: Vec<_> = figures.runs.iter().map(|run| (run.arm.as_str(), run.seed)).collect();
        assert_eq!(order, [("kd", 0), ("kd", 2), ("dkd", 0), ("dkd", 1)]);
        figures.write(&path).unwrap();
        assert_eq!(Figures::read(&path).unwrap(), figures);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("\"seed\"")).count(), 4, "{text}");
        assert!(figures.has("kd", 2) && !figures.has("kd", 1));
    }

    #[test]
    fn other_settings_under_the_same_name_are_refused_with_both_values() {
        let mut figures = Figures::default();
        figures.add_arm(arm("kd", false, None), Path::new("f.json")).unwrap();
        let mut other = arm("kd", false, None);
        other.settings = json!({"training": {"epochs": 20}});
        let message = figures.add_arm(other, Path::new("f.json")).unwrap_err().to_string();
        assert!(message.contains("training.epochs: 10 there, 20 asked for"), "{message}");
    }

    #[test]
    fn figures_on_other_images_are_refused() {
        let mut figures = Figures::default();
        figures.add_arm(arm("kd", false, None), Path::new("f.json")).unwrap();
        figures.add_run(run("kd", 0, 0.5), dataset()).unwrap();
        let held_out = Dataset { held_out: true, ..dataset() };
        assert!(figures.add_run(run("kd", 1, 0.5), held_out).is_err());
    }
}
