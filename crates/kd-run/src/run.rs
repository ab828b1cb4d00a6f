//! Training: from a resolved run to its folder.

#[cfg(feature = "cuda")]
mod captured;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor, Var};
use kd_data::{Batch, BatchConfig};
use kd_loss::{HelperInit, HostStep, Inputs, Loss, Needs, Objective, RunStep, Setup, Weighted};
use kd_models::weights::{LeftOut, Metadata};
use kd_models::{Classifier, Mode, ModelConfig, Parameters};
use kd_ops::{DropoutKey, clip_grad_norm, clip_grad_norm_on_device, grad_norms, total_norm};
use kd_record::event::{TeacherQuality, has_ended};
use kd_record::{EpochRecord, Event, OutFolder, RunFolder, TeacherRecord};

use crate::checkpoint::{self, State, Sums};
use crate::compile::Compile;
use crate::data::Data;
use crate::evaluate::{self, Evaluation, evaluate};
use crate::events::RunLog;
use crate::initial::{self, Initial};
use crate::optimizer::Optimizer;
use crate::recipe::{self, RunRecipe};
use crate::start::start;
use crate::teacher::{DEFAULT_MEMORY, KeepConfig, LOGITS, Pretrained, Says, TeacherOutputs};
use crate::{files, tensorboard, test_outputs};

/// The observer broke while the teacher's outputs were computed; the run has no step yet to lose.
#[derive(Debug, thiserror::Error)]
#[error("stopped while the teacher looked at the images")]
struct StoppedInTeacherPass;

/// Batches on which a teacher is judged whose logits are not kept.
const TEACHER_SAMPLE: usize = 20;

/// Everything that a run needs, checked.
pub struct ResolvedRun {
    /// What is trained and how.
    pub recipe: RunRecipe,
    /// The folder above the run's own.
    pub out: PathBuf,
    /// The images.
    pub data: Data,
    /// Present when a method asks one.
    pub teacher: Option<Pretrained>,
    /// Present when the run starts from weights of a file.
    pub initial: Option<Initial>,
    /// Where it is computed.
    pub device: Device,
    /// What does not change the result.
    pub settings: Settings,
}

impl ResolvedRun {
    /// The run's folder.
    pub fn folder(&self) -> RunFolder {
        OutFolder::new(&self.out).run(&self.recipe.run.name)
    }
}

/// What does not change a run's result.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When checkpoints are written, besides at the start and at the end.
    pub checkpoint_every: Every,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// Most bytes of teacher outputs kept in memory.
    pub cache_memory: u64,
    /// Steps from one step event to the next; on a GPU figures are read no more often.
    pub event_steps: u64,
    /// Writes a file for TensorBoard into the run's folder.
    pub tensorboard: bool,
    /// How steps reach a GPU.
    pub compile: Compile,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            checkpoint_every: Every::Epochs(1),
            keep_checkpoints: 2,
            cache_memory: DEFAULT_MEMORY,
            event_steps: 50,
            tensorboard: false,
            compile: Compile::Off,
        }
    }
}

/// How often; at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Every so many steps.
    Steps(u64),
    /// Every so many epochs.
    Epochs(usize),
}

/// What an observer of a run is told.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Training begins, or goes on.
    Started {
        /// The run's name.
        run: &'a str,
        /// Epochs in all.
        epochs: usize,
        /// Steps in each epoch.
        batches: usize,
        /// Steps that an earlier process did.
        step: u64,
        /// Whether there was an earlier process.
        resumed: bool,
    },
    /// The teacher looks at the training images, whose outputs are then kept.
    TeacherPass {
        /// Images done.
        done: usize,
        /// Images in all.
        images: usize,
    },
    /// A step is done. On a GPU only the steps are told at which figures are read: those with an event or a checkpoint
    /// and the last of an epoch.
    Step {
        /// From 1.
        epoch: usize,
        /// Steps done in this epoch.
        batch: usize,
        /// Steps done in all.
        step: u64,
        /// Of the epoch so far.
        sums: &'a Sums,
    },
    /// An epoch is done.
    Epoch(&'a EpochRecord),
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// It is finished.
    Finished(Evaluation),
    /// It was finished before.
    AlreadyFinished(Evaluation),
    /// The observer stopped it; a checkpoint is written and the same run can go on.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

/// Trains the run, or goes on with it where it stopped. `observer` hears of each step; when it
/// breaks, the run writes a checkpoint and stops.
///
/// The result depends on recipe, data and teacher alone: interrupted or not, it is the same bit for bit.
///
/// # Errors
/// When the folder is in use, holds a run of another recipe or of another version, or can't be written;
/// when the device lacks the precision; when a loss, a gradient or a weight is not finite (the last good
/// checkpoint is kept): found at once on the CPU, on a GPU when figures are read next.
pub fn train(
    run: &ResolvedRun,
    observer: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> anyhow::Result<Outcome> {
    run.recipe.validate()?;
    run.recipe.training.precision.check(&run.device)?;
    run.settings.compile.check(&run.device)?;
    ensure!(!run.data.train.is_empty(), "there are no training images");
    ensure!(!run.data.test.is_empty(), "there are no test images");
    let folder = run.folder();
    let checkpoints = folder.checkpoints();
    files::create_folder(&checkpoints)?;
    let _lock = files::lock(&folder.path, false)?;
    files::remove_partial(&folder.path)?;
    files::remove_partial(&checkpoints)?;
    let weights_path = folder.weights();
    files::remove_partial_of(&weights_path)?;

    let recipe = run.recipe.to_toml()?;
    let recipe_path = folder.recipe();
    check_same_recipe(&recipe_path, &recipe)?;
    let events_path = folder.events();
    let evaluation_path = folder.evaluation();
    if has_ended(&events_path) && weights_path.exists() && evaluation_path.exists() {
        if run.settings.tensorboard {
            let events = std::fs::read_to_string(&events_path)
                .with_context(|| format!("{}: can't be read", events_path.display()))?;
            tensorboard::TensorBoard::rewrite(&folder.path, &events)?;
        }
        return Ok(Outcome::AlreadyFinished(Evaluation::read(&evaluation_path)?));
    }

    let mut trainer = Trainer::new(run)?;
    let training = &run.recipe.training;
    let batches = run.data.train.len().div_ceil(training.batch_size);
    let shapes = trainer.parameters.iter().map(|(name, p)| (name.clone(), p.dims().to_vec()));
    let expected = checkpoint::Expected {
        recipe: &recipe,
        shapes: shapes.collect(),
        epochs: training.epochs,
        batches,
    };
    let found = checkpoint::latest(&checkpoints, &expected)?;
    let resumed = found.is_some();
    let mut state = match found {
        Some(checkpoint) => {
            trainer.restore(&checkpoint)?;
            // The same, but the teacher's file may lie elsewhere now.
            State { recipe: recipe.clone(), ..checkpoint.state }
        }
        None => State { recipe: recipe.clone(), ..State::default() },
    };
    files::write_whole(&recipe_path, recipe.as_bytes())?;
    let mut log =
        RunLog::restore(&folder, std::mem::take(&mut state.events), run.settings.tensorboard)?;

    let (run_name, epochs, step) = (&run.recipe.run.name, training.epochs, state.step);
    let started = Progress::Started { run: run_name, epochs, batches, step, resumed };
    let mut stop = observer(started).is_break();

    if state.epoch < training.epochs {
        if !resumed {
            log.write(Event::Start(Box::new(start(run))))?;
        }
        match trainer.ask_teacher(&mut log, resumed, observer) {
            Err(error) if error.is::<StoppedInTeacherPass>() => {
                return Ok(Outcome::Stopped { step: state.step });
            }
            asked => asked?,
        }
        #[cfg(feature = "cuda")]
        if run.settings.compile == Compile::Graph {
            trainer.expect_graphs(&state);
        }
        if !resumed {
            trainer.save(&mut state, &log)?;
        }
    }
    while state.epoch < training.epochs && !stop {
        let epoch = state.epoch;
        // Waiting for a batch counts; writing a checkpoint doesn't.
        let mut since = Instant::now();
        for batch in trainer.batches(&state)? {
            let batch = batch.with_context(|| trainer.stage(&state))?;
            let next = state.step + 1;
            let event = next.is_multiple_of(run.settings.event_steps);
            let due = match run.settings.checkpoint_every {
                Every::Steps(steps) => next.is_multiple_of(steps),
                Every::Epochs(_) => false,
            };
            // Reading a figure makes a GPU's steps wait for each other.
            let last = state.batch + 1 == batches;
            let read = event || due || last || run.device.is_cpu();
            let loss = trainer.step(&batch, &mut state, read)?;
            state.sums.seconds += since.elapsed().as_secs_f64();
            let Some(loss) = loss else {
                since = Instant::now();
                continue;
            };
            if event {
                log.write(Event::Step { epoch: epoch + 1, step: state.step, loss })?;
            }
            let (batch, step, sums) = (state.batch, state.step, &state.sums);
            stop |= observer(Progress::Step { epoch: epoch + 1, batch, step, sums }).is_break();
            // At the end of the epoch the checkpoint comes after the evaluation.
            if (due || stop) && state.batch < batches {
                trainer.save(&mut state, &log)?;
                if stop {
                    return Ok(Outcome::Stopped { step: state.step });
                }
            }
            since = Instant::now();
        }
        let record = trainer.end_epoch(&mut state)?;
        log.write(Event::Epoch(record.clone()))?;
        stop |= observer(Progress::Epoch(&record)).is_break();
        let due = match run.settings.checkpoint_every {
            Every::Steps(steps) => state.step.is_multiple_of(steps),
            Every::Epochs(epochs) => state.epoch.is_multiple_of(epochs),
        };
        if due || stop || state.epoch == training.epochs {
            state.count_best(record.selection_accuracy.unwrap_or(record.test_accuracy));
            trainer.save(&mut state, &log)?;
        }
    }
    if state.epoch < training.epochs {
        return Ok(Outcome::Stopped { step: state.step });
    }

    let evaluation = state.evaluation.context("the last checkpoint has no evaluation")?;
    evaluation.write(&evaluation_path)?;
    trainer.write_result(&weights_path)?;
    test_outputs::write(run, &weights_path)?;
    log.write(Event::End { steps: state.step })?;
    log.flush()?;
    Ok(Outcome::Finished(evaluation))
}

/// A folder belongs to one recipe.
fn check_same_recipe(path: &std::path::Path, recipe: &str) -> anyhow::Result<()> {
    let there = match files::read_text(path, recipe::MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.is_absent() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let differing = recipe::differences_in_text(&there, &path.display().to_string(), recipe)?;
    ensure!(
        differing.is_empty(),
        "{}: this folder holds a run of another recipe; it differs in {}; choose another --out or --name, or remove the folder",
        path.display(),
        differing.join(", ")
    );
    Ok(())
}

pub(crate) fn model_config(run: &ResolvedRun) -> ModelConfig {
    let recipe = &run.recipe.run;
    ModelConfig {
        architecture: recipe.model,
        classes: run.data.classes.len(),
        dropout: recipe.dropout.unwrap_or(0.0),
    }
}

/// What the methods must know of both networks and of the training images.
pub(crate) fn shapes(
    student: &ModelConfig,
    teacher: Option<&ModelConfig>,
    train_labels: &[u32],
) -> Setup {
    let places = |config: &ModelConfig| {
        kd_models::places(config).into_iter().map(|place| (place.name, place.shape)).collect()
    };
    Setup {
        student: places(student),
        teacher: teacher.map(places).unwrap_or_default(),
        classes: student.classes,
        train_labels: train_labels.to_vec(),
    }
}

/// The network with all that trains it.
struct Trainer<'a> {
    run: &'a ResolvedRun,
    config: ModelConfig,
    /// The network's and, under `method.<n>.`, the methods' helpers.
    parameters: Parameters,
    network: Box<dyn Classifier + Send + Sync>,
    objective: Objective,
    needs: Needs,
    teacher: Option<TeacherOutputs>,
    optimizer: Optimizer,
    /// Steps of an epoch.
    batches: usize,
    /// Of the steps since the last look.
    unread: Vec<Unread>,
    #[cfg(feature = "cuda")]
    steps: captured::Steps,
}

/// A step whose figures are to be read.
struct Unread {
    /// Steps before this one.
    step: u64,
    indices: Vec<u32>,
    figures: Figures,
}

/// What a step leaves to be read, on the device.
struct Figures {
    /// Of the loss's parts.
    parts: Vec<&'static str>,
    /// f64: the loss, the images told right, the parts and, where it was computed on the device, the norm of all gradients
    /// together.
    values: Tensor,
}

impl Figures {
    fn new(loss: &Loss, right: &Tensor, norm: Option<&Tensor>) -> candle_core::Result<Self> {
        let parts = loss.parts.iter().map(|(_, part)| part);
        let values = [&loss.total, right].into_iter().chain(parts).chain(norm);
        // f32 turns into f64 and back without loss, and no norm is too large for f64.
        let values: Vec<_> =
            values.map(|x| x.detach().to_dtype(DType::F64)).collect::<candle_core::Result<_>>()?;
        let parts = loss.parts.iter().map(|(name, _)| *name).collect();
        Ok(Self { parts, values: Tensor::stack(&values, 0)? })
    }
}

impl<'a> Trainer<'a> {
    fn new(run: &'a ResolvedRun) -> anyhow::Result<Self> {
        let config = model_config(run);
        let seed = run.recipe.training.seed;
        let mut parameters = kd_models::init(&config, seed, &run.device)?;
        if let Some(initial) = &run.initial {
            initial.set(&parameters)?;
        }
        let frozen: BTreeSet<String> =
            initial::frozen(&config, &run.recipe.run.freeze, run.initial.as_ref())
                .with_context(|| format!("run {}", run.recipe.run.name))?;
        let teacher = run.teacher.as_ref().map(|teacher| &teacher.config);
        let shapes = shapes(&config, teacher, &run.data.train_labels());
        for (index, term) in run.recipe.run.methods.iter().enumerate() {
            for helper in kd_loss::helper_parameters(&term.method, &shapes)? {
                // Drawn from a stream of its own: the network starts the same with and without.
                let name = format!("method.{index}.{}", helper.name);
                let var = match helper.init {
                    HelperInit::Uniform(bound) => {
                        kd_models::uniform(&name, &helper.shape, bound, seed, &run.device)?
                    }
                    HelperInit::Constant(value) => {
                        let value = Tensor::full(value as f32, helper.shape, &run.device)?;
                        Var::from_tensor(&value)?
                    }
                };
                parameters.insert(name, var);
            }
        }
        let variables = kd_models::partly_frozen(&parameters, |name| frozen.contains(name));
        let network = kd_models::build(&config, variables.clone())?;
        let mut methods = Vec::new();
        for (index, term) in run.recipe.run.methods.iter().enumerate() {
            let variables = variables.pp(format!("method.{index}"));
            let method = kd_loss::build(&term.method, &shapes, variables)?;
            let (name, schedule) = (term.method.name(), term.schedule);
            methods.push(Weighted { name, weight: term.weight, schedule, method });
        }
        let objective = Objective::new(run.recipe.run.labels, methods)?;
        let needs = objective.needs();
        ensure!(
            run.teacher.is_some() || !needs.any_teacher(),
            "run {:?} needs a teacher's weights file",
            run.recipe.run.name
        );
        let optimizer = Optimizer::new(&run.recipe.optimizer);
        let batches = run.data.train.len().div_ceil(run.recipe.training.batch_size);
        Ok(Self {
            run,
            config,
            parameters,
            network,
            objective,
            needs,
            teacher: None,
            optimizer,
            batches,
            unread: Vec::new(),
            #[cfg(feature = "cuda")]
            steps: captured::Steps::default(),
        })
    }

    fn restore(&mut self, checkpoint: &checkpoint::Checkpoint) -> anyhow::Result<()> {
        for (name, tensor) in &checkpoint.parameters {
            let var: &Var = self.parameters.get(name).context("a parameter that the run lacks")?;
            var.set(&tensor.to_device(&self.run.device)?)?;
        }
        self.optimizer.restore(checkpoint.state.step, checkpoint.optimizer.clone())
    }

    /// Gets ready what the teacher says, if anybody asks it.
    fn ask_teacher(
        &mut self,
        log: &mut RunLog,
        resumed: bool,
        observer: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        let Some(teacher) = self.run.teacher.as_ref().filter(|_| self.needs.any_teacher()) else {
            return Ok(());
        };
        let started = Instant::now();
        let images = self.run.data.train.len();
        let folder = OutFolder::new(&self.run.out).cache();
        let config = KeepConfig {
            data: &self.run.recipe.data,
            folder: &folder,
            memory: self.run.settings.cache_memory,
        };
        let mut progress = |done| match observer(Progress::TeacherPass { done, images }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(StoppedInTeacherPass.into()),
        };
        let (data, device) = (&self.run.data, &self.run.device);
        let outputs =
            TeacherOutputs::new(teacher, &self.needs, data, &config, device, &mut progress)?;
        if !resumed {
            let sample = self.batches(&State::default())?.take(TEACHER_SAMPLE);
            let Says { images, accuracy, entropy } = outputs.says(data, sample)?;
            log.write(Event::Teacher(TeacherRecord {
                cached: outputs.kept(),
                computed: outputs.live().to_vec(),
                seconds: started.elapsed().as_secs_f64(),
                quality: Some(TeacherQuality { images, accuracy, entropy }),
            }))?;
        }
        self.teacher = Some(outputs);
        Ok(())
    }

    fn batches(&self, state: &State) -> anyhow::Result<kd_data::Batches> {
        let recipe = &self.run.recipe;
        let config = BatchConfig {
            batch_size: recipe.training.batch_size,
            shuffle_seed: Some(recipe.training.seed),
            epoch: state.epoch,
            first_batch: state.batch,
            augment: recipe.data.augment(),
            normalization: recipe.data.normalization(),
            prefetch: evaluate::PREFETCH,
        };
        Ok(kd_data::batches(&self.run.data.train, &config, &self.run.device)?)
    }

    /// One step of training. With `read` the figures of all steps since the last look go into the sums, and the loss
    /// before this step is returned.
    fn step(
        &mut self,
        batch: &Batch,
        state: &mut State,
        read: bool,
    ) -> anyhow::Result<Option<f64>> {
        let loss = if self.run.device.is_cpu() {
            Some(self.step_on_cpu(batch, state)?)
        } else {
            let figures = self.step_on_gpu(batch, state)?;
            self.unread.push(Unread { step: state.step, indices: batch.indices.clone(), figures });
            if read { Some(self.read(state)?) } else { None }
        };
        state.batch += 1;
        state.step += 1;
        Ok(loss)
    }

    /// What the teacher says of a batch, by name.
    fn teacher_says(&self, batch: &Batch) -> anyhow::Result<BTreeMap<String, Tensor>> {
        self.teacher.as_ref().map_or_else(|| Ok(BTreeMap::new()), |teacher| teacher.of(batch))
    }

    /// The loss of a batch, and how many images are told right.
    fn forward(
        &self,
        batch: &Batch,
        teacher: &BTreeMap<String, Tensor>,
        state: &State,
    ) -> anyhow::Result<(Loss, Tensor)> {
        let RunRecipe { training, .. } = &self.run.recipe;
        let key = DropoutKey { seed: training.seed, step: state.step };
        let places: Vec<&str> = self.needs.student.iter().map(String::as_str).collect();
        let images = training.precision.images(&batch.images)?;
        let output = self.network.forward_t(&images, Mode::Train(key), &places)?;
        let output = training.precision.output(output)?;
        let at = self.at(state);
        // A step with a method that needs this is never captured.
        let host = self.needs.host.then(|| HostStep {
            indices: &batch.indices,
            seed: training.seed,
            epoch: state.epoch,
            epochs: training.epochs,
            at,
        });
        let inputs = Inputs {
            teacher_logits: teacher.get(LOGITS),
            student_features: &output.features,
            teacher_features: teacher,
            host,
            ..Inputs::new(&output.logits, &batch.labels)
        };
        let loss = self.objective.loss(&inputs, at)?;
        Ok((loss, evaluate::right(&output.logits, &batch.labels)?))
    }

    /// The step and the steps of the whole run.
    fn at(&self, state: &State) -> RunStep {
        let steps = self.run.recipe.training.epochs as u64 * self.batches as u64;
        RunStep { step: state.step, steps }
    }

    /// One step; the loss before it.
    fn step_on_cpu(&mut self, batch: &Batch, state: &mut State) -> anyhow::Result<f64> {
        let (loss, right) = self.forward(batch, &self.teacher_says(batch)?, state)?;
        let figures = Figures::new(&loss, &right, None)?;
        self.unread.push(Unread { step: state.step, indices: batch.indices.clone(), figures });
        // Before the weights are changed.
        let before = self.read(state)?;
        let mut gradients = loss.total.backward()?;
        let norms = grad_norms(&self.parameters, &gradients)?;
        if let Some((name, norm)) = norms.iter().find(|(_, norm)| !norm.is_finite()) {
            let found = format!("the norm of the gradient of {name} is {norm}");
            return Err(self.not_finite(&found, state.step, &batch.indices, state));
        }
        if let Some(max_norm) = self.run.recipe.training.clip_grad_norm {
            clip_grad_norm(&self.parameters, &mut gradients, total_norm(&norms), max_norm)?;
        }
        self.optimizer.step(self.learning_rate(state.step), &self.parameters, &gradients)?;
        Ok(before)
    }

    /// One step, for which nothing waits.
    fn step_on_gpu(&mut self, batch: &Batch, state: &State) -> anyhow::Result<Figures> {
        #[cfg(feature = "cuda")]
        if self.run.settings.compile == Compile::Graph
            && batch.indices.len() == self.run.recipe.training.batch_size
        {
            return self.step_by_graph(batch, state);
        }
        self.submit_step(batch, state)
    }

    /// Submits a step piece by piece.
    fn submit_step(&mut self, batch: &Batch, state: &State) -> anyhow::Result<Figures> {
        let RunRecipe { training, .. } = &self.run.recipe;
        // In f32, whatever the precision of training is.
        let teacher = self.teacher_says(batch)?;
        let products = training.precision.begin();
        let (loss, right) = self.forward(batch, &teacher, state)?;
        let mut gradients = loss.total.backward()?;
        let max_norm = training.clip_grad_norm.unwrap_or(f64::INFINITY);
        let norm = clip_grad_norm_on_device(&self.parameters, &mut gradients, max_norm)?;
        drop(products);
        self.optimizer.step(self.learning_rate(state.step), &self.parameters, &gradients)?;
        Ok(Figures::new(&loss, &right, Some(&norm))?)
    }

    /// Adds the figures of all steps since the last look to the sums; the last step's loss.
    fn read(&mut self, state: &mut State) -> anyhow::Result<f64> {
        let unread = std::mem::take(&mut self.unread);
        // One copy from the device for all of them.
        let values: Vec<&Tensor> = unread.iter().map(|unread| &unread.figures.values).collect();
        let values = Tensor::cat(&values, 0)?.to_vec1::<f64>()?;
        let mut values = values.as_slice();
        let mut last = f64::NAN;
        for Unread { step, indices, figures } in &unread {
            let (own, rest) = values.split_at(figures.values.elem_count());
            values = rest;
            let [loss, right, own @ ..] = own else { unreachable!("a loss and right answers") };
            let (loss, right) = (*loss, *right);
            let mut named: Vec<(String, &str, f64)> = Vec::with_capacity(figures.parts.len());
            for (name, value) in figures.parts.iter().zip(own) {
                // Of two terms of one method the second has a number.
                let earlier = named.iter().filter(|(_, of, _)| of == name).count();
                let shown =
                    if earlier == 0 { name.to_string() } else { format!("{name} {}", earlier + 1) };
                named.push((shown, name, *value));
            }
            if !loss.is_finite() {
                let parts: Vec<String> =
                    named.iter().map(|(name, _, value)| format!("{name} {value}")).collect();
                let found = format!("the loss is {loss} ({})", parts.join(", "));
                return Err(self.not_finite(&found, *step, indices, state));
            }
            if let Some(norm) = own.get(figures.parts.len()).filter(|norm| !norm.is_finite()) {
                let found = format!("the norm of the gradients is {norm}");
                return Err(self.not_finite(&found, *step, indices, state));
            }
            let sums = &mut state.sums;
            sums.right += right as usize;
            sums.images += indices.len();
            sums.loss += loss;
            for (name, _, value) in named {
                *sums.parts.entry(name).or_default() += value;
            }
            last = loss;
        }
        Ok(last)
    }

    /// Where the run is, for messages.
    fn stage(&self, state: &State) -> String {
        let name = &self.run.recipe.run.name;
        format!("run {name}, epoch {}, step {}", state.epoch + 1, state.step + 1)
    }

    /// `step` counts the steps before the one where it was found.
    fn not_finite(&self, found: &str, step: u64, indices: &[u32], state: &State) -> anyhow::Error {
        anyhow::anyhow!(
            "run {}, epoch {}, step {}: {found} on training images {indices:?}; expected a finite number: a lower learning rate or --clip-grad-norm often helps; the last good checkpoint is kept in {}",
            self.run.recipe.run.name,
            state.epoch + 1,
            step + 1,
            self.run.folder().checkpoints().display()
        )
    }

    /// Of a step, counted from 0.
    fn learning_rate(&self, step: u64) -> f64 {
        let RunRecipe { training, optimizer, .. } = &self.run.recipe;
        training.schedule.share(step, self.batches, training.epochs) * optimizer.lr()
    }

    /// Evaluates and sums up.
    fn end_epoch(&self, state: &mut State) -> anyhow::Result<EpochRecord> {
        let started = Instant::now();
        let data = &self.run.data;
        let normalization = self.run.recipe.data.normalization();
        let network = kd_models::build(&self.config, kd_models::frozen(&self.weights()))?;
        let evaluation =
            evaluate(&*network, &data.test, &data.classes, normalization, &self.run.device)
                .with_context(|| {
                    let name = &self.run.recipe.run.name;
                    format!("run {name}, evaluation after epoch {}", state.epoch + 1)
                })?;
        let selection_accuracy = match &data.selection {
            None => None,
            Some(images) => {
                let found =
                    evaluate(&*network, images, &data.classes, normalization, &self.run.device)?;
                Some(found.accuracy)
            }
        };
        let sums = std::mem::take(&mut state.sums);
        let batches = state.batch as f64;
        let record = EpochRecord {
            epoch: state.epoch + 1,
            train_loss: sums.loss / batches,
            train_accuracy: sums.right as f64 / sums.images as f64,
            test_loss: evaluation.loss,
            test_accuracy: evaluation.accuracy,
            seconds: sums.seconds,
            test_seconds: Some(started.elapsed().as_secs_f64()),
            images_per_second: sums.images as f64 / sums.seconds.max(1e-9),
            selection_accuracy,
            learning_rate: Some(self.learning_rate(state.step - 1)),
            parts: sums.parts.into_iter().map(|(name, sum)| (name, sum / batches)).collect(),
        };
        state.epoch += 1;
        match selection_accuracy {
            None => state.evaluation = Some(evaluation),
            // Of equal epochs the first.
            Some(found) if state.best.is_none_or(|(_, best)| found > best) => {
                // A run that goes on from before this epoch comes to the same file again.
                self.write_weights(&self.best_path())?;
                state.best = Some((state.epoch, found));
                state.evaluation = Some(evaluation);
            }
            Some(_) => {}
        }
        state.batch = 0;
        Ok(record)
    }

    /// The network's weights and running statistics, without the methods' helpers.
    fn weights(&self) -> BTreeMap<String, Tensor> {
        let own = kd_models::parameter_shapes(&self.config).into_iter();
        let own = own.chain(kd_models::buffer_shapes(&self.config));
        let weight = |(name, _)| Some((self.parameters.get(&name)?.as_detached_tensor(), name));
        own.filter_map(weight).map(|(tensor, name)| (name, tensor)).collect()
    }

    fn save(&mut self, state: &mut State, log: &RunLog) -> anyhow::Result<()> {
        self.optimizer.fetch()?;
        let folder = self.run.folder().checkpoints();
        state.events = log.text().to_string();
        checkpoint::save(&folder, state, &self.parameters, &self.optimizer)
            .with_context(|| format!("run {}", self.run.recipe.run.name))?;
        state.events.clear();
        checkpoint::prune(&folder, self.run.settings.keep_checkpoints, state)
    }

    /// Where the best epoch's weights are while the run goes on.
    fn best_path(&self) -> PathBuf {
        self.run.folder().best_weights()
    }

    /// Writes the weights that the run ends with: the last, or those of the best epoch.
    fn write_result(&self, path: &std::path::Path) -> anyhow::Result<()> {
        if self.run.data.selection.is_none() {
            return self.write_weights(path);
        }
        let best = self.best_path();
        let bytes = std::fs::read(&best).with_context(|| {
            format!("{}: the best epoch's weights can't be read", best.display())
        })?;
        Ok(files::write_whole(path, &bytes)?)
    }

    fn write_weights(&self, path: &std::path::Path) -> anyhow::Result<()> {
        let data = &self.run.data;
        let config = &self.run.recipe.data;
        let mut metadata = Metadata::new(&self.config, config.mean, config.std, &data.name);
        metadata.class_names = Some(data.classes.clone());
        metadata.left_out = self.run.recipe.run.part.map(|[part, of]| {
            let images = data.whole_train;
            LeftOut { part, of, images }
        });
        Ok(kd_models::weights::save(path, &self.weights(), &metadata)?)
    }
}
