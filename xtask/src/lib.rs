//! The project's own commands, as a library so that their tests and fuzzing reach the parts.

// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod bench;
pub mod checksum;
pub mod ci;
pub mod compare;
pub mod data;
pub mod doctor;
pub mod download;
pub mod emulated_gpu;
pub mod pairs;
pub mod process;
pub mod progress;
pub mod published;
pub mod reproduce;
pub mod soak;
pub mod unpack;
pub mod workspace;
