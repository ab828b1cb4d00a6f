#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod address;
mod cache;
pub mod download;
mod hub;

pub use address::{Address, HubAddress};
pub use cache::{Fetch, default_cache, fetch};
pub use download::Seen;
