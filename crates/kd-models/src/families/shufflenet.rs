//! ShuffleNets for small images as the papers on distillation have them: RepDistiller's `models/ShuffleNetv1.py` and `models/ShuffleNetv2.py`.

use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, NodeId, Op};

/// A ShuffleNet; [`shufflenet_v1`] and [`shufflenet_v2`] make graphs of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShuffleNetConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// Channels of the three stages: 240, 480, 960 in the papers' V1, 116, 232, 464 in V2.
    pub channels: [usize; 3],
    /// Blocks of each stage, with the first, which halves the map: 4, 8, 4 in both.
    pub blocks: [usize; 3],
}

/// Channels of the first convolution.
const STEM: usize = 24;
/// Groups of V1's 1x1 convolutions.
const GROUPS: usize = 3;
/// Channels of V2's last convolution.
const LAST: usize = 1024;

/// V1 of a config (Zhang et al., "ShuffleNet", 2018): a 1x1 convolution, three stages, the mean over all pixels and a linear layer. In a block a 1x1 convolution in three groups (in one behind the stem)
/// to a quarter of the channels, a channel shuffle, a depthwise 3x3 and a 1x1 convolution in groups; its input is added or, averaged over 3x3 windows of stride 2, put behind the result in the first block of a stage. Batch
/// normalisation follows each convolution. Weights start as PyTorch's.
///
/// Names are those of RepDistiller and mdistiller: `conv1`, `layer1.0.conv1`, ..., `linear`. Feature places are `stem`, `layer1` to `layer3`, the same before their ReLU, `layer1.pre` to `layer3.pre`, and `pool`.
///
/// # Errors
/// When a number makes no sense.
pub fn shufflenet_v1(config: &ShuffleNetConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let mut x = stem(&mut g)?;
    let mut inputs = STEM;
    for (stage, (outputs, blocks)) in config.channels.into_iter().zip(config.blocks).enumerate() {
        let place = format!("layer{}", stage + 1);
        for block in 0..blocks {
            let name = format!("{place}.{block}");
            let first = block == 0;
            // What is put beside it has the input's channels.
            let own = if first { outputs.saturating_sub(inputs) } else { outputs };
            let stride = if first { 2 } else { 1 };
            let groups = if inputs == STEM { 1 } else { GROUPS };
            let middle = own / 4;
            let y = norm(&mut g, &name, 1, x, Conv { groups, ..conv(middle, 1) })?;
            let mut y = g.relu(&format!("{name}.relu1"), y)?;
            if groups > 1 {
                y = g.add(&format!("{name}.shuffle1"), Op::ChannelShuffle { groups }, &[y])?;
            }
            let depthwise = Conv { stride, groups: middle, ..conv(middle, 3) };
            let y = norm(&mut g, &name, 2, y, depthwise)?;
            let y = g.relu(&format!("{name}.relu2"), y)?;
            let y = norm(&mut g, &name, 3, y, Conv { groups: GROUPS, ..conv(own, 1) })?;
            let sum = format!("{name}.sum");
            x = if first {
                let pool = Op::AveragePool { kernel: 3, stride: 2, padding: 1 };
                let shortcut = g.add(&format!("{name}.shortcut.0"), pool, &[x])?;
                g.add(&sum, Op::Concat, &[y, shortcut])?
            } else {
                g.sum(&sum, y, x)?
            };
            if block + 1 == blocks {
                g.place(&format!("{place}.pre"), x)?;
            }
            x = g.relu(&name, x)?;
            inputs = outputs;
        }
        g.place(&place, x)?;
    }
    head(g, x, config.classes)
}

/// V2 of a config (Ma et al., "ShuffleNet V2", 2018): a 1x1 convolution, three stages, a 1x1 convolution to 1024 channels, the mean over all pixels and a linear layer. The first block of a stage has two
/// branches of depthwise 3x3 convolutions of stride 2; the others leave half of the channels as they are and give the others a 1x1, a depthwise 3x3 and a 1x1 convolution; both halves are shuffled. Batch
/// normalisation follows each convolution, ReLU each 1x1. Weights start as PyTorch's.
///
/// Names are those of RepDistiller and mdistiller: `conv1`, `layer1.0.conv1`, ..., `conv2`, `linear`. Feature places are `stem`, `layer1` to `layer3`, `conv2` and `pool`.
///
/// # Errors
/// When a number makes no sense.
pub fn shufflenet_v2(config: &ShuffleNetConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let mut x = stem(&mut g)?;
    let mut inputs = STEM;
    for (stage, (outputs, blocks)) in config.channels.into_iter().zip(config.blocks).enumerate() {
        let (place, half) = (format!("layer{}", stage + 1), outputs / 2);
        for block in 0..blocks {
            let name = format!("{place}.{block}");
            let halves = if block == 0 {
                let left = Conv { stride: 2, groups: inputs, ..conv(inputs, 3) };
                let left = norm(&mut g, &name, 1, x, left)?;
                let left = norm(&mut g, &name, 2, left, conv(half, 1))?;
                let left = g.relu(&format!("{name}.relu2"), left)?;
                [left, branch(&mut g, &name, x, half, [3, 2])?]
            } else {
                let part = |start| Op::Channels { start, count: half };
                let left = g.add(&format!("{name}.left"), part(0), &[x])?;
                let right = g.add(&format!("{name}.right"), part(half), &[x])?;
                [left, branch(&mut g, &name, right, half, [1, 1])?]
            };
            x = g.add(&format!("{name}.cat"), Op::Concat, &halves)?;
            x = g.add(&name, Op::ChannelShuffle { groups: 2 }, &[x])?;
            inputs = outputs;
        }
        g.place(&place, x)?;
    }
    x = g.conv("conv2", x, conv(LAST, 1))?;
    x = g.batch_norm("bn2", x)?;
    x = g.relu("relu2", x)?;
    g.place("conv2", x)?;
    head(g, x, config.classes)
}

/// V2's 1x1, depthwise 3x3 and 1x1 convolutions, counted from `first` on.
fn branch(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    channels: usize,
    [first, stride]: [usize; 2],
) -> Result<NodeId> {
    let x = norm(g, name, first, x, conv(channels, 1))?;
    let x = g.relu(&format!("{name}.relu{first}"), x)?;
    let depthwise = Conv { stride, groups: channels, ..conv(channels, 3) };
    let x = norm(g, name, first + 1, x, depthwise)?;
    let x = norm(g, name, first + 2, x, conv(channels, 1))?;
    g.relu(&format!("{name}.relu{}", first + 2), x)
}

fn stem(g: &mut GraphBuilder) -> Result<NodeId> {
    let images = g.images();
    let x = g.conv("conv1", images, conv(STEM, 1))?;
    let x = g.batch_norm("bn1", x)?;
    let x = g.relu("relu1", x)?;
    g.place("stem", x)?;
    Ok(x)
}

fn head(mut g: GraphBuilder, x: NodeId, classes: usize) -> Result<Graph> {
    let x = g.global_average_pool("pool", x)?;
    g.place("pool", x)?;
    let x = g.linear("linear", x, classes)?;
    g.finish(x)
}

/// The `number`-th convolution of a block with its batch normalisation.
fn norm(g: &mut GraphBuilder, block: &str, number: usize, x: NodeId, conv: Conv) -> Result<NodeId> {
    let x = g.conv(&format!("{block}.conv{number}"), x, conv)?;
    g.batch_norm(&format!("{block}.bn{number}"), x)
}

fn conv(outputs: usize, kernel: usize) -> Conv {
    Conv { padding: kernel / 2, bias: false, ..Conv::new(outputs, kernel) }
}
