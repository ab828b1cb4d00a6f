//! One run's folder as the report uses it.

use std::path::{Path, PathBuf};

use kd_record::event::TeacherQuality;
use kd_record::{EpochRecord, Error, Evaluation, Events, Extension, RunFolder, Start, TestOutputs};

use crate::{Result, softmax};

/// A recipe of one run is far smaller.
const MAX_RECIPE_BYTES: u64 = 1 << 30;

/// What a run's folder holds.
pub(crate) struct Run {
    /// The path of the folder.
    pub(crate) folder: PathBuf,
    /// What was trained on what.
    pub(crate) start: Start,
    /// In order, at least one, each once, and each with figures of the test images.
    pub(crate) epochs: Vec<EpochRecord>,
    /// Each time that the run was to go on for more epochs than before.
    pub(crate) extensions: Vec<Extension>,
    /// Whether the run came to its end.
    pub(crate) finished: bool,
    /// The finished network's figures; present when the run is finished.
    pub(crate) evaluation: Option<Evaluation>,
    /// The size of the weights file, if it is there.
    pub(crate) weights_bytes: Option<u64>,
    /// How good the run's teacher is on the images that it teaches with.
    pub(crate) teacher: Option<TeacherQuality>,
    /// The finished network's logits of the test images; early versions left no such file.
    pub(crate) outputs: Option<TestOutputs>,
    /// The logits of the teacher that the run learnt from.
    pub(crate) teacher_logits: Option<Vec<f32>>,
    /// The recipe, for its settings.
    pub(crate) recipe: toml::Table,
    /// The recipe as it lies there.
    pub(crate) recipe_text: String,
}

impl Run {
    /// Reads a run's folder; `None` for a run that has not come to the end of its first epoch.
    ///
    /// # Errors
    /// When a file that each run has is missing, a file is not what its format says, or nothing was measured on test images.
    pub(crate) fn read(folder: &RunFolder) -> Result<Option<Self>> {
        let recipe_path = folder.recipe();
        let advice = "each run folder holds the recipe it ran";
        let recipe_text = kd_record::read::read_text_or(&recipe_path, MAX_RECIPE_BYTES, advice)?;
        let recipe: toml::Table = recipe_text.parse().map_err(|error: toml::de::Error| {
            Error::corrupt(&recipe_path, None, format!("not a recipe: {}", error.message()))
        })?;
        let events = Events::read(&folder.events())?;
        let (Some(start), false) = (events.start, events.epochs.is_empty()) else {
            return Ok(None);
        };
        if events.epochs.iter().any(|epoch| epoch.test_accuracy.is_none()) {
            return Err(crate::Error::NotTested(folder.path.clone()));
        }
        let evaluation = match events.ended {
            true => Some(Evaluation::read(&folder.evaluation())?),
            false => None,
        };
        let outputs = match &evaluation {
            Some(evaluation) => read_outputs(&folder.test_outputs(), evaluation)?,
            None => None,
        };
        let mut run = Self {
            folder: folder.path.clone(),
            weights_bytes: std::fs::metadata(folder.weights()).ok().map(|data| data.len()),
            start,
            epochs: events.epochs,
            extensions: events.extensions,
            finished: events.ended,
            teacher: events.teacher.and_then(|teacher| teacher.quality),
            outputs,
            teacher_logits: None,
            evaluation,
            recipe,
            recipe_text,
        };
        run.teacher_logits = run.find_teacher_logits();
        Ok(Some(run))
    }

    /// The logits of the teacher that the run learnt from: from the run's own file, or from that beside the teacher's weights if
    /// it is still of the same weights and images.
    fn find_teacher_logits(&self) -> Option<Vec<f32>> {
        let own = self.outputs.as_ref()?;
        if let Some(logits) = &own.teacher_logits {
            return Some(logits.clone());
        }
        let roles = self.start.roles();
        let (file, sha256) = match &roles.teacher {
            // What several say together lies beside none of them.
            Some(_) if !roles.further_teachers.is_empty() => return None,
            Some(teacher) => (teacher.file.clone(), teacher.sha256.clone()),
            // Version 0.1 says so in the recipe alone.
            None => {
                let text = |name| self.setting(name)?.as_str().map(str::to_owned);
                (text("teacher")?, text("teacher_sha256")?)
            }
        };
        let beside = RunFolder::of_weights(&self.folder.join(file)).test_outputs();
        let theirs = TestOutputs::read(&beside).ok()??;
        let same = theirs.weights_sha256 == sha256 && theirs.same_images(own);
        same.then_some(theirs.logits)
    }

    /// Test accuracy of the weights that the run ended with: the last epoch's, as in the source, or those of the epoch that it
    /// chose (`select_on`). Of an unfinished run the last epoch's so far.
    pub(crate) fn test_accuracy(&self) -> f64 {
        let last = || self.last().test_accuracy.unwrap_or(f64::NAN);
        self.evaluation.as_ref().map_or_else(last, |found| found.accuracy)
    }

    /// Test accuracy of the same weights with test-time flipping; `None` before the run ends, and where it was not asked for.
    pub(crate) fn test_flip_accuracy(&self) -> Option<f64> {
        Some(self.evaluation.as_ref()?.test_flip?.accuracy)
    }

    /// Balanced accuracy of the same weights; `None` before the run ends.
    pub(crate) fn balanced_accuracy(&self) -> Option<f64> {
        Some(self.evaluation.as_ref()?.balanced_accuracy)
    }

    /// Macro F1 of the same weights; `None` before the run ends.
    pub(crate) fn macro_f1(&self) -> Option<f64> {
        Some(self.evaluation.as_ref()?.macro_f1)
    }

    /// Test loss of the same weights.
    pub(crate) fn test_loss(&self) -> f64 {
        let last = || self.last().test_loss.unwrap_or(f64::NAN);
        self.evaluation.as_ref().map_or_else(last, |found| found.loss)
    }

    /// Whether the weights are those of the epoch that was best on held-out images.
    pub(crate) fn chose_its_epoch(&self) -> bool {
        self.setting("select_on").is_some()
    }

    /// Test accuracy after the best epoch.
    pub(crate) fn best_test_accuracy(&self) -> f64 {
        let accuracies = self.epochs.iter().filter_map(|epoch| epoch.test_accuracy);
        accuracies.fold(0.0, f64::max)
    }

    /// Wall-clock seconds spent training.
    pub(crate) fn seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.seconds).sum()
    }

    /// Training throughput: the epochs' mean, each weighted by its time, so images over seconds of the whole run.
    pub(crate) fn images_per_second(&self) -> f64 {
        let images = |epoch: &EpochRecord| epoch.images_per_second * epoch.seconds;
        let seconds = self.seconds();
        if seconds > 0.0 { self.epochs.iter().map(images).sum::<f64>() / seconds } else { 0.0 }
    }

    /// Throughput on the test images over all epochs; unknown where other images were evaluated too, to choose the best epoch.
    pub(crate) fn test_images_per_second(&self) -> Option<f64> {
        if self.chose_its_epoch() {
            return None;
        }
        let seconds: Option<Vec<f64>> =
            self.epochs.iter().map(|epoch| epoch.test_seconds).collect();
        let seconds: f64 = seconds?.iter().sum();
        let images = self.start.dataset.test as f64 * self.epochs.len() as f64;
        (seconds > 0.0).then(|| images / seconds)
    }

    /// A value of the recipe's one `[[run]]`.
    pub(crate) fn setting(&self, name: &str) -> Option<&toml::Value> {
        self.recipe.get("run")?.get(0)?.get(name)
    }

    fn last(&self) -> &EpochRecord {
        &self.epochs[self.epochs.len() - 1]
    }
}

/// Reads a run's outputs and checks that they are those of the evaluation.
fn read_outputs(path: &Path, evaluation: &Evaluation) -> Result<Option<TestOutputs>> {
    let Some(outputs) = TestOutputs::read(path)? else { return Ok(None) };
    let classes = evaluation.classes.len();
    let mut confusion = vec![vec![0u32; classes]; classes];
    if outputs.classes == classes {
        for (logits, label) in outputs.rows() {
            confusion[label][softmax::argmax(logits)] += 1;
        }
    }
    let both = confusion.concat().into_iter().zip(evaluation.confusion.concat());
    let differing: u64 = both.map(|(a, b)| u64::from(a.abs_diff(b))).sum();
    // On a GPU sums may be added in another order, so that an image on the edge changes sides.
    if outputs.classes != classes || differing > outputs.labels.len() as u64 / 100 {
        let found =
            "its predictions are not those of evaluation.json; run it again, or remove the file";
        return Err(Error::corrupt(path, None, found).into());
    }
    Ok(Some(outputs))
}
