//! Steps captured as a CUDA graph (`--compile graph`): when one is captured, and what it reads and writes.

use candle_core::{DType, Result, Tensor};
use kd_data::Batch;
use kd_ops::cuda::graph::{Graph, StepScalars, keep_uploads};

use super::{Figures, Trainer};
use crate::checkpoint::State;
use crate::teacher::TeacherOutputs;

/// What a run says that was to capture its steps.
const PIECE_BY_PIECE: &str = "steps are submitted piece by piece, none is captured as a CUDA graph";

/// Steps that are taken one by one before one is captured: they load what a capture may not load.
const WARM_UP: usize = 2;

/// How far a run is with capturing its step.
pub(super) enum Steps {
    /// Its step can't be captured.
    OneByOne,
    /// It has taken so many whole batches in a row that were alike.
    WarmingUp { taken: usize, like: Like },
    /// It has captured its step.
    Captured { step: Box<CapturedStep>, like: Like },
}

/// What steps have in common that one graph can stand for.
#[derive(Default)]
pub(super) struct Like {
    /// Of the methods' weights.
    factors: Vec<f64>,
    /// The names of the loss's parts.
    parts: Vec<&'static str>,
}

impl Default for Steps {
    fn default() -> Self {
        Self::WarmingUp { taken: 0, like: Like::default() }
    }
}

/// A captured step with the tensors through which batches come in and figures go out.
pub(super) struct CapturedStep {
    graph: Graph,
    batch: Batch,
    figures: Tensor,
}

impl CapturedStep {
    /// Captures what `step` does for a batch like `batch`; it returns its figures, f64 `[figures]`.
    ///
    /// # Safety
    /// As [`Graph::capture`]'s.
    unsafe fn capture(
        batch: &Batch,
        figures: usize,
        step: impl FnOnce(&Batch) -> anyhow::Result<Tensor>,
    ) -> anyhow::Result<Self> {
        let device = batch.images.device();
        let batch = Batch {
            images: batch.images.copy()?,
            labels: batch.labels.copy()?,
            rows: batch.rows.copy()?,
            indices: batch.indices.clone(),
            views: batch.views.clone(),
        };
        let figures = Tensor::zeros(figures, DType::F64, device)?;
        // A capture may not load the kernel that copies them.
        figures.slice_set(&figures.zeros_like()?, 0, 0)?;
        let body = || Ok::<(), anyhow::Error>(figures.slice_set(&step(&batch)?, 0, 0)?);
        // SAFETY: batch and figures live as long as the graph; the rest is the caller's promise.
        let graph = unsafe { Graph::capture(device, body) }?;
        Ok(Self { graph, batch, figures })
    }

    /// Takes the step for a batch of the same size; its figures.
    fn take(&mut self, batch: &Batch, step: u64, scalars: StepScalars) -> Result<Tensor> {
        self.batch.images.slice_set(&batch.images, 0, 0)?;
        self.batch.labels.slice_set(&batch.labels, 0, 0)?;
        self.batch.rows.slice_set(&batch.rows, 0, 0)?;
        self.graph.launch(step, scalars)?;
        self.figures.copy()
    }
}

impl Trainer<'_> {
    /// A step by a graph, which is captured once the same step has been submitted a few times.
    pub(super) fn step_by_graph(
        &mut self,
        batch: &Batch,
        state: &State,
    ) -> anyhow::Result<Figures> {
        let factors = self.objective.factors(self.at(state))?;
        match std::mem::replace(&mut self.steps, Steps::OneByOne) {
            Steps::OneByOne => self.submit_step(batch, state),
            Steps::Captured { step, like } if like.factors == factors => {
                self.take_captured(step, like, batch, state)
            }
            Steps::WarmingUp { taken: WARM_UP.., like } if like.factors == factors => {
                match self.capture(batch, &like, state) {
                    Ok(step) => self.take_captured(Box::new(step), like, batch, state),
                    Err(error) => {
                        tracing::warn!("{}: {PIECE_BY_PIECE}: {error:#}", self.stage(state));
                        self.submit_step(batch, state)
                    }
                }
            }
            before => {
                let uploads = keep_uploads(&self.run.device);
                let figures = self.submit_step(batch, state)?;
                drop(uploads);
                let taken = match before {
                    Steps::WarmingUp { taken, like } if like.factors == factors => taken,
                    _ => 0,
                };
                let like = Like { factors, parts: figures.parts.clone() };
                self.steps = Steps::WarmingUp { taken: taken + 1, like };
                Ok(figures)
            }
        }
    }

    fn capture(
        &mut self,
        batch: &Batch,
        like: &Like,
        state: &State,
    ) -> anyhow::Result<CapturedStep> {
        // Loss, right answers and norm beside the parts.
        let figures = 3 + like.parts.len();
        let submit = |batch: &Batch| Ok(self.submit_step(batch, state)?.values);
        // SAFETY: network, objective, teacher and optimiser are the trainer's, as the graph is, and stay as they are to its end;
        // the optimiser is not cloned, and its state moves in `restore` alone, before the first step.
        let step = unsafe { CapturedStep::capture(batch, figures, submit) }?;
        tracing::debug!("{}: captured as a CUDA graph", self.stage(state));
        Ok(step)
    }

    /// Says at once where no step will be captured.
    pub(super) fn expect_graphs(&mut self, state: &State) {
        let whole = self.run.recipe.training.batch_size;
        let why = if let Some(method) = self.objective.needs_host() {
            format!(
                "method {method} needs what only the host knows: the step's number, the seed and the images' positions"
            )
        } else if self.teacher.as_ref().is_some_and(TeacherOutputs::chooses_networks) {
            "which of the cross-fitted teachers an image asks is chosen on the host".into()
        } else if self.run.data.train.len() < whole {
            format!("there are fewer training images than the {whole} of a batch")
        } else {
            return;
        };
        tracing::warn!("{}: {PIECE_BY_PIECE}: {why}", self.stage(state));
        self.steps = Steps::OneByOne;
    }

    fn take_captured(
        &mut self,
        mut step: Box<CapturedStep>,
        like: Like,
        batch: &Batch,
        state: &State,
    ) -> anyhow::Result<Figures> {
        let scalars = self.optimizer.next_step(self.learning_rate(state.step));
        let values = step.take(batch, state.step, scalars)?;
        let parts = like.parts.clone();
        self.steps = Steps::Captured { step, like };
        Ok(Figures { parts, values })
    }
}
