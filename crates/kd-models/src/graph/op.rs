//! The operations that a graph's nodes may have: what each makes of the shapes of its inputs, which tensors it needs
//! and what it costs.

use crate::init::Fill;

/// What a node computes from its inputs. Shapes are those of one image's values, without the batch.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// The images `[C, H, W]`: the first node of every graph and no other.
    Images([usize; 3]),
    /// A convolution.
    Conv(Conv),
    /// Batch normalisation of each channel of a map with PyTorch's momentum (0.1) and eps (1e-5): parameters `weight`
    /// and `bias`, buffers `running_mean` and `running_var`.
    BatchNorm,
    /// `max(x, 0)` of values of any shape; its derivative at zero is 0.
    Relu,
    /// The maximum of each `kernel` x `kernel` window of a map, windows `stride` apart, no padding. Rows and columns that
    /// fill no window are left out, as in PyTorch.
    MaxPool {
        /// Height and width of a window.
        kernel: usize,
        /// Pixels between neighbouring windows.
        stride: usize,
    },
    /// The sum of two values of the same shape.
    Add,
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
    },
    /// Dropout: in training each value is zero with probability `share`, the others are divided by `1 - share`. In
    /// evaluation it does nothing.
    Dropout {
        /// The share of the values that is set to zero, in [0, 1).
        share: f64,
        /// The number of this dropout layer in its network, from 0. The masks depend on it.
        layer: u64,
    },
}

/// A convolution with a square window, `weight` `[outputs, inputs, kernel, kernel]`, as `torch.nn.Conv2d` has it.
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
    /// Whether a `bias` `[outputs]` is added.
    pub bias: bool,
    /// How the weight starts.
    pub init: WeightInit,
}

impl Conv {
    /// A convolution as `torch.nn.Conv2d(inputs, outputs, kernel)` makes it: stride 1, no padding, with a bias and
    /// PyTorch's initialisation.
    pub fn new(outputs: usize, kernel: usize) -> Self {
        Self { outputs, kernel, stride: 1, padding: 0, bias: true, init: WeightInit::PyTorch }
    }
}

/// How the weight of a layer starts; `fan_in` is the number of inputs of one output: input channels times window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightInit {
    /// PyTorch's default for convolutions and linear layers: uniform in ±1/sqrt(fan_in). PyTorch calls it
    /// `kaiming_uniform_(a=sqrt(5))`, whose bound is sqrt(6 / ((1 + a²) fan_in)) = 1/sqrt(fan_in).
    PyTorch,
    /// Normal with variance 2/fan_in: He et al., "Delving Deep into Rectifiers" (2015), equation 10; `kaiming_normal_`.
    HeNormal,
}

impl WeightInit {
    fn fill(self, fan_in: usize) -> Fill {
        match self {
            Self::PyTorch => Fill::Uniform { bound: 1.0 / (fan_in as f64).sqrt() },
            Self::HeNormal => Fill::Normal { std: (2.0 / fan_in as f64).sqrt() },
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
            Self::BatchNorm => {
                let shape = map(inputs)?;
                let tensor = |name, value| (name, vec![shape[0]], Fill::Constant(value));
                Ok(Inferred {
                    parameters: vec![tensor("weight", 1.0), tensor("bias", 0.0)],
                    buffers: vec![tensor("running_mean", 0.0), tensor("running_var", 1.0)],
                    ..Inferred::plain(shape.to_vec())
                })
            }
            Self::Relu => Ok(Inferred::plain(one(inputs)?.to_vec())),
            Self::MaxPool { kernel, stride } => {
                let [channels, height, width] = map(inputs)?;
                let sides = [height, width].map(|side| windows(side, *kernel, *stride, 0));
                let [height, width] = sides;
                Ok(Inferred::plain(vec![channels, height?, width?]))
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
            Self::Linear { outputs } => {
                let &[inputs] = one(inputs)? else {
                    return Err(format!("a linear layer takes a vector, got {:?}", inputs[0]));
                };
                let fill = WeightInit::PyTorch.fill(inputs);
                Ok(Inferred {
                    parameters: vec![
                        ("weight", vec![*outputs, inputs], fill),
                        ("bias", vec![*outputs], fill),
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
        let Self { outputs, kernel, stride, padding, bias, init } = *self;
        let sides = [height, width].map(|side| windows(side, kernel, stride, padding));
        let [height, width] = sides;
        let shape = vec![outputs, height?, width?];
        let weight = vec![outputs, inputs, kernel, kernel];
        let fan_in = inputs.saturating_mul(kernel).saturating_mul(kernel);
        let mut parameters = vec![("weight", weight.clone(), init.fill(fan_in))];
        if bias {
            parameters.push(("bias", vec![outputs], WeightInit::PyTorch.fill(fan_in)));
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
