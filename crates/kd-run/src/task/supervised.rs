//! Learning from labels and, through methods, from a teacher.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use kd_data::{Batch, Mixed};
use kd_loss::{HelperInit, HostStep, Inputs, MixedLabels, Needs, Objective, Setup, Weighted};
use kd_models::{ModelConfig, Output, Parameters};
use kd_ops::average::Average;
use kd_ops::groups::ParameterGroups;

use super::{Learner, Task, TaskLoss};
use crate::at::At;
use crate::data::class_weights;
use crate::error::other;
use crate::layers::Layers;
use crate::run::{ResolvedRun, shapes};
use crate::teacher::Answers;
use crate::{Result, evaluate};

/// One network that learns from labels and from methods: the loss is an [`Objective`].
pub struct Supervised {
    learner: [Learner; 1],
    objective: Objective,
    needs: Needs,
    /// What each class counts in the labels' cross-entropy: f32 `[C]` on the learner's device.
    class_weights: Option<Tensor>,
    /// Whether the images are mixed of two.
    mixes: bool,
    /// Layers that are frozen until a later epoch.
    to_unfreeze: Option<Unfreeze>,
}

/// Frozen layers that are trained from an epoch on.
struct Unfreeze {
    /// The number of epochs after which they are trained.
    after: usize,
    /// The settings of the network that they are layers of.
    config: ModelConfig,
}

impl Supervised {
    /// A learner and its loss, in which all classes count the same.
    pub fn new(learner: Learner, objective: Objective) -> Self {
        let needs = objective.needs();
        Self {
            learner: [learner],
            objective,
            needs,
            class_weights: None,
            mixes: false,
            to_unfreeze: None,
        }
    }

    /// The task of a run: its network with fresh or initial weights, its methods with what they learn, and its optimiser.
    ///
    /// # Errors
    /// When initial weights, frozen layers or feature places don't fit the network, or a method needs a teacher that the run
    /// lacks.
    pub fn of_run(run: &ResolvedRun) -> Result<Self> {
        let config = run.model_config();
        let recipe = &run.recipe.run;
        let seed = run.recipe.training.seed;
        let mut parameters = kd_models::init(&config, seed, &run.device)?;
        if let Some(initial) = &run.initial {
            initial.set(&parameters)?;
        }
        let layers = Layers::of(&config, recipe, run.initial.as_ref())?;
        let frozen = layers.frozen_in(0);
        let shapes = shapes(&config, run.teacher.as_ref(), &run.data.train_labels()?)?;
        add_helpers(run, &shapes, &mut parameters)?;
        let variables = kd_models::partly_frozen(&parameters, |name| frozen.contains(name));
        let network = kd_models::build(&config, variables.clone())?;
        let mut methods = Vec::new();
        for (index, term) in recipe.methods.iter().enumerate() {
            let variables = variables.pp(format!("method.{index}"));
            let method = kd_loss::build(&term.method, &shapes, variables)?;
            let (name, schedule) = (term.method.name(), term.schedule);
            methods.push(Weighted { name, weight: term.weight, schedule, method });
        }
        let batches = run.steps_per_epoch();
        let optimizer = run.recipe.optimizer.optimizer();
        let optimizer =
            ParameterGroups::new(&optimizer, &parameters, |name| layers.group(name, batches));
        let graph = config.graph()?;
        let average = run.recipe.training.average.map(|average| {
            // What methods learn besides the network is used in training alone.
            let tensors = graph.tensors().filter_map(|spec| parameters.get_key_value(&spec.name));
            Average::new(average, tensors)
        });
        let objective = Objective::new(recipe.labels, methods)?;
        let average = average.transpose()?;
        let mut task = Self::new(Learner { network, parameters, optimizer, average }, objective);
        task.to_unfreeze = layers.unfreeze_at.map(|after| Unfreeze { after, config });
        task.mixes = !run.recipe.data.mix().is_off();
        if let Some(weights) = class_weights(recipe, &run.data)? {
            let weights = Tensor::new(weights, &run.device)?.to_dtype(DType::F32)?;
            task.class_weights = Some(weights);
        }
        let no_teacher = run.teacher.is_none() && run.teacher_logits.is_none();
        if no_teacher && task.needs.any_teacher() {
            return Err(other!("run {:?} needs a teacher's weights file", recipe.name));
        }
        Ok(task)
    }

    fn learner(&self) -> &Learner {
        let [learner] = &self.learner;
        learner
    }
}

/// Adds what the run's methods learn besides the network, as `method.<n>.<name>`.
fn add_helpers(run: &ResolvedRun, setup: &Setup, parameters: &mut Parameters) -> Result<()> {
    for (index, term) in run.recipe.run.methods.iter().enumerate() {
        for helper in kd_loss::helper_parameters(&term.method, setup)? {
            // Drawn from a stream of its own: the network starts the same with and without it.
            let name = format!("method.{index}.{}", helper.name);
            let var = match helper.init {
                HelperInit::Uniform(bound) => {
                    let seed = run.recipe.training.seed;
                    kd_models::uniform(&name, &helper.shape, bound, seed, &run.device)?
                }
                HelperInit::Constant(value) => {
                    Var::from_tensor(&Tensor::full(value as f32, helper.shape, &run.device)?)?
                }
            };
            parameters.insert(name, var);
        }
    }
    Ok(())
}

impl Task for Supervised {
    fn needs(&self) -> &Needs {
        &self.needs
    }

    fn learners(&self) -> &[Learner] {
        &self.learner
    }

    fn learners_mut(&mut self) -> &mut [Learner] {
        &mut self.learner
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        if let Some(Unfreeze { config, .. }) =
            self.to_unfreeze.take_if(|unfreeze| epoch >= unfreeze.after)
        {
            let [learner] = &mut self.learner;
            let variables = kd_models::var_builder(&learner.parameters);
            learner.network = kd_models::build(&config, variables)?;
        }
        Ok(())
    }

    fn loss(&self, at: &At, batch: &Batch, taught: &Answers) -> Result<TaskLoss> {
        let places: Vec<&str> = self.needs.student.iter().map(String::as_str).collect();
        let (output, tape) =
            self.learner().network.train(&batch.images, at.dropout_key(), &places)?;
        let output = in_f32(output)?;
        // A step with a method that needs this is never captured.
        let host = self.needs.host.then(|| HostStep {
            indices: &batch.indices,
            seed: at.seed,
            epoch: at.epoch,
            epochs: at.epochs,
            at: at.run_step(),
        });
        let inputs = Inputs {
            class_weights: self.class_weights.as_ref(),
            mixed: batch
                .mixed
                .as_ref()
                .map(|mixed| MixedLabels { labels: &mixed.labels, shares: &mixed.shares }),
            teacher_logits: taught.logits.as_ref(),
            student_features: &output.features,
            teacher_features: &taught.features,
            host,
            ..Inputs::new(&output.logits, &batch.labels)
        };
        let loss = self.objective.loss(&inputs, at.run_step())?;
        let correct = evaluate::correct_predictions(&output.logits, &larger_labels(batch)?)?;
        Ok(TaskLoss { total: loss.total, parts: loss.parts, correct, tapes: vec![tape] })
    }

    fn factors(&self, at: &At) -> Result<Vec<f64>> {
        Ok(self.objective.factors(at.run_step())?)
    }

    fn not_to_be_captured(&self) -> Option<String> {
        if self.mixes {
            return Some("mixup and CutMix make a step's images and targets on the host".into());
        }
        if !self.learner().optimizer.is_one() {
            return Some(
                "not all layers are trained from the first step on at the same learning rate"
                    .into(),
            );
        }
        let method = self.objective.needs_host()?;
        Some(format!(
            "method {method} needs what only the host knows: the step's number, the seed and the images' positions"
        ))
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.learner().state()
    }

    fn restore(&mut self, steps: u64, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let [learner] = &mut self.learner;
        learner.restore(steps, state)
    }
}

/// The class of each image; of one that is mixed of two, the class that has the larger share of it.
fn larger_labels(batch: &Batch) -> candle_core::Result<Tensor> {
    match &batch.mixed {
        None => Ok(batch.labels.clone()),
        Some(Mixed { labels, shares, .. }) => shares.ge(0.5)?.where_cond(&batch.labels, labels),
    }
}

/// What the loss is given of a network that computed in bf16: f32, from which the gradient goes on in the maps' own type.
fn in_f32(output: Output) -> candle_core::Result<Output> {
    let Output { logits, features } = output;
    let features = features.into_iter().map(|(name, map)| Ok((name, map.to_dtype(DType::F32)?)));
    Ok(Output {
        logits: logits.to_dtype(DType::F32)?,
        features: features.collect::<candle_core::Result<_>>()?,
    })
}
