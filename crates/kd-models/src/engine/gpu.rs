//! A plan carried out by a GPU: one operation after the other over the whole batch, on NCHW maps.
//!
//! All that a pass needs lies in one piece of memory, laid out by the plan's lifetimes; it stays for the next pass of its kind
//! and batch size. What a pass hands out (values that are shown, gradients of parameters) is written where the caller gets it, and is
//! its only new memory. Nothing waits for the GPU and nothing is copied from or to the host, so that a step can be captured.

mod backward;
mod forward;
mod layout;

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use kd_ops::DropoutKey;
use kd_ops::cuda::nchw::{Conv, Gpu, aligned, unwritten};

use super::plan::Plan;
use super::units::knows;
use super::{Engine, MOST_KEPT, Network, PassMemory, TrainPass, add_gradient, output};
use crate::graph::{Graph, Op};
use crate::{Output, Result};
pub(super) use layout::Memory;

/// What a pass on a GPU reads.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    memory: &'a Memory,
    /// The parameters and buffers of each node, in the node's order.
    tensors: &'a [Vec<Tensor>],
    images: &'a Tensor,
    /// Where each of the plan's shown values is handed out.
    shown: &'a [Tensor],
    /// The key of the dropout masks, in training.
    key: Option<DropoutKey>,
}

/// Memory that no pass uses, with the plan that it was made for.
pub(super) struct Kept {
    plan: Arc<Plan>,
    memory: Memory,
}

/// Whether a plan on a GPU computes such operations.
pub(super) fn computes(graph: &Graph) -> bool {
    let convs = graph.nodes().iter().all(|node| match &node.op {
        Op::Conv(conv) => {
            let input = node.inputs.first().map(|id| &graph.node(*id).shape);
            let sizes = input.and_then(|shape| super::units::sizes(conv, shape));
            sizes.is_some_and(|sizes| Conv::knows(&sizes))
        }
        _ => true,
    });
    convs && knows(graph)
}

impl Engine {
    /// [`Engine::evaluate`] of images on a GPU.
    pub(super) fn evaluate_on_gpu(
        &self,
        network: Network<'_>,
        images: &Tensor,
        places: &[(&str, usize)],
    ) -> Result<Output> {
        let plan = self.plan(network, (false, false, true), places)?;
        let gpu = Gpu::of(images.device())?;
        let memory = self.gpu_memory(&gpu, &plan, images.dim(0)?)?;
        let images = aligned(images)?;
        let shown = handed_out(&gpu, network.graph, &plan, images.dim(0)?, false)?;
        let given = Given {
            gpu: &gpu,
            plan: &plan,
            memory: &memory,
            tensors: network.tensors,
            images: &images,
            shown: &shown,
            key: None,
        };
        forward::forward(given)?;
        self.give_back_gpu(&gpu, plan.clone(), memory);
        Ok(output(network.graph, &plan, places, shown))
    }

    /// [`Engine::train`] of images on a GPU.
    pub(super) fn train_on_gpu(
        &self,
        network: Network<'_>,
        images: &Tensor,
        key: DropoutKey,
        places: &[(&str, usize)],
    ) -> Result<(Output, TrainPass)> {
        let plan = self.plan(network, (true, images.track_op(), true), places)?;
        let gpu = Gpu::of(images.device())?;
        let batch = images.dim(0)?;
        let memory = self.gpu_memory(&gpu, &plan, batch)?;
        let shown = handed_out(&gpu, network.graph, &plan, batch, true)?;
        let read = aligned(images)?;
        let given = Given {
            gpu: &gpu,
            plan: &plan,
            memory: &memory,
            tensors: network.tensors,
            images: &read,
            shown: &shown,
            key: Some(key),
        };
        forward::forward(given)?;
        let leaves = shown.iter().map(Var::from_tensor).collect::<candle_core::Result<_>>()?;
        let output = output(network.graph, &plan, places, shown);
        let memory = PassMemory::Gpu(Box::new((gpu, memory)));
        Ok((output, TrainPass { plan, memory, images: images.clone(), key, leaves }))
    }

    /// [`Engine::backward`] of such a pass. `seeds` are the loss's gradients of its leaves.
    pub(super) fn backward_on_gpu(
        &self,
        network: Network<'_>,
        (plan, images, key): (Arc<Plan>, Tensor, DropoutKey),
        (gpu, memory): (Gpu, Memory),
        (leaves, seeds): (Vec<Var>, Vec<Option<Tensor>>),
        gradients: &mut GradStore,
    ) -> Result<()> {
        let shown: Vec<Tensor> = leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect();
        let read = aligned(&images)?;
        let given = Given {
            gpu: &gpu,
            plan: &plan,
            memory: &memory,
            tensors: network.tensors,
            images: &read,
            shown: &shown,
            key: Some(key),
        };
        let (found, of_images) = backward::backward(given, seeds)?;
        for (parameter, gradient) in found {
            // A method of the loss may have read the parameter, too.
            add_gradient(gradients, &parameter, gradient)?;
        }
        if let Some(gradient) = of_images {
            add_gradient(gradients, &images, gradient)?;
        }
        self.give_back_gpu(&gpu, plan, memory);
        Ok(())
    }

    /// Memory for a pass: what an earlier one of the kind left, or new.
    fn gpu_memory(&self, gpu: &Gpu, plan: &Arc<Plan>, batch: usize) -> Result<Memory> {
        let mut kept = self.kept();
        let fits = |kept: &Kept| {
            Arc::ptr_eq(&kept.plan, plan) && kept.memory.batch == batch && kept.memory.is_on(gpu)
        };
        let found = kept.on_gpu.iter().position(fits);
        if let Some(found) = found {
            return Ok(kept.on_gpu.remove(found).memory);
        }
        if gpu.captures() {
            Err(candle_core::Error::Msg(
                "a planned pass: the step that is captured needs memory that no step before it took".into(),
            ))?;
        }
        Ok(Memory::new(gpu, plan, batch)?)
    }

    fn give_back_gpu(&self, gpu: &Gpu, plan: Arc<Plan>, memory: Memory) {
        let mut memory = memory;
        memory.in_graph |= gpu.captures();
        let mut kept = self.kept();
        kept.on_gpu.push(Kept { plan, memory });
        let may_go = |kept: &Kept| !kept.memory.in_graph;
        if kept.on_gpu.iter().filter(|kept| may_go(kept)).count() > MOST_KEPT
            && let Some(oldest) = kept.on_gpu.iter().position(may_go)
        {
            kept.on_gpu.remove(oldest);
        }
    }
}

/// New tensors for the plan's shown values, of their nodes' shapes.
fn handed_out(
    gpu: &Gpu,
    graph: &Graph,
    plan: &Plan,
    batch: usize,
    variable: bool,
) -> candle_core::Result<Vec<Tensor>> {
    let tensor = |(node, _): &(usize, usize)| {
        let mut shape = vec![batch];
        shape.extend_from_slice(&graph.nodes()[*node].shape);
        unwritten(gpu, &shape, variable)
    };
    plan.units.shown.iter().map(tensor).collect()
}
