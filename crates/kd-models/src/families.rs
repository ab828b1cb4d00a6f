//! Families of networks: a file each, with a config and a short function from it to a [`Graph`](crate::Graph).

mod cifar_resnet;
mod divisible;
mod efficientnet_lite;
mod mobilenet_v2;
mod resnet;
mod tutorial;

pub use cifar_resnet::{CifarResNetConfig, Shortcut, cifar_resnet};
pub use efficientnet_lite::{EfficientNetLiteConfig, efficientnet_lite};
pub use mobilenet_v2::{MobileNetV2Config, mobilenet_v2};
pub use resnet::{ResNetConfig, resnet};
pub use tutorial::{TutorialConfig, tutorial};
