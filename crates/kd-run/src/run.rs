//! A run that is ready to train: its recipe with all that the recipe names, loaded and checked.

use std::path::PathBuf;

use candle_core::Device;
use kd_data::{BatchConfig, Portions};
use kd_loss::Setup;
use kd_models::{Architecture, Graph, ModelConfig};
use kd_record::{Compile, OutFolder, RunFolder};

use crate::initial::Initial;
use crate::recipe::{RunRecipe, TrainingConfig};
use crate::teacher::{Pretrained, StoredLogits};

/// Everything that [`train`](crate::train::train) needs.
pub struct ResolvedRun {
    /// What is trained and how.
    pub recipe: RunRecipe,
    /// The folder in which the run's own folder and its weights file are written.
    pub out: PathBuf,
    /// The training and test images, loaded.
    pub data: Portions,
    /// The teacher, when a method of the run needs one.
    pub teacher: Option<Pretrained>,
    /// The teacher's logits, where it is a file of them; `teacher` is then `None`.
    pub teacher_logits: Option<StoredLogits>,
    /// The weights to start from, when the run does not start from fresh ones.
    pub initial: Option<Initial>,
    /// The device that computes.
    pub device: Device,
    /// What does not change the result.
    pub settings: Settings,
}

impl ResolvedRun {
    /// The run's folder.
    pub fn folder(&self) -> RunFolder {
        OutFolder::new(&self.out).run(&self.recipe.run.name)
    }

    /// Whether there are test images, on which the network is measured. Without labels on the training images there may be none.
    pub fn is_tested(&self) -> bool {
        !self.data.test.is_empty()
    }

    /// Steps of an epoch; without `drop_last` the last one may have fewer images than the others.
    pub fn steps_per_epoch(&self) -> usize {
        let TrainingConfig { batch_size, drop_last, .. } = self.recipe.training;
        BatchConfig { batch_size, drop_last, ..BatchConfig::default() }.count(self.data.train.len())
    }

    /// The network that is trained, without weights.
    ///
    /// # Errors
    /// When the network does not take the data's images.
    pub fn graph(&self) -> crate::Result<Graph> {
        Ok(self.model_config().graph()?)
    }

    /// The settings of the network that is trained.
    pub(crate) fn model_config(&self) -> ModelConfig {
        let run = &self.recipe.run;
        ModelConfig { dropout: run.dropout.unwrap_or(0.0), ..network_for(run.model, &self.data) }
    }
}

/// What does not change a run's result.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often a checkpoint is written, besides those at the start and at the end.
    pub checkpoint_every: Every,
    /// How many of the newest checkpoints are kept. The best one is kept beside them.
    pub keep_checkpoints: usize,
    /// Most bytes of teacher outputs that are cached in memory.
    pub cache_memory: u64,
    /// Most bytes that the process may take: a run that needs more is refused. `None`: what the machine has free and the limits of
    /// the process's control groups leave, where the system tells.
    pub memory: Option<u64>,
    /// Steps from one step event to the next; on a GPU figures are read no more often.
    pub event_steps: u64,
    /// Whether a file for TensorBoard is written into the run's folder.
    pub tensorboard: bool,
    /// How steps are submitted to a GPU.
    pub compile: Compile,
}

impl Default for Settings {
    /// A checkpoint after each epoch, of which two are kept; at most 2 GiB of cached teacher outputs.
    fn default() -> Self {
        Self {
            checkpoint_every: Every::Epochs(1),
            keep_checkpoints: 2,
            cache_memory: 2 << 30,
            memory: None,
            event_steps: 50,
            tensorboard: false,
            compile: Compile::Off,
        }
    }
}

/// How often something is done; the number is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Once in so many steps.
    Steps(u64),
    /// Once in so many epochs.
    Epochs(usize),
}

/// A network for the data's images and classes, with the dropout that it has by default.
pub(crate) fn network_for(architecture: Architecture, data: &Portions) -> ModelConfig {
    ModelConfig { input: data.input(), ..ModelConfig::new(architecture, data.classes.len()) }
}

/// What the methods must know of both networks and of the training images.
pub(crate) fn shapes(
    student: &ModelConfig,
    teacher: Option<&Pretrained>,
    train_labels: &[u32],
) -> crate::Result<Setup> {
    let places = student.graph()?.places().into_iter();
    Ok(Setup {
        student: places.map(|place| (place.name, place.shape)).collect(),
        teacher: teacher.map(Pretrained::places).transpose()?.unwrap_or_default(),
        classes: student.classes,
        train_labels: train_labels.to_vec(),
    })
}
