//! MobileNetV2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), as torchvision has it
//! (`torchvision/models/mobilenetv2.py`).

use super::divisible::{check_factor, divisible};
use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, LinearInit, NodeId, Op, WeightInit};

/// A MobileNetV2 of some width, for images of any size; [`mobilenet_v2`] makes its graph.
#[derive(Clone, Debug, PartialEq)]
pub struct MobileNetV2Config {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// What every number of channels is multiplied with, but for the last convolution's where it is below 1; results are
    /// multiples of 8.
    pub width: f64,
    /// The share of what the linear layer sees that dropout sets to zero in training.
    pub dropout: f64,
}

/// A stage, table 2 of the paper: expansion, channels, blocks, stride of the first block.
const STAGES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// The network of a config: a 3x3 convolution of stride 2, seventeen inverted residuals (1x1 to more channels, depthwise 3x3,
/// 1x1 to fewer, with a shortcut where the shape stays), a 1x1 convolution, the mean over all pixels, dropout and a linear
/// layer. Batch normalisation follows each convolution, ReLU6 all but the last of a block. Weights start as torchvision's.
///
/// Names are torchvision's: `features.0.0`, `features.1.conv.0.0`, ..., `features.18.1`, `classifier.1`. Feature places are
/// `features.0` to `features.18`, the outputs of torchvision's modules of these names, and `pool` (the mean over all
/// pixels).
///
/// # Errors
/// When a number makes no sense.
pub fn mobilenet_v2(config: &MobileNetV2Config) -> Result<Graph> {
    check_factor("width", config.width)?;
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let images = g.images();
    let mut inputs = divisible(32, config.width);
    let mut x = layer(&mut g, "features.0", images, Conv { stride: 2, ..conv(inputs, 3) })?;
    g.place("features.0", x)?;
    let mut index = 1;
    for (expansion, channels, blocks, first_stride) in STAGES {
        let outputs = divisible(channels, config.width);
        for block in 0..blocks {
            let name = format!("features.{index}");
            let stride = if block == 0 { first_stride } else { 1 };
            let y = inverted(&mut g, &name, x, [inputs, inputs * expansion, outputs], stride)?;
            x = match stride == 1 && inputs == outputs {
                true => g.sum(&name, y, x)?,
                false => y,
            };
            g.place(&name, x)?;
            (inputs, index) = (outputs, index + 1);
        }
    }
    x = layer(&mut g, "features.18", x, conv(divisible(1280, config.width.max(1.0)), 1))?;
    g.place("features.18", x)?;
    x = g.global_average_pool("pool", x)?;
    g.place("pool", x)?;
    x = g.dropout("classifier.0", x, config.dropout)?;
    let head = Op::Linear { outputs: config.classes, init: LinearInit::Normal { std: 0.01 } };
    x = g.add("classifier.1", head, &[x])?;
    g.finish(x)
}

/// An inverted residual from `inputs` over `hidden` to `outputs` channels, without its shortcut.
fn inverted(
    g: &mut GraphBuilder,
    name: &str,
    x: NodeId,
    [inputs, hidden, outputs]: [usize; 3],
    stride: usize,
) -> Result<NodeId> {
    let mut modules = (0..).map(|module| format!("{name}.conv.{module}"));
    let mut next = || modules.next().unwrap_or_default();
    let x = match hidden == inputs {
        true => x,
        false => layer(g, &next(), x, conv(hidden, 1))?,
    };
    let x = layer(g, &next(), x, Conv { stride, groups: hidden, ..conv(hidden, 3) })?;
    let x = g.conv(&next(), x, conv(outputs, 1))?;
    g.batch_norm(&next(), x)
}

/// A convolution, its batch normalisation and ReLU6: modules 0, 1 and 2 of `name`.
fn layer(g: &mut GraphBuilder, name: &str, x: NodeId, conv: Conv) -> Result<NodeId> {
    let x = g.conv(&format!("{name}.0"), x, conv)?;
    let x = g.batch_norm(&format!("{name}.1"), x)?;
    g.relu6(&format!("{name}.2"), x)
}

fn conv(outputs: usize, kernel: usize) -> Conv {
    let (padding, init) = (kernel / 2, WeightInit::HeFanOut);
    Conv { padding, bias: false, init, ..Conv::new(outputs, kernel) }
}
