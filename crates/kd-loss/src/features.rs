//! Losses of single images' features: what one network computes for an image at a place, against the other's.

mod attention;
mod boundaries;
mod cosine;
mod factor;
mod fitnet;
mod mse;
mod nst;
mod ofd;
mod regressor;
mod reviewkd;
mod vid;

pub use attention::attention_transfer;
pub use boundaries::{BoundariesConfig, activation_boundaries};
pub use cosine::cosine;
pub use factor::{FactorConfig, factor_transfer};
pub use mse::mse;
pub use nst::nst;
pub use ofd::ofd;
pub use reviewkd::hierarchical_context;
pub use vid::vid;

pub(crate) use attention::AttentionTransfer;
pub(crate) use boundaries::ActivationBoundaries;
pub(crate) use cosine::Cosine;
pub(crate) use factor::FactorTransfer;
pub(crate) use fitnet::FitNet;
pub(crate) use nst::Nst;
pub(crate) use ofd::Ofd;
pub(crate) use regressor::Regressor;
pub(crate) use reviewkd::ReviewKd;
pub(crate) use vid::Vid;
