//! EfficientNet-Lite: EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6, as TensorFlow's
//! repository tpu has it (`models/official/efficientnet/lite`).

use super::divisible::{check_factor, divisible};
use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder, LinearInit, NodeId, Norm, Op, WeightInit};

/// An EfficientNet-Lite of some width and depth, for images of any size; [`efficientnet_lite`] makes its graph.
#[derive(Clone, Debug, PartialEq)]
pub struct EfficientNetLiteConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// What the stages' channels are multiplied with; results are multiples of 8.
    pub width: f64,
    /// What the blocks of all stages but the first and the last are multiplied with, rounded up.
    pub depth: f64,
    /// The share of what the linear layer sees that dropout sets to zero in training.
    pub dropout: f64,
    /// Whether convolutions have TensorFlow's "same" padding, or else as many zeros on each side.
    pub same_padding: bool,
    /// The batch normalisations' eps and momentum.
    pub norm: Norm,
}

impl EfficientNetLiteConfig {
    /// EfficientNet-Lite0 for ImageNet as its authors trained it: "same" padding, eps 1e-3, momentum 0.01. In timm it is
    /// `tf_efficientnet_lite0`; timm's `efficientnet_lite0` has the same tensors but zeros on each side and PyTorch's eps
    /// and momentum.
    pub fn lite0() -> Self {
        Self {
            name: "efficientnet_lite0".into(),
            input: [3, 224, 224],
            classes: 1000,
            width: 1.0,
            depth: 1.0,
            dropout: 0.2,
            same_padding: true,
            norm: Norm { eps: 1e-3, momentum: 0.01 },
        }
    }
}

/// A stage: channels, blocks, window, stride of the first block.
const STAGES: [(usize, usize, usize, usize); 7] = [
    (16, 1, 3, 1),
    (24, 2, 3, 2),
    (40, 2, 5, 2),
    (80, 3, 3, 2),
    (112, 3, 5, 1),
    (192, 4, 5, 2),
    (320, 1, 3, 1),
];

/// How many times as many channels as its input a block has inside, but for those of the first stage.
const EXPANSION: usize = 6;

/// The network of a config: a 3x3 convolution of stride 2 to 32 channels, seven stages of inverted residuals (1x1 to six
/// times the channels, depthwise 3x3 or 5x5, 1x1 to fewer; a shortcut where the shape stays; the first stage without the
/// first 1x1), a 1x1 convolution to 1280 channels, the mean over all pixels, dropout and a linear layer. Batch normalisation
/// follows each convolution, ReLU6 all but the last of a block. Weights start as in TensorFlow and timm. No block is left out
/// at random in training (stochastic depth).
///
/// Names are timm's: `conv_stem`, `bn1`, `blocks.0.0.conv_dw`, ..., `conv_head`, `bn2`, `classifier`. Feature places are
/// `stem`, `blocks.0` to `blocks.6` (each stage's output), `head` (after the last convolution) and `pool`.
///
/// # Errors
/// When a number makes no sense.
pub fn efficientnet_lite(config: &EfficientNetLiteConfig) -> Result<Graph> {
    check_factor("width", config.width)?;
    check_factor("depth", config.depth)?;
    let mut f = Family { g: GraphBuilder::new(&config.name, config.input)?, config };
    let images = f.g.images();
    let mut x = f.layer(["conv_stem", "bn1"], images, f.conv(32, 3, 2))?;
    f.g.place("stem", x)?;
    let mut inputs = 32;
    for (stage, (channels, blocks, kernel, first_stride)) in STAGES.into_iter().enumerate() {
        let outputs = divisible(channels, config.width);
        let blocks = match stage {
            1..6 => (blocks as f64 * config.depth).ceil() as usize,
            _ => blocks,
        };
        for block in 0..blocks {
            let name = format!("blocks.{stage}.{block}");
            let stride = if block == 0 { first_stride } else { 1 };
            let hidden = if stage == 0 { inputs } else { inputs * EXPANSION };
            let y = f.block(&name, x, [inputs, hidden, outputs], kernel, stride)?;
            x = match stride == 1 && inputs == outputs {
                true => f.g.sum(&name, y, x)?,
                false => y,
            };
            inputs = outputs;
        }
        f.g.place(&format!("blocks.{stage}"), x)?;
    }
    x = f.layer(["conv_head", "bn2"], x, f.conv(1280, 1, 1))?;
    f.g.place("head", x)?;
    x = f.g.global_average_pool("global_pool", x)?;
    f.g.place("pool", x)?;
    x = f.g.dropout("dropout", x, config.dropout)?;
    let head = Op::Linear { outputs: config.classes, init: LinearInit::UniformFanOut };
    x = f.g.add("classifier", head, &[x])?;
    f.g.finish(x)
}

struct Family<'a> {
    g: GraphBuilder,
    config: &'a EfficientNetLiteConfig,
}

impl Family<'_> {
    /// A block without its shortcut.
    fn block(
        &mut self,
        name: &str,
        x: NodeId,
        [inputs, hidden, outputs]: [usize; 3],
        kernel: usize,
        stride: usize,
    ) -> Result<NodeId> {
        let mut norms = (1..).map(|norm| format!("{name}.bn{norm}"));
        let mut norm = || norms.next().unwrap_or_default();
        let named = |conv: &str| format!("{name}.{conv}");
        let (x, last) = match hidden == inputs {
            true => (x, "conv_pw"),
            false => {
                let expansion = self.conv(hidden, 1, 1);
                (self.layer([&named("conv_pw"), &norm()], x, expansion)?, "conv_pwl")
            }
        };
        let depthwise = Conv { groups: hidden, ..self.conv(hidden, kernel, stride) };
        let x = self.layer([&named("conv_dw"), &norm()], x, depthwise)?;
        self.normalized([&named(last), &norm()], x, self.conv(outputs, 1, 1))
    }

    /// A convolution, its batch normalisation and ReLU6.
    fn layer(&mut self, names: [&str; 2], x: NodeId, conv: Conv) -> Result<NodeId> {
        let x = self.normalized(names, x, conv)?;
        self.g.relu6(&format!("{}.act", names[1]), x)
    }

    /// A convolution and its batch normalisation.
    fn normalized(&mut self, [conv, norm]: [&str; 2], x: NodeId, layer: Conv) -> Result<NodeId> {
        let x = self.g.conv(conv, x, layer)?;
        self.g.add(norm, Op::BatchNorm(self.config.norm), &[x])
    }

    fn conv(&self, outputs: usize, kernel: usize, stride: usize) -> Conv {
        let same_padding = self.config.same_padding;
        let padding = if same_padding { 0 } else { kernel / 2 };
        let init = WeightInit::HeFanOutOfGroup;
        let bias = false;
        Conv { stride, padding, same_padding, bias, init, ..Conv::new(outputs, kernel) }
    }
}
