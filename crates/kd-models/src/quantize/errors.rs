//! How far a quantised network is from the one that it was made of, layer by layer.

use candle_core::Tensor;

use super::{Observations, QuantizeConfig, layers, quantize};
use crate::classifier::Classifier;
use crate::graph::Graph;
use crate::{GraphNetwork, Result, Tensors, frozen};

/// What quantisation does to a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerError {
    /// The convolution's or linear layer's name.
    pub layer: String,
    /// Signal to noise of its values when every layer is quantised, in decibels: 10 log10 of the sum of squares of the f32 network's
    /// values over that of the differences.
    pub signal_to_noise: f64,
    /// The same of the logits when this layer alone is quantised.
    pub alone: f64,
}

/// Compares, on a batch of normalised images, the folded network with what [`quantize`] makes of it, and with what it makes of it when a
/// single layer is quantised. The network is computed once for each layer. Layers of `config.float_layers` are left out.
///
/// # Errors
/// As [`quantize`]'s; when a batch can't be computed.
pub fn errors(
    graph: &Graph,
    tensors: &Tensors,
    seen: &Observations,
    config: &QuantizeConfig,
    images: &Tensor,
) -> Result<Vec<LayerError>> {
    let names: Vec<&str> = layers(graph).map(|node| node.name.as_str()).collect();
    let quantized = |config: &QuantizeConfig| -> Result<(Graph, Tensors)> {
        let made = quantize(graph, tensors, seen, config)?;
        Ok((made.graph, made.tensors))
    };
    let values = |graph: &Graph, tensors: &Tensors, names: &[&str]| {
        let nodes = graph.nodes().iter().enumerate();
        let shown = nodes.filter(|(_, node)| names.contains(&node.name.as_str()));
        let shown = graph.showing(shown.map(|(index, _)| index));
        GraphNetwork::new(shown, frozen(tensors))?.evaluate(images, names)
    };
    let whole = values(graph, tensors, &names)?;
    let (all_graph, all_tensors) = quantized(config)?;
    let all = values(&all_graph, &all_tensors, &names)?;
    let mut found = Vec::new();
    for name in &names {
        if config.float_layers.contains(*name) {
            continue;
        }
        let others = names.iter().filter(|other| *other != name).map(|other| (*other).to_owned());
        let config = QuantizeConfig { float_layers: others.collect(), ..config.clone() };
        let (one_graph, one_tensors) = quantized(&config)?;
        let one = values(&one_graph, &one_tensors, &[])?;
        found.push(LayerError {
            layer: (*name).to_owned(),
            signal_to_noise: decibels(&whole.features[*name], &all.features[*name])?,
            alone: decibels(&whole.logits, &one.logits)?,
        });
    }
    Ok(found)
}

/// 10 log10 of the sum of squares of `signal` over that of its difference from `other`; infinite where they are equal.
fn decibels(signal: &Tensor, other: &Tensor) -> Result<f64> {
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (signal, other) = (values(signal)?, values(other)?);
    let square = |value: f64| value * value;
    let power: f64 = signal.iter().map(|value| square(f64::from(*value))).sum();
    let pairs = signal.iter().zip(&other);
    let noise: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    Ok(if noise == 0.0 { f64::INFINITY } else { 10.0 * (power / noise).log10() })
}
