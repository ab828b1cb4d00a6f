//! A network as data.
//!
//! A [`Graph`] is a list of nodes: name, operation, inputs, shape. Whatever has to be known of a network walks it: names,
//! shapes and first values of its tensors, the feature places, the number of multiply-adds, freezing, another head
//! ([`Graph::with_classes`]), folding ([`Graph::fold`]), computing ([`GraphNetwork`](crate::GraphNetwork)) and the
//! export to ONNX. A [`GraphBuilder`] makes one.

mod builder;
mod fold;
mod layers;
mod op;

use candle_core::Device;

pub use builder::GraphBuilder;
pub use op::{Conv, LinearInit, Norm, Op, WeightInit};

use crate::init::Fill;
use crate::{Error, Parameters, Place, Result};

/// A network without weights: its nodes in an order in which each stands behind its inputs.
///
/// The first node is the images, the last is the *head*, the linear layer that gives the logits. Every node but the
/// head is an input of another one.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    name: String,
    nodes: Vec<Node>,
    /// Names of places and the nodes whose values are seen there, from the input to the output.
    places: Vec<(String, NodeId)>,
}

/// A node of a graph, as a position in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

impl NodeId {
    /// The node at this position.
    pub(crate) fn at(index: usize) -> Self {
        Self(index)
    }

    /// The position of the node in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// One layer of a network, or one step without weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The name, which no other node of the graph has: a PyTorch module's where there is one.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// The nodes whose values it takes; they stand before it.
    pub inputs: Vec<NodeId>,
    /// The shape of the result for one image: `[C, H, W]` or `[F]`.
    pub shape: Vec<usize>,
    /// What training changes by gradients, such as `features.0.weight`.
    pub parameters: Vec<TensorSpec>,
    /// What the node remembers beside them: running means and variances.
    pub buffers: Vec<TensorSpec>,
    /// Multiplications, each with an addition, of the convolution or linear layer for one image, done directly.
    pub multiply_adds: u64,
}

/// A named tensor that a node needs.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// The name in a PyTorch state dict: the node's name, a dot and `weight`, `bias`, `running_mean` or `running_var`.
    pub name: String,
    /// The shape, in PyTorch's layout: `[O, I, kh, kw]` for a convolution, `[O, I]` for a linear layer.
    pub shape: Vec<usize>,
    /// The values that a fresh network has.
    pub fill: Fill,
}

impl Node {
    /// A node that computes `op` on inputs of these shapes; or what is wrong with them.
    pub(crate) fn new(
        name: String,
        op: Op,
        inputs: Vec<NodeId>,
        shapes: &[&[usize]],
    ) -> std::result::Result<Self, String> {
        let inferred = op.infer(shapes)?;
        let named = |tensors: Vec<(&str, Vec<usize>, Fill)>| {
            let spec = |(of, shape, fill)| TensorSpec { name: format!("{name}.{of}"), shape, fill };
            tensors.into_iter().map(spec).collect()
        };
        let (parameters, buffers) = (named(inferred.parameters), named(inferred.buffers));
        let (shape, multiply_adds) = (inferred.shape, inferred.multiply_adds);
        Ok(Self { name, op, inputs, shape, parameters, buffers, multiply_adds })
    }
}

impl Graph {
    /// The network's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All nodes, each behind its inputs.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The linear layer that gives the logits.
    pub fn head(&self) -> &Node {
        &self.nodes[self.nodes.len() - 1]
    }

    /// The shape of the images, `[C, H, W]`.
    pub fn input(&self) -> [usize; 3] {
        match self.nodes[0].op {
            Op::Images(shape) => shape,
            _ => unreachable!("a graph's first node is its images"),
        }
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.head().shape[0]
    }

    /// What training changes by gradients, from the input to the output.
    pub fn parameters(&self) -> impl Iterator<Item = &TensorSpec> {
        self.nodes.iter().flat_map(|node| &node.parameters)
    }

    /// The running means and variances of the batch normalisations. A weights file holds them beside the parameters.
    pub fn buffers(&self) -> impl Iterator<Item = &TensorSpec> {
        self.nodes.iter().flat_map(|node| &node.buffers)
    }

    /// All that a weights file holds: the parameters, then the buffers.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        self.parameters().chain(self.buffers())
    }

    /// The number of trained values.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|spec| spec.shape.iter().product::<usize>()).sum()
    }

    /// Multiplications (each with an addition) in the convolutions and linear layers of the forward pass of one image,
    /// done directly.
    pub fn multiply_adds(&self) -> u64 {
        self.nodes.iter().map(|node| node.multiply_adds).sum()
    }

    /// The feature places, from the input to the output.
    pub fn places(&self) -> Vec<Place> {
        let place = |(name, id): &(String, NodeId)| Place {
            name: name.clone(),
            shape: self.node(*id).shape.clone(),
        };
        self.places.iter().map(place).collect()
    }

    /// The node whose values are seen at a feature place.
    ///
    /// # Errors
    /// When there is no place of this name; the error lists those that there are.
    pub fn place(&self, name: &str) -> Result<NodeId> {
        match self.places.iter().find(|(place, _)| place == name) {
            Some((_, id)) => Ok(*id),
            None => {
                let known: Vec<_> = self.places.iter().map(|(place, _)| place.as_str()).collect();
                Err(Error::UnknownPlace {
                    network: self.name.as_str().into(),
                    place: name.to_string(),
                    known: known.join(", "),
                })
            }
        }
    }

    /// Fresh parameters and buffers. Each tensor's values depend on `seed` and its name alone.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn init(&self, seed: u64, device: &Device) -> Result<Parameters> {
        let fresh = |spec: &TensorSpec| {
            let var = spec.fill.values(&spec.name, &spec.shape, seed, device)?;
            Ok((spec.name.clone(), var))
        };
        self.tensors().map(fresh).collect()
    }

    /// The same network with another number of classes: its head is replaced.
    ///
    /// # Errors
    /// When the number is zero or too large.
    pub fn with_classes(&self, classes: usize) -> Result<Self> {
        let mut graph = self.clone();
        let head = self.head();
        let shapes: Vec<&[usize]> =
            head.inputs.iter().map(|id| self.node(*id).shape.as_slice()).collect();
        let init = match head.op {
            Op::Linear { init, .. } => init,
            _ => unreachable!("a graph's head is a linear layer"),
        };
        let op = Op::Linear { outputs: classes, init };
        let new = Node::new(head.name.clone(), op, head.inputs.clone(), &shapes);
        let last = graph.nodes.len() - 1;
        graph.nodes[last] = new.map_err(|reason| self.layer_error(&head.name, reason))?;
        Ok(graph)
    }

    /// For each node the nodes that read it, by their positions; one that reads it twice stands there twice.
    pub(crate) fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for input in &node.inputs {
                readers[input.index()].push(index);
            }
        }
        readers
    }

    /// The network with other nodes; `moved` says of each old node where its values are among them.
    pub(crate) fn with_nodes(&self, nodes: Vec<Node>, moved: &[NodeId]) -> Self {
        let place = |(name, id): &(String, NodeId)| (name.clone(), moved[id.0]);
        let places = self.places.iter().map(place).collect();
        Self { name: self.name.clone(), nodes, places }
    }

    /// The same network that shows the values of these nodes, under the nodes' names, and of no others.
    pub(crate) fn showing(&self, nodes: impl Iterator<Item = usize>) -> Self {
        let places = nodes.map(|node| (self.nodes[node].name.clone(), NodeId(node))).collect();
        Self { places, ..self.clone() }
    }

    pub(crate) fn layer_error(&self, layer: &str, reason: String) -> Error {
        Error::Layer { network: self.name.as_str().into(), layer: layer.to_string(), reason }
    }
}
