#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod architecture;
mod block_sums;
pub mod classes;
mod classifier;
mod engine;
mod error;
pub mod families;
pub mod graph;
mod init;
pub mod latency;
pub mod memory;
mod network;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "onnx-runtime")]
pub mod onnx_runtime;
mod parameters;
pub mod preprocessing;
pub mod quantize;
mod rescaled;
pub mod weights;

pub use architecture::{Architecture, ModelConfig, build, init};
pub use block_sums::{Alone, BlockSums, Sums};
pub use classifier::{Classifier, Mode, Output, Place, Tape};
pub use error::{Error, Result};
pub use graph::{Graph, GraphBuilder};
pub use init::{Fill, uniform};
pub use network::GraphNetwork;
pub use parameters::{Parameters, Tensors, frozen, partly_frozen, var_builder};
pub use rescaled::rescaled;

/// The guide's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/new-network.md")]
struct NewNetwork;
