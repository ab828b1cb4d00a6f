//! The operations that a graph's nodes may have: what each makes of the shapes of its inputs, which tensors it needs
//! and what it costs.

use kd_ops::{BatchNormConfig, Levels, Pads};

use crate::init::Fill;

/// What a node computes from its inputs. Shapes are those of one image's values, without the batch.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// The images `[C, H, W]`: the first node of every graph and no other.
    Images([usize; 3]),
    /// A convolution.
    Conv(Conv),
    /// Batch normalisation of each channel of a map: parameters `weight` and `bias`, buffers `running_mean` and
    /// `running_var`.
    BatchNorm(Norm),
    /// `max(x, 0)` of values of any shape; its derivative at zero is 0.
    Relu,
    /// `min(max(x, 0), 6)` of values of any shape; its derivative at 0 and at 6 is 0.
    Relu6,
    /// The maximum of each `kernel` x `kernel` window of a map, windows `stride` apart. Rows and columns that fill no window
    /// are left out, as in PyTorch.
    MaxPool {
        /// Height and width of a window.
        kernel: usize,
        /// Pixels between neighbouring windows.
        stride: usize,
        /// Pixels on each of the four sides that no window takes for its maximum; at most half of `kernel`.
        padding: usize,
    },
    /// The mean of each `kernel` x `kernel` window of a map, windows `stride` apart; padding counts as zeros, as in `torch.nn.AvgPool2d`.
    AveragePool {
        /// Height and width of a window.
        kernel: usize,
        /// Pixels between neighbouring windows.
        stride: usize,
        /// Zeros on each of the four sides, in pixels; at most half of `kernel`.
        padding: usize,
    },
    /// The sum of two values of the same shape.
    Add,
    /// The channels of several maps of one height and width, one map's behind the other's.
    Concat,
    /// Some neighbouring channels of a map.
    Channels {
        /// The first of them, from 0.
        start: usize,
        /// How many there are.
        count: usize,
    },
    /// The channels of a map as `groups` rows, read column by column: the first of each group, then the second of each. Zhang et al., "ShuffleNet" (2018), section 3.1.
    ChannelShuffle {
        /// Groups, a divisor of the channels.
        groups: usize,
    },
    /// Every second pixel of a map, between channels of zeros, half of them before and half behind: the parameter-free
    /// shortcut (option A) of He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.
    SubsamplePad {
        /// Channels of the result.
        channels: usize,
    },
    /// The mean over all pixels of each channel of a map: `[C, H, W]` to `[C]`.
    GlobalAveragePool,
    /// All values of an image in a row, channel after channel: `[C, H, W]` to `[C H W]`.
    Flatten,
    /// `weight x + bias` of a vector, `weight` `[outputs, inputs]`, as `torch.nn.Linear` has it.
    Linear {
        /// Values of the result.
        outputs: usize,
        /// How weight and bias start.
        init: LinearInit,
    },
    /// Each value as it comes back from its byte: fake quantisation, which [`quantize`](crate::quantize) adds.
    Quantize(Levels),
    /// Dropout: in training each value is zero with probability `share`, the others are divided by `1 - share`. In
    /// evaluation it does nothing.
    Dropout {
        /// The share of the values that is set to zero, in [0, 1).
        share: f64,
        /// The number of this dropout layer in its network, from 0. The masks depend on it.
        layer: u64,
    },
}

/// A convolution with a square window, `weight` `[outputs, inputs / groups, kernel, kernel]`, as `torch.nn.Conv2d` has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv {
    /// Channels of the result.
    pub outputs: usize,
    /// Height and width of the window.
    pub kernel: usize,
    /// Pixels between neighbouring windows.
    pub stride: usize,
    /// Zeros added on each of the four sides, in pixels.
    pub padding: usize,
    /// Whether TensorFlow's "same" padding takes the place of `padding`, which is 0 then: as many zeros as make a side
    /// ceil(side / stride) long, the odd one below and on the right. [`Conv::pads`] gives them.
    pub same_padding: bool,
    /// Groups of channels: each group of outputs sees a group of inputs of its own. With as many groups as there are inputs
    /// and outputs the convolution is depthwise.
    pub groups: usize,
    /// Whether a `bias` `[outputs]` is added.
    pub bias: bool,
    /// How the weight starts.
    pub init: WeightInit,
}

impl Conv {
    /// A convolution as `torch.nn.Conv2d(inputs, outputs, kernel)` makes it: stride 1, no padding, one group, with a bias and
    /// PyTorch's initialisation.
    pub fn new(outputs: usize, kernel: usize) -> Self {
        Self {
            outputs,
            kernel,
            stride: 1,
            padding: 0,
            same_padding: false,
            groups: 1,
            bias: true,
            init: WeightInit::PyTorch,
        }
    }

    /// The zeros that the convolution adds around a map of `[height, width]` pixels.
    pub fn pads(&self, map: [usize; 2]) -> Pads {
        let padding = self.padding;
        match self.same_padding {
            true => Pads::same(map, self.kernel, self.stride),
            false => Pads { top: padding, bottom: padding, left: padding, right: padding },
        }
    }
}

/// The settings of a batch normalisation, as `torch.nn.BatchNorm2d` has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the variance before its root is taken.
    pub eps: f64,
    /// The share of a batch's statistics in the new running statistics, from 0 to 1.
    pub momentum: f64,
}

impl Default for Norm {
    /// PyTorch's: eps 1e-5, momentum 0.1.
    fn default() -> Self {
        let BatchNormConfig { eps, momentum, .. } = BatchNormConfig::default();
        Self { eps, momentum }
    }
}

/// How the weight of a convolution starts; `fan_in` is the number of inputs of one output: a group's input channels times
/// window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightInit {
    /// PyTorch's default for convolutions and linear layers: uniform in ±1/sqrt(fan_in). PyTorch calls it
    /// `kaiming_uniform_(a=sqrt(5))`, whose bound is sqrt(6 / ((1 + a²) fan_in)) = 1/sqrt(fan_in).
    PyTorch,
    /// Normal with variance 2/fan_in: He et al., "Delving Deep into Rectifiers" (2015), equation 10; `kaiming_normal_`.
    HeNormal,
    /// Normal with variance 2/fan_out, where fan_out is all output channels times window, whatever the groups: torchvision's
    /// `kaiming_normal_(mode="fan_out")`, equation 14 of the same paper for one group.
    HeFanOut,
    /// Normal with variance 2/fan_out, where fan_out is a group's output channels times window: EfficientNet's in TensorFlow
    /// and in timm (`_init_weight_goog`).
    HeFanOutOfGroup,
}

impl WeightInit {
    /// The values of a convolution with these fans; `fan_out` counts all groups.
    fn fill(self, fan_in: usize, fan_out: usize, groups: usize) -> Fill {
        let he = |fan: f64| Fill::Normal { std: (2.0 / fan).sqrt() };
        match self {
            Self::PyTorch => uniform(fan_in),
            Self::HeNormal => he(fan_in as f64),
            Self::HeFanOut => he(fan_out as f64),
            Self::HeFanOutOfGroup => he(fan_out as f64 / groups as f64),
        }
    }
}

/// Uniform in ±1/sqrt(fan).
fn uniform(fan: usize) -> Fill {
    Fill::Uniform { bound: 1.0 / (fan as f64).sqrt() }
}

/// How weight and bias of a linear layer start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearInit {
    /// PyTorch's default: both uniform in ±1/sqrt(inputs).
    PyTorch,
    /// Normal, the bias zero: torchvision's MobileNetV2 with a standard deviation of 0.01.
    Normal {
        /// The standard deviation of the weight.
        std: f64,
    },
    /// Uniform in ±1/sqrt(outputs), the bias zero: EfficientNet's in TensorFlow and in timm (`_init_weight_goog`).
    UniformFanOut,
}

impl LinearInit {
    /// First values of the weight and of the bias.
    fn fill(self, inputs: usize, outputs: usize) -> [Fill; 2] {
        match self {
            Self::PyTorch => [uniform(inputs); 2],
            Self::Normal { std } => [Fill::Normal { std }, Fill::Constant(0.0)],
            Self::UniformFanOut => [uniform(outputs), Fill::Constant(0.0)],
        }
    }
}

/// The most values that a tensor of a network may have for one image, so that no count overflows.
const MOST_VALUES: usize = 1 << 40;

/// What an operation needs and costs on inputs of given shapes.
pub(crate) struct Inferred {
    pub(crate) shape: Vec<usize>,
    /// Name within the layer, shape and first values.
    pub(crate) parameters: Vec<(&'static str, Vec<usize>, Fill)>,
    pub(crate) buffers: Vec<(&'static str, Vec<usize>, Fill)>,
    pub(crate) multiply_adds: u64,
}

impl Inferred {
    fn plain(shape: Vec<usize>) -> Self {
        Self { shape, parameters: Vec::new(), buffers: Vec::new(), multiply_adds: 0 }
    }
}

impl Op {
    /// The shape of the result, the tensors and the cost on inputs of these shapes; or what is wrong with them.
    pub(crate) fn infer(&self, inputs: &[&[usize]]) -> Result<Inferred, String> {
        let inferred = self.infer_unchecked(inputs)?;
        let tensors = inferred.parameters.iter().chain(&inferred.buffers);
        for shape in tensors.map(|(_, shape, _)| shape).chain([&inferred.shape]) {
            let mut values = 1usize;
            for &side in shape {
                values = values
                    .checked_mul(side)
                    .filter(|&values| values <= MOST_VALUES)
                    .ok_or_else(|| {
                        format!("a tensor of shape {shape:?} has more than {MOST_VALUES} values")
                    })?;
            }
            if values == 0 {
                return Err(format!("a tensor of shape {shape:?} has no values"));
            }
        }
        Ok(inferred)
    }

    fn infer_unchecked(&self, inputs: &[&[usize]]) -> Result<Inferred, String> {
        match self {
            Self::Images(shape) => Ok(Inferred::plain(shape.to_vec())),
            Self::Conv(conv) => conv.infer(map(inputs)?),
            Self::BatchNorm(Norm { eps, momentum }) => {
                let shape = map(inputs)?;
                if !(eps.is_finite() && *eps > 0.0 && (0.0..=1.0).contains(momentum)) {
                    return Err(format!(
                        "a batch normalisation with eps {eps} and momentum {momentum}; expected an eps above 0 and a momentum from 0 to 1"
                    ));
                }
                let tensor = |name, value| (name, vec![shape[0]], Fill::Constant(value));
                Ok(Inferred {
                    parameters: vec![tensor("weight", 1.0), tensor("bias", 0.0)],
                    buffers: vec![tensor("running_mean", 0.0), tensor("running_var", 1.0)],
                    ..Inferred::plain(shape.to_vec())
                })
            }
            Self::Relu | Self::Relu6 | Self::Quantize(_) => {
                Ok(Inferred::plain(one(inputs)?.to_vec()))
            }
            Self::MaxPool { kernel, stride, padding } => {
                let [channels, height, width] = map(inputs)?;
                if *padding > kernel / 2 {
                    return Err(format!(
                        "a max-pool's padding is at most half of its {kernel}x{kernel} window, got {padding}"
                    ));
                }
                let sides = [height, width].map(|side| windows(side, *kernel, *stride, *padding));
                let [height, width] = sides;
                Ok(Inferred::plain(vec![channels, height?, width?]))
            }
            Self::AveragePool { kernel, stride, padding } => {
                let [channels, height, width] = map(inputs)?;
                if *padding > kernel / 2 {
                    return Err(format!(
                        "an average pool's padding is at most half of its {kernel}x{kernel} window, got {padding}"
                    ));
                }
                let side = |side| windows(side, *kernel, *stride, *padding);
                Ok(Inferred::plain(vec![channels, side(height)?, side(width)?]))
            }
            Self::Concat => {
                let maps =
                    inputs.iter().map(|shape| map(&[shape])).collect::<Result<Vec<_>, _>>()?;
                match maps[..] {
                    [[_, height, width], ..]
                        if maps.iter().all(|map| map[1..] == [height, width]) =>
                    {
                        let channels = maps.iter().map(|map| map[0]).sum();
                        Ok(Inferred::plain(vec![channels, height, width]))
                    }
                    _ => Err(format!("it takes maps of one height and width, got {inputs:?}")),
                }
            }
            Self::Channels { start, count } => {
                let [channels, height, width] = map(inputs)?;
                match start.checked_add(*count) {
                    Some(end) if end <= channels => {
                        Ok(Inferred::plain(vec![*count, height, width]))
                    }
                    _ => Err(format!(
                        "{count} channels from channel {start} on; its input has {channels}"
                    )),
                }
            }
            Self::ChannelShuffle { groups } => {
                let [channels, height, width] = map(inputs)?;
                if *groups == 0 || !channels.is_multiple_of(*groups) {
                    return Err(format!(
                        "a shuffle of {groups} groups; expected a number that divides the {channels} channels of its input"
                    ));
                }
                Ok(Inferred::plain(vec![channels, height, width]))
            }
            Self::Add => match inputs {
                [a, b] if a == b => Ok(Inferred::plain(a.to_vec())),
                _ => Err(format!("a sum takes two values of one shape, got {inputs:?}")),
            },
            Self::SubsamplePad { channels } => {
                let [inputs, height, width] = map(inputs)?;
                match channels.checked_sub(inputs) {
                    Some(new) if new % 2 == 0 => {
                        Ok(Inferred::plain(vec![*channels, height.div_ceil(2), width.div_ceil(2)]))
                    }
                    _ => Err(format!(
                        "an option-A shortcut adds an even number of channels to the {inputs} of its input, got {channels} in all"
                    )),
                }
            }
            Self::GlobalAveragePool => Ok(Inferred::plain(vec![map(inputs)?[0]])),
            // No overflow: the values of an input are few enough.
            Self::Flatten => Ok(Inferred::plain(vec![one(inputs)?.iter().product()])),
            Self::Linear { outputs, init } => {
                let &[inputs] = one(inputs)? else {
                    return Err(format!("a linear layer takes a vector, got {:?}", inputs[0]));
                };
                let [weight, bias] = init.fill(inputs, *outputs);
                Ok(Inferred {
                    parameters: vec![
                        ("weight", vec![*outputs, inputs], weight),
                        ("bias", vec![*outputs], bias),
                    ],
                    multiply_adds: product(&[*outputs, inputs]),
                    ..Inferred::plain(vec![*outputs])
                })
            }
            Self::Dropout { share, .. } => match share {
                0.0..1.0 => Ok(Inferred::plain(one(inputs)?.to_vec())),
                _ => Err(format!("dropout of {share}; expected a share in [0, 1)")),
            },
        }
    }
}

impl Conv {
    fn infer(&self, [inputs, height, width]: [usize; 3]) -> Result<Inferred, String> {
        let Self { outputs, kernel, stride, padding, same_padding, groups, bias, init } = *self;
        if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
            return Err(format!(
                "{groups} groups; expected a number that divides the {inputs} channels of its input and the {outputs} of its result"
            ));
        }
        if same_padding && padding != 0 {
            return Err(format!("\"same\" padding takes the place of padding, got {padding}"));
        }
        let side = |side: usize| match same_padding && kernel > 0 && stride > 0 {
            true => Ok(side.div_ceil(stride)),
            false => windows(side, kernel, stride, padding),
        };
        let shape = vec![outputs, side(height)?, side(width)?];
        let weight = vec![outputs, inputs / groups, kernel, kernel];
        let fan = |channels: usize| channels.saturating_mul(kernel).saturating_mul(kernel);
        let (fan_in, fan_out) = (fan(inputs / groups), fan(outputs));
        let mut parameters = vec![("weight", weight.clone(), init.fill(fan_in, fan_out, groups))];
        if bias {
            parameters.push(("bias", vec![outputs], uniform(fan_in)));
        }
        let multiply_adds = product(&weight).saturating_mul(product(&shape[1..]));
        Ok(Inferred { parameters, multiply_adds, ..Inferred::plain(shape) })
    }
}

fn product(sides: &[usize]) -> u64 {
    sides.iter().fold(1, |product, &side| product.saturating_mul(side as u64))
}

/// The only input.
fn one<'a>(inputs: &[&'a [usize]]) -> Result<&'a [usize], String> {
    match inputs {
        [input] => Ok(input),
        _ => Err(format!("it takes one input, got {}", inputs.len())),
    }
}

/// The only input, which is a map.
fn map(inputs: &[&[usize]]) -> Result<[usize; 3], String> {
    let shape = one(inputs)?;
    shape.try_into().map_err(|_| format!("it takes a map [C, H, W], got {shape:?}"))
}

/// How many windows there are along a side.
fn windows(side: usize, kernel: usize, stride: usize, padding: usize) -> Result<usize, String> {
    if kernel == 0 || stride == 0 {
        return Err(format!("kernel and stride must be at least 1, got {kernel} and {stride}"));
    }
    let padded = padding.saturating_mul(2).saturating_add(side);
    match padded.checked_sub(kernel) {
        Some(rest) => Ok(rest / stride + 1),
        None => Err(format!(
            "a window of {kernel}x{kernel} does not fit into a map whose side is {padded}"
        )),
    }
}
