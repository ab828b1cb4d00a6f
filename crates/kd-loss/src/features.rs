//! Losses of single images' features: what one network computes for an image at a place, against the other's.

mod attention;
mod cosine;
mod fitnet;
mod mse;
mod nst;
mod regressor;
mod vid;

pub use attention::attention_transfer;
pub use cosine::cosine;
pub use mse::mse;
pub use nst::nst;
pub use vid::vid;

pub(crate) use attention::AttentionTransfer;
pub(crate) use cosine::Cosine;
pub(crate) use fitnet::FitNet;
pub(crate) use nst::Nst;
pub(crate) use regressor::Regressor;
pub(crate) use vid::Vid;
