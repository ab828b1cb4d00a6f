//! How much memory computing a network takes, found from its graph without computing anything.
//!
//! The figures are of the CPU. They count what a pass holds at its peak: [`training`] and [`evaluation`] give a pass's own
//! memory, beside which the weights lie, and in training the optimiser's state. `tests/memory.rs` compares them with what
//! an allocator counts.

use std::collections::BTreeSet;

use crate::Result;
use crate::engine::{Asked, PassBytes, pass_bytes};
use crate::graph::{Graph, Op};

/// A pass over a batch of images.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Images of the batch.
    pub batch: usize,
    /// The threads that compute.
    pub threads: usize,
    /// The feature places that are asked for besides the logits.
    pub places: &'a [&'a str],
}

/// The bytes that a pass takes at its peak, besides the network's weights and the batch's images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassMemory {
    /// Values of the layers and their gradients, for all images of the batch. A network keeps this memory for its next pass
    /// of the same kind and batch size.
    pub maps: u64,
    /// What threads need for the image that they are at, weights in another order, and sums for the weights' gradients.
    pub workspace: u64,
    /// The gradients of the weights.
    pub gradients: u64,
    /// Logits and feature maps that are handed out and, in training, their gradients.
    pub outputs: u64,
}

impl PassMemory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.maps + self.workspace + self.gradients + self.outputs
    }
}

/// The bytes of a network's parameters and running statistics.
pub fn weights(graph: &Graph) -> u64 {
    graph.tensors().map(|spec| 4 * spec.shape.iter().product::<usize>() as u64).sum()
}

/// The memory of a training pass, forward and backward, in which the parameters named in `frozen` are not trained.
///
/// # Errors
/// When a place does not exist, or the device refuses a layer's sizes.
pub fn training(graph: &Graph, pass: &Pass<'_>, frozen: &BTreeSet<String>) -> Result<PassMemory> {
    let trained = |name: &str| !frozen.contains(name);
    let gradients = graph.parameters().filter(|spec| trained(&spec.name));
    let gradients = gradients.map(|spec| bytes(&spec.shape, 1)).sum();
    let memory = of_pass(graph, pass, Some(&trained))?;
    // Handed out as a tensor and as a leaf for the loss, then the leaf's gradient and its values in the backward pass.
    Ok(PassMemory { gradients, outputs: 4 * memory.outputs, ..memory })
}

/// The memory of a pass in evaluation.
///
/// # Errors
/// As [`training`]'s.
pub fn evaluation(graph: &Graph, pass: &Pass<'_>) -> Result<PassMemory> {
    of_pass(graph, pass, None)
}

/// A pass's memory without gradients of weights, and with the values that are handed out counted once. `trained` is there in
/// training and says which parameters are trained.
fn of_pass(
    graph: &Graph,
    pass: &Pass<'_>,
    trained: Option<&dyn Fn(&str) -> bool>,
) -> Result<PassMemory> {
    let Pass { batch, threads, places } = *pass;
    let mut shown = Vec::new();
    for place in places {
        shown.push(graph.place(place)?.index());
    }
    shown.sort_unstable();
    shown.dedup();
    let values = |node: usize| bytes(&graph.nodes()[node].shape, batch);
    let outputs =
        shown.iter().map(|node| values(*node)).sum::<u64>() + bytes(&[graph.classes()], batch);
    let all = |_: &str| false;
    let asked =
        Asked { train: trained.is_some(), shown, trains: trained.unwrap_or(&all), batch, threads };
    let PassBytes { maps, workspace } = match pass_bytes(graph, asked)? {
        Some(planned) => planned,
        None => through_candle(graph, batch, trained.is_some()),
    };
    Ok(PassMemory { maps, workspace, gradients: 0, outputs })
}

/// The bytes of a pass through candle's operations. In training each operation's result is kept until the backward pass has
/// come to it, which holds a few gradients at a time; in evaluation a result is let go once it has been read.
fn through_candle(graph: &Graph, batch: usize, train: bool) -> PassBytes {
    // Maps that are there besides those that are kept: an operation's input, its result and a residual, or the gradients of
    // input and result and two that wait to be added.
    let at_once = if train { 4 } else { 3 };
    let values = graph.nodes().iter().filter(|node| {
        // A ReLU is computed with the layer before it, and the others are the values that they read.
        !matches!(node.op, Op::Images(_) | Op::Relu | Op::Flatten | Op::Dropout { .. })
    });
    let values: Vec<u64> = values.map(|node| bytes(&node.shape, batch)).collect();
    let largest = values.iter().max().copied().unwrap_or(0);
    let maps = if train { values.iter().sum() } else { 0 };
    PassBytes { maps, workspace: at_once * largest }
}

/// The bytes of f32 values of this shape for each image of a batch.
fn bytes(shape: &[usize], batch: usize) -> u64 {
    4 * batch as u64 * shape.iter().product::<usize>() as u64
}
