//! The shape that teacher and student share: 3x3 convolutions with ReLU, some followed by a 2x2
//! max-pool, then two linear layers with ReLU and dropout between.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use kd_ops::{Conv2d, Conv2dConfig, conv2d_chain, dropout, linear, max_pool2d, relu};

use crate::classifier::{check_images, check_places};
use crate::{Architecture, Mode, ModelConfig, Output, Place, Result};

/// Side of the square images.
const SIDE: usize = 32;
/// Colours of the images.
const CHANNELS: usize = 3;

/// One network of this shape.
pub(crate) struct Plan {
    pub(crate) architecture: Architecture,
    /// Each convolution's output channels, and whether a max-pool follows.
    pub(crate) convs: &'static [(usize, bool)],
    /// Width of the hidden linear layer.
    pub(crate) hidden: usize,
}

/// A convolution of a [`Plan`], with the modules that follow it.
struct ConvPlan {
    /// Index of the convolution in the reference's `features`; the ReLU's is one higher, the pool's two.
    index: usize,
    inputs: usize,
    outputs: usize,
    /// Side of its input and output.
    side: usize,
    pool: bool,
}

impl ConvPlan {
    fn multiply_adds(&self) -> usize {
        self.side * self.side * self.outputs * self.inputs * 9
    }

    /// Whether it pays to run this layer and the next as one operation, which computes this one's map
    /// again in the backward pass instead of keeping it. It does for the teacher's first layer, a 21st of its
    /// second's work with a map of 64 MiB at batch 128: on one thread its step fell from 525 to 360 ms.
    fn joins(&self, next: &Self) -> bool {
        !self.pool && 10 * self.multiply_adds() < next.multiply_adds()
    }
}

impl Plan {
    fn convs(&self) -> Vec<ConvPlan> {
        let (mut index, mut inputs, mut side) = (0, CHANNELS, SIDE);
        let plan = |&(outputs, pool): &(usize, bool)| {
            let conv = ConvPlan { index, inputs, outputs, side, pool };
            index += if pool { 3 } else { 2 };
            inputs = outputs;
            side /= if pool { 2 } else { 1 };
            conv
        };
        self.convs.iter().map(plan).collect()
    }

    /// Values of one image that the first linear layer takes.
    fn flat(&self) -> usize {
        let map = |conv: &ConvPlan| {
            let side = if conv.pool { conv.side / 2 } else { conv.side };
            conv.outputs * side * side
        };
        self.convs().last().map_or(CHANNELS * SIDE * SIDE, map)
    }

    pub(crate) fn parameter_shapes(&self, classes: usize) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Vec::new();
        let mut layer = |name: String, weight: Vec<usize>| {
            let bias = vec![weight[0]];
            shapes.push((format!("{name}.weight"), weight));
            shapes.push((format!("{name}.bias"), bias));
        };
        for conv in self.convs() {
            layer(format!("features.{}", conv.index), vec![conv.outputs, conv.inputs, 3, 3]);
        }
        layer("classifier.0".into(), vec![self.hidden, self.flat()]);
        layer("classifier.3".into(), vec![classes, self.hidden]);
        shapes
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        let mut place = |name: String, shape: Vec<usize>| places.push(Place { name, shape });
        for ConvPlan { index, outputs, side, pool, .. } in self.convs() {
            place(format!("features.{index}"), vec![outputs, side, side]);
            place(format!("features.{}", index + 1), vec![outputs, side, side]);
            if pool {
                place(format!("features.{}", index + 2), vec![outputs, side / 2, side / 2]);
            }
        }
        place("classifier.0".into(), vec![self.hidden]);
        place("classifier.1".into(), vec![self.hidden]);
        places
    }

    pub(crate) fn multiply_adds(&self, classes: usize) -> u64 {
        let convs: usize = self.convs().iter().map(ConvPlan::multiply_adds).sum();
        (convs + self.hidden * (self.flat() + classes)) as u64
    }
}

/// Weight and bias of a layer.
struct Layer {
    weight: Tensor,
    bias: Tensor,
}

/// A [`Plan`] with weights.
pub(crate) struct Cnn {
    plan: &'static Plan,
    convs: Vec<(ConvPlan, Layer)>,
    hidden: Layer,
    output: Layer,
    classes: usize,
    dropout: f64,
}

impl Cnn {
    pub(crate) fn new(
        plan: &'static Plan,
        classes: usize,
        dropout: f64,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        ModelConfig { architecture: plan.architecture, classes, dropout }.validate()?;
        let mut layers = Vec::new();
        for pair in plan.parameter_shapes(classes).chunks_exact(2) {
            let weight = vb.get(pair[0].1.as_slice(), &pair[0].0)?;
            let bias = vb.get(pair[1].1.as_slice(), &pair[1].0)?;
            layers.push(Layer { weight, bias });
        }
        let (Some(output), Some(hidden)) = (layers.pop(), layers.pop()) else {
            unreachable!("a plan has two linear layers")
        };
        let convs = plan.convs().into_iter().zip(layers).collect();
        Ok(Self { plan, convs, hidden, output, classes, dropout })
    }

    pub(crate) fn forward_t(&self, images: &Tensor, mode: Mode, asked: &[&str]) -> Result<Output> {
        check_images(self.plan.architecture, images)?;
        check_places(self.plan.architecture, &self.plan.places(), asked)?;

        let mut features = BTreeMap::new();
        let mut x = images.clone();
        // Convolutions that wait for the next one, to be run with it in one operation.
        let mut waiting = Vec::new();
        for (i, (plan, layer)) in self.convs.iter().enumerate() {
            let place = |offset: usize| format!("features.{}", plan.index + offset);
            let is_asked = |place: &String| asked.contains(&place.as_str());
            let (before_relu, after_relu) = (place(0), place(1));
            // What lies between is fused away unless somebody wants to see it.
            let fuse_relu = !is_asked(&before_relu);
            let fuse_pool = plan.pool && fuse_relu && !is_asked(&after_relu);
            waiting.push(Conv2d {
                weight: layer.weight.clone(),
                bias: Some(layer.bias.clone()),
                config: Conv2dConfig {
                    padding: 1,
                    relu: fuse_relu,
                    max_pool2: fuse_pool,
                    ..Conv2dConfig::default()
                },
            });
            let next = self.convs.get(i + 1).map(|(next, _)| next);
            if fuse_relu && !is_asked(&after_relu) && next.is_some_and(|next| plan.joins(next)) {
                continue;
            }
            x = conv2d_chain(&x, &waiting.iter().collect::<Vec<_>>())?;
            waiting.clear();
            if !fuse_relu {
                features.insert(before_relu, x.clone());
                x = relu(&x)?;
            }
            if is_asked(&after_relu) {
                features.insert(after_relu, x.clone());
            }
            if plan.pool {
                if !fuse_pool {
                    x = max_pool2d(&x, 2, 2)?;
                }
                let after_pool = place(2);
                if is_asked(&after_pool) {
                    features.insert(after_pool, x.clone());
                }
            }
        }

        x = x.flatten_from(1)?;
        let fuse_relu = !asked.contains(&"classifier.0");
        x = linear(&x, &self.hidden.weight, Some(&self.hidden.bias), fuse_relu)?;
        if !fuse_relu {
            features.insert("classifier.0".into(), x.clone());
            x = relu(&x)?;
        }
        if asked.contains(&"classifier.1") {
            features.insert("classifier.1".into(), x.clone());
        }
        if let Mode::Train(key) = mode {
            x = dropout(&x, self.dropout, key, 0)?;
        }
        let logits = linear(&x, &self.output.weight, Some(&self.output.bias), false)?;
        Ok(Output { logits, features })
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        self.plan.places()
    }

    pub(crate) fn num_classes(&self) -> usize {
        self.classes
    }

    pub(crate) fn multiply_adds(&self) -> u64 {
        self.plan.multiply_adds(self.classes)
    }
}
