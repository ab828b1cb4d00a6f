//! Residual networks for small images: He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.

use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, NodeId, WeightInit};

/// A residual network of 6 `blocks` + 2 layers.
#[derive(Clone, Debug, PartialEq)]
pub struct CifarResNetConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// Blocks of two convolutions in each of the three stages.
    pub blocks: usize,
}

/// The network of a config: a 3x3 convolution of 16 channels, three stages of blocks of two 3x3 convolutions with 16, 32
/// and 64 channels, the mean over all pixels and a linear layer. Batch normalisation follows each convolution. The first
/// convolution of the second and third stage has stride 2; the shortcut around it takes every second pixel and adds
/// channels of zeros (option A), without parameters.
///
/// Names are those of the usual PyTorch code: `conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`. Feature places are `stem`,
/// `layer1`, `layer2`, `layer3` (each stage's output) and `pool` (what the linear layer sees).
///
/// # Errors
/// When a number makes no sense.
pub fn cifar_resnet(config: &CifarResNetConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let images = g.images();
    let x = conv_norm(&mut g, "conv1", images, 16, 1)?;
    let mut x = g.relu("conv1.relu", x)?;
    g.place("stem", x)?;
    let mut inputs = 16;
    for (stage, outputs) in [("layer1", 16), ("layer2", 32), ("layer3", 64)] {
        for block in 0..config.blocks {
            let stride = if outputs == inputs { 1 } else { 2 };
            x = residual(&mut g, &format!("{stage}.{block}"), x, outputs, stride)?;
            inputs = outputs;
        }
        g.place(stage, x)?;
    }
    x = g.global_average_pool("pool", x)?;
    g.place("pool", x)?;
    x = g.linear("linear", x, config.classes)?;
    g.finish(x)
}

/// Two convolutions and the shortcut around them.
fn residual(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    channels: usize,
    stride: usize,
) -> Result<NodeId> {
    let shortcut = match stride {
        1 => x,
        _ => g.subsample_pad(&format!("{name}.shortcut"), x, channels)?,
    };
    let y = conv_norm(g, &format!("{name}.conv1"), x, channels, stride)?;
    let y = g.relu(&format!("{name}.conv1.relu"), y)?;
    let y = conv_norm(g, &format!("{name}.conv2"), y, channels, 1)?;
    let sum = g.sum(&format!("{name}.sum"), y, shortcut)?;
    g.relu(name, sum)
}

/// A 3x3 convolution without bias and the batch normalisation behind it, whose name has `bn` for `conv`.
fn conv_norm(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    outputs: usize,
    stride: usize,
) -> Result<NodeId> {
    let init = WeightInit::HeNormal;
    let conv = Conv { stride, padding: 1, bias: false, init, ..Conv::new(outputs, 3) };
    let x = g.conv(name, x, conv)?;
    g.batch_norm(&name.replace("conv", "bn"), x)
}
