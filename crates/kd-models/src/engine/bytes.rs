//! How much memory a pass by plan takes.

use kd_ops::nhwc::{Conv, Isa};

use super::backward::{self, Sums};
use super::forward;
use super::plan::{Plan, Purpose};
use super::units::{Work, knows};
use super::workspace::Workspace;
use crate::Result;
use crate::graph::{Graph, Op};

/// The bytes of a pass by plan, besides the weights, their gradients and what is handed out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassBytes {
    /// Values and gradients of all images of the batch. The engine keeps them for the next pass.
    pub(crate) maps: u64,
    /// What threads need for the image that they are at, packed weights, and sums for the weights' gradients.
    pub(crate) workspace: u64,
}

/// What a pass is asked for.
pub(crate) struct Asked<'a> {
    /// Training, else evaluation.
    pub(crate) train: bool,
    /// The nodes whose values are shown besides the logits, in the graph's order.
    pub(crate) shown: Vec<usize>,
    /// Whether a parameter of this name is trained.
    pub(crate) trains: &'a dyn Fn(&str) -> bool,
    pub(crate) batch: usize,
    pub(crate) threads: usize,
}

/// The bytes of a pass over a batch; `None` for a graph that the engine does not compute.
pub(crate) fn pass_bytes(graph: &Graph, asked: Asked<'_>) -> Result<Option<PassBytes>> {
    if !knows(graph) {
        return Ok(None);
    }
    let Asked { train, shown, trains, batch, threads } = asked;
    let parameters = |node: usize| graph.nodes()[node].parameters.iter();
    let batch_norm = |node: usize| {
        train
            && matches!(graph.nodes()[node].op, Op::BatchNorm(_))
            && parameters(node).next().is_some_and(|weight| trains(&weight.name))
    };
    let any_trains = |node: usize| parameters(node).any(|spec| trains(&spec.name));
    let purpose = Purpose { train, shown, images: false, gpu: false };
    let plan = Plan::new(graph, Isa::detect(), purpose, batch_norm, any_trains)?;
    let convs = || plan.units.units.iter().filter_map(|unit| unit.work.conv());
    let ways = if train { 2 } else { 1 };
    // A packed weight has as many numbers as the sums for its gradient, but for the padding of its rows.
    let packed: usize = convs().map(Conv::sums_len).sum();
    let runs = plan.forward.iter().map(|run| forward::stack(&plan.units.units[run.clone()]));
    let backward_runs =
        plan.backward.iter().map(|run| backward::stack(&plan, &plan.operations[run.clone()]));
    let scratch =
        runs.chain(backward_runs).map(|stack| stack.images.min(batch) * plan.local + stack.scratch);
    let scratch = threads.min(batch) * scratch.max().unwrap_or(0);
    // Each piece of memory for sums is as large as the largest that has been asked of it.
    let mut pieces: Vec<usize> = Vec::new();
    for run in &plan.backward {
        let sums = Sums::of(&plan, &plan.operations[run.clone()]);
        let count = (sums.groups as usize).min(batch);
        pieces.resize(count.max(pieces.len()), 0);
        for piece in &mut pieces[..count] {
            *piece = (*piece).max(sums.len);
        }
    }
    // A linear layer's rows, of its input and its output and, in training, of the input's gradient.
    let rows = plan.units.units.iter().map(|unit| match unit.work {
        Work::Linear { .. } => {
            let len = |value: usize| plan.units.values[value].map.channels;
            ways * batch * len(unit.reads[0].value) + batch * len(unit.output)
        }
        _ => 0,
    });
    let rows = rows.max().unwrap_or(0);
    let numbers = packed + scratch + rows + pieces.iter().sum::<usize>();
    let workspace = (size_of::<f32>() * numbers) as u64;
    Ok(Some(PassBytes { maps: Workspace::bytes(&plan, batch), workspace }))
}
