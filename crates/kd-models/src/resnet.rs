//! Residual networks for CIFAR: He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use kd_ops::{BatchNorm, BatchNormConfig, Conv2dConfig, Statistics, conv2d, linear, subsample_pad};

use crate::classifier::{check_images, check_places};
use crate::{Architecture, Classifier, Error, Mode, ModelConfig, Output, Place, Result};

/// Side of the square images.
const SIDE: usize = 32;
/// Colours of the images.
const COLOURS: usize = 3;
/// Channels of the three stages; each but the first begins with a stride of 2.
const WIDTHS: [usize; 3] = [16, 32, 64];

/// A convolution without bias and the batch normalisation behind it, by name.
struct Unit {
    conv: String,
    norm: String,
    inputs: usize,
    outputs: usize,
    stride: usize,
    /// Side of its output.
    side: usize,
}

/// One network of this shape: 6 `blocks` + 2 layers.
pub(crate) struct Plan {
    pub(crate) architecture: Architecture,
    /// Blocks of two convolutions in each stage.
    pub(crate) blocks: usize,
}

impl Plan {
    /// The stem, then two for each block.
    fn units(&self) -> Vec<Unit> {
        let stem = Unit {
            conv: "conv1".into(),
            norm: "bn1".into(),
            inputs: COLOURS,
            outputs: WIDTHS[0],
            stride: 1,
            side: SIDE,
        };
        let (mut units, mut channels, mut side) = (vec![stem], WIDTHS[0], SIDE);
        for (stage, width) in WIDTHS.into_iter().enumerate() {
            for block in 0..self.blocks {
                for position in 1..=2 {
                    let narrows = stage > 0 && block == 0 && position == 1;
                    let stride = if narrows { 2 } else { 1 };
                    side /= stride;
                    units.push(Unit {
                        conv: format!("layer{}.{block}.conv{position}", stage + 1),
                        norm: format!("layer{}.{block}.bn{position}", stage + 1),
                        inputs: channels,
                        outputs: width,
                        stride,
                        side,
                    });
                    channels = width;
                }
            }
        }
        units
    }

    pub(crate) fn parameter_shapes(&self, classes: usize) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Vec::new();
        for unit in self.units() {
            let conv = vec![unit.outputs, unit.inputs, 3, 3];
            shapes.push((format!("{}.weight", unit.conv), conv));
            shapes.push((format!("{}.weight", unit.norm), vec![unit.outputs]));
            shapes.push((format!("{}.bias", unit.norm), vec![unit.outputs]));
        }
        shapes.push(("linear.weight".into(), vec![classes, WIDTHS[2]]));
        shapes.push(("linear.bias".into(), vec![classes]));
        shapes
    }

    pub(crate) fn buffer_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let buffers = |unit: Unit| {
            ["running_mean", "running_var"]
                .map(|buffer| (format!("{}.{buffer}", unit.norm), vec![unit.outputs]))
        };
        self.units().into_iter().flat_map(buffers).collect()
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let place =
            |name: &str, shape: &[usize]| Place { name: name.into(), shape: shape.to_vec() };
        vec![
            place("stem", &[WIDTHS[0], SIDE, SIDE]),
            place("layer1", &[WIDTHS[0], SIDE, SIDE]),
            place("layer2", &[WIDTHS[1], SIDE / 2, SIDE / 2]),
            place("layer3", &[WIDTHS[2], SIDE / 4, SIDE / 4]),
            place("pool", &[WIDTHS[2]]),
        ]
    }

    pub(crate) fn multiply_adds(&self, classes: usize) -> u64 {
        let conv = |unit: &Unit| unit.side * unit.side * unit.outputs * unit.inputs * 9;
        let convs: usize = self.units().iter().map(conv).sum();
        (convs + WIDTHS[2] * classes) as u64
    }
}

/// A [`Unit`] with weights.
struct ConvNorm {
    weight: Tensor,
    norm: BatchNorm,
    stride: usize,
}

impl ConvNorm {
    fn new(unit: &Unit, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((unit.outputs, unit.inputs, 3, 3), &format!("{}.weight", unit.conv))?;
        let of_norm = |name: &str| vb.get(unit.outputs, &format!("{}.{name}", unit.norm));
        let norm = BatchNorm {
            weight: of_norm("weight")?,
            bias: of_norm("bias")?,
            running_mean: of_norm("running_mean")?,
            running_var: of_norm("running_var")?,
            // A ReLU follows every one, at once or after the shortcut's addition.
            config: BatchNormConfig { relu: true, ..BatchNormConfig::default() },
        };
        Ok(Self { weight, norm, stride: unit.stride })
    }

    fn forward(&self, x: &Tensor, residual: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let config = Conv2dConfig { padding: 1, stride: self.stride, ..Conv2dConfig::default() };
        let x = conv2d(x, &self.weight, None, &config)?;
        let statistics = match mode {
            // Frozen is whole: what doesn't train keeps its running statistics too.
            Mode::Train(_) if self.norm.weight.track_op() => Statistics::Batch,
            _ => Statistics::Running,
        };
        Ok(self.norm.forward(&x, residual, statistics)?)
    }
}

/// The residual network of He et al. (2016) for 32x32 images: a 3x3 convolution of 16 channels, three
/// stages of blocks of two 3x3 convolutions with 16, 32 and 64 channels, the mean over all pixels and a
/// linear layer. Batch normalisation follows each convolution. Where a stage narrows, its shortcut takes
/// every second pixel and adds channels of zeros, half before and half behind (option A): no parameters.
///
/// Names are those of the usual PyTorch code for it: `conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`.
/// Feature places: `stem`, `layer1`, `layer2`, `layer3` (each stage's output) and `pool` (what the linear
/// layer sees). A batch normalisation whose weight is no variable is frozen as a whole: it also trains with,
/// and keeps, its running statistics.
pub struct ResNet {
    plan: Plan,
    /// The stem, then two for each block.
    units: Vec<ConvNorm>,
    weight: Tensor,
    bias: Tensor,
    classes: usize,
}

impl ResNet {
    /// The network on the weights and running statistics that `vb` gives.
    ///
    /// # Errors
    /// When `config` is no ResNet's or makes no sense, or `vb` lacks a tensor or has it with another shape.
    pub fn new(config: &ModelConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.validate()?;
        let Some(plan) = config.architecture.resnet() else {
            return Err(Error::Config {
                field: "architecture",
                found: config.architecture.to_string(),
                expected: "a ResNet",
            });
        };
        let units =
            plan.units().iter().map(|unit| ConvNorm::new(unit, &vb)).collect::<Result<_>>()?;
        let classes = config.classes;
        let weight = vb.get((classes, WIDTHS[2]), "linear.weight")?;
        let bias = vb.get(classes, "linear.bias")?;
        Ok(Self { plan, units, weight, bias, classes })
    }
}

impl Classifier for ResNet {
    fn forward_t(&self, images: &Tensor, mode: Mode, asked: &[&str]) -> Result<Output> {
        check_images(self.plan.architecture, images)?;
        check_places(self.plan.architecture, &self.plan.places(), asked)?;
        let mut features = BTreeMap::new();
        let mut keep = |name: &str, x: &Tensor| {
            if asked.contains(&name) {
                features.insert(name.to_string(), x.clone());
            }
        };
        let (stem, blocks) = self.units.split_at(1);
        let mut x = stem[0].forward(images, None, mode)?;
        keep("stem", &x);
        for (index, block) in blocks.chunks_exact(2).enumerate() {
            let shortcut = match block[0].stride {
                1 => x.clone(),
                _ => subsample_pad(&x, block[0].weight.dim(0)?)?,
            };
            let inner = block[0].forward(&x, None, mode)?;
            x = block[1].forward(&inner, Some(&shortcut), mode)?;
            if (index + 1).is_multiple_of(self.plan.blocks) {
                keep(["layer1", "layer2", "layer3"][index / self.plan.blocks], &x);
            }
        }
        let x = x.flatten_from(2)?.mean(2)?;
        keep("pool", &x);
        let logits = linear(&x, &self.weight, Some(&self.bias), false)?;
        Ok(Output { logits, features })
    }

    fn places(&self) -> Vec<Place> {
        self.plan.places()
    }

    fn num_classes(&self) -> usize {
        self.classes
    }

    fn multiply_adds(&self) -> u64 {
        self.plan.multiply_adds(self.classes)
    }
}
