//! What takes a run's steps, one after the other: piece by piece, or as a captured graph.

use kd_data::Batch;
use kd_record::Compile;

use crate::Result;
use crate::at::At;
#[cfg(feature = "cuda")]
use crate::captured::Capture;
use crate::figures::Figures;
use crate::step::{StepConfig, step};
use crate::task::Task;
use crate::teacher::Teacher;

/// A task and its teacher in training.
pub struct Trainer {
    task: Box<dyn Task>,
    teacher: Option<Box<dyn Teacher>>,
    config: StepConfig,
    #[cfg(feature = "cuda")]
    capture: Option<Capture>,
}

impl Trainer {
    /// A trainer that submits its steps piece by piece.
    pub fn new(task: Box<dyn Task>, teacher: Option<Box<dyn Teacher>>, config: StepConfig) -> Self {
        Self {
            task,
            teacher,
            config,
            #[cfg(feature = "cuda")]
            capture: None,
        }
    }

    /// How the following steps are submitted. With [`Compile::Graph`], on a GPU, the steps of batches of `batch_size` images
    /// are captured as a CUDA graph after a few of them, if task and teacher allow it; otherwise the return value says why
    /// they don't.
    pub fn compile(&mut self, compile: Compile, batch_size: usize) -> Option<String> {
        if compile == Compile::Off {
            #[cfg(feature = "cuda")]
            {
                self.capture = None;
            }
            return None;
        }
        let teacher = self.teacher.as_ref();
        let parts = self.config.parts.map(|parts| format!("a step is computed in {parts} parts"));
        let why = parts
            .or_else(|| self.task.not_to_be_captured())
            .or_else(|| teacher?.not_to_be_captured(self.task.needs()).map(str::to_string));
        #[cfg(feature = "cuda")]
        {
            self.capture = why.is_none().then(|| Capture::new(batch_size));
        }
        #[cfg(not(feature = "cuda"))]
        let _ = batch_size;
        why
    }

    /// Gets ready for the steps of epoch `epoch`, counted from 0; before the first step of a process, too.
    ///
    /// # Errors
    /// When the network can't be built.
    pub fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.task.begin_epoch(epoch)
    }

    /// Takes one step and brings averages of weights up to date; what the step measured stays on the device.
    ///
    /// # Errors
    /// As [`step`]'s.
    pub fn step(&mut self, batch: &Batch, at: &At) -> Result<Figures> {
        let figures = self.take_step(batch, at)?;
        // Not part of the step, so that a captured one has it, too: its share of the average may change from step to step.
        for learner in self.task.learners_mut() {
            learner.average_step(at.step + 1)?;
        }
        Ok(figures)
    }

    /// Brings averages of weights up to date at the end of epoch `epoch`, counted from 1, of `epochs`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn end_epoch(&mut self, epoch: usize, epochs: usize) -> Result<()> {
        self.task
            .learners_mut()
            .iter_mut()
            .try_for_each(|learner| learner.average_epoch(epoch, epochs))
    }

    fn take_step(&mut self, batch: &Batch, at: &At) -> Result<Figures> {
        let Self { task, teacher, config, .. } = self;
        let task = &mut **task;
        let teacher = teacher.as_deref();
        #[cfg(feature = "cuda")]
        if let Some(capture) = &mut self.capture {
            // SAFETY: task and teacher are the trainer's, as the graph is, and nothing but steps changes them. An optimiser is
            // cloned to be read alone, which is over before the next step.
            return unsafe { capture.step(task, teacher, batch, at, config) };
        }
        step(task, teacher, batch, at, config)
    }

    /// Whether the last step was a captured one.
    pub fn is_captured(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.capture.as_ref().is_some_and(Capture::is_captured);
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// What is learned.
    pub fn task(&self) -> &dyn Task {
        &*self.task
    }
}
