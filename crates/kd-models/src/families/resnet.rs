//! Residual networks for ImageNet: He et al., "Deep Residual Learning for Image Recognition" (2016), table 1, as
//! torchvision has them (`torchvision/models/resnet.py`).

use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, NodeId, Op, WeightInit};

/// A residual network of four stages.
#[derive(Clone, Debug, PartialEq)]
pub struct ResNetConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// Blocks of each stage: 2, 2, 2, 2 in ResNet-18; 3, 4, 6, 3 in ResNet-34 and ResNet-50.
    pub blocks: [usize; 4],
    /// Whether a block is a bottleneck of three convolutions, as in ResNet-50, instead of two 3x3 convolutions.
    pub bottleneck: bool,
}

/// How many times as many channels a bottleneck gives as its 3x3 convolution has.
const EXPANSION: usize = 4;

/// The network of a config: a 7x7 convolution of stride 2, a 3x3 max-pool of stride 2, stages of 64, 128, 256 and 512
/// channels (four times as many behind a bottleneck), the mean over all pixels and a linear layer. From the second stage on
/// the first block halves the map, a bottleneck in its 3x3 convolution (called V1.5; in the paper in the 1x1 convolution
/// before it). Where a block changes the shape, its shortcut is a 1x1 convolution with batch normalisation. Convolutions
/// start normal by their fan-out, no normalisation starts at zero: torchvision's defaults.
///
/// Names are torchvision's: `conv1`, `bn1`, `layer1.0.conv1`, ..., `layer2.0.downsample.0`, `fc`. Feature places are `stem`
/// (what the first stage sees), `layer1` to `layer4`, the same before their ReLU, `layer1.pre` to `layer4.pre`, and `pool` (what the
/// linear layer sees).
///
/// # Errors
/// When a number makes no sense.
pub fn resnet(config: &ResNetConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let images = g.images();
    let x = conv_norm(&mut g, ["conv1", "bn1"], images, 64, 7, 2)?;
    let x = g.relu("relu", x)?;
    let x = g.add("maxpool", Op::MaxPool { kernel: 3, stride: 2, padding: 1 }, &[x])?;
    stages(g, x, config, ["downsample", "fc"])
}

/// The network of a config for small images, as kuangliu's pytorch-cifar and RepDistiller have it (`models/resnetv2.py`): that of [`resnet`] with a 3x3 convolution of stride 1 in place of
/// its first convolution and max-pool.
///
/// Names are RepDistiller's: `conv1`, `bn1`, `layer1.0.conv1`, ..., `layer2.0.shortcut.0`, `linear`. Feature places are those of [`resnet`].
///
/// # Errors
/// When a number makes no sense.
pub fn resnet_for_small_images(config: &ResNetConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let images = g.images();
    let x = conv_norm(&mut g, ["conv1", "bn1"], images, 64, 3, 1)?;
    let x = g.relu("relu", x)?;
    stages(g, x, config, ["shortcut", "linear"])
}

/// Stages, mean and linear layer behind the stem `x`, with the names that shortcuts and linear layer have.
fn stages(
    mut g: GraphBuilder,
    mut x: NodeId,
    config: &ResNetConfig,
    [short, head]: [&str; 2],
) -> Result<Graph> {
    g.place("stem", x)?;
    let expansion = if config.bottleneck { EXPANSION } else { 1 };
    let mut inputs = 64;
    for (stage, blocks) in config.blocks.into_iter().enumerate() {
        let (stage_name, channels) = (format!("layer{}", stage + 1), 64 << stage);
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("{stage_name}.{block}");
            let before = x;
            x = match config.bottleneck {
                true => bottleneck(&mut g, &name, x, channels, stride)?,
                false => basic(&mut g, &name, x, channels, stride)?,
            };
            let outputs = channels * expansion;
            let shortcut = match stride == 1 && inputs == outputs {
                true => before,
                false => {
                    let names = [format!("{name}.{short}.0"), format!("{name}.{short}.1")];
                    conv_norm(&mut g, names.each_ref().map(|n| &**n), before, outputs, 1, stride)?
                }
            };
            x = g.sum(&format!("{name}.sum"), x, shortcut)?;
            if block + 1 == blocks {
                g.place(&format!("{stage_name}.pre"), x)?;
            }
            x = g.relu(&name, x)?;
            inputs = outputs;
        }
        g.place(&stage_name, x)?;
    }
    x = g.global_average_pool("avgpool", x)?;
    g.place("pool", x)?;
    x = g.linear(head, x, config.classes)?;
    g.finish(x)
}

/// Two 3x3 convolutions, the first with the stride.
fn basic(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    channels: usize,
    stride: usize,
) -> Result<NodeId> {
    let x = numbered(g, name, 1, x, channels, 3, stride)?;
    let x = g.relu(&format!("{name}.relu1"), x)?;
    numbered(g, name, 2, x, channels, 3, 1)
}

/// 1x1, 3x3 with the stride, and 1x1 to four times the channels.
fn bottleneck(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    channels: usize,
    stride: usize,
) -> Result<NodeId> {
    let x = numbered(g, name, 1, x, channels, 1, 1)?;
    let x = g.relu(&format!("{name}.relu1"), x)?;
    let x = numbered(g, name, 2, x, channels, 3, stride)?;
    let x = g.relu(&format!("{name}.relu2"), x)?;
    numbered(g, name, 3, x, channels * EXPANSION, 1, 1)
}

/// The `number`-th convolution of a block with its batch normalisation.
fn numbered(
    g: &mut GraphBuilder,
    block: &str,
    number: usize,
    x: NodeId,
    outputs: usize,
    kernel: usize,
    stride: usize,
) -> Result<NodeId> {
    let (conv, norm) = (format!("{block}.conv{number}"), format!("{block}.bn{number}"));
    conv_norm(g, [&conv, &norm], x, outputs, kernel, stride)
}

/// A convolution without bias and the batch normalisation behind it, under their two names.
fn conv_norm(
    g: &mut GraphBuilder,
    [conv, norm]: [&str; 2],
    x: NodeId,
    outputs: usize,
    kernel: usize,
    stride: usize,
) -> Result<NodeId> {
    let (padding, init) = (kernel / 2, WeightInit::HeFanOut);
    let layer = Conv { stride, padding, bias: false, init, ..Conv::new(outputs, kernel) };
    let x = g.conv(conv, x, layer)?;
    g.batch_norm(norm, x)
}
