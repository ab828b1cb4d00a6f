//! `kd export`: a network for other programs.

mod onnx;
// Generated; most of it is never used, and its comments are ONNX's own.
#[allow(dead_code, unreachable_pub, missing_docs, clippy::all, rustdoc::all)]
#[rustfmt::skip]
mod schema;

pub use onnx::{Input, OnnxConfig, onnx};
