//! A graph with weights, computed through candle.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use candle_nn::VarBuilder;
use kd_ops::{
    BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, DropoutKey, Statistics, conv2d, conv2d_chain,
    dropout, fake_quantize, linear, max_pool2d_padded, relu, relu6, subsample_pad,
};

use crate::block_sums::BlockSums;
use crate::engine::{Engine, Network};
use crate::graph::{Graph, Norm, Op};
use crate::{Classifier, Error, Mode, Output, Place, Result, Tape};
use plan::{FusedConv, Step, Work, plan};

/// A [`Graph`] with weights.
///
/// There are two ways to compute it. [`forward_t`](Classifier::forward_t) makes each step an operation on candle tensors,
/// with candle's gradients, on every device and in every mode. [`train`](Classifier::train) and
/// [`evaluate`](Classifier::evaluate) compute f32 images by a plan for the whole pass, made once, on the CPU and on a GPU (there not
/// networks with grouped convolutions or uneven padding), and everything else as `forward_t` does; `docs/performance.md` and
/// `docs/gpu.md` have what that gains.
///
/// Layers are fused where no place between them is asked for: a convolution with ReLU and 2x2 max-pool, batch
/// normalisation with the sum and the ReLU behind it, a linear layer with its ReLU. A batch normalisation whose weight is
/// no variable is frozen: it normalises by its running statistics in training, too, and keeps them.
#[derive(Clone)]
pub struct GraphNetwork {
    graph: Graph,
    /// Of each node, its parameters and its buffers, in the node's order.
    tensors: Vec<Vec<Tensor>>,
    /// Shared by clones, whose tensors are the same.
    engine: Arc<Engine>,
}

impl std::fmt::Debug for GraphNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { graph, tensors, .. } = self;
        let debug = &mut f.debug_struct("GraphNetwork");
        debug.field("graph", graph).field("tensors", tensors).finish_non_exhaustive()
    }
}

impl GraphNetwork {
    /// The network on the weights and running statistics that `vb` gives: [`var_builder`](crate::var_builder) for one
    /// that is trained, [`frozen`](crate::frozen) for a teacher.
    ///
    /// # Errors
    /// When `vb` lacks a tensor or has it with another shape.
    pub fn new(graph: Graph, vb: VarBuilder<'_>) -> Result<Self> {
        let mut tensors = Vec::with_capacity(graph.nodes().len());
        for node in graph.nodes() {
            let specs = node.parameters.iter().chain(&node.buffers);
            let found = specs.map(|spec| vb.get(spec.shape.as_slice(), &spec.name));
            tensors.push(found.collect::<candle_core::Result<_>>()?);
        }
        Ok(Self { graph, tensors, engine: Arc::default() })
    }

    /// The same network for whoever evaluates it often, a single image each time: its weights are laid out for the planned passes
    /// once, not in each one, which for a MobileNetV2 takes about as long as an image. They must not change from then on, by this
    /// network's clones or by others that have the same tensors; of a change some layers would learn and others not.
    pub fn prepared(self) -> Self {
        Self { engine: Arc::new(Engine::fixed()), ..self }
    }

    /// The same network for a process that trains it together with others: [`Classifier::train`] is given this process's images
    /// alone, as many as each other process has, and [`Classifier::backward`] the loss's gradient of what came of them. It leaves
    /// the gradients of the whole batch and its running statistics on every process, with the bits of one process, whatever the
    /// number of threads. That is so for up to four processes that divide a batch of a multiple of 16 images, and for smaller
    /// batches that divide as well; others are refused. Evaluation is each process's own.
    pub fn sharing(self, processes: Arc<dyn BlockSums>) -> Self {
        Self { engine: Arc::new(Engine::new(processes)), ..self }
    }

    /// The network without its weights.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn planned(&self) -> Network<'_> {
        Network { graph: &self.graph, tensors: &self.tensors }
    }

    /// The nodes of feature places.
    fn nodes_of<'a>(&self, places: &[&'a str]) -> Result<Vec<(&'a str, usize)>> {
        places.iter().map(|name| Ok((*name, self.graph.place(name)?.index()))).collect()
    }

    /// Computes a step from the values of its inputs.
    fn compute(&self, step: &Step, inputs: &[&Tensor], mode: Mode) -> Result<Tensor> {
        let x = inputs[0];
        match &step.work {
            Work::Convs(convs) => {
                let layers: Vec<Conv2d> = convs.iter().map(|conv| self.conv(conv)).collect();
                Ok(conv2d_chain(x, &layers.iter().collect::<Vec<_>>())?)
            }
            Work::BatchNorm { node, relu } => {
                let [weight, bias, running_mean, running_var] = &self.tensors[*node][..] else {
                    unreachable!("a batch normalisation has four tensors")
                };
                let statistics = match mode {
                    // A frozen layer is fully frozen: its running statistics stay fixed as well.
                    Mode::Train(_) if weight.track_op() => Statistics::Batch,
                    _ => Statistics::Running,
                };
                let Op::BatchNorm(Norm { eps, momentum }) = self.graph.nodes()[*node].op else {
                    unreachable!("the plan says that this node is a batch normalisation")
                };
                let norm = BatchNorm {
                    weight: weight.clone(),
                    bias: bias.clone(),
                    running_mean: running_mean.clone(),
                    running_var: running_var.clone(),
                    config: BatchNormConfig { momentum, eps, relu: *relu },
                };
                Ok(norm.forward(x, inputs.get(1).copied(), statistics)?)
            }
            Work::Linear { node, relu } => {
                let [weight, bias] = &self.tensors[*node][..] else {
                    unreachable!("a linear layer has a weight and a bias")
                };
                Ok(linear(x, weight, Some(bias), *relu)?)
            }
            Work::Single => single(&self.graph.nodes()[step.output].op, inputs, mode),
        }
    }

    fn conv(&self, fused: &FusedConv) -> Conv2d {
        let tensors = &self.tensors[fused.node];
        let Op::Conv(conv) = &self.graph.nodes()[fused.node].op else {
            unreachable!("the plan says that this node is a convolution")
        };
        Conv2d {
            weight: tensors[0].clone(),
            bias: tensors.get(1).cloned(),
            config: Conv2dConfig {
                stride: conv.stride,
                padding: conv.padding,
                same_padding: conv.same_padding,
                groups: conv.groups,
                relu: fused.relu,
                max_pool2: fused.max_pool2,
                ..Conv2dConfig::default()
            },
        }
    }

    /// Images must have the graph's shape.
    fn check_images(&self, images: &Tensor) -> Result<()> {
        let expected = self.graph.input();
        match images.dims() {
            [_, rest @ ..] if *rest == expected => Ok(()),
            found => Err(Error::Images {
                network: self.graph.name().into(),
                expected,
                found: found.to_vec(),
            }),
        }
    }
}

/// An operation by itself. Those that are always part of a larger step come here, too, when nothing is fused.
fn single(op: &Op, inputs: &[&Tensor], mode: Mode) -> Result<Tensor> {
    let x = inputs[0];
    Ok(match op {
        Op::Relu => relu(x)?,
        Op::Relu6 => relu6(x)?,
        Op::Quantize(levels) => fake_quantize(x, *levels)?,
        Op::MaxPool { kernel, stride, padding } => {
            max_pool2d_padded(x, *kernel, *stride, *padding)?
        }
        Op::AveragePool { kernel, stride, padding } => {
            average_pool(x, [*kernel, *stride, *padding])?
        }
        Op::Add => (x + inputs[1])?,
        Op::Concat => Tensor::cat(inputs, 1)?,
        Op::Channels { start, count } => x.narrow(1, *start, *count)?.contiguous()?,
        Op::ChannelShuffle { groups } => {
            let (batch, channels, height, width) = x.dims4()?;
            let grouped = x.reshape((batch, *groups, channels / groups, height * width))?;
            grouped.transpose(1, 2)?.contiguous()?.reshape((batch, channels, height, width))?
        }
        Op::SubsamplePad { channels } => subsample_pad(x, *channels)?,
        Op::GlobalAveragePool => x.flatten_from(2)?.mean(2)?,
        Op::Flatten => x.flatten_from(1)?,
        Op::Dropout { share, layer } => match mode {
            Mode::Train(key) => dropout(x, *share, key, *layer)?,
            Mode::Eval => x.clone(),
        },
        Op::Images(_) | Op::Conv(_) | Op::BatchNorm(_) | Op::Linear { .. } => {
            unreachable!("the plan has steps of their own for {op:?}")
        }
    })
}

/// The mean of each window, zeros around the map counted: a depthwise convolution. candle's own pool has no padding and no gradient where windows overlap.
fn average_pool(x: &Tensor, [kernel, stride, padding]: [usize; 3]) -> candle_core::Result<Tensor> {
    let groups = x.dim(1)?;
    let weight = Tensor::zeros((groups, 1, kernel, kernel), x.dtype(), x.device())?;
    let weight = weight.affine(1.0, 1.0 / (kernel * kernel) as f64)?;
    conv2d(x, &weight, None, &Conv2dConfig { stride, padding, groups, ..Conv2dConfig::default() })
}

impl Classifier for GraphNetwork {
    fn forward_t(&self, images: &Tensor, mode: Mode, asked: &[&str]) -> Result<Output> {
        self.check_images(images)?;
        let nodes = self.graph.nodes().len();
        let places = self.nodes_of(asked)?;
        let mut shown = vec![false; nodes];
        for (_, node) in &places {
            shown[*node] = true;
        }
        let steps = plan(&self.graph, &shown);

        // How often each value is still needed; one that is not is let go at once.
        let mut needed = vec![0; nodes];
        for &node in steps.iter().flat_map(|step| &step.inputs) {
            needed[node] += 1;
        }
        let mut values: Vec<Option<Tensor>> = vec![None; nodes];
        values[0] = Some(images.clone());
        let mut features = BTreeMap::new();
        let mut keep = |node: usize, value: &Tensor| {
            for (name, _) in places.iter().filter(|(_, place)| *place == node) {
                features.insert(name.to_string(), value.clone());
            }
        };
        keep(0, images);
        let mut logits = images.clone();
        for step in &steps {
            let inputs: Vec<&Tensor> =
                step.inputs.iter().filter_map(|input| values[*input].as_ref()).collect();
            logits = self.compute(step, &inputs, mode)?;
            for &input in &step.inputs {
                needed[input] -= 1;
                if needed[input] == 0 {
                    values[input] = None;
                }
            }
            keep(step.output, &logits);
            values[step.output] = Some(logits.clone());
        }
        // The last step is the head.
        Ok(Output { logits, features })
    }

    fn evaluate(&self, images: &Tensor, places: &[&str]) -> Result<Output> {
        self.check_images(images)?;
        if !self.engine.computes(&self.graph, images) {
            return self.forward_t(images, Mode::Eval, places);
        }
        self.engine.evaluate(self.planned(), images, &self.nodes_of(places)?)
    }

    fn train(&self, images: &Tensor, key: DropoutKey, places: &[&str]) -> Result<(Output, Tape)> {
        self.check_images(images)?;
        if !self.engine.computes(&self.graph, images) {
            if self.engine.shares() {
                return Err(Error::NotShared { network: self.graph.name().into() });
            }
            return Ok((self.forward_t(images, Mode::Train(key), places)?, Tape::default()));
        }
        let places = self.nodes_of(places)?;
        let (output, pass) = self.engine.train(self.planned(), images, key, &places)?;
        Ok((output, Tape(Some(Box::new(pass)))))
    }

    fn backward(&self, tape: Tape, gradients: &mut GradStore) -> Result<()> {
        match tape.0 {
            Some(pass) => self.engine.backward(self.planned(), *pass, gradients),
            None => Ok(()),
        }
    }

    fn places(&self) -> Vec<Place> {
        self.graph.places()
    }

    fn num_classes(&self) -> usize {
        self.graph.classes()
    }

    fn multiply_adds(&self) -> u64 {
        self.graph.multiply_adds()
    }
}
