#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod attention;
mod check;
mod congruence;
mod cosine;
mod crd;
mod cross_entropy;
mod dist;
mod dkd;
mod error;
mod fitnet;
mod fsp;
mod fused;
mod inputs;
mod kd;
mod log_softmax;
mod method;
mod nst;
mod objective;
mod pkt;
mod places;
mod regressor;
mod rkd;
mod schedule;
mod similarity;
mod standardize;
#[cfg(test)]
mod testing;
mod vid;

pub use attention::{AttentionConfig, attention_transfer};
pub use congruence::{CongruenceConfig, correlation_congruence};
pub use cosine::{CosineConfig, cosine};
pub use crd::{CrdConfig, crd_nce};
pub use cross_entropy::{LabelSmoothingConfig, cross_entropy, cross_entropy_smoothed};
pub use dist::{DistConfig, dist};
pub use dkd::{DkdConfig, dkd};
pub use error::{Error, Result};
pub use fitnet::FitNetConfig;
pub use fsp::{FspConfig, fsp};
pub use inputs::{HostStep, Inputs, Needs, RunStep};
pub use kd::{KdConfig, kd, kd_with_labels};
pub use method::{
    About, HelperInit, HelperParameter, Kind, METHODS, Method, MethodConfig, MethodInfo, Options,
    build, helper_parameters,
};
pub use nst::{NstConfig, nst};
pub use objective::{Loss, Objective, Term, Weighted, alpha_weights};
pub use pkt::{PktConfig, pkt};
pub use places::Setup;
pub use regressor::{RegressorConfig, mse};
pub use rkd::{RkdAngleConfig, RkdDistanceConfig, rkd_angle, rkd_distance};
pub use schedule::{Decay, Schedule};
pub use similarity::{SimilarityConfig, similarity_preserving};
pub use standardize::standardize;
pub use vid::{VidConfig, vid};

/// The guide's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/new-method.md")]
struct NewMethod;
