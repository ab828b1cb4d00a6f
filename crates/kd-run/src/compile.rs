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
