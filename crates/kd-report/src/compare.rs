//! Recipes compared on the same seeds, arm beside arm: what has to be trained and in which order ([`plan`], [`jobs`]), the raw
//! figures of every run ([`document`]), and what they say ([`statistics`], [`table`]). `kd compare` trains the runs.

pub mod document;
mod figure;
pub mod jobs;
pub mod plan;
mod published;
pub mod statistics;
pub mod table;

pub use document::{Arm, Figures};
pub use figure::Figure;
pub use jobs::Job;
pub use plan::{Overrides, Planned, PlannedTeacher};
pub use published::{Published, PublishedEpoch};
pub use table::Baselines;
