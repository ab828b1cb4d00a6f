//! Steps captured as a CUDA graph (`--compile graph`): when one is captured, and what it reads and writes.

use candle_core::{DType, Tensor};
use kd_data::Batch;
use kd_ops::cuda::graph::{Graph, StepScalars, keep_uploads};

use crate::Result;
use crate::at::At;
use crate::figures::{Figures, Names};
use crate::step::{PIECE_BY_PIECE, StepConfig, step};
use crate::task::Task;
use crate::teacher::Teacher;

/// Steps that are submitted piece by piece before one is captured: they load what a capture may not load.
const WARM_UP: usize = 2;

/// Captures the steps of whole batches.
pub(crate) struct Capture {
    batch_size: usize,
    progress: Progress,
}

/// How far capturing is.
enum Progress {
    /// The step can't be captured.
    Refused,
    /// So many whole batches in a row had steps that were alike.
    WarmingUp { taken: usize, like: Like },
    /// A step is captured.
    Captured { step: Box<CapturedStep>, like: Like },
}

/// What steps have in common that one graph can stand for.
#[derive(Default)]
struct Like {
    /// The [factors](Task::factors) of the loss.
    factors: Vec<f64>,
    /// The names of the figures.
    names: Names,
}

/// A captured step with the tensors through which batches come in and figures go out.
struct CapturedStep {
    graph: Graph,
    batch: Batch,
    figures: Tensor,
}

impl CapturedStep {
    /// Captures what `body` does for a batch like `batch`; it returns its figures, f64 `[figures]`.
    ///
    /// # Safety
    /// As [`Graph::capture`]'s.
    unsafe fn capture(
        batch: &Batch,
        figures: usize,
        body: impl FnOnce(&Batch) -> Result<Tensor>,
    ) -> Result<Self> {
        let device = batch.images.device();
        let batch = Batch {
            images: batch.images.copy()?,
            labels: batch.labels.copy()?,
            rows: batch.rows.copy()?,
            indices: batch.indices.clone(),
            views: batch.views.clone(),
            // No step of mixed images is captured.
            mixed: None,
            view: batch.view,
        };
        let figures = Tensor::zeros(figures, DType::F64, device)?;
        // A capture may not load the kernel that copies them.
        figures.slice_set(&figures.zeros_like()?, 0, 0)?;
        let body = || -> Result<()> { Ok(figures.slice_set(&body(&batch)?, 0, 0)?) };
        // SAFETY: batch and figures live as long as the graph; the rest is the caller's promise.
        let graph = unsafe { Graph::capture(device, body) }?;
        Ok(Self { graph, batch, figures })
    }

    /// Takes the step for a batch of the same size; its figures.
    fn take(
        &mut self,
        batch: &Batch,
        step: u64,
        scalars: StepScalars,
    ) -> candle_core::Result<Tensor> {
        self.batch.images.slice_set(&batch.images, 0, 0)?;
        self.batch.labels.slice_set(&batch.labels, 0, 0)?;
        self.batch.rows.slice_set(&batch.rows, 0, 0)?;
        self.graph.launch(step, scalars)?;
        self.figures.copy()
    }
}

impl Capture {
    /// Captures steps of `batch_size` images.
    pub(crate) fn new(batch_size: usize) -> Self {
        Self { batch_size, progress: Progress::default() }
    }

    /// Whether a step is captured.
    pub(crate) fn is_captured(&self) -> bool {
        matches!(self.progress, Progress::Captured { .. })
    }

    /// Takes a [`step`]: by a graph, which is captured once the same step has been submitted a few times.
    ///
    /// # Safety
    /// Task and teacher must be those of all steps before and, from one step to the next, keep their tensors and optimisers'
    /// states in place; see [`Graph::capture`].
    pub(crate) unsafe fn step(
        &mut self,
        task: &mut dyn Task,
        teacher: Option<&dyn Teacher>,
        batch: &Batch,
        at: &At,
        config: &StepConfig,
    ) -> Result<Figures> {
        // A graph has one set of an optimiser's numbers.
        if batch.indices.len() != self.batch_size || task.learners().len() != 1 {
            return step(task, teacher, batch, at, config);
        }
        let factors = task.factors(at)?;
        match std::mem::replace(&mut self.progress, Progress::Refused) {
            Progress::Refused => step(task, teacher, batch, at, config),
            Progress::Captured { step, like } if like.factors == factors => {
                self.take(step, like, task, batch, at)
            }
            Progress::WarmingUp { taken: WARM_UP.., like } if like.factors == factors => {
                let body = |batch: &Batch| Ok(step(task, teacher, batch, at, config)?.values);
                // SAFETY: the caller's promise.
                match unsafe { CapturedStep::capture(batch, like.names.count(), body) } {
                    Ok(captured) => {
                        tracing::debug!("{}: captured as a CUDA graph", place(at));
                        self.take(Box::new(captured), like, task, batch, at)
                    }
                    Err(error) => {
                        let error = anyhow::Error::new(error);
                        tracing::warn!("{}: {PIECE_BY_PIECE}: {error:#}", place(at));
                        step(task, teacher, batch, at, config)
                    }
                }
            }
            before => {
                let uploads = keep_uploads(batch.images.device());
                let figures = step(task, teacher, batch, at, config)?;
                drop(uploads);
                let taken = match before {
                    Progress::WarmingUp { taken, like } if like.factors == factors => taken,
                    _ => 0,
                };
                let like = Like { factors, names: figures.names.clone() };
                self.progress = Progress::WarmingUp { taken: taken + 1, like };
                Ok(figures)
            }
        }
    }

    /// Takes a captured step and keeps it for the next.
    fn take(
        &mut self,
        mut step: Box<CapturedStep>,
        like: Like,
        task: &mut dyn Task,
        batch: &Batch,
        at: &At,
    ) -> Result<Figures> {
        let [learner] = task.learners_mut() else {
            unreachable!("a step of one learner is captured")
        };
        let Some(optimizer) = learner.optimizer.only() else {
            unreachable!("a step of several groups of parameters is not captured")
        };
        let scalars = optimizer.next_step(at.learning_rate);
        let values = step.take(batch, at.step, scalars)?;
        let names = like.names.clone();
        self.progress = Progress::Captured { step, like };
        Ok(Figures { names, values })
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::WarmingUp { taken: 0, like: Like::default() }
    }
}

/// Where a run is, for messages.
fn place(at: &At) -> String {
    format!("epoch {}, step {}", at.epoch + 1, at.step + 1)
}
