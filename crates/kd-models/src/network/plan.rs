//! In which steps a graph is computed: what lies between a layer and the next is fused away unless somebody wants to see it.

use crate::graph::{Graph, Op};

/// One call of an operation of kd-ops. Nodes are given by their positions.
pub(super) struct Step {
    pub(super) work: Work,
    /// The nodes whose values the step takes.
    pub(super) inputs: Vec<usize>,
    /// The node whose value it gives: the last of those that it computes.
    pub(super) output: usize,
}

pub(super) enum Work {
    /// Convolutions in a row.
    Convs(Vec<FusedConv>),
    /// The normalisation of that node. A second input is a residual, which is added.
    BatchNorm { node: usize, relu: bool },
    /// The linear layer of that node.
    Linear { node: usize, relu: bool },
    /// The output's operation alone.
    Single,
}

/// A convolution and what follows it in the same operation.
pub(super) struct FusedConv {
    pub(super) node: usize,
    pub(super) relu: bool,
    pub(super) max_pool2: bool,
}

/// The steps, each behind those that give its inputs. `shown` says of each node whether somebody wants to see its value.
pub(super) fn plan(graph: &Graph, shown: &[bool]) -> Vec<Step> {
    let planner = Planner { graph, shown, readers: graph.readers() };
    let mut steps: Vec<Step> = Vec::new();
    let mut done = vec![false; graph.nodes().len()];
    done[0] = true;
    for node in 0..graph.nodes().len() {
        if done[node] {
            continue;
        }
        let (step, nodes) = planner.step(node, &done);
        for node in nodes {
            done[node] = true;
        }
        steps.push(step);
    }
    // A step that ends with a sum waits for the other side.
    steps.sort_by_key(|step| step.output);
    steps
}

struct Planner<'a> {
    graph: &'a Graph,
    shown: &'a [bool],
    readers: Vec<Vec<usize>>,
}

impl Planner<'_> {
    /// The step that begins with a node, and all nodes that it computes.
    fn step(&self, first: usize, done: &[bool]) -> (Step, Vec<usize>) {
        let mut inputs: Vec<usize> =
            self.graph.nodes()[first].inputs.iter().map(|id| id.index()).collect();
        let mut nodes = vec![first];
        let work = match self.op(first) {
            Op::Conv(_) => {
                let mut convs = vec![self.conv(&mut nodes)];
                while let Some(next) = self.joined(&convs, &nodes) {
                    nodes.push(next);
                    convs.push(self.conv(&mut nodes));
                }
                Work::Convs(convs)
            }
            Op::BatchNorm(_) => {
                if let Some(sum) = self.fused(&nodes, |op| *op == Op::Add)
                    && !done[sum]
                {
                    // The other one: a sum of a node with itself reads it twice.
                    let added = self.graph.nodes()[sum].inputs.iter().map(|id| id.index());
                    inputs.extend(added.filter(|added| *added != first));
                    nodes.push(sum);
                }
                Work::BatchNorm { node: first, relu: self.relu(&mut nodes) }
            }
            Op::Linear { .. } => Work::Linear { node: first, relu: self.relu(&mut nodes) },
            _ => Work::Single,
        };
        (Step { work, inputs, output: nodes[nodes.len() - 1] }, nodes)
    }

    fn op(&self, node: usize) -> &Op {
        &self.graph.nodes()[node].op
    }

    /// The only reader of the last of `nodes`, if its operation is such and nobody wants to see what it reads.
    fn fused(&self, nodes: &[usize], is: impl Fn(&Op) -> bool) -> Option<usize> {
        let last = *nodes.last()?;
        match self.readers[last][..] {
            [reader] if !self.shown[last] && is(self.op(reader)) => Some(reader),
            _ => None,
        }
    }

    /// Adds a ReLU that can be fused to `nodes`; whether there is one.
    fn relu(&self, nodes: &mut Vec<usize>) -> bool {
        let relu = self.fused(nodes, |op| *op == Op::Relu);
        nodes.extend(relu);
        relu.is_some()
    }

    /// The convolution that is the last of `nodes`, to which what is fused is added.
    fn conv(&self, nodes: &mut Vec<usize>) -> FusedConv {
        let node = nodes[nodes.len() - 1];
        let relu = self.relu(nodes);
        let halves = Op::MaxPool { kernel: 2, stride: 2, padding: 0 };
        let pool = self.fused(nodes, |op| *op == halves);
        nodes.extend(pool);
        FusedConv { node, relu, max_pool2: pool.is_some() }
    }

    /// The convolution that follows `convs` and is computed in one operation with them.
    ///
    /// Such an operation computes the maps in between again in the backward pass instead of keeping them. That pays for
    /// the first layer of the tutorial's teacher, a 21st of its second's work with a map of 64 MiB at batch 128: on one
    /// thread its step fell from 525 to 360 ms.
    fn joined(&self, convs: &[FusedConv], nodes: &[usize]) -> Option<usize> {
        let last = convs.last().filter(|conv| !conv.max_pool2)?;
        let next = self.fused(nodes, |op| matches!(op, Op::Conv(_)))?;
        let cost = |node: usize| self.graph.nodes()[node].multiply_adds;
        (cost(last.node).saturating_mul(10) < cost(next)).then_some(next)
    }
}
