//! A graph computed by plan, on the CPU or on a GPU.
//!
//! Instead of an operation after the other on candle tensors, the whole forward and backward pass is laid out beforehand for
//! what is asked of it ([`plan`]): which nodes are computed together ([`units`]), where each gradient lies ([`gradients`]) and
//! which memory each value has ([`memory`]). Maps are NHWC from the first layer to the last. An image passes as many layers
//! as it can while its values are in the cache, until a batch normalisation needs a sum over the batch or a linear layer
//! takes the batch at once. The memory of maps and their gradients stays with the engine for the next pass of its kind and
//! batch size; what a pass allocates is of the size of the weights and of what it hands out. A GPU carries out the same plan
//! operation by operation over the whole batch (`gpu`).
//!
//! From the outside in: this file has the passes, `forward` and `backward` compute them, `weights` and `workspace` are what
//! they read and write.

mod backward;
mod bytes;
mod forward;
#[cfg(feature = "cuda")]
mod gpu;
mod gradients;
mod linear;
mod memory;
mod plan;
mod units;
mod weights;
mod workspace;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use kd_ops::DropoutKey;
use kd_ops::nhwc::{Isa, with_values};

use crate::block_sums::{Alone, BlockSums};
use crate::graph::{Graph, Op};
use crate::{Error, Output, Result};
use backward::backward;
pub(crate) use bytes::{Asked, PassBytes, pass_bytes};
use forward::{Given, forward, planes, show, with_threads_awake};
use plan::{Plan, Purpose};
use units::IMAGES;
use weights::Weights;
use workspace::{Workspace, can_share};

/// What computes a graph by plan. Plans and memory are kept from pass to pass.
pub(crate) struct Engine {
    kept: Mutex<Kept>,
    /// The processes that share the batches of training.
    processes: Arc<dyn BlockSums>,
    /// Whether the weights never change, so that they are taken once.
    fixed: bool,
}

#[derive(Default)]
struct Kept {
    plans: Vec<Arc<Plan>>,
    /// Memory that no pass uses, each with the plan that it was made for.
    workspaces: Vec<(Arc<Plan>, Workspace)>,
    /// Weights that no pass uses, each with the plan that they are laid out for.
    weights: Vec<(Arc<Plan>, Weights)>,
    #[cfg(feature = "cuda")]
    on_gpu: Vec<gpu::Kept>,
}

/// What a pass on the CPU works in.
struct Memory {
    workspace: Workspace,
    weights: Weights,
}

/// What a pass in training has left for its backward pass.
enum PassMemory {
    Cpu(Memory),
    #[cfg(feature = "cuda")]
    Gpu(Box<(kd_ops::cuda::nchw::Gpu, gpu::Memory)>),
}

/// Most plans and most workspaces that are kept: a run trains, evaluates, and ends its epochs with a smaller batch.
const MOST_KEPT: usize = 4;

/// A graph with its weights.
#[derive(Clone, Copy)]
pub(crate) struct Network<'a> {
    pub(crate) graph: &'a Graph,
    /// Of each node, its parameters and its buffers, in the node's order.
    pub(crate) tensors: &'a [Vec<Tensor>],
}

/// A forward pass in training that has been computed, and what its backward pass needs.
pub(crate) struct TrainPass {
    plan: Arc<Plan>,
    memory: PassMemory,
    images: Tensor,
    key: DropoutKey,
    /// The tensors that the loss was given, in the order of the plan's shown values.
    leaves: Vec<Var>,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(Arc::new(Alone))
    }
}

impl Engine {
    pub(crate) fn new(processes: Arc<dyn BlockSums>) -> Self {
        Self { kept: Mutex::default(), processes, fixed: false }
    }

    /// One for weights that never change.
    pub(crate) fn fixed() -> Self {
        Self { fixed: true, ..Self::default() }
    }

    /// Whether batches of training are shared with other processes.
    pub(crate) fn shares(&self) -> bool {
        self.processes.ranks() > 1
    }

    /// Whether the engine computes this graph on such images. What images were computed from gets its gradient through candle
    /// alone.
    pub(crate) fn computes(&self, graph: &Graph, images: &Tensor) -> bool {
        let leaf = images.is_variable() || !images.track_op();
        let knows = || match images.device() {
            Device::Cpu => units::knows(graph),
            // Processes share batches on the CPU alone.
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => !self.shares() && images.dims()[0] > 0 && gpu::computes(graph),
            _ => false,
        };
        leaf && images.dtype() == DType::F32 && knows()
    }

    /// The logits and the values at `places` in evaluation. No gradient reaches anything through them.
    pub(crate) fn evaluate(
        &self,
        network: Network<'_>,
        images: &Tensor,
        places: &[(&str, usize)],
    ) -> Result<Output> {
        #[cfg(feature = "cuda")]
        if images.device().is_cuda() {
            return self.evaluate_on_gpu(network, images, places);
        }
        let plan = self.plan(network, (false, false, false), places)?;
        let Memory { mut workspace, mut weights } = self.memory(&plan, images.dim(0)?, 1);
        if !(self.fixed && weights.filled) {
            weights.fill(&plan, network.tensors)?;
        }
        let few_images = workspace.batch < rayon::current_num_threads();
        let shown = with_values(images, |images| {
            let given = Given {
                plan: &plan,
                tensors: network.tensors,
                images,
                first: 0,
                processes: &Alone,
                few_images,
                key: None,
            };
            let mut pass = || forward(given, &mut weights, &mut workspace);
            if few_images { with_threads_awake(pass) } else { pass() }?;
            plan.units.shown.iter().map(|(_, value)| show(&plan, &workspace, *value)).collect()
        })?;
        self.give_back(plan.clone(), Memory { workspace, weights });
        Ok(output(network.graph, &plan, places, shown))
    }

    /// The forward pass in training. Gradients reach the result's tensors, and from there by [`Engine::backward`] the
    /// parameters and, where they are a variable, the images.
    pub(crate) fn train(
        &self,
        network: Network<'_>,
        images: &Tensor,
        key: DropoutKey,
        places: &[(&str, usize)],
    ) -> Result<(Output, TrainPass)> {
        #[cfg(feature = "cuda")]
        if images.device().is_cuda() {
            return self.train_on_gpu(network, images, key, places);
        }
        let plan = self.plan(network, (true, images.track_op(), false), places)?;
        let (batch, ranks) = (images.dim(0)?, self.processes.ranks());
        if !can_share(batch, ranks) {
            return Err(Error::Sharing { ranks, images: batch });
        }
        let Memory { mut workspace, mut weights } = self.memory(&plan, batch, ranks);
        weights.fill(&plan, network.tensors)?;
        let leaves: Vec<Var> = with_values(images, |images| {
            let given = self.given(&plan, network, (images, batch), key);
            forward(given, &mut weights, &mut workspace)?;
            let shown = plan.units.shown.iter();
            shown.map(|(_, value)| Var::from_tensor(&show(&plan, &workspace, *value)?)).collect()
        })?;
        let shown = leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect();
        let output = output(network.graph, &plan, places, shown);
        let memory = PassMemory::Cpu(Memory { workspace, weights });
        let pass = TrainPass { plan, memory, images: images.clone(), key, leaves };
        Ok((output, pass))
    }

    /// Adds the gradients of the parameters and of images that are a variable to `gradients`, which has those of the pass's
    /// results.
    pub(crate) fn backward(
        &self,
        network: Network<'_>,
        pass: TrainPass,
        gradients: &mut GradStore,
    ) -> Result<()> {
        let TrainPass { plan, memory, images, key, leaves } = pass;
        let seeds: Vec<Option<Tensor>> =
            leaves.iter().map(|leaf| gradients.remove(leaf.as_tensor())).collect();
        #[cfg_attr(
            not(feature = "cuda"),
            expect(clippy::infallible_destructuring_match, reason = "a GPU has another memory")
        )]
        let Memory { mut workspace, mut weights } = match memory {
            PassMemory::Cpu(memory) => memory,
            #[cfg(feature = "cuda")]
            PassMemory::Gpu(memory) => {
                let of_pass = (plan, images, key);
                return self.backward_on_gpu(network, of_pass, *memory, (leaves, seeds), gradients);
            }
        };
        let batch = workspace.batch;
        let found = with_values(&images, |images| {
            let given = self.given(&plan, network, (images, batch), key);
            backward(given, &mut weights, &mut workspace, &seeds)
        })?;
        for of_node in found {
            let parameters = &network.tensors[of_node.node];
            let tensors = of_node.tensors(parameters)?;
            for (parameter, gradient) in parameters.iter().zip(tensors) {
                if !parameter.track_op() {
                    continue;
                }
                // A method of the loss may have read the parameter, too.
                add_gradient(gradients, parameter, gradient)?;
            }
        }
        if let Some(slot) = plan.images {
            let map = &plan.units.values[IMAGES].map;
            add_gradient(gradients, &images, planes(&plan, &workspace, plan.slot(slot), map)?)?;
        }
        self.give_back(plan, Memory { workspace, weights });
        Ok(())
    }

    /// What a pass of training over this process's `batch` images reads.
    fn given<'a>(
        &'a self,
        plan: &'a Plan,
        network: Network<'a>,
        (images, batch): (&'a [f32], usize),
        key: DropoutKey,
    ) -> Given<'a> {
        let first = self.processes.rank() * batch;
        let processes = &*self.processes;
        let few_images = batch < rayon::current_num_threads();
        let tensors = network.tensors;
        Given { plan, tensors, images, first, processes, few_images, key: Some(key) }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Whoever panicked left whole entries: they are put in and taken out in one go.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan for what is asked, made or kept: in training or not, with the gradient of the images or not, on a GPU or not.
    fn plan(
        &self,
        network: Network<'_>,
        (train, images, gpu): (bool, bool, bool),
        places: &[(&str, usize)],
    ) -> Result<Arc<Plan>> {
        let mut shown: Vec<usize> = places.iter().map(|(_, node)| *node).collect();
        shown.sort_unstable();
        shown.dedup();
        let purpose = Purpose { train, shown, images, gpu };
        let mut kept = self.kept();
        if let Some(plan) = kept.plans.iter().find(|plan| plan.purpose == purpose) {
            return Ok(plan.clone());
        }
        let parameters = |node: usize| network.graph.nodes()[node].parameters.len();
        let trains =
            |node: usize| network.tensors[node][..parameters(node)].iter().any(Tensor::track_op);
        // A frozen layer is fully frozen: its running statistics stay fixed as well.
        let batch_norm = |node: usize| {
            train
                && matches!(network.graph.nodes()[node].op, Op::BatchNorm(_))
                && network.tensors[node][0].track_op()
        };
        let plan = Plan::new(network.graph, Isa::detect(), purpose, batch_norm, trains)?;
        let plan = Arc::new(plan);
        kept.plans.push(plan.clone());
        if kept.plans.len() > MOST_KEPT {
            kept.plans.remove(0);
        }
        Ok(plan)
    }

    /// Memory for a pass: what an earlier one of the kind left, or new.
    fn memory(&self, plan: &Arc<Plan>, batch: usize, ranks: usize) -> Memory {
        let mut kept = self.kept();
        let fits = |(of, workspace): &(Arc<Plan>, Workspace)| {
            Arc::ptr_eq(of, plan) && workspace.batch == batch
        };
        let workspace = match kept.workspaces.iter().position(fits) {
            Some(found) => kept.workspaces.swap_remove(found).1,
            None => Workspace::new(plan, batch, ranks),
        };
        let weights = match kept.weights.iter().position(|(of, _)| Arc::ptr_eq(of, plan)) {
            Some(found) => kept.weights.swap_remove(found).1,
            None => Weights::new(plan),
        };
        Memory { workspace, weights }
    }

    fn give_back(&self, plan: Arc<Plan>, memory: Memory) {
        let mut kept = self.kept();
        // Between training's passes an evaluation would double the memory for weights, for the little time that laying them out
        // takes.
        if plan.purpose.train || self.fixed {
            kept.weights.push((plan.clone(), memory.weights));
            if kept.weights.len() > MOST_KEPT {
                kept.weights.remove(0);
            }
        }
        kept.workspaces.push((plan, memory.workspace));
        if kept.workspaces.len() > MOST_KEPT {
            kept.workspaces.remove(0);
        }
    }
}

/// Adds to the gradient of a tensor.
fn add_gradient(gradients: &mut GradStore, of: &Tensor, gradient: Tensor) -> Result<()> {
    let sum = match gradients.remove(of) {
        Some(other) => (other + gradient)?,
        None => gradient,
    };
    gradients.insert(of, sum);
    Ok(())
}

/// The shown values under their names.
fn output(graph: &Graph, plan: &Plan, places: &[(&str, usize)], shown: Vec<Tensor>) -> Output {
    let of = |node: usize| {
        let mut found = plan.units.shown.iter().zip(&shown);
        let Some((_, shown)) = found.find(|((of, _), _)| *of == node) else {
            unreachable!("the plan shows what was asked")
        };
        shown.clone()
    };
    let features: BTreeMap<String, Tensor> =
        places.iter().map(|(name, node)| (name.to_string(), of(*node))).collect();
    Output { logits: of(graph.nodes().len() - 1), features }
}
