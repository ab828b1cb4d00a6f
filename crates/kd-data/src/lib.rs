#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod augment;
mod batch;
mod batches;
pub mod cifar;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
#[cfg(feature = "images")]
mod folder;
mod hash;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "images")]
pub mod images;
mod mix;
mod normalize;
mod one_line;
mod portions;
mod random;
#[cfg(feature = "images")]
mod resize;
mod sampler;
mod source;
mod split;
mod synthetic;

pub use augment::{Augment, View};
pub use batch::{Batch, BatchConfig};
pub use batches::{Batches, batches};
pub use cifar::{
    blank_cifar10, blank_cifar100, cifar10, cifar10_records, cifar100, cifar100_records,
};
pub use error::{Error, Result};
#[cfg(feature = "images")]
pub use folder::{image_folder, image_folder_without_broken};
pub use mix::{Mix, MixConfig, Mixed};
pub use normalize::{Normalization, Renormalize};
pub use portions::{Limits, Portions};
#[cfg(feature = "images")]
pub use resize::{Interpolation, Scaling};
pub use sampler::Sampler;
pub use source::{Block, Picture, Source};
pub use split::{Dataset, Skipped, Split};
pub use synthetic::{SyntheticConfig, synthetic};
