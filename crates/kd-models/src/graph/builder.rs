//! Making a graph, node by node, each checked as it comes.

use std::collections::HashSet;

use super::{Conv, Graph, LinearInit, Node, NodeId, Norm, Op};
use crate::{Error, Result};

/// The name of the first node.
const IMAGES: &str = "images";
/// What a place can't be called: programs keep the logits beside the places, under this name.
const LOGITS: &str = "logits";

/// Makes a [`Graph`]: a method a layer, which takes the name of the new node and the nodes that it reads, and gives the
/// new node.
///
/// ```
/// use kd_models::graph::{Conv, GraphBuilder};
///
/// # fn main() -> kd_models::Result<()> {
/// let mut g = GraphBuilder::new("small", [3, 28, 28])?;
/// let x = g.conv("conv", g.images(), Conv { padding: 1, ..Conv::new(8, 3) })?;
/// let x = g.relu("relu", x)?;
/// let x = g.max_pool("pool", x, 2, 2)?;
/// g.place("map", x)?;
/// let x = g.flatten("flat", x)?;
/// let x = g.linear("head", x, 10)?;
/// let small = g.finish(x)?;
/// assert_eq!(small.places()[0].shape, [8, 14, 14]);
/// assert_eq!(small.parameter_count(), 8 * 28 + 10 * (8 * 14 * 14 + 1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct GraphBuilder {
    graph: Graph,
    names: HashSet<String>,
    dropouts: u64,
}

impl GraphBuilder {
    /// A graph that has nothing but images of shape `[C, H, W]`; `name` is the network's, for messages.
    ///
    /// # Errors
    /// When a side of the images is zero, or they have more values than can be counted.
    pub fn new(name: &str, images: [usize; 3]) -> Result<Self> {
        let graph = Graph { name: name.to_string(), nodes: Vec::new(), places: Vec::new() };
        let mut builder = Self { graph, names: HashSet::new(), dropouts: 0 };
        builder.add(IMAGES, Op::Images(images), &[])?;
        Ok(builder)
    }

    /// The node that stands for the images, the graph's input.
    pub fn images(&self) -> NodeId {
        NodeId(0)
    }

    /// A convolution of the map `x`.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn conv(&mut self, name: &str, x: NodeId, conv: Conv) -> Result<NodeId> {
        self.add(name, Op::Conv(conv), &[x])
    }

    /// Batch normalisation of the map `x` with PyTorch's momentum (0.1) and eps (1e-5); other ones go through
    /// [`GraphBuilder::add`].
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn batch_norm(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::BatchNorm(Norm::default()), &[x])
    }

    /// `max(x, 0)`.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn relu(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::Relu, &[x])
    }

    /// `min(max(x, 0), 6)`.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn relu6(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::Relu6, &[x])
    }

    /// The maximum of each `kernel` x `kernel` window of the map `x`, windows `stride` apart, no padding.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn max_pool(
        &mut self,
        name: &str,
        x: NodeId,
        kernel: usize,
        stride: usize,
    ) -> Result<NodeId> {
        self.add(name, Op::MaxPool { kernel, stride, padding: 0 }, &[x])
    }

    /// `a + b`.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn sum(&mut self, name: &str, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.add(name, Op::Add, &[a, b])
    }

    /// Every second pixel of the map `x`, with channels of zeros around its own until there are `channels`: a residual
    /// network's shortcut without parameters (option A).
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn subsample_pad(&mut self, name: &str, x: NodeId, channels: usize) -> Result<NodeId> {
        self.add(name, Op::SubsamplePad { channels }, &[x])
    }

    /// The mean of each channel of the map `x`: a vector.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn global_average_pool(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::GlobalAveragePool, &[x])
    }

    /// The values of `x` as a vector.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn flatten(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::Flatten, &[x])
    }

    /// A linear layer of the vector `x` that starts as PyTorch's do.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn linear(&mut self, name: &str, x: NodeId, outputs: usize) -> Result<NodeId> {
        self.add(name, Op::Linear { outputs, init: LinearInit::PyTorch }, &[x])
    }

    /// Dropout of the share `share` of `x` in training. Dropout layers are numbered as they come.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`].
    pub fn dropout(&mut self, name: &str, x: NodeId, share: f64) -> Result<NodeId> {
        let op = Op::Dropout { share, layer: self.dropouts };
        self.dropouts += 1;
        self.add(name, op, &[x])
    }

    /// Makes the values of `x` a feature place of this name: they can be asked for in a forward pass.
    ///
    /// # Errors
    /// When the name is empty, `logits` or another place's, or `x` is another graph's.
    pub fn place(&mut self, name: &str, x: NodeId) -> Result<()> {
        self.read(name, &[x])?;
        let reason = if name.is_empty() {
            "a feature place needs a name"
        } else if name == LOGITS {
            "a feature place can't be called like the logits"
        } else if self.graph.places.iter().any(|(place, _)| place == name) {
            "there are two feature places of this name"
        } else {
            self.graph.places.push((name.to_string(), x));
            return Ok(());
        };
        Err(self.graph.layer_error(name, reason.to_string()))
    }

    /// [`GraphBuilder::place`] under the node's own name.
    ///
    /// # Errors
    /// As [`GraphBuilder::place`].
    pub fn place_as_named(&mut self, x: NodeId) -> Result<()> {
        let name = self.graph.nodes.get(x.0).map(|node| node.name.clone()).unwrap_or_default();
        self.place(&name, x)
    }

    /// The graph, whose logits are the values of `logits`.
    ///
    /// # Errors
    /// When `logits` is no linear layer, or the values of another node go nowhere.
    pub fn finish(self, logits: NodeId) -> Result<Graph> {
        let mut graph = self.graph;
        let mut read = vec![false; graph.nodes.len()];
        for id in graph.nodes.iter().flat_map(|node| &node.inputs) {
            read[id.0] = true;
        }
        let stray = (0..graph.nodes.len()).find(|&node| !read[node] && node != logits.0);
        if let Some(stray) = stray {
            let reason = "no other layer takes its values, and it does not give the logits".into();
            return Err(graph.layer_error(&graph.nodes[stray].name, reason));
        }
        // Whatever is not read is the last node, so that an unread `logits` is, too.
        match graph.nodes.get(logits.0) {
            Some(Node { op: Op::Linear { .. }, .. }) if !read[logits.0] => {}
            _ => {
                let reason = "the logits must come from a linear layer that nothing else takes";
                let name = graph.nodes.get(logits.0).map_or("?", |node| node.name.as_str());
                return Err(graph.layer_error(name, reason.into()));
            }
        }
        // Places are listed from the input to the output, in whatever order they were named.
        graph.places.sort_by_key(|(_, id)| *id);
        Ok(graph)
    }

    /// A node that computes `op` on `inputs`; the other methods call it.
    ///
    /// # Errors
    /// When the name is empty or another node's, an input is another graph's, or the shapes don't fit the operation.
    pub fn add(&mut self, name: &str, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        let wrong = |reason: String| self.graph.layer_error(name, reason);
        if name.is_empty() {
            return Err(wrong("a layer needs a name".into()));
        }
        if self.names.contains(name) {
            return Err(wrong("there are two layers of this name".into()));
        }
        if matches!(op, Op::Images(_)) && !self.graph.nodes.is_empty() {
            return Err(wrong("a network has images once, as its first node".into()));
        }
        let shapes = self.read(name, inputs)?;
        let node = Node::new(name.to_string(), op, inputs.to_vec(), &shapes).map_err(wrong)?;
        self.names.insert(name.to_string());
        self.graph.nodes.push(node);
        Ok(NodeId(self.graph.nodes.len() - 1))
    }

    /// The shapes of nodes.
    fn read(&self, name: &str, ids: &[NodeId]) -> Result<Vec<&[usize]>> {
        let shape = |id: &NodeId| {
            let node = self.graph.nodes.get(id.0).map(|node| node.shape.as_slice());
            let reason = || "it reads a node that this graph does not have".to_string();
            node.ok_or_else(|| self.graph.layer_error(name, reason()))
        };
        ids.iter().map(shape).collect::<std::result::Result<_, Error>>()
    }
}
