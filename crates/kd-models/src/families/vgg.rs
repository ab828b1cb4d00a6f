//! VGG for small images: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015), with batch normalisation and one linear layer, as RepDistiller
//! has them (`models/vgg.py`).

use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, LinearInit, Op, WeightInit};

/// A VGG of some depth.
#[derive(Clone, Debug, PartialEq)]
pub struct VggConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// Convolutions in each of the five blocks: 1, 1, 1, 1, 1 in VGG-8; 2, 2, 2, 2, 2 in VGG-13.
    pub convs: [usize; 5],
}

/// Channels of the blocks.
const CHANNELS: [usize; 5] = [64, 128, 256, 512, 512];

/// The network of a config: five blocks of 3x3 convolutions of 64, 128, 256, 512 and 512 channels, each with bias, batch normalisation and ReLU; a 2x2 max-pool behind each of the first three and, where
/// images are 64 pixels high, behind the fourth; the mean over all pixels and a linear layer. Convolutions start normal by their fan-out, the linear layer normal with 0.01: RepDistiller's, whose
/// convolutions' biases, which the batch normalisation takes away, start with zeros.
///
/// Names are those of RepDistiller and mdistiller: `block0.0` (convolution), `block0.1` (batch normalisation), ..., `classifier`. Feature places are `block0` to `block4` (each block's output before its pool), the
/// same before their ReLU, `block0.pre` to `block4.pre`, and `pool` (what the linear layer sees).
///
/// # Errors
/// When a number makes no sense, or the images are too small for the pools.
pub fn vgg(config: &VggConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let mut x = g.images();
    for (block, (channels, convs)) in CHANNELS.into_iter().zip(config.convs).enumerate() {
        let name = format!("block{block}");
        for index in 0..convs {
            let init = WeightInit::HeFanOut;
            let conv = Conv { padding: 1, init, ..Conv::new(channels, 3) };
            x = g.conv(&format!("{name}.{}", 3 * index), x, conv)?;
            x = g.batch_norm(&format!("{name}.{}", 3 * index + 1), x)?;
            let last = index + 1 == convs;
            if last {
                g.place(&format!("{name}.pre"), x)?;
            }
            // The last ReLU of a block is no module of the reference.
            let relu = if last { name.clone() } else { format!("{name}.{}", 3 * index + 2) };
            x = g.relu(&relu, x)?;
        }
        g.place(&name, x)?;
        if block < 3 || (block == 3 && config.input[1] == 64) {
            x = g.max_pool(&format!("pool{block}"), x, 2, 2)?;
        }
    }
    x = g.global_average_pool("pool4", x)?;
    g.place("pool", x)?;
    let head = Op::Linear { outputs: config.classes, init: LinearInit::Normal { std: 0.01 } };
    x = g.add("classifier", head, &[x])?;
    g.finish(x)
}
