//! Batch normalisation folded into the convolutions before it.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Conv, Graph, Node, NodeId, Norm, Op};
use crate::parameters::find;
use crate::{Result, Tensors};

impl Graph {
    /// The network and its weights with each batch normalisation folded into the convolution before it, as an evaluated
    /// network can have it: `weight * s` and `bias = shift + (bias - mean) * s` with `s = scale / sqrt(var + eps)` of
    /// each channel, computed in f64. The outputs are the same but for rounding.
    ///
    /// A batch normalisation stays where something else takes the convolution's values or a place shows them, and where
    /// no convolution stands before it.
    ///
    /// # Errors
    /// When `tensors` lacks one of the network's or has it with another shape or type.
    pub fn fold(&self, tensors: &Tensors) -> Result<(Self, Tensors)> {
        let folded: BTreeMap<usize, usize> = (0..self.nodes.len())
            .filter_map(|norm| Some((norm, self.conv_before(norm)?)))
            .collect();
        let mut nodes: Vec<Node> = Vec::new();
        let mut new_tensors = Tensors::new();
        // For each old node, where its values are in the new graph.
        let mut moved: Vec<NodeId> = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(&conv) = folded.get(&index) {
                moved.push(moved[conv]);
                let (weight, bias) = folded_weights(self, &self.nodes[conv], node, tensors)?;
                new_tensors.insert(format!("{}.weight", self.nodes[conv].name), weight);
                new_tensors.insert(format!("{}.bias", self.nodes[conv].name), bias);
                continue;
            }
            let inputs: Vec<NodeId> = node.inputs.iter().map(|id| moved[id.0]).collect();
            let mut op = node.op.clone();
            match &mut op {
                Op::Conv(conv) if folded.values().any(|conv| *conv == index) => conv.bias = true,
                _ => {
                    for spec in node.parameters.iter().chain(&node.buffers) {
                        let tensor = find(&self.name, spec, tensors)?;
                        new_tensors.insert(spec.name.clone(), tensor.clone());
                    }
                }
            }
            let shapes: Vec<&[usize]> =
                inputs.iter().map(|id| nodes[id.0].shape.as_slice()).collect();
            let node = Node::new(node.name.clone(), op, inputs.clone(), &shapes)
                .map_err(|reason| self.layer_error(&node.name, reason))?;
            nodes.push(node);
            moved.push(NodeId(nodes.len() - 1));
        }
        Ok((self.with_nodes(nodes, &moved), new_tensors))
    }

    /// The convolution into which a node can be folded.
    fn conv_before(&self, norm: usize) -> Option<usize> {
        let Node { op: Op::BatchNorm(_), inputs, .. } = &self.nodes[norm] else { return None };
        let conv = *inputs.first()?;
        let readers = self.nodes.iter().flat_map(|node| &node.inputs).filter(|id| **id == conv);
        let shown = self.places.iter().any(|(_, id)| *id == conv);
        let is_conv = matches!(self.node(conv).op, Op::Conv(_));
        (is_conv && readers.count() == 1 && !shown).then_some(conv.0)
    }
}

/// Weight and bias of the convolution that computes what `conv` and `norm` do together.
fn folded_weights(
    graph: &Graph,
    conv: &Node,
    norm: &Node,
    tensors: &Tensors,
) -> Result<(Tensor, Tensor)> {
    let mut found = Vec::new();
    for spec in conv.parameters.iter().chain(&norm.parameters).chain(&norm.buffers) {
        found.push(find(&graph.name, spec, tensors)?);
    }
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let old_bias = match conv.op {
        Op::Conv(Conv { bias: true, .. }) => Some(values(found.remove(1))?),
        _ => None,
    };
    let [weight, scale, shift, mean, var] = found[..] else {
        unreachable!("a convolution has a weight, a batch normalisation four tensors")
    };
    let (mut values, shape, device) = (values(weight)?, weight.dims(), weight.device());
    let [scale, shift, mean, var] = [scale, shift, mean, var].map(|tensor| tensor.to_vec1::<f32>());
    let (scale, shift, mean, var) = (scale?, shift?, mean?, var?);
    let Op::BatchNorm(Norm { eps, .. }) = norm.op else {
        unreachable!("what is folded is a batch normalisation")
    };
    let mut bias = Vec::with_capacity(scale.len());
    let window = shape[1..].iter().product();
    for (channel, weight) in values.chunks_exact_mut(window).enumerate() {
        let factor = f64::from(scale[channel]) / (f64::from(var[channel]) + eps).sqrt();
        for weight in weight {
            *weight = (f64::from(*weight) * factor) as f32;
        }
        let old = old_bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
        let new = f64::from(shift[channel]) + (old - f64::from(mean[channel])) * factor;
        bias.push(new as f32);
    }
    let channels = bias.len();
    Ok((Tensor::from_vec(values, shape, device)?, Tensor::from_vec(bias, channels, device)?))
}
