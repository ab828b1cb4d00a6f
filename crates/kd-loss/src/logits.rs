//! Losses of the two networks' answers: logits `[B, C]` and labels.

mod cross_entropy;
mod dist;
mod dkd;
mod fused;
mod kd;
mod log_softmax;
mod mlkd;
mod standardize;
mod ttm;
mod wttm;

pub use cross_entropy::{
    cross_entropy, cross_entropy_mixed, cross_entropy_smoothed, cross_entropy_weighted,
};
pub use dist::{DistConfig, dist};
pub use dkd::{DkdConfig, dkd};
pub use kd::{KdConfig, kd, kd_with_labels};
pub use mlkd::{MlkdConfig, mlkd};
pub use standardize::standardize;
pub use ttm::{TtmConfig, ttm};
pub use wttm::{WttmConfig, wttm};

pub(crate) use cross_entropy::labels_cross_entropy;
pub(crate) use dist::Dist;
pub(crate) use dkd::Dkd;
pub(crate) use fused::{FusedLoss, FusedTerms};
pub(crate) use kd::{Kd, fused_with_labels};
pub(crate) use log_softmax::log_softmax;
pub(crate) use mlkd::Mlkd;
pub(crate) use ttm::Ttm;
pub(crate) use wttm::Wttm;
