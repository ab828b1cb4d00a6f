//! Families of networks: a file each, with a config and a short function from it to a [`Graph`](crate::Graph).

mod cifar_resnet;
mod tutorial;

pub use cifar_resnet::{CifarResNetConfig, cifar_resnet};
pub use tutorial::{TutorialConfig, tutorial};
