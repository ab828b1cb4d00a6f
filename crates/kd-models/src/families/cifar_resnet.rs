//! Residual networks for small images: He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.

use crate::graph::{Conv, Graph, GraphBuilder, NodeId, WeightInit};
use crate::{Error, Result};

/// The first values of all convolutions.
const INIT: WeightInit = WeightInit::HeNormal;

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
    /// Channels of the first convolution and of the three stages: 16, 16, 32 and 64 in the paper.
    pub channels: [usize; 4],
    /// The shortcut around a block whose output has another shape than its input.
    pub shortcut: Shortcut,
}

/// The shortcut around a block that changes the shape of its map, in the paper's section 3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// Option A: every second pixel, and channels of zeros around the map's own; no parameters. It takes stride 2.
    SubsamplePad,
    /// Option B: a 1x1 convolution with the block's stride, and batch normalisation.
    Projection,
}

impl CifarResNetConfig {
    /// The paper's network of 6 `blocks` + 2 layers for CIFAR's images, with option A.
    pub fn new(name: &str, classes: usize, blocks: usize) -> Self {
        Self {
            name: name.to_string(),
            input: [3, 32, 32],
            classes,
            blocks,
            channels: [16, 16, 32, 64],
            shortcut: Shortcut::SubsamplePad,
        }
    }
}

/// The network of a config: a 3x3 convolution, three stages of blocks of two 3x3 convolutions, the mean over all pixels and a
/// linear layer. Batch normalisation follows each convolution. The first convolution of the second and third stage has
/// stride 2. Around a block whose map changes its shape leads a [`Shortcut`].
///
/// Names are those of the usual PyTorch code for each option: `conv1`, `bn1`, `layer1.0.conv1`, ..., and `linear` with option A
/// (akamaster's pytorch_resnet_cifar10, `resnet.py`), `layer2.0.downsample.0`, `layer2.0.downsample.1` and `fc` with option B
/// (RepDistiller, `models/resnet.py`; chenyaofo's pytorch-cifar-models, `resnet.py`). Feature places are `stem`, `layer1`,
/// `layer2`, `layer3` (each stage's output), the same before their ReLU, `layer1.pre` to `layer3.pre`, and `pool` (what the linear
/// layer sees).
///
/// # Errors
/// When a number makes no sense, or option A would have to change the channels of the first stage.
pub fn cifar_resnet(config: &CifarResNetConfig) -> Result<Graph> {
    let [stem, stages @ ..] = config.channels;
    if config.shortcut == Shortcut::SubsamplePad && stem != stages[0] {
        return Err(Error::Config {
            field: "channels",
            found: format!("{:?}", config.channels),
            expected: "the same first two numbers, for an option-A shortcut takes stride 2 and the first stage has none".into(),
        });
    }
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let images = g.images();
    let x = conv_norm(&mut g, "conv1", images, stem, 1)?;
    let mut x = g.relu("conv1.relu", x)?;
    g.place("stem", x)?;
    let mut inputs = stem;
    for (index, channels) in stages.into_iter().enumerate() {
        let stage = format!("layer{}", index + 1);
        for block_index in 0..config.blocks {
            let stride = if index > 0 && block_index == 0 { 2 } else { 1 };
            let changes = stride != 1 || channels != inputs;
            let block = Block { channels, stride, shortcut: changes.then_some(config.shortcut) };
            let name = format!("{stage}.{block_index}");
            x = residual(&mut g, &name, x, &block)?;
            if block_index + 1 == config.blocks {
                g.place(&format!("{stage}.pre"), x)?;
            }
            x = g.relu(&name, x)?;
            inputs = channels;
        }
        g.place(&stage, x)?;
    }
    x = g.global_average_pool("pool", x)?;
    g.place("pool", x)?;
    let head = match config.shortcut {
        Shortcut::SubsamplePad => "linear",
        Shortcut::Projection => "fc",
    };
    x = g.linear(head, x, config.classes)?;
    g.finish(x)
}

/// A block of two convolutions.
struct Block {
    channels: usize,
    /// The first convolution's.
    stride: usize,
    /// Where the map changes its shape.
    shortcut: Option<Shortcut>,
}

/// Two convolutions and the shortcut around them, without the ReLU of their sum.
fn residual(g: &mut GraphBuilder, name: &str, x: NodeId, block: &Block) -> Result<NodeId> {
    let Block { channels, stride, .. } = *block;
    let mut shortcut = x;
    if let Some(Shortcut::SubsamplePad) = block.shortcut {
        shortcut = g.subsample_pad(&format!("{name}.shortcut"), x, channels)?;
    }
    let y = conv_norm(g, &format!("{name}.conv1"), x, channels, stride)?;
    let y = g.relu(&format!("{name}.conv1.relu"), y)?;
    let y = conv_norm(g, &format!("{name}.conv2"), y, channels, 1)?;
    if let Some(Shortcut::Projection) = block.shortcut {
        let conv = Conv { stride, bias: false, init: INIT, ..Conv::new(channels, 1) };
        let z = g.conv(&format!("{name}.downsample.0"), x, conv)?;
        shortcut = g.batch_norm(&format!("{name}.downsample.1"), z)?;
    }
    g.sum(&format!("{name}.sum"), y, shortcut)
}

/// A 3x3 convolution without bias and the batch normalisation behind it, whose name has `bn` for `conv`.
fn conv_norm(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    outputs: usize,
    stride: usize,
) -> Result<NodeId> {
    let conv = Conv { stride, padding: 1, bias: false, init: INIT, ..Conv::new(outputs, 3) };
    let x = g.conv(name, x, conv)?;
    g.batch_norm(&name.replace("conv", "bn"), x)
}
