//! Wide residual networks: Zagoruyko and Komodakis, "Wide Residual Networks" (2016), as RepDistiller has them (`models/wrn.py`).

use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, NodeId, WeightInit};

/// A wide residual network of 6 `blocks` + 4 layers: WRN-16-2 has 2 blocks and width 2, WRN-40-1 six and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct WideResNetConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// Blocks of two convolutions in each of the three stages.
    pub blocks: usize,
    /// What the stages' 16, 32 and 64 channels are multiplied with.
    pub width: usize,
}

/// The network of a config: a 3x3 convolution to 16 channels, three stages of blocks, batch normalisation, ReLU, the mean over all pixels and a linear layer. In a block batch normalisation and ReLU
/// stand before each of the two 3x3 convolutions; the first of the second and third stage has stride 2. Where a block changes the channels, a 1x1 convolution of what its first ReLU gives is its
/// shortcut. Convolutions start normal by their fan-out, as in RepDistiller, whose linear layer's bias starts with zeros and here as PyTorch's.
///
/// Names are those of RepDistiller and mdistiller: `conv1`, `block1.layer.0.bn1`, ..., `block2.layer.0.convShortcut`, `bn1`, `fc`. Feature places are `stem`, `block1` to `block3` (each stage's output, a sum),
/// `block1.pre` to `block3.pre` (the batch normalisation that reads it, before its ReLU) and `pool` (what the linear layer sees).
///
/// # Errors
/// When a number makes no sense.
pub fn wide_resnet(config: &WideResNetConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let images = g.images();
    let mut x = g.conv("conv1", images, conv(16, 3, 1))?;
    g.place("stem", x)?;
    let mut inputs = 16;
    for stage in 0..3 {
        let outputs = (16 << stage) * config.width;
        for block in 0..config.blocks {
            let name = format!("block{}.layer.{block}", stage + 1);
            let norm = g.batch_norm(&format!("{name}.bn1"), x)?;
            if stage > 0 && block == 0 {
                g.place(&format!("block{stage}.pre"), norm)?;
            }
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = residual(&mut g, &name, [x, norm], [inputs, outputs], stride)?;
            inputs = outputs;
        }
        g.place(&format!("block{}", stage + 1), x)?;
    }
    x = g.batch_norm("bn1", x)?;
    g.place("block3.pre", x)?;
    x = g.relu("relu", x)?;
    x = g.global_average_pool("pool", x)?;
    g.place("pool", x)?;
    x = g.linear("fc", x, config.classes)?;
    g.finish(x)
}

/// A block behind its first batch normalisation, `norm`.
fn residual(
    g: &mut GraphBuilder,
    name: &str,
    [x, norm]: [NodeId; 2],
    [inputs, outputs]: [usize; 2],
    stride: usize,
) -> Result<NodeId> {
    let first = g.relu(&format!("{name}.relu1"), norm)?;
    let y = g.conv(&format!("{name}.conv1"), first, conv(outputs, 3, stride))?;
    let y = g.batch_norm(&format!("{name}.bn2"), y)?;
    let y = g.relu(&format!("{name}.relu2"), y)?;
    let y = g.conv(&format!("{name}.conv2"), y, conv(outputs, 3, 1))?;
    let shortcut = match inputs == outputs && stride == 1 {
        true => x,
        false => g.conv(&format!("{name}.convShortcut"), first, conv(outputs, 1, stride))?,
    };
    g.sum(name, y, shortcut)
}

fn conv(outputs: usize, kernel: usize, stride: usize) -> Conv {
    let (padding, init) = (kernel / 2, WeightInit::HeFanOut);
    Conv { stride, padding, bias: false, init, ..Conv::new(outputs, kernel) }
}
