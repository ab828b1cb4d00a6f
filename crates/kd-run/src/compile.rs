//! Training steps captured as a CUDA graph (`--compile graph`).

use anyhow::ensure;
use candle_core::Device;

/// How a training step reaches a GPU. It does not change the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compile {
    /// Piece by piece.
    #[default]
    Off,
    /// Whole, as a CUDA graph: the host has far less to do, and may be what holds a small network up. The graph keeps memory of
    /// its own for a step's tensors.
    Graph,
}

impl Compile {
    /// Whether a device can do it.
    pub(crate) fn check(self, device: &Device) -> anyhow::Result<()> {
        ensure!(
            self == Self::Off || device.is_cuda(),
            "CUDA graphs are for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or leave --compile out"
        );
        Ok(())
    }
}

#[cfg(feature = "cuda")]
pub(crate) use graph::{CapturedStep, Like, Steps, WARM_UP};

#[cfg(feature = "cuda")]
mod graph {
    use candle_core::{DType, Result, Tensor};
    use kd_data::Batch;
    use kd_ops::cuda::graph::{Graph, StepSize};

    /// Steps that are taken one by one before one is captured: they load what a capture may not load.
    pub(crate) const WARM_UP: usize = 2;

    /// How far a run is with capturing its step.
    pub(crate) enum Steps {
        /// Its step can't be captured.
        OneByOne,
        /// It has taken so many whole batches in a row that were alike.
        WarmingUp { taken: usize, like: Like },
        /// It has captured its step.
        Captured { step: Box<CapturedStep>, like: Like },
    }

    /// What steps have in common that one graph can stand for.
    #[derive(Default)]
    pub(crate) struct Like {
        /// Of the methods' weights.
        pub(crate) factors: Vec<f64>,
        /// The names of the loss's parts.
        pub(crate) parts: Vec<&'static str>,
    }

    /// A captured step with the tensors through which batches come in and figures go out.
    pub(crate) struct CapturedStep {
        graph: Graph,
        batch: Batch,
        figures: Tensor,
    }

    impl CapturedStep {
        /// Captures what `step` does for a batch like `batch`; it returns its figures, f64 `[figures]`.
        ///
        /// # Safety
        /// As [`Graph::capture`]'s.
        pub(crate) unsafe fn capture(
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
        pub(crate) fn take(&mut self, batch: &Batch, step: u64, size: StepSize) -> Result<Tensor> {
            self.batch.images.slice_set(&batch.images, 0, 0)?;
            self.batch.labels.slice_set(&batch.labels, 0, 0)?;
            self.batch.rows.slice_set(&batch.rows, 0, 0)?;
            self.graph.launch(step, size)?;
            self.figures.copy()
        }
    }
}
