#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod comparison;
pub mod error;
pub mod evaluation;
pub mod event;
pub mod guess;
pub mod hash;
pub mod kept_views;
pub mod layout;
pub mod lock;
pub mod names;
pub mod own;
pub mod picture_logits;
#[cfg(feature = "process")]
pub mod process;
pub mod profile;
pub mod read;
pub mod roles;
pub mod summary;
pub mod teacher_outputs;
pub mod test_outputs;
pub mod write;

pub use comparison::Comparison;
pub use error::{Error, Result};
pub use evaluation::{Evaluation, TestFlip};
pub use event::{
    DatasetRecord, EpochRecord, Event, EventLog, Events, Extension, Start, TeacherRecord,
};
pub use kept_views::{Keep, KeptViews, NumberType};
pub use layout::{OutFolder, RunFolder};
pub use names::{Compile, DeviceChoice, Interpolation, Precision};
pub use picture_logits::PictureLogits;
pub use profile::Profile;
pub use roles::Roles;
pub use summary::Summary;
pub use teacher_outputs::TeacherOutput;
pub use test_outputs::TestOutputs;
