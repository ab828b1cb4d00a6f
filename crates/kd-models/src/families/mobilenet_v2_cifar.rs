//! MobileNetV2 for CIFAR's images as the papers on distillation have it: RepDistiller's `models/mobilenetv2.py`.

use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, LinearInit, NodeId, Op, WeightInit};

/// A MobileNetV2 with ReLU whose second stage keeps the map's size.
#[derive(Clone, Debug, PartialEq)]
pub struct MobileNetV2CifarConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// What every number of channels but the last convolution's 1280 is multiplied with, in percent; fractions of a channel are dropped. The papers' is 50.
    pub width_percent: usize,
    /// How many times as many channels the depthwise convolutions have as a block's input; T in the papers, 6.
    pub expansion: usize,
}

/// Channels, blocks and stride of the first block of each stage; the first stage does not expand.
const STAGES: [(usize, usize, usize); 7] =
    [(16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)];

/// The network of a config: a 3x3 convolution of stride 2, inverted residuals (1x1, depthwise 3x3, 1x1, with a shortcut where the shape stays), a 1x1 convolution to 1280 channels, the mean over all
/// pixels and a linear layer. Batch normalisation follows each convolution, ReLU all but the last of a block. Weights start as RepDistiller's: normal by fan-out, the linear layer with 0.01.
///
/// Names are RepDistiller's: `conv1.0`, `blocks.0.0.conv.0`, ..., `conv2.0`, `classifier.0`. Feature places are `stem`, `blocks.0` to `blocks.6` (each stage's output, which no ReLU follows), `conv2` and
/// `pool` (what the linear layer sees).
///
/// # Errors
/// When a number makes no sense.
pub fn mobilenet_v2_cifar(config: &MobileNetV2CifarConfig) -> Result<Graph> {
    let scaled = |channels: usize| channels * config.width_percent / 100;
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let images = g.images();
    let mut inputs = scaled(32);
    let mut x = layer(&mut g, ["conv1.0", "conv1.1"], images, conv(inputs, 3, 2, 1))?;
    x = g.relu("conv1.2", x)?;
    g.place("stem", x)?;
    for (stage, (channels, blocks, first_stride)) in STAGES.into_iter().enumerate() {
        let (outputs, place) = (scaled(channels), format!("blocks.{stage}"));
        let expansion = if stage == 0 { 1 } else { config.expansion };
        for block in 0..blocks {
            let name = format!("{place}.{block}");
            let stride = if block == 0 { first_stride } else { 1 };
            let hidden = inputs.saturating_mul(expansion);
            let y = inverted(&mut g, &name, x, [hidden, outputs], stride)?;
            x = match stride == 1 && inputs == outputs {
                true => g.sum(&name, y, x)?,
                false => y,
            };
            inputs = outputs;
        }
        g.place(&place, x)?;
    }
    x = layer(&mut g, ["conv2.0", "conv2.1"], x, conv(1280, 1, 1, 1))?;
    x = g.relu("conv2.2", x)?;
    g.place("conv2", x)?;
    x = g.global_average_pool("avgpool", x)?;
    g.place("pool", x)?;
    let head = Op::Linear { outputs: config.classes, init: LinearInit::Normal { std: 0.01 } };
    x = g.add("classifier.0", head, &[x])?;
    g.finish(x)
}

/// An inverted residual over `hidden` to `outputs` channels, without its shortcut.
fn inverted(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    [hidden, outputs]: [usize; 2],
    stride: usize,
) -> Result<NodeId> {
    let module = |index: usize| format!("{name}.conv.{index}");
    let x = layer(g, [&module(0), &module(1)], x, conv(hidden, 1, 1, 1))?;
    let x = g.relu(&module(2), x)?;
    let x = layer(g, [&module(3), &module(4)], x, conv(hidden, 3, stride, hidden))?;
    let x = g.relu(&module(5), x)?;
    layer(g, [&module(6), &module(7)], x, conv(outputs, 1, 1, 1))
}

/// A convolution and its batch normalisation, under their two names.
fn layer(g: &mut GraphBuilder, names: [&str; 2], x: NodeId, conv: Conv) -> Result<NodeId> {
    let x = g.conv(names[0], x, conv)?;
    g.batch_norm(names[1], x)
}

fn conv(outputs: usize, kernel: usize, stride: usize, groups: usize) -> Conv {
    let (padding, init) = (kernel / 2, WeightInit::HeFanOut);
    Conv { stride, padding, groups, bias: false, init, ..Conv::new(outputs, kernel) }
}
