//! Losses of relations: between the images of a batch, between images and a memory of others, or between two layers.

mod congruence;
mod crd;
mod fsp;
mod pkt;
mod rkd;
mod similarity;

pub use congruence::{CongruenceConfig, correlation_congruence};
pub use crd::{CrdConfig, crd_nce};
pub use fsp::fsp;
pub use pkt::pkt;
pub use rkd::{rkd_angle, rkd_distance};
pub use similarity::similarity_preserving;

pub(crate) use congruence::Congruence;
pub(crate) use crd::Crd;
pub(crate) use fsp::Fsp;
pub(crate) use pkt::Pkt;
pub(crate) use rkd::{RkdAngle, RkdDistance};
pub(crate) use similarity::Similarity;
