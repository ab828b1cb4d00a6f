//! Families of networks: a file each, with a config and a short function from it to a [`Graph`](crate::Graph).

mod cifar_resnet;
mod divisible;
mod efficientnet_lite;
mod mobilenet_v2;
mod mobilenet_v2_cifar;
mod resnet;
mod shufflenet;
mod tutorial;
mod vgg;
mod wide_resnet;

pub use cifar_resnet::{CifarResNetConfig, Shortcut, cifar_resnet};
pub use efficientnet_lite::{EfficientNetLiteConfig, efficientnet_lite};
pub use mobilenet_v2::{MobileNetV2Config, mobilenet_v2};
pub use mobilenet_v2_cifar::{MobileNetV2CifarConfig, mobilenet_v2_cifar};
pub use resnet::{ResNetConfig, resnet, resnet_for_small_images};
pub use shufflenet::{ShuffleNetConfig, shufflenet_v1, shufflenet_v2};
pub use tutorial::{TutorialConfig, tutorial};
pub use vgg::{VggConfig, vgg};
pub use wide_resnet::{WideResNetConfig, wide_resnet};
