//! Training: from a resolved run to its folder.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use candle_core::Tensor;
use kd_data::{BatchConfig, Skipped};
use kd_models::graph::TensorSpec;
use kd_models::weights::{LeftOut, Metadata, Scaled};
use kd_record::lock::try_lock;
use kd_record::own::check_run;
use kd_record::write::{create_folder, remove_partial, remove_partial_of, write_whole};
use kd_record::{Compile, EpochRecord, Event, OutFolder, RunFolder, TeacherRecord};

use crate::at::At;
use crate::checkpoint::{self, State};
use crate::error::other;
use crate::evaluate::{self, evaluate};
use crate::events::RunLog;
use crate::figures::{NotFinite, Unread};
use crate::plan;
pub use crate::progress::{Outcome, Progress};
use crate::recipe::{RunRecipe, TrainingConfig};
use crate::run::{Every, ResolvedRun, Settings};
use crate::start::start;
use crate::step::{PIECE_BY_PIECE, StepConfig};
use crate::task::{Supervised, Task};
use crate::teacher::{self, CacheConfig, Prepared};
use crate::trainer::Trainer;
use crate::{Error, Result, data, device, going_on, test_outputs};

/// What a run says of itself in the place of its evaluation where nothing was measured.
const NOT_TESTED: &str = "not tested: there are no test pictures with labels\n";
/// Batches on which a teacher is judged whose logits are not cached.
const TEACHER_SAMPLE: usize = 20;

/// Trains the run, or goes on with it where it stopped; a run of fewer epochs in the folder, whether it is finished or not, is trained
/// on where no setting depends on the number of epochs. `observer` is told of each step; when it breaks, the run writes a
/// checkpoint and stops.
///
/// The result depends on recipe, data and teacher alone: interrupted or not, it is the same bit for bit.
///
/// # Errors
/// When the folder is in use, holds a run of another recipe, of more epochs or of another version, or one of fewer epochs that can't be
/// trained on, or can't be written; when it or the weights'
/// place holds what is not of this run; when the device
/// lacks the precision; when the run needs more memory than there is; when a loss, a gradient or a weight is not finite (the last good checkpoint is kept): this is found in
/// the very step on the CPU, and on a GPU when figures are next read.
pub fn train(
    run: &ResolvedRun,
    observer: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Outcome> {
    check(run)?;
    let folder = run.folder();
    let checkpoints = folder.checkpoints();
    check_run(&folder)?;
    create_folder(&checkpoints)?;
    let _lock = try_lock(&folder.path)?;
    remove_partial(&folder.path)?;
    remove_partial(&checkpoints)?;
    remove_partial_of(&folder.weights())?;

    let recipe = run.recipe.to_toml()?;
    going_on::check_recipe(run, &recipe)?;
    if let Some(outcome) = going_on::finished_before(run)? {
        return Ok(outcome);
    }

    let mut task = Supervised::of_run(run)?;
    let memory = plan::check(run, &task)?;
    let found = checkpoint::latest(&checkpoints, &expected(run, &recipe, &task))?;
    let resumed = found.is_some();
    let mut extension = None;
    let mut state = match found {
        Some(checkpoint) => {
            extension = going_on::extension(&checkpoint.state, &recipe)?;
            task.restore(checkpoint.state.step, &checkpoint.tensors)?;
            // The same, but the teacher's file may lie elsewhere now.
            let mut state = State { recipe: recipe.clone(), ..checkpoint.state };
            state.sums.turn_over_images(run.recipe.training.batch_size);
            state
        }
        None => {
            going_on::check_not_lost(run, &recipe)?;
            State { recipe: recipe.clone(), ..State::default() }
        }
    };
    write_whole(&folder.recipe(), recipe.as_bytes())?;
    write_skipped(&folder, &run.data.skipped)?;
    let earlier = std::mem::take(&mut state.events);
    let mut log = RunLog::restore(&folder, earlier, run.settings.tensorboard)?;

    let epochs = run.recipe.training.epochs;
    let (name, batches, step) = (&run.recipe.run.name, run.steps_per_epoch(), state.step);
    let extended_from = extension.as_ref().map(|extension| extension.from);
    let labelled = run.data.train.is_labelled();
    let started = Progress::Started {
        run: name,
        epochs,
        batches,
        step,
        resumed,
        extended_from,
        memory,
        labelled,
    };
    let stop = observer(started).is_break();
    let unfinished = state.epoch < epochs;
    if unfinished && !resumed {
        log.write(Event::Start(Box::new(start(run)?)))?;
    }
    if let Some(extension) = extension {
        log.write(Event::Extended(extension))?;
    }
    let teacher = match unfinished {
        true => match ask_teacher(run, &task, &mut log, resumed, observer)? {
            ControlFlow::Continue(teacher) => teacher,
            ControlFlow::Break(()) => return Ok(Outcome::Stopped { step }),
        },
        false => None,
    };
    let training = &run.recipe.training;
    let TrainingConfig { precision, clip_grad_norm, accumulate: parts, .. } = *training;
    let config = StepConfig { precision, clip_grad_norm, parts };
    let kept = teacher.as_ref().and_then(|prepared| prepared.kept.clone());
    let trainer = Trainer::new(Box::new(task), teacher.map(|prepared| prepared.teacher), config);
    let mut training = Training { run, trainer, unread: Unread::default(), state, log };
    if unfinished {
        training.compile();
        if !resumed {
            training.save()?;
        }
    }
    let outcome = training.go(stop, observer)?;
    if let Some(sentence) = kept.and_then(|kept| kept.after()) {
        // The run has come to its end, whatever the observer says.
        let _ = observer(Progress::Note(&sentence));
    }
    Ok(outcome)
}

/// Checks what is wrong whatever the folder holds.
fn check(run: &ResolvedRun) -> Result<()> {
    run.recipe.validate()?;
    device::check(&run.device, run.recipe.training.precision, run.settings.compile)?;
    let (images, batch_size) = (run.data.train.len(), run.recipe.training.batch_size);
    match (images, run.data.test.len()) {
        (0, _) => Err(other!("there are no training images")),
        (_, 0) if run.data.train.is_labelled() => Err(other!("there are no test images")),
        _ if run.steps_per_epoch() == 0 => Err(Error::unfit(format!(
            "run {}: training.drop_last is true and the {images} training images are no whole batch of {batch_size}, so an epoch has no step; expected training.batch_size at most {images}, or drop_last = false",
            run.recipe.run.name
        ))),
        _ => Ok(()),
    }
}

/// Lists the pictures that were left out because they can't be read, a line each with the reason. Without any there is no file.
fn write_skipped(folder: &RunFolder, skipped: &[Skipped]) -> Result<()> {
    if skipped.is_empty() {
        return Ok(());
    }
    let text: String = skipped.iter().map(|picture| picture.line() + "\n").collect();
    Ok(write_whole(&folder.skipped_pictures(), text.as_bytes())?)
}

/// What a checkpoint of the run must fit.
fn expected<'a>(run: &ResolvedRun, recipe: &'a str, task: &dyn Task) -> checkpoint::Expected<'a> {
    let parameters = task.learners().iter().flat_map(|learner| &learner.parameters);
    checkpoint::Expected {
        recipe,
        tied_to_length: going_on::tied_to_length(&run.recipe).is_some(),
        shapes: parameters.map(|(name, value)| (name.clone(), value.dims().to_vec())).collect(),
        epochs: run.recipe.training.epochs,
        batches: run.steps_per_epoch(),
    }
}

/// Gets the run's teacher ready to answer, if the task needs one. `Break` when the observer breaks.
fn ask_teacher(
    run: &ResolvedRun,
    task: &dyn Task,
    log: &mut RunLog,
    resumed: bool,
    observer: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<(), Option<Prepared>>> {
    let needs = task.needs();
    if !needs.any_teacher() {
        return Ok(ControlFlow::Continue(None));
    }
    let started = Instant::now();
    let images = run.data.train.len();
    let folder = OutFolder::new(&run.out).cache();
    let cache = cache_config(run, &folder);
    let mut progress = |done| observer(Progress::TeacherPass { done, images });
    let prepared = match (&run.teacher_logits, &run.teacher) {
        (Some(stored), _) => ControlFlow::Continue(stored.prepared(&run.device)?),
        (None, Some(teacher)) => {
            teacher::prepare(teacher, needs, &run.data, &cache, &mut progress)?
        }
        (None, None) => return Ok(ControlFlow::Continue(None)),
    };
    if let ControlFlow::Continue(Prepared { kept: Some(kept), .. }) = &prepared
        && observer(Progress::Note(&kept.before()?)).is_break()
    {
        return Ok(ControlFlow::Break(()));
    }
    if let ControlFlow::Continue(prepared) = &prepared
        && !resumed
    {
        let quality = match run.data.train.is_labelled() {
            true => {
                let sample = batches(run, 0, 0)?.take(TEACHER_SAMPLE);
                Some(prepared.quality(&run.data, sample)?)
            }
            false => None,
        };
        log.write(Event::Teacher(TeacherRecord {
            cached: prepared.cached.clone(),
            computed: prepared.computed.clone(),
            seconds: started.elapsed().as_secs_f64(),
            quality,
        }))?;
    }
    Ok(prepared.map_continue(Some))
}

/// Where and how outputs of the run's teacher are cached; `folder` is that of the cache.
pub(crate) fn cache_config<'a>(run: &'a ResolvedRun, folder: &'a Path) -> CacheConfig<'a> {
    CacheConfig {
        data: &run.recipe.data,
        folder,
        memory: run.settings.cache_memory,
        device: &run.device,
        keep: run.recipe.run.keep,
        views: run.recipe.data.augment.views.unwrap_or(0),
        seed: run.recipe.training.seed,
    }
}

/// The training batches of an epoch from batch `first_batch` on.
pub(crate) fn batches(
    run: &ResolvedRun,
    epoch: usize,
    first_batch: usize,
) -> Result<kd_data::Batches> {
    let config = batch_config(run, epoch, first_batch);
    Ok(kd_data::batches(&run.data.train, &config, &run.device)?)
}

/// The settings of these batches.
pub(crate) fn batch_config(run: &ResolvedRun, epoch: usize, first_batch: usize) -> BatchConfig {
    let recipe = &run.recipe;
    BatchConfig {
        batch_size: recipe.training.batch_size,
        drop_last: recipe.training.drop_last,
        sampler: recipe.training.sampler,
        shuffle_seed: Some(recipe.training.seed),
        epoch,
        first_batch,
        augment: recipe.data.augment(),
        mix: recipe.data.mix(),
        views: recipe.data.augment.views,
        normalization: recipe.data.normalization(),
        prefetch: evaluate::PREFETCH,
    }
}

/// A run in training.
struct Training<'a> {
    run: &'a ResolvedRun,
    trainer: Trainer,
    /// The steps since figures were last read.
    unread: Unread,
    state: State,
    log: RunLog,
}

impl Training<'_> {
    /// Trains all epochs that are left, and writes the run's results.
    fn go(
        mut self,
        mut stop: bool,
        observer: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let epochs = self.run.recipe.training.epochs;
        while self.state.epoch < epochs && !stop {
            match self.steps_of_epoch(observer)? {
                ControlFlow::Continue(stopped) => stop = stopped,
                ControlFlow::Break(()) => return Ok(Outcome::Stopped { step: self.state.step }),
            }
            let record = self.end_epoch()?;
            self.log.write(Event::Epoch(record.clone()))?;
            stop |= observer(Progress::Epoch(&record)).is_break();
            let due = match self.run.settings.checkpoint_every {
                Every::Steps(steps) => self.state.step.is_multiple_of(steps),
                Every::Epochs(epochs) => self.state.epoch.is_multiple_of(epochs),
            };
            if due || stop || self.state.epoch == epochs {
                if let Some(accuracy) = record.selection_accuracy.or(record.test_accuracy) {
                    self.state.count_best(accuracy);
                }
                self.save()?;
            }
        }
        if self.state.epoch < epochs {
            return Ok(Outcome::Stopped { step: self.state.step });
        }
        self.finish()
    }

    /// Takes the steps that are left of an epoch. `Break` when the observer breaks before the last one, after which a
    /// checkpoint is written; at the last one the checkpoint comes after the evaluation, and the value says whether the
    /// observer broke there.
    fn steps_of_epoch(
        &mut self,
        observer: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), bool>> {
        let settings = &self.run.settings;
        let epoch = self.state.epoch + 1;
        let batches_in_all = self.run.steps_per_epoch();
        let mut stop = false;
        // Waiting for a batch counts; writing a checkpoint doesn't.
        let mut since = Instant::now();
        self.trainer.begin_epoch(self.state.epoch)?;
        for batch in batches(self.run, self.state.epoch, self.state.batch)? {
            let batch =
                batch.map_err(data::with_cure).map_err(|error| error.context(self.stage()))?;
            let figures = self.trainer.step(&batch, &self.at(self.state.step))?;
            self.unread.push(self.state.step, &batch.indices, figures);
            self.state.batch += 1;
            self.state.step += 1;
            let event = self.state.step.is_multiple_of(settings.event_steps);
            let due = match settings.checkpoint_every {
                Every::Steps(steps) => self.state.step.is_multiple_of(steps),
                Every::Epochs(_) => false,
            };
            let last = self.state.batch == batches_in_all;
            // Reading a figure makes a GPU's steps wait for each other.
            let read = event || due || last || self.run.device.is_cpu();
            let loss = if read { Some(self.read()?) } else { None };
            self.state.sums.seconds += since.elapsed().as_secs_f64();
            if let Some(loss) = loss {
                let State { batch, step, .. } = self.state;
                if event {
                    self.log.write(Event::Step { epoch, step, loss })?;
                }
                let sums = &self.state.sums;
                stop |= observer(Progress::Step { epoch, batch, step, sums }).is_break();
                if (due || stop) && !last {
                    self.save()?;
                    if stop {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            since = Instant::now();
        }
        Ok(ControlFlow::Continue(stop))
    }

    /// Where the run is before its step `step`, counted from 0.
    fn at(&self, step: u64) -> At {
        let training = &self.run.recipe.training;
        let batches = self.run.steps_per_epoch();
        let share = training.schedule.share(step, batches, training.epochs);
        At {
            seed: training.seed,
            epoch: self.state.epoch,
            epochs: training.epochs,
            step,
            steps: training.epochs as u64 * batches as u64,
            learning_rate: share * self.run.recipe.optimizer.lr(),
            part: 0,
        }
    }

    /// Where the run is, for messages.
    fn stage(&self) -> String {
        let name = &self.run.recipe.run.name;
        format!("run {name}, epoch {}, step {}", self.state.epoch + 1, self.state.step + 1)
    }

    /// Reads the figures of all steps since the last look; the last step's loss.
    fn read(&mut self) -> Result<f64> {
        self.unread.read(&mut self.state.sums)?.map_err(|NotFinite { step, images, found }| {
            Error::NotFinite {
                run: self.run.recipe.run.name.clone(),
                epoch: self.state.epoch + 1,
                step: step + 1,
                found,
                images,
                checkpoints: self.checkpoints(),
            }
        })
    }

    /// Captures steps from now on, or says why none will be.
    fn compile(&mut self) {
        let Settings { compile, .. } = self.run.settings;
        let whole = self.run.recipe.training.batch_size;
        let why = match self.trainer.compile(compile, whole) {
            None if compile == Compile::Graph && self.run.data.train.len() < whole => {
                Some(format!("there are fewer training images than the {whole} of a batch"))
            }
            why => why,
        };
        if let Some(why) = why {
            tracing::warn!("{}: {PIECE_BY_PIECE}: {why}", self.stage());
        }
    }

    /// Evaluates and sums up.
    fn end_epoch(&mut self) -> Result<EpochRecord> {
        let started = Instant::now();
        let run = self.run;
        let normalization = run.recipe.data.normalization();
        let epoch = self.state.epoch + 1;
        self.trainer.end_epoch(epoch, run.recipe.training.epochs)?;
        let weights = self.weights(epoch)?;
        let network = kd_models::build(&run.model_config(), kd_models::frozen(&weights))?;
        let evaluate =
            |images| evaluate(&*network, images, &run.data.classes, normalization, &run.device);
        let tested = Some(&run.data.test).filter(|_| run.is_tested());
        let evaluation = tested.map(evaluate).transpose().map_err(|error| {
            let name = &run.recipe.run.name;
            error.context(format!("run {name}, evaluation after epoch {epoch}"))
        })?;
        let selection_accuracy = match &run.data.selection {
            None => None,
            Some(images) => Some(evaluate(images)?.accuracy),
        };
        let state = &mut self.state;
        let sums = std::mem::take(&mut state.sums);
        let learning_rate = self.at(self.state.step - 1).learning_rate;
        let (state, labelled) = (&mut self.state, run.data.train.is_labelled());
        let record = EpochRecord {
            epoch: state.epoch + 1,
            train_loss: sums.mean_loss(),
            train_accuracy: labelled.then(|| sums.correct as f64 / sums.images as f64),
            test_loss: evaluation.as_ref().map(|evaluation| evaluation.loss),
            test_accuracy: evaluation.as_ref().map(|evaluation| evaluation.accuracy),
            seconds: sums.seconds,
            test_seconds: run.is_tested().then(|| started.elapsed().as_secs_f64()),
            images_per_second: sums.images as f64 / sums.seconds.max(1e-9),
            selection_accuracy,
            learning_rate: Some(learning_rate),
            parts: sums.mean_parts(),
        };
        state.epoch += 1;
        state.batch = 0;
        match selection_accuracy {
            None => state.evaluation = evaluation,
            // Of equal epochs the first.
            Some(found) if state.best.is_none_or(|(_, best)| found > best) => {
                state.best = Some((state.epoch, found));
                state.evaluation = evaluation;
                // A run that goes on from before this epoch comes to the same file again.
                self.write_weights(&self.best_path(), &weights)?;
            }
            Some(_) => {}
        }
        Ok(record)
    }

    /// The network's weights and running statistics after epoch `epoch`, or their average where it counts, without the methods'
    /// helpers.
    fn weights(&self, epoch: usize) -> Result<BTreeMap<String, Tensor>> {
        let graph = self.run.model_config().graph()?;
        let [learner] = self.trainer.task().learners() else {
            return Err(other!("a run's weights are those of one network"));
        };
        let values = learner.evaluated(epoch, self.run.recipe.training.epochs);
        let weight = |spec: &TensorSpec| {
            Some((spec.name.clone(), values.get(&spec.name)?.as_detached_tensor()))
        };
        Ok(graph.tensors().filter_map(weight).collect())
    }

    /// Writes a checkpoint and removes old ones.
    fn save(&mut self) -> Result<()> {
        let folder = self.checkpoints();
        let tensors = self.trainer.task().state()?;
        self.state.events = self.log.text().to_string();
        checkpoint::save(&folder, &self.state, &tensors)
            .with_context(|| format!("run {}", self.run.recipe.run.name))?;
        self.state.events.clear();
        Ok(checkpoint::prune(&folder, self.run.settings.keep_checkpoints, &self.state)?)
    }

    fn checkpoints(&self) -> PathBuf {
        self.run.folder().checkpoints()
    }

    /// Where the best epoch's weights are while the run goes on.
    fn best_path(&self) -> PathBuf {
        self.run.folder().best_weights()
    }

    /// Writes the evaluation, the weights that the run ends with and its answers to the test images.
    fn finish(mut self) -> Result<Outcome> {
        let mut evaluation = self.state.evaluation.take();
        if evaluation.is_none() && self.run.is_tested() {
            return Err(other!("the last checkpoint has no evaluation"));
        }
        let (folder, path) = (self.run.folder(), self.run.folder().weights());
        // Before the weights, which without it are taken for somebody else's.
        match &evaluation {
            Some(evaluation) => evaluation.write(&folder.evaluation())?,
            None => write_whole(&folder.not_tested(), NOT_TESTED.as_bytes())?,
        }
        match self.run.data.selection {
            None => self.write_weights(&path, &self.weights(self.state.epoch)?)?,
            Some(_) => {
                let best = self.best_path();
                let bytes = std::fs::read(&best).with_context(|| {
                    format!("{}: the best epoch's weights can't be read", best.display())
                })?;
                write_whole(&path, &bytes)?;
            }
        }
        if let Some(evaluation) = &mut evaluation {
            if self.run.recipe.training.test_flip {
                evaluation.test_flip = Some(test_outputs::flipped(self.run, &path)?);
                evaluation.write(&folder.evaluation())?;
            }
            test_outputs::write(self.run, &path)?;
        }
        self.log.write(Event::End { steps: self.state.step })?;
        self.log.flush()?;
        Ok(Outcome::Finished(evaluation))
    }

    fn write_weights(&self, path: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        let RunRecipe { data: config, run, .. } = &self.run.recipe;
        let data = &self.run.data;
        let network = self.run.model_config();
        let mut metadata = Metadata::new(&network, config.mean, config.std, &data.name);
        metadata.class_names = Some(data.classes.clone());
        metadata.scaled = config
            .scaling()
            .map(|of| Scaled { resize: of.resize, interpolation: of.interpolation });
        metadata.left_out = run.part.map(|[part, of]| LeftOut {
            part,
            of,
            images: data.whole_train,
            sha256: data.left_out_sha256.clone(),
        });
        Ok(kd_models::weights::save(path, weights, &metadata)?)
    }
}
