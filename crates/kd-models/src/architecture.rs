//! The networks that have a name, and how to get one.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::families::{
    CifarResNetConfig, EfficientNetLiteConfig, MobileNetV2CifarConfig, MobileNetV2Config,
    ResNetConfig, Shortcut, ShuffleNetConfig, TutorialConfig, VggConfig, WideResNetConfig,
    cifar_resnet, efficientnet_lite, mobilenet_v2, mobilenet_v2_cifar, resnet,
    resnet_for_small_images, shufflenet_v1, shufflenet_v2, tutorial, vgg, wide_resnet,
};
use crate::{Classifier, Error, Graph, GraphNetwork, Parameters, Result};

/// Every network that has a name, a line each: name, default dropout (`None` in a network without), and its graph.
const NETWORKS: [Listed; 43] = [
    small("teacher", "tutorial", Some(0.1), |to| cnn(to, TutorialConfig::teacher())),
    small("student", "tutorial", Some(0.1), |to| cnn(to, TutorialConfig::student())),
    small("resnet8", "cifar_resnet", None, |to| small_resnet(to, 1)),
    small("resnet14", "cifar_resnet", None, |to| small_resnet(to, 2)),
    small("resnet20", "cifar_resnet", None, |to| small_resnet(to, 3)),
    small("resnet32", "cifar_resnet", None, |to| small_resnet(to, 5)),
    small("resnet44", "cifar_resnet", None, |to| small_resnet(to, 7)),
    small("resnet56", "cifar_resnet", None, |to| small_resnet(to, 9)),
    small("resnet110", "cifar_resnet", None, |to| small_resnet(to, 18)),
    small("resnet8_b", "cifar_resnet", None, |to| small_resnet_b(to, 1, NARROW)),
    small("resnet14_b", "cifar_resnet", None, |to| small_resnet_b(to, 2, NARROW)),
    small("resnet20_b", "cifar_resnet", None, |to| small_resnet_b(to, 3, NARROW)),
    small("resnet32_b", "cifar_resnet", None, |to| small_resnet_b(to, 5, NARROW)),
    small("resnet44_b", "cifar_resnet", None, |to| small_resnet_b(to, 7, NARROW)),
    small("resnet56_b", "cifar_resnet", None, |to| small_resnet_b(to, 9, NARROW)),
    small("resnet110_b", "cifar_resnet", None, |to| small_resnet_b(to, 18, NARROW)),
    small("resnet8x4", "cifar_resnet", None, |to| small_resnet_b(to, 1, WIDE)),
    small("resnet32x4", "cifar_resnet", None, |to| small_resnet_b(to, 5, WIDE)),
    small("resnet50-cifar", "resnet", None, resnet50_cifar),
    small("wrn-16-2", "wide_resnet", None, |to| wide(to, 2, 2)),
    small("wrn-40-1", "wide_resnet", None, |to| wide(to, 6, 1)),
    small("wrn-40-2", "wide_resnet", None, |to| wide(to, 6, 2)),
    small("vgg8", "vgg", None, |to| small_vgg(to, [1, 1, 1, 1, 1])),
    small("vgg11", "vgg", None, |to| small_vgg(to, [1, 1, 2, 2, 2])),
    small("vgg13", "vgg", None, |to| small_vgg(to, [2, 2, 2, 2, 2])),
    small("vgg16", "vgg", None, |to| small_vgg(to, [2, 2, 3, 3, 3])),
    small("vgg19", "vgg", None, |to| small_vgg(to, [2, 2, 4, 4, 4])),
    small("mobilenetv2-cifar", "mobilenet_v2_cifar", None, mobilenet_cifar),
    small("shufflenetv1", "shufflenet", None, |to| shufflenet_v1(&shuffle(to, [240, 480, 960]))),
    small("shufflenetv2", "shufflenet", None, |to| shufflenet_v2(&shuffle(to, [116, 232, 464]))),
    large("resnet18", "resnet", None, 224, |to| large_resnet(to, [2, 2, 2, 2], false)),
    large("resnet34", "resnet", None, 224, |to| large_resnet(to, [3, 4, 6, 3], false)),
    large("resnet50", "resnet", None, 224, |to| large_resnet(to, [3, 4, 6, 3], true)),
    large("mobilenet_v2", "mobilenet_v2", Some(0.2), 224, |to| mobilenet(to, 1.0)),
    large("mobilenet_v2_035", "mobilenet_v2", Some(0.2), 224, |to| mobilenet(to, 0.35)),
    large("mobilenet_v2_050", "mobilenet_v2", Some(0.2), 224, |to| mobilenet(to, 0.5)),
    large("mobilenet_v2_075", "mobilenet_v2", Some(0.2), 224, |to| mobilenet(to, 0.75)),
    large("mobilenet_v2_140", "mobilenet_v2", Some(0.2), 224, |to| mobilenet(to, 1.4)),
    large("efficientnet_lite0", "efficientnet_lite", Some(0.2), 224, |to| lite(to, 1.0, 1.0)),
    large("efficientnet_lite1", "efficientnet_lite", Some(0.2), 240, |to| lite(to, 1.0, 1.1)),
    large("efficientnet_lite2", "efficientnet_lite", Some(0.3), 260, |to| lite(to, 1.1, 1.2)),
    large("efficientnet_lite3", "efficientnet_lite", Some(0.3), 280, |to| lite(to, 1.2, 1.4)),
    large("efficientnet_lite4", "efficientnet_lite", Some(0.3), 300, |to| lite(to, 1.4, 1.8)),
];

fn cnn(to: &ModelConfig, family: TutorialConfig) -> Result<Graph> {
    let ModelConfig { input, classes, dropout, .. } = *to;
    tutorial(&TutorialConfig { input, classes, dropout, ..family })
}

fn small_resnet(to: &ModelConfig, blocks: usize) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, .. } = *to;
    cifar_resnet(&CifarResNetConfig {
        input,
        ..CifarResNetConfig::new(architecture.name(), classes, blocks)
    })
}

/// Channels of the paper's networks.
const NARROW: [usize; 4] = [16, 16, 32, 64];
/// Channels of RepDistiller's networks whose names end in `x4`.
const WIDE: [usize; 4] = [32, 64, 128, 256];

/// With the shortcuts of option B.
fn small_resnet_b(to: &ModelConfig, blocks: usize, channels: [usize; 4]) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, .. } = *to;
    cifar_resnet(&CifarResNetConfig {
        input,
        channels,
        shortcut: Shortcut::Projection,
        ..CifarResNetConfig::new(architecture.name(), classes, blocks)
    })
}

fn large_resnet(to: &ModelConfig, blocks: [usize; 4], bottleneck: bool) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, .. } = *to;
    resnet(&ResNetConfig { name: architecture.to_string(), input, classes, blocks, bottleneck })
}

fn resnet50_cifar(to: &ModelConfig) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, .. } = *to;
    let (name, blocks) = (architecture.to_string(), [3, 4, 6, 3]);
    resnet_for_small_images(&ResNetConfig { name, input, classes, blocks, bottleneck: true })
}

fn wide(to: &ModelConfig, blocks: usize, width: usize) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, .. } = *to;
    let name = architecture.to_string();
    wide_resnet(&WideResNetConfig { name, input, classes, blocks, width })
}

fn small_vgg(to: &ModelConfig, convs: [usize; 5]) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, .. } = *to;
    vgg(&VggConfig { name: architecture.to_string(), input, classes, convs })
}

/// The papers' half width and expansion of 6.
fn mobilenet_cifar(to: &ModelConfig) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, .. } = *to;
    let (name, width_percent, expansion) = (architecture.to_string(), 50, 6);
    let config = MobileNetV2CifarConfig { name, input, classes, width_percent, expansion };
    mobilenet_v2_cifar(&config)
}

fn shuffle(to: &ModelConfig, channels: [usize; 3]) -> ShuffleNetConfig {
    let ModelConfig { architecture, input, classes, .. } = *to;
    ShuffleNetConfig { name: architecture.to_string(), input, classes, channels, blocks: [4, 8, 4] }
}

fn mobilenet(to: &ModelConfig, width: f64) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, dropout } = *to;
    let name = architecture.to_string();
    mobilenet_v2(&MobileNetV2Config { name, input, classes, width, dropout })
}

fn lite(to: &ModelConfig, width: f64, depth: f64) -> Result<Graph> {
    let ModelConfig { architecture, input, classes, dropout } = *to;
    let (name, lite0) = (architecture.to_string(), EfficientNetLiteConfig::lite0());
    let config = EfficientNetLiteConfig { name, input, classes, width, depth, dropout, ..lite0 };
    efficientnet_lite(&config)
}

/// A line of the list.
struct Listed {
    name: &'static str,
    family: &'static str,
    dropout: Option<f64>,
    input: [usize; 3],
    classes: usize,
    graph: fn(&ModelConfig) -> Result<Graph>,
}

/// A network for CIFAR-10's pictures and classes.
const fn small(
    name: &'static str,
    family: &'static str,
    dropout: Option<f64>,
    graph: fn(&ModelConfig) -> Result<Graph>,
) -> Listed {
    Listed { name, family, dropout, input: [3, 32, 32], classes: 10, graph }
}

/// A network for ImageNet's classes, on square pictures of `side` pixels.
const fn large(
    name: &'static str,
    family: &'static str,
    dropout: Option<f64>,
    side: usize,
    graph: fn(&ModelConfig) -> Result<Graph>,
) -> Listed {
    Listed { name, family, dropout, input: [3, side, side], classes: 1000, graph }
}

/// A network's name, as recipes and weights files give it: one of the list of networks.
///
/// `"resnet20".parse()` gives one; those that code asks for by themselves are constants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Architecture(
    /// The position in the list.
    usize,
);

impl Architecture {
    /// "teacher": `DeepNN` of PyTorch's tutorial. A network's name, not a role: it may also learn.
    pub const TUTORIAL_TEACHER: Self = Self::named("teacher");
    /// "student": `LightNN` of PyTorch's tutorial. A network's name, not a role: it may also teach.
    pub const TUTORIAL_STUDENT: Self = Self::named("student");
    /// "resnet8", the smallest residual network.
    pub const RESNET8: Self = Self::named("resnet8");
    /// "resnet20", the smallest residual network of the paper.
    pub const RESNET20: Self = Self::named("resnet20");

    /// A network of the list, looked up by the compiler.
    const fn named(name: &str) -> Self {
        let mut index = 0;
        while index < NETWORKS.len() {
            if is_same(NETWORKS[index].name.as_bytes(), name.as_bytes()) {
                return Self(index);
            }
            index += 1;
        }
        panic!("there is no network of this name")
    }

    /// Every network of the list.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..NETWORKS.len()).map(Self)
    }

    /// The name that [`Architecture::from_str`] takes.
    pub fn name(self) -> &'static str {
        NETWORKS[self.0].name
    }

    /// The family, a file in `families/`, such as "cifar_resnet".
    pub fn family(self) -> &'static str {
        NETWORKS[self.0].family
    }

    /// The share that dropout sets to zero when nothing is said, such as 0.1 in the tutorial's networks; `None` in a network
    /// that has no dropout.
    pub fn default_dropout(self) -> Option<f64> {
        NETWORKS[self.0].dropout
    }

    /// The images that the network was made for, `[C, H, W]`. It takes other ones, too.
    pub fn default_input(self) -> [usize; 3] {
        NETWORKS[self.0].input
    }

    /// The number of classes that the network was made for: CIFAR-10's 10 or ImageNet's 1000.
    pub fn default_classes(self) -> usize {
        NETWORKS[self.0].classes
    }
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Architecture({})", self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::all().find(|architecture| architecture.name() == name).ok_or_else(|| {
            Error::UnknownArchitecture {
                name: name.to_string(),
                known: Self::all().map(Self::name).collect::<Vec<_>>().join(", "),
            }
        })
    }
}

impl TryFrom<String> for Architecture {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.to_string()
    }
}

/// Which network of the list, for which images and classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which network.
    pub architecture: Architecture,
    /// The shape of the images, `[C, H, W]`; each number is 1 to 65536.
    pub input: [usize; 3],
    /// The number of classes, 1 to 65536.
    pub classes: usize,
    /// The share of the last linear layer's input that dropout sets to zero in training, in [0, 1); 0 for a network that has
    /// no dropout.
    pub dropout: f64,
}

impl ModelConfig {
    /// A network for the images and with the dropout that it has by default.
    pub fn new(architecture: Architecture, classes: usize) -> Self {
        let dropout = architecture.default_dropout().unwrap_or(0.0);
        Self { architecture, input: architecture.default_input(), classes, dropout }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// When there are no classes or too many, a side of the images is zero or too large, or dropout is not in [0, 1) or
    /// set in a network that has none.
    pub fn validate(&self) -> Result<()> {
        let wrong = |field, found: String, expected: &str| {
            Err(Error::Config { field, found, expected: expected.to_string() })
        };
        if !(1..=65536).contains(&self.classes) {
            return wrong("classes", self.classes.to_string(), "1 to 65536");
        }
        if !self.input.iter().all(|side| (1..=65536).contains(side)) {
            let found = format!("{:?}", self.input);
            return wrong("input", found, "[channels, height, width], each 1 to 65536");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong("dropout", self.dropout.to_string(), "a share in [0, 1)");
        }
        if self.dropout > 0.0 && self.architecture.default_dropout().is_none() {
            let expected = format!("0: a {} has no dropout", self.architecture);
            return wrong("dropout", self.dropout.to_string(), &expected);
        }
        Ok(())
    }

    /// The network as data.
    ///
    /// # Errors
    /// When a setting makes no sense, or the images are too small for the network.
    pub fn graph(&self) -> Result<Graph> {
        self.validate()?;
        (NETWORKS[self.architecture.0].graph)(self)
    }
}

/// Fresh weights and running statistics of a network: [`Graph::init`].
///
/// # Errors
/// When a setting of `config` makes no sense, or the device refuses.
pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> Result<Parameters> {
    config.graph()?.init(seed, device)
}

/// Builds the network on the weights that `vb` gives (see [`var_builder`](crate::var_builder)
/// for one that is trained, [`frozen`](crate::frozen) for a teacher).
///
/// # Errors
/// When a setting makes no sense, or `vb` lacks a weight or has it with another shape.
pub fn build(
    config: &ModelConfig,
    vb: VarBuilder<'_>,
) -> Result<Box<dyn Classifier + Send + Sync>> {
    Ok(Box::new(GraphNetwork::new(config.graph()?, vb)?))
}
