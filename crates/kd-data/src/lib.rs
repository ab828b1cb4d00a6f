#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod affine;
mod augment;
mod batch;
mod batches;
pub mod cifar;
mod crop;
#[cfg(feature = "cuda")]
mod cuda;
mod enhance;
mod erase;
mod error;
#[cfg(feature = "images")]
mod folder;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "images")]
pub mod images;
mod jitter;
#[cfg(feature = "images")]
mod jpeg;
mod labels;
#[cfg(feature = "images")]
mod layout;
mod mix;
mod names;
mod normalize;
mod one_line;
#[cfg(feature = "images")]
mod picture_files;
mod policy;
mod portions;
#[cfg(feature = "images")]
mod prepare;
mod random;
mod sampler;
mod scaled;
mod scaling;
#[cfg(feature = "images")]
mod shards;
mod source;
mod split;
mod synthetic;

pub use augment::{Augment, View};
pub use batch::{Batch, BatchConfig};
pub use batches::{Batches, batches};
pub use cifar::{
    blank_cifar10, blank_cifar100, cifar10, cifar10_records, cifar100, cifar100_records,
};
pub use crop::ResizedCrop;
pub use erase::RandomErasing;
pub use error::{Error, Result};
#[cfg(feature = "images")]
pub use folder::{FolderConfig, image_folder, image_folder_as, image_folder_without_broken};
pub use jitter::{ColorJitter, Jitter};
pub use kd_record::Interpolation;
pub use labels::{balanced_parts, balanced_subset, class_counts, held_out_subset};
pub use mix::{Mix, MixConfig, Mixed};
pub use normalize::{Normalization, Renormalize};
#[cfg(feature = "images")]
pub use picture_files::{FilesConfig, TestOn, picture_files};
pub use policy::{Change, Changes, Op, Policy, RandAugment};
pub use portions::{Limits, Portions, Sources};
#[cfg(feature = "images")]
pub use prepare::{PrepareConfig, Prepared, prepare};
pub use sampler::Sampler;
pub use scaled::{Room, Scaled};
pub use scaling::{Crop, MAX_SIDE, Scaling};
#[cfg(feature = "images")]
pub use shards::picture_shards;
pub use source::{Block, NO_LABEL, Picture, Source, select};
pub use split::{Dataset, Skipped, Split};
pub use synthetic::{SyntheticConfig, synthetic};
