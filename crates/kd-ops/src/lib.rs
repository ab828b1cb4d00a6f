#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod adam;
mod available_memory;
pub mod average;
mod batch_norm;
mod conv;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod fake_quantize;
pub mod figures;
mod grad_norm;
pub mod groups;
mod linear;
mod matmul;
mod max_pool;
pub mod nhwc;
pub mod optimizer;
pub mod peaks;
mod process;
mod relu;
pub mod schedule;
pub mod sgd;
mod shortcut;
mod simd;

pub use available_memory::{memory_limit, peak_memory, resident_memory};
pub use batch_norm::{BatchNorm, BatchNormConfig, Statistics};
pub use conv::{Conv2d, Conv2dConfig, Pads, conv2d, conv2d_chain};
pub use dropout::{DropoutKey, dropout};
pub use fake_quantize::{Levels, fake_quantize};
pub use grad_norm::{GradNorms, clip_grad_norm, clip_grad_norm_on_device, grad_norms, total_norm};
pub use linear::linear;
pub use max_pool::{max_pool2d, max_pool2d_padded};
pub use process::{keep_candle_single_threaded, keep_freed_memory};
pub use relu::{relu, relu6};
pub use shortcut::subsample_pad;
