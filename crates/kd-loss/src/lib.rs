#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod check;
mod cosine;
mod cross_entropy;
mod error;
mod kd;
mod method;
mod objective;
mod regressor;
mod response;

pub use cosine::{Cosine, CosineConfig, cosine};
pub use cross_entropy::{
    LabelSmoothing, LabelSmoothingConfig, cross_entropy, cross_entropy_smoothed,
};
pub use error::{Error, Result};
pub use kd::{Kd, KdConfig, kd, kd_with_labels};
pub use method::{
    HelperParameter, Inputs, METHODS, Method, MethodConfig, MethodInfo, Needs, Shapes, build,
    helper_parameters,
};
pub use objective::{Loss, Objective, Term, alpha_weights};
pub use regressor::{Regressor, RegressorConfig, mse};
