//! What several tests need.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use kd_models::graph::{Op, TensorSpec};
use kd_models::{Architecture, Graph, ModelConfig, Parameters};

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
