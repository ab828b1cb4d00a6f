#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// Nothing that comes from outside may end in a panic.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod check;
mod class_weights;
mod control;
mod conv_norm;
mod ensemble;
mod error;
mod features;
mod inputs;
mod list;
mod logits;
mod matching;
mod method;
mod numeric;
mod objective;
mod pairs;
mod projection;
mod relations;
mod schedule;
mod setup;
mod stages;
#[cfg(test)]
mod testing;

pub use class_weights::{ClassWeightRule, ClassWeights};
pub use control::LabelSmoothingConfig;
pub use ensemble::Combination;
pub use error::{Error, Result};
pub use features::{
    BoundariesConfig, FactorConfig, activation_boundaries, attention_transfer, cosine,
    factor_transfer, hierarchical_context, mse, nst, ofd, vid,
};
pub use inputs::{HostStep, Inputs, MixedLabels, Needs, RunStep};
pub use list::{METHODS, MethodConfig, MethodInfo, build, helper_parameters};
pub use logits::{
    DistConfig, DkdConfig, KdConfig, MlkdConfig, TtmConfig, WttmConfig, cross_entropy,
    cross_entropy_mixed, cross_entropy_smoothed, cross_entropy_weighted, dist, dkd, kd,
    kd_with_labels, mlkd, standardize, ttm, wttm,
};
pub use method::{About, Definition, HelperInit, HelperParameter, Kind, Method};
pub use objective::{Loss, Objective, Term, Weighted, alpha_weights};
pub use pairs::{PairConfig, PairListConfig};
pub use relations::{
    CongruenceConfig, CrdConfig, correlation_congruence, crd_nce, fsp, pkt, rkd_angle,
    rkd_distance, similarity_preserving,
};
pub use schedule::{Decay, Schedule};
pub use setup::Setup;

/// The guide's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/new-method.md")]
struct NewMethod;
