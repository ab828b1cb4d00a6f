//! What several tests need.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod graphs;
pub(crate) mod ranks;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use kd_models::graph::{Op, TensorSpec};
use kd_models::{Architecture, Classifier, Graph, Mode, ModelConfig, Output, Parameters};
use kd_ops::DropoutKey;

pub(crate) fn config(architecture: Architecture) -> ModelConfig {
    ModelConfig::new(architecture, 10)
}

pub(crate) fn named(name: &str) -> Architecture {
    name.parse().unwrap()
}

pub(crate) fn graph(config: &ModelConfig) -> Graph {
    config.graph().unwrap()
}

fn shape(spec: &TensorSpec) -> (String, Vec<usize>) {
    (spec.name.clone(), spec.shape.clone())
}

pub(crate) fn parameter_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    graph(config).parameters().map(shape).collect()
}

pub(crate) fn buffer_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    graph(config).buffers().map(shape).collect()
}

/// `hashed` of parity/make_fixtures.py: f32 values in [-scale, scale) from a hash of their index.
pub(crate) fn hashed(shape: &[usize], tag: u32, scale: f64) -> Tensor {
    let value = |i: u32| {
        let mut u = (i + 1).wrapping_mul(0x9E37_79B1).wrapping_add(tag.wrapping_mul(0x85EB_CA77));
        u ^= u >> 16;
        u = u.wrapping_mul(0x85EB_CA6B);
        u ^= u >> 13;
        u = u.wrapping_mul(0xC2B2_AE35);
        u ^= u >> 16;
        ((u >> 8) as f32 * 2f32.powi(-23) - 1.0) * scale as f32
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u32).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// `fixed_weights` of parity/make_fixtures.py.
pub(crate) fn fixed_weights(config: &ModelConfig) -> Parameters {
    let mut bound = 0.0;
    let mut parameters = BTreeMap::new();
    let mut insert = |name: String, values: Tensor| {
        // Scales and variances are about 1.
        let one = name.ends_with("var") || (name.contains("bn") && name.ends_with("weight"));
        let values = if one { (values + 1.0).unwrap() } else { values };
        parameters.insert(name, Var::from_tensor(&values).unwrap());
    };
    for (tag, (name, shape)) in parameter_shapes(config).into_iter().enumerate() {
        if shape.len() > 1 {
            bound = 1.0 / (shape[1..].iter().product::<usize>() as f64).sqrt();
        }
        let scale = if name.contains("bn") { 0.5 } else { bound };
        insert(name, hashed(&shape, tag as u32, scale));
    }
    for (tag, (name, shape)) in (500..).zip(buffer_shapes(config)) {
        insert(name, hashed(&shape, tag, 0.5));
    }
    parameters
}

/// Weights of a network as training leaves them: scales, shifts and running statistics that matter.
pub(crate) fn trained(graph: &Graph) -> Parameters {
    let mut parameters = graph.init(1, &Device::Cpu).unwrap();
    for (tag, node) in graph.nodes().iter().enumerate() {
        if matches!(node.op, Op::BatchNorm(_)) {
            for (spec, one) in node.parameters.iter().chain(&node.buffers).zip([1.0, 0.0, 0.0, 1.5])
            {
                let values = (hashed(&spec.shape, tag as u32, 0.5) + one).unwrap();
                parameters.insert(spec.name.clone(), Var::from_tensor(&values).unwrap());
            }
        }
    }
    parameters
}

pub(crate) fn tensors(parameters: &Parameters) -> BTreeMap<String, Tensor> {
    parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
}

pub(crate) fn fixture(name: &str) -> HashMap<String, Tensor> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    candle_core::safetensors::load(folder.join(name), &Device::Cpu).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).iter().map(|value| value.to_bits()).collect()
}

/// `short_digest` of parity/make_fixtures.py: sum, norm, sum with alternating signs, first and last element.
pub(crate) fn short_digest(values: &[f32]) -> [f64; 5] {
    let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    [
        values.iter().sum(),
        values.iter().map(|x| x * x).sum::<f64>().sqrt(),
        values.iter().enumerate().map(|(i, x)| sign(i) * x).sum(),
        values[0],
        values[values.len() - 1],
    ]
}

/// How a network is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// By `forward_t`, through candle's operations.
    Candle,
    /// By `train`, `backward` and `evaluate`.
    Planned,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::Candle, Self::Planned];

    /// The logits in evaluation.
    pub(crate) fn logits(self, network: &dyn Classifier, images: &Tensor) -> Tensor {
        match self {
            Self::Candle => network.forward_t(images, Mode::Eval, &[]).unwrap().logits,
            Self::Planned => network.evaluate(images, &[]).unwrap().logits,
        }
    }

    /// A forward pass in training, and the gradients of a loss of what it gives.
    pub(crate) fn train(
        self,
        network: &dyn Classifier,
        images: &Tensor,
        (key, places): (DropoutKey, &[&str]),
        loss: impl FnOnce(&Output) -> Tensor,
    ) -> (Output, GradStore) {
        match self {
            Self::Candle => {
                let output = network.forward_t(images, Mode::Train(key), places).unwrap();
                let gradients = loss(&output).backward().unwrap();
                (output, gradients)
            }
            Self::Planned => {
                let (output, tape) = network.train(images, key, places).unwrap();
                let mut gradients = loss(&output).backward().unwrap();
                network.backward(tape, &mut gradients).unwrap();
                (output, gradients)
            }
        }
    }

    /// The loss and the gradients of a training step on labels, without dropout.
    pub(crate) fn step(
        self,
        network: &dyn Classifier,
        images: &Tensor,
        labels: &[u32],
    ) -> (f32, GradStore) {
        let labels = Tensor::new(labels, &Device::Cpu).unwrap();
        let mut value = f32::NAN;
        let at = (DropoutKey { seed: 0, step: 0 }, &[][..]);
        let (_, gradients) = self.train(network, images, at, |output| {
            let loss = candle_nn::loss::cross_entropy(&output.logits, &labels).unwrap();
            value = loss.to_scalar().unwrap();
            loss
        });
        (value, gradients)
    }
}
