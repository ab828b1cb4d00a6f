//! What several of these tests need.
// Each test file uses its part of it.
#![allow(dead_code, unreachable_pub)]

pub mod archive;
pub mod program;
pub mod server;
