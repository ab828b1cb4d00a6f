//! Static quantisation to eight bits: maps as unsigned bytes, weights as signed bytes with a scale for each output channel.
//!
//! [`observe`] looks at the values of a folded network ([`Graph::fold`]) on some pictures, and [`quantize`] makes of it the network
//! that a runtime with int8 kernels computes: a graph with an [`Op::Quantize`] behind each value that a quantised layer reads, and
//! weights that are multiples of their scales. It is a graph like any other: [`GraphNetwork`](crate::GraphNetwork) computes it, and
//! [`onnx`](crate::onnx) writes it with `QuantizeLinear` and `DequantizeLinear` nodes.
//!
//! After Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018), and
//! Nagel et al., "A White Paper on Neural Network Quantization" (2021).

mod errors;
mod observe;
mod ranges;
mod weights;

use std::collections::{BTreeMap, BTreeSet};

use kd_ops::Levels;

pub use errors::{LayerError, errors};
pub use observe::{Observations, observe};
pub use ranges::Calibration;

use crate::graph::{Graph, Node, NodeId, Op};
use crate::{Error, Result, Tensors};

/// How to quantise.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeConfig {
    /// How the range of each map is chosen.
    pub calibration: Calibration,
    /// The bits of a weight, 7 or 8. Processors with AVX2 and without VNNI add products of bytes in pairs in 16 bits, which two products
    /// of eight-bit weights can overflow and two of seven-bit weights can't.
    pub weight_bits: u32,
    /// Whether each output's bias makes up for the mean error of its rounded weights.
    pub bias_correction: bool,
    /// The convolutions and linear layers that stay f32, by name.
    pub float_layers: BTreeSet<String>,
}

impl Default for QuantizeConfig {
    fn default() -> Self {
        Self {
            calibration: Calibration::default(),
            weight_bits: 7,
            bias_correction: true,
            float_layers: BTreeSet::new(),
        }
    }
}

/// A quantised network.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The folded network with an [`Op::Quantize`] behind each value that a quantised layer reads.
    pub graph: Graph,
    /// Its weights: those of quantised layers are multiples of their scales.
    pub tensors: Tensors,
    /// The scales of each quantised layer, by its name.
    pub layers: BTreeMap<String, LayerScales>,
}

/// The scales of a quantised convolution or linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerScales {
    /// Of each output's weights: a weight is a signed byte times this. A bias is a 32-bit number times this times `input`.
    pub weight: Vec<f32>,
    /// Of the values that the layer reads.
    pub input: f32,
}

/// The network with eight-bit weights and maps. `graph` and `tensors` are a folded network, `seen` what [`observe`] saw of it.
///
/// Values are quantised where the layer that gives them ends, its ReLU included; pools, flattening and rearranged channels keep the
/// levels of what they read, and dropout, which does nothing here, is left out. A layer of `float_layers` keeps its weights and reads what
/// the layer before it gives. The logits stay f32.
///
/// # Errors
/// When a name of `float_layers` is no convolution or linear layer, `weight_bits` is neither 7 nor 8, or a tensor is missing.
pub fn quantize(
    graph: &Graph,
    tensors: &Tensors,
    seen: &Observations,
    config: &QuantizeConfig,
) -> Result<Quantized> {
    if !(7..=8).contains(&config.weight_bits) {
        return Err(Error::Config {
            field: "weight_bits",
            found: config.weight_bits.to_string(),
            expected: "7 or 8".into(),
        });
    }
    if let Calibration::Percentile(percent) = config.calibration
        && !(50.0..=100.0).contains(&percent)
    {
        return Err(Error::Config {
            field: "percentile",
            found: percent.to_string(),
            expected: "a number from 50 to 100".into(),
        });
    }
    let known: Vec<&str> = layers(graph).map(|node| node.name.as_str()).collect();
    if let Some(name) = config.float_layers.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::Config {
            field: "float_layers",
            found: format!("{name:?}"),
            expected: format!(
                "names of convolutions and linear layers, which are {}",
                known.join(", ")
            ),
        });
    }
    let mut made = Maker { graph, nodes: Vec::new(), raw: Vec::new(), quantized: Vec::new() };
    let mut new_tensors = tensors.clone();
    let mut scales = BTreeMap::new();
    let is_read = read_as_bytes(graph, &config.float_layers);
    for (index, node) in graph.nodes().iter().enumerate() {
        let is_float = config.float_layers.contains(&node.name);
        if matches!(node.op, Op::Dropout { .. }) {
            made.leave_out(node.inputs[0].index());
            continue;
        }
        if is_layer(node) && !is_float {
            let read = node.inputs[0].index();
            let Some((_, Levels { scale, .. })) = made.quantized[read] else {
                unreachable!("what a quantised layer reads is quantised")
            };
            let mean = seen.mean(read);
            let found = weights::quantize(graph, node, &mut new_tensors, scale, mean, config)?;
            scales.insert(node.name.clone(), LayerScales { weight: found, input: scale });
        }
        made.push(node, is_float || is_activation(&node.op))?;
        let is_read = is_read[index];
        let levels = match passes_levels_on(&node.op) {
            true => made.quantized[node.inputs[0].index()].map(|(_, levels)| levels),
            false => seen.histogram(index).map(|seen| ranges::choose(seen, config.calibration)),
        };
        made.quantize(levels.filter(|_| is_read), node)?;
    }
    let graph = graph.with_nodes(made.nodes, &made.raw);
    Ok(Quantized { graph, tensors: new_tensors, layers: scales })
}

/// The convolutions and linear layers of a network, which quantisation is about, in the order in which they are computed.
pub fn layers(graph: &Graph) -> impl Iterator<Item = &Node> {
    graph.nodes().iter().filter(|node| is_layer(node))
}

fn is_layer(node: &Node) -> bool {
    matches!(node.op, Op::Conv(_) | Op::Linear { .. })
}

fn is_activation(op: &Op) -> bool {
    matches!(op, Op::Relu | Op::Relu6)
}

/// Whether an operation's results are some of the values that it reads.
fn passes_levels_on(op: &Op) -> bool {
    matches!(
        op,
        Op::MaxPool { .. }
            | Op::Flatten
            | Op::Channels { .. }
            | Op::ChannelShuffle { .. }
            | Op::SubsamplePad { .. }
            | Op::Dropout { .. }
    )
}

/// Whether the values of a node get levels of their own: it computes, it is not the head, and no ReLU alone reads it.
fn has_levels(graph: &Graph, index: usize, readers: &[Vec<usize>]) -> bool {
    let is_head = index + 1 == graph.nodes().len();
    let activated = |reader: &usize| is_activation(&graph.nodes()[*reader].op);
    let is_followed = !readers[index].is_empty() && readers[index].iter().all(activated);
    !(passes_levels_on(&graph.nodes()[index].op) || is_head || is_followed)
}

/// Of each node, whether something reads its values as bytes: a quantised layer, directly or through operations that pass bytes on; or
/// a sum, a mean or the like that stands between quantised layers. Where no layer is quantised, nothing is.
fn read_as_bytes(graph: &Graph, float_layers: &BTreeSet<String>) -> Vec<bool> {
    let nodes = graph.nodes();
    let readers = graph.readers();
    let is_quantized = |node: &Node| is_layer(node) && !float_layers.contains(&node.name);
    // Whether a quantised layer's values are among what a node makes its own of, with no other layer in between.
    let mut stems = vec![false; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        stems[index] = match is_layer(node) {
            true => is_quantized(node),
            false => node.inputs.iter().any(|id| stems[id.index()]),
        };
    }
    // Whether a quantised layer reads what is made of a node's values, with no other layer in between.
    let mut leads = vec![false; nodes.len()];
    let mut read = vec![false; nodes.len()];
    for index in (0..nodes.len()).rev() {
        for &reader in &readers[index] {
            let node = &nodes[reader];
            leads[index] |= if is_layer(node) { is_quantized(node) } else { leads[reader] };
            read[index] |= match &node.op {
                Op::Conv(_) | Op::Linear { .. } => is_quantized(node),
                // What comes out of them is quantised in their place.
                Op::Relu | Op::Relu6 => false,
                op if passes_levels_on(op) => read[reader],
                _ => leads[reader] && stems[index],
            };
        }
    }
    read
}

/// The new graph while it is made.
struct Maker<'a> {
    graph: &'a Graph,
    nodes: Vec<Node>,
    /// Of each old node, where its values are in the new graph.
    raw: Vec<NodeId>,
    /// Of each old node that something reads as bytes, where those are, and their levels.
    quantized: Vec<Option<(NodeId, Levels)>>,
}

impl Maker<'_> {
    /// An old node that does nothing: its values are those of the old node that it reads.
    fn leave_out(&mut self, read: usize) {
        self.raw.push(self.raw[read]);
        self.quantized.push(self.quantized[read]);
    }

    /// An old node, which reads bytes where there are some, or with `plain` values as they are.
    fn push(&mut self, node: &Node, plain: bool) -> Result<()> {
        let input = |id: &NodeId| {
            let (raw, quantized) = (self.raw[id.index()], self.quantized[id.index()]);
            quantized.filter(|_| !plain).map_or(raw, |(id, _)| id)
        };
        let inputs = node.inputs.iter().map(input).collect();
        let id = self.add(node.name.clone(), node.op.clone(), inputs)?;
        self.raw.push(id);
        Ok(())
    }

    /// Quantises the values of the old node that was added last, if levels are given.
    fn quantize(&mut self, levels: Option<Levels>, node: &Node) -> Result<()> {
        let raw = NodeId::at(self.nodes.len() - 1);
        let name = format!("{}.quantized", node.name);
        let quantized = match levels {
            Some(levels) => Some((self.add(name, Op::Quantize(levels), vec![raw])?, levels)),
            None => None,
        };
        self.quantized.push(quantized);
        Ok(())
    }

    fn add(&mut self, name: String, op: Op, inputs: Vec<NodeId>) -> Result<NodeId> {
        let shapes: Vec<&[usize]> =
            inputs.iter().map(|id| self.nodes[id.index()].shape.as_slice()).collect();
        let node = Node::new(name.clone(), op, inputs.clone(), &shapes)
            .map_err(|reason| self.graph.layer_error(&name, reason))?;
        self.nodes.push(node);
        Ok(NodeId::at(self.nodes.len() - 1))
    }
}
