//! How training steps are submitted to a GPU (`--compile`).

use candle_core::Device;

use crate::Result;
use crate::error::other;

/// How a training step is submitted to a GPU. It does not change the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compile {
    /// Piece by piece.
    #[default]
    Off,
    /// Whole, as a CUDA graph: the host has far less to do, and may be what holds a small network up. The graph keeps memory of
    /// its own for a step's tensors.
    Graph,
}

impl Compile {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Off, Self::Graph];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Graph => "graph",
        }
    }

    /// Checks that a device can take steps so.
    ///
    /// # Errors
    /// When steps are to be captured and the device is no NVIDIA GPU.
    pub fn check(self, device: &Device) -> Result<()> {
        match self == Self::Off || device.is_cuda() {
            true => Ok(()),
            false => Err(other!(
                "CUDA graphs are for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or leave --compile out"
            )),
        }
    }
}

impl std::str::FromStr for Compile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|compile| compile.name() == name);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no compile mode {name:?}; expected one of {known}"))
    }
}
