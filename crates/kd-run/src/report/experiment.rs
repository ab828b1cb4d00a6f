//! Run folders as they lie on disk -> runs grouped by name over seeds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kd_record::{RunFolder, TestOutputs};
use serde::Deserialize;

use super::{Error, statistics};
use crate::softmax;

/// Everything read below one output folder.
pub(super) struct Experiment {
    /// The folder's name, short enough for a heading.
    pub(super) label: String,
    pub(super) dataset: Dataset,
    pub(super) device: String,
    /// Lower to higher; one without seed folders.
    pub(super) seeds: Vec<u64>,
    /// Trained alone first (the largest before the smaller), then distilled.
    pub(super) arms: Vec<Arm>,
    /// `comparison.json` of `cargo xtask compare`, where it lies in the folder.
    pub(super) comparison: Option<Comparison>,
}

/// A table as `cargo xtask compare` leaves it.
#[derive(Deserialize)]
pub(super) struct Comparison {
    pub(super) title: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    pub(super) notes: Vec<String>,
}

/// The runs of one name, over the seeds.
pub(super) struct Arm {
    pub(super) name: String,
    /// One per seed that has it, in the seeds' order; at least one.
    pub(super) runs: Vec<Run>,
}

/// One run folder.
pub(super) struct Run {
    pub(super) folder: PathBuf,
    pub(super) start: Start,
    /// In order, at least one, each once: after a resume the last report of an epoch counts.
    pub(super) epochs: Vec<Epoch>,
    pub(super) finished: bool,
    /// Present when the run is finished.
    pub(super) evaluation: Option<Evaluation>,
    pub(super) weights_bytes: Option<u64>,
    pub(super) teacher: Option<TeacherSays>,
    /// What the finished network says of the test images; earlier versions left no such file.
    pub(super) outputs: Option<TestOutputs>,
    /// What the teacher that it learnt from says of them.
    teacher_logits: Option<Vec<f32>>,
    pub(super) recipe: toml::Table,
    pub(super) recipe_text: String,
}

/// How a run's teacher does on images that it teaches with.
#[derive(Deserialize, Clone, Copy)]
pub(super) struct TeacherSays {
    pub(super) images: u64,
    pub(super) accuracy: f64,
    /// In nats.
    pub(super) entropy: f64,
}

/// The first event of a run.
#[derive(Deserialize)]
pub(super) struct Start {
    #[serde(alias = "name")]
    pub(super) run: String,
    pub(super) model: String,
    #[serde(default)]
    pub(super) method: Option<String>,
    pub(super) parameters: u64,
    #[serde(default)]
    pub(super) multiply_adds: Option<u64>,
    pub(super) device: String,
    #[serde(default)]
    pub(super) threads: Option<u64>,
    #[serde(default)]
    pub(super) machine: Option<String>,
    #[serde(default)]
    pub(super) version: Option<String>,
    pub(super) seed: u64,
    pub(super) dataset: Dataset,
}

#[derive(Deserialize, serde::Serialize, Clone, PartialEq)]
pub(super) struct Dataset {
    pub(super) name: String,
    /// Images trained on, after any limit.
    pub(super) train: u64,
    pub(super) test: u64,
    pub(super) sha256: String,
    /// What is doubtful about the data, e.g. an archive whose checksum is not the published one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) warning: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Epoch {
    /// From 1.
    pub(super) epoch: u64,
    pub(super) train_loss: f64,
    pub(super) test_loss: f64,
    pub(super) test_accuracy: f64,
    pub(super) seconds: f64,
    /// Spent on the test images.
    #[serde(default)]
    pub(super) test_seconds: Option<f64>,
    pub(super) images_per_second: f64,
    /// Parts of the training loss by name, before their weights.
    #[serde(default)]
    pub(super) parts: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
pub(super) struct Evaluation {
    format: u64,
    pub(super) accuracy: f64,
    #[serde(default)]
    loss: Option<f64>,
    pub(super) classes: Vec<String>,
    /// Rows: the true class; columns: the predicted one.
    pub(super) confusion: Vec<Vec<u32>>,
    pub(super) per_class_accuracy: Vec<f64>,
}

impl Dataset {
    pub(super) fn title(&self) -> &str {
        match self.name.as_str() {
            "cifar10" => "CIFAR-10",
            "cifar100" => "CIFAR-100",
            "synthetic" => "Synthetic pictures",
            "folder" => "Pictures of one's own",
            other => other,
        }
    }

    fn same_data(&self, other: &Dataset) -> bool {
        (&self.name, &self.sha256, self.test) == (&other.name, &other.sha256, other.test)
    }

    fn describe(&self) -> String {
        let start: String = self.sha256.chars().take(12).collect();
        format!("{} ({} test images, sha256 {start}...)", self.name, self.test)
    }
}

impl Run {
    /// Of the weights that the run ended with: the last epoch's, as in the source, or those of the epoch that it chose
    /// (`select_on`). Of an unfinished run the last epoch's so far.
    pub(super) fn test_accuracy(&self) -> f64 {
        self.evaluation.as_ref().map_or(self.last().test_accuracy, |found| found.accuracy)
    }

    pub(super) fn test_loss(&self) -> f64 {
        let found = self.evaluation.as_ref().and_then(|found| found.loss);
        found.unwrap_or(self.last().test_loss)
    }

    /// Whether the weights are those of the epoch that was best on held-out images.
    pub(super) fn chose_its_epoch(&self) -> bool {
        let run = self.recipe.get("run").and_then(|runs| runs.get(0));
        run.is_some_and(|run| run.get("select_on").is_some())
    }

    pub(super) fn best_test_accuracy(&self) -> f64 {
        let accuracies = self.epochs.iter().map(|epoch| epoch.test_accuracy);
        accuracies.fold(0.0, f64::max)
    }

    pub(super) fn seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.seconds).sum()
    }

    /// Mean over the epochs, each weighted by its time: images over seconds of the whole run.
    pub(super) fn images_per_second(&self) -> f64 {
        let images = |epoch: &Epoch| epoch.images_per_second * epoch.seconds;
        let seconds = self.seconds();
        if seconds > 0.0 { self.epochs.iter().map(images).sum::<f64>() / seconds } else { 0.0 }
    }

    /// Test images answered in a second, over all epochs; unknown where other images were looked at
    /// too, to choose the best epoch.
    pub(super) fn answers_per_second(&self) -> Option<f64> {
        if self.setting("select_on").is_some() {
            return None;
        }
        let seconds: Option<Vec<f64>> =
            self.epochs.iter().map(|epoch| epoch.test_seconds).collect();
        let seconds: f64 = seconds?.iter().sum();
        let images = self.start.dataset.test as f64 * self.epochs.len() as f64;
        (seconds > 0.0).then(|| images / seconds)
    }

    /// A value of the recipe's one `[[run]]`.
    pub(super) fn setting(&self, name: &str) -> Option<&toml::Value> {
        self.recipe.get("run")?.get(0)?.get(name)
    }

    fn last(&self) -> &Epoch {
        &self.epochs[self.epochs.len() - 1]
    }
}

impl Arm {
    pub(super) fn first(&self) -> &Run {
        &self.runs[0]
    }

    pub(super) fn model(&self) -> &str {
        &self.first().start.model
    }

    pub(super) fn method(&self) -> Option<&str> {
        self.first().start.method.as_deref()
    }

    pub(super) fn values(&self, of: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(of).collect()
    }

    pub(super) fn mean(&self, of: impl Fn(&Run) -> f64) -> f64 {
        statistics::mean(&self.values(of)).unwrap_or(f64::NAN)
    }

    pub(super) fn unfinished(&self) -> bool {
        self.runs.iter().any(|run| !run.finished)
    }

    /// This arm's value minus the other's, seed by seed, over the seeds that both have.
    pub(super) fn paired(&self, other: &Arm, of: impl Fn(&Run) -> Option<f64>) -> Vec<f64> {
        let value = |run: &Run| {
            let twin = other.runs.iter().find(|o| o.start.seed == run.start.seed)?;
            Some(of(run)? - of(twin)?)
        };
        self.runs.iter().filter_map(value).collect()
    }

    /// Confusion counts summed over the seeds, with the class names; `None` before a run ends.
    pub(super) fn confusion(&self) -> Option<(&[String], Vec<Vec<u64>>)> {
        let found = self.runs.iter().filter_map(|run| run.evaluation.as_ref());
        let classes = &found.clone().next()?.classes;
        let mut sum = vec![vec![0; classes.len()]; classes.len()];
        for evaluation in found.filter(|other| other.classes == *classes) {
            for (row, other) in sum.iter_mut().zip(&evaluation.confusion) {
                for (cell, count) in row.iter_mut().zip(other) {
                    *cell += u64::from(*count);
                }
            }
        }
        Some((classes, sum))
    }
}

/// Whether a method, or one of several joined by "+", asks a teacher: label smoothing alone does not.
fn is_taught(methods: &str) -> bool {
    let is_control = |name: &str| {
        let info = kd_loss::METHODS.iter().find(|info| info.name == name);
        info.is_some_and(|info| info.about.kind == kd_loss::Kind::Control)
    };
    !methods.split('+').all(is_control)
}

impl Experiment {
    /// What a student's teacher says of the test images: the teacher that it learnt from, or for one
    /// on the labels alone the teacher of the same seed, if its outputs are there.
    pub(super) fn teacher_logits<'a>(&'a self, run: &'a Run) -> Option<&'a [f32]> {
        if let Some(logits) = &run.teacher_logits {
            return Some(logits);
        }
        let teacher = self.teacher().filter(|_| run.start.method.is_none())?;
        if teacher.name == run.start.run {
            return None;
        }
        let same_seed = teacher.runs.iter().find(|other| other.start.seed == run.start.seed);
        let (own, theirs) = (run.outputs.as_ref()?, same_seed?.outputs.as_ref()?);
        let same_images = (&own.labels, own.classes) == (&theirs.labels, theirs.classes);
        same_images.then_some(&theirs.logits)
    }

    /// The same network trained on the labels alone, which a distilled one is measured against.
    pub(super) fn alone(&self, arm: &Arm) -> Option<&Arm> {
        arm.method()?;
        let mut alone: Vec<&Arm> = self
            .arms
            .iter()
            .filter(|other| other.method().is_none() && other.model() == arm.model())
            .collect();
        // Where a network is its own teacher, both are there.
        alone.sort_by_key(|other| other.name == "teacher");
        alone.first().copied()
    }

    /// The network that the distilled ones learnt from, if it was trained here.
    pub(super) fn teacher(&self) -> Option<&Arm> {
        let mut alone = self.arms.iter().filter(|arm| arm.method().is_none());
        alone.find(|arm| arm.name == "teacher" || arm.model() == "teacher")
    }

    /// The run that stands for the distilled student: plain soft targets where there are any.
    pub(super) fn distilled(&self) -> Option<&Arm> {
        let named = self.arms.iter().find(|arm| arm.name == "kd");
        named.or_else(|| self.arms.iter().find(|arm| arm.method().is_some_and(is_taught)))
    }

    /// The student trained on the labels alone.
    pub(super) fn student(&self) -> Option<&Arm> {
        match self.distilled() {
            Some(distilled) => self.alone(distilled),
            None => {
                let teacher = self.teacher().map(|arm| &arm.name);
                self.arms.iter().find(|arm| arm.method().is_none() && Some(&arm.name) != teacher)
            }
        }
    }
}

/// Reads each folder; labels are the folders' names, or their paths where names repeat.
pub(super) fn read_all(outs: &[PathBuf]) -> Result<Vec<Experiment>, Error> {
    let mut experiments = Vec::with_capacity(outs.len());
    for out in outs {
        let mut experiment = read(out)?;
        let same_name = |other: &&PathBuf| folder_name(other) == folder_name(out);
        experiment.label = match outs.iter().filter(same_name).count() {
            0 | 1 => folder_name(out),
            _ => out.display().to_string(),
        };
        experiments.push(experiment);
    }
    Ok(experiments)
}

fn folder_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = whole.file_name().map(|name| name.to_string_lossy().into());
    name.unwrap_or_else(|| path.display().to_string())
}

fn read(out: &Path) -> Result<Experiment, Error> {
    if out.join("events.jsonl").exists() {
        return Err(Error::RunFolder(out.to_owned()));
    }
    let mut seed_folders: Vec<PathBuf> = folders(out)?
        .into_iter()
        .filter(|folder| {
            let name = folder_name(folder);
            let number = name.strip_prefix("seed-");
            number.is_some_and(|number| number.parse::<u64>().is_ok())
        })
        .collect();
    if seed_folders.is_empty() {
        seed_folders.push(out.to_owned());
    }
    let mut runs = Vec::new();
    for above in &seed_folders {
        for folder in folders(above)? {
            if folder.join("events.jsonl").exists()
                && let Some(run) = read_run(&folder)?
            {
                runs.push(run);
            }
        }
    }
    let Some(first) = runs.first() else {
        return Err(Error::NoRuns(out.to_owned()));
    };
    let different = |run: &&Run| !run.start.dataset.same_data(&first.start.dataset);
    if let Some(run) = runs.iter().find(different) {
        return Err(Error::DifferentData {
            path: run.folder.clone(),
            found: run.start.dataset.describe(),
            other: first.folder.clone(),
            expected: first.start.dataset.describe(),
        });
    }
    let dataset = first.start.dataset.clone();
    let device = first.start.device.clone();
    let mut seeds: Vec<u64> = runs.iter().map(|run| run.start.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();

    let mut by_name: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for run in runs {
        by_name.entry(run.start.run.clone()).or_default().push(run);
    }
    let mut arms = Vec::new();
    for (name, mut runs) in by_name {
        runs.sort_by_key(|run| run.start.seed);
        if let Some(pair) = runs.windows(2).find(|w| w[0].start.seed == w[1].start.seed) {
            let found = format!(
                "run {name:?} with seed {} is also in {}; keep one of them",
                pair[1].start.seed,
                pair[0].folder.display()
            );
            return Err(corrupt(&pair[1].folder, None, found));
        }
        arms.push(Arm { name, runs });
    }
    arms.sort_by_key(|arm| {
        let size = std::cmp::Reverse(arm.first().start.parameters);
        let known = ["kd", "cosine", "regressor"];
        let place = known.iter().position(|name| *name == arm.name);
        (arm.method().is_some(), size, place.unwrap_or(known.len()))
    });
    let comparison = read_comparison(&out.join("comparison.json"))?;
    Ok(Experiment { label: String::new(), dataset, device, seeds, arms, comparison })
}

fn read_comparison(path: &Path) -> Result<Option<Comparison>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path, "`cargo xtask compare` writes it")?;
    let comparison = serde_json::from_str(&text)
        .map_err(|error| corrupt(path, None, format!("not a comparison: {error}")))?;
    Ok(Some(comparison))
}

/// The folders directly below one, by name.
fn folders(above: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io { path: above.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(above).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// `None` for a run that has not come to the end of its first epoch.
fn read_run(folder: &Path) -> Result<Option<Run>, Error> {
    let recipe_path = folder.join("recipe.toml");
    let recipe_text = read_text(&recipe_path, "each run folder holds the recipe it ran")?;
    let recipe: toml::Table = recipe_text.parse().map_err(|error: toml::de::Error| {
        let text = error.message();
        corrupt(&recipe_path, None, format!("not a recipe: {text}"))
    })?;
    let (start, epochs, finished, teacher) = read_events(&folder.join("events.jsonl"))?;
    let (Some(start), false) = (start, epochs.is_empty()) else {
        return Ok(None);
    };
    let evaluation =
        if finished { Some(read_evaluation(&folder.join("evaluation.json"))?) } else { None };
    let weights = folder.with_file_name(format!("{}.safetensors", start.run));
    let outputs = match &evaluation {
        Some(evaluation) => read_outputs(&RunFolder::new(folder).test_outputs(), evaluation)?,
        None => None,
    };
    let teacher_logits =
        outputs.as_ref().and_then(|outputs| teacher_logits(folder, &recipe, outputs));
    Ok(Some(Run {
        folder: folder.to_owned(),
        weights_bytes: std::fs::metadata(weights).ok().map(|data| data.len()),
        start,
        epochs,
        finished,
        teacher,
        outputs,
        teacher_logits,
        evaluation,
        recipe,
        recipe_text,
    }))
}

type Events = (Option<Start>, Vec<Epoch>, bool, Option<TeacherSays>);

fn read_events(path: &Path) -> Result<Events, Error> {
    let text = read_text(path, "each run folder holds its events")?;
    let mut start: Option<Start> = None;
    let mut epochs: BTreeMap<u64, Epoch> = BTreeMap::new();
    let mut finished = false;
    let mut teacher = None;
    let mut lines = text.split_inclusive('\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let line_number = index + 1;
        let bad = |error: serde_json::Error| {
            corrupt(path, Some(line_number), format!("not an event: {error}"))
        };
        // A run that is killed may leave half a line, and only as the last one.
        if lines.peek().is_none() && !line.ends_with('\n') {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let event: serde_json::Value = serde_json::from_str(line).map_err(bad)?;
        match event.get("event").and_then(|kind| kind.as_str()) {
            Some("start") => {
                start = Some(serde_json::from_value(event).map_err(bad)?);
                finished = false;
            }
            Some("epoch") => {
                let epoch: Epoch = serde_json::from_value(event).map_err(bad)?;
                if !(0.0..=1.0).contains(&epoch.test_accuracy) {
                    let found = format!(
                        "test_accuracy is {}; expected a number from 0 to 1",
                        epoch.test_accuracy
                    );
                    return Err(corrupt(path, Some(line_number), found));
                }
                epochs.insert(epoch.epoch, epoch);
                finished = false;
            }
            // Runs of earlier versions don't have these figures.
            Some("teacher") => teacher = serde_json::from_value(event).ok(),
            Some("end") => finished = true,
            Some(_) => {}
            None => {
                let found = "no field \"event\" with the kind of event".to_owned();
                return Err(corrupt(path, Some(line_number), found));
            }
        }
    }
    if start.is_none() && !epochs.is_empty() {
        let found = "epochs without a \"start\" event before them".to_owned();
        return Err(corrupt(path, None, found));
    }
    Ok((start, epochs.into_values().collect(), finished, teacher))
}

fn read_evaluation(path: &Path) -> Result<Evaluation, Error> {
    let advice = "the run's events say that it ended; run it again to evaluate it";
    let text = read_text(path, advice)?;
    let evaluation: Evaluation = serde_json::from_str(&text)
        .map_err(|error| corrupt(path, None, format!("not an evaluation: {error}")))?;
    let bad = |found: String| Err(corrupt(path, None, found));
    if evaluation.format != 1 {
        return bad(format!(
            "format is {}; this version reads format 1: use the version of kd that wrote it",
            evaluation.format
        ));
    }
    let classes = evaluation.classes.len();
    let confusion = &evaluation.confusion;
    if confusion.len() != classes || confusion.iter().any(|row| row.len() != classes) {
        let widths: Vec<usize> = confusion.iter().map(Vec::len).collect();
        return bad(format!(
            "confusion has {} rows of {widths:?} columns; expected {classes} of {classes}, one per class",
            confusion.len()
        ));
    }
    if evaluation.per_class_accuracy.len() != classes {
        let found = evaluation.per_class_accuracy.len();
        return bad(format!(
            "{found} per_class_accuracy values; expected {classes}, one per class"
        ));
    }
    let total: u64 = confusion.iter().flatten().copied().map(u64::from).sum();
    let right: u64 = (0..classes).map(|class| u64::from(confusion[class][class])).sum();
    let counted = right as f64 / total.max(1) as f64;
    if (counted - evaluation.accuracy).abs() > 1e-4 {
        return bad(format!(
            "accuracy {} is not the confusion matrix's, {right} of {total} ({counted:.4})",
            evaluation.accuracy
        ));
    }
    Ok(evaluation)
}

fn read_outputs(path: &Path, evaluation: &Evaluation) -> Result<Option<TestOutputs>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
    };
    let bad = |found| corrupt(path, None, format!("not a network's outputs: {found}"));
    let outputs = TestOutputs::from_bytes(&bytes).map_err(bad)?;
    let classes = evaluation.classes.len();
    let mut confusion = vec![vec![0u32; classes]; classes];
    if outputs.classes == classes {
        for (logits, label) in outputs.rows() {
            confusion[label][softmax::argmax(logits)] += 1;
        }
    }
    let cells = |matrix: &[Vec<u32>]| matrix.concat();
    let both = cells(&confusion).into_iter().zip(cells(&evaluation.confusion));
    let differing: u64 = both.map(|(a, b)| u64::from(a.abs_diff(b))).sum();
    // On a GPU sums may be added in another order, so that an image on the edge changes sides.
    if outputs.classes != classes || differing > outputs.labels.len() as u64 / 100 {
        let found =
            "its answers are not those of evaluation.json; run it again, or remove the file";
        return Err(corrupt(path, None, found.to_owned()));
    }
    Ok(Some(outputs))
}

/// What the teacher of a distilled run says of the test images: from the run's own file, or from
/// that beside the teacher's weights if it is still of the same weights and images.
fn teacher_logits(folder: &Path, recipe: &toml::Table, own: &TestOutputs) -> Option<Vec<f32>> {
    if let Some(logits) = &own.teacher_logits {
        return Some(logits.clone());
    }
    let run = recipe.get("run")?.get(0)?;
    let teacher = folder.join(run.get("teacher")?.as_str()?);
    let bytes = std::fs::read(RunFolder::of_weights(&teacher).test_outputs()).ok()?;
    let outputs = TestOutputs::from_bytes(&bytes).ok()?;
    let same = Some(&*outputs.weights_sha256) == run.get("teacher_sha256")?.as_str()
        && (&outputs.labels, outputs.classes) == (&own.labels, own.classes)
        && outputs.sample_images == own.sample_images;
    same.then_some(outputs.logits)
}

fn read_text(path: &Path, advice: &'static str) -> Result<String, Error> {
    // The events of a million epochs are far smaller.
    Ok(kd_record::read::read_text_or(path, 1 << 30, advice)?)
}

fn corrupt(path: &Path, line: Option<usize>, found: String) -> Error {
    Error::Corrupt { path: path.to_owned(), line, found }
}
