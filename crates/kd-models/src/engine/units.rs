//! The forward pass as a list of units: which nodes of a graph are computed together, and how each reads its inputs.
//!
//! A batch normalisation has no unit where one layer alone reads it: that layer reads what was normalised through a scale
//! and a shift (and an activation), so that the normalised map never exists. An activation before a max-pool is applied to the maxima. In
//! evaluation a batch normalisation behind a convolution is folded into its weight and bias.
//!
//! On a GPU, whose libraries convolve what is stored, maps are NCHW and what is behind a batch normalisation is stored: by a sum,
//! an activation, or alone.

use kd_ops::nhwc::{Activation, Conv, ConvSizes, Isa, Map, Windows};

use super::plan::Purpose;
use crate::Result;
use crate::graph::{self, Graph, Op};

/// The forward pass of a graph.
pub(super) struct Units {
    pub(super) units: Vec<Unit>,
    /// What units give; the first is the batch's images, which are NCHW and nobody's result.
    pub(super) values: Vec<Value>,
    pub(super) norms: Vec<Norm>,
    /// Of each node that somebody wants to see, its value.
    pub(super) shown: Vec<(usize, usize)>,
    /// Bytes that an image's max-pools keep.
    pub(super) winners: usize,
    /// Whether a convolution reads through normalisations and its gradient goes through them.
    pub(super) convs_normalise: bool,
}

/// The value of the images.
pub(super) const IMAGES: usize = 0;

/// Something computed together.
pub(super) struct Unit {
    pub(super) work: Work,
    pub(super) reads: Vec<Read>,
    /// The value that it gives.
    pub(super) output: usize,
}

/// How a unit reads an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) value: usize,
    /// The batch normalisation through which it is read.
    pub(super) norm: Option<usize>,
    /// What follows that normalisation.
    pub(super) activation: Activation,
}

impl Read {
    fn plain(value: usize) -> Self {
        Self { value, norm: None, activation: Activation::Identity }
    }

    fn is_plain(&self) -> bool {
        *self == Self::plain(self.value)
    }
}

/// One image's result of a unit.
pub(super) struct Value {
    pub(super) map: Map,
    /// Whether it is a vector `[F]`.
    pub(super) vector: bool,
}

/// A batch normalisation that is not folded.
pub(super) struct Norm {
    pub(super) node: usize,
    /// What it normalises.
    pub(super) value: usize,
    /// Whether it takes the batch's statistics, else the running ones.
    pub(super) batch: bool,
    pub(super) config: graph::Norm,
}

pub(super) enum Work {
    /// The images, NHWC.
    Load,
    /// The convolution of a node; in evaluation with the batch normalisation `fold` in its weight and bias.
    Conv {
        node: usize,
        fold: Option<(usize, graph::Norm)>,
        activation: Activation,
        conv: Box<Conv>,
    },
    /// The sum of its inputs, one or two.
    Activate { activation: Activation },
    /// The maximum of each window; `winners` is where the positions of an image's maxima start among all units'.
    MaxPool { windows: Windows, activation: Activation, winners: usize },
    /// Every second pixel, with new channels of zeros.
    Subsample,
    /// The mean over the pixels.
    GlobalAverage,
    /// The values channel after channel.
    Flatten,
    /// The linear layer of a node. It takes the whole batch at once.
    Linear { node: usize, activation: Activation },
    /// Dropout in training.
    Dropout { share: f64, layer: u64 },
}

impl Work {
    /// The convolution, if it is one.
    pub(super) fn conv(&self) -> Option<&Conv> {
        match self {
            Self::Conv { conv, .. } => Some(conv.as_ref()),
            _ => None,
        }
    }
}

/// Whether the engine computes such operations.
pub(super) fn knows(graph: &Graph) -> bool {
    graph.nodes().iter().all(|node| match &node.op {
        Op::Conv(conv) => {
            let input = node.inputs.first().map(|id| &graph.node(*id).shape);
            let sizes = input.and_then(|shape| sizes(conv, shape));
            sizes.is_some_and(|sizes| sizes.is_known())
        }
        Op::Images(_)
        | Op::BatchNorm(_)
        | Op::Relu
        | Op::Relu6
        | Op::Add
        | Op::SubsamplePad { .. }
        | Op::GlobalAveragePool
        | Op::Flatten
        | Op::Linear { .. }
        | Op::Dropout { .. } => true,
        Op::AveragePool { .. }
        | Op::Concat
        | Op::Channels { .. }
        | Op::ChannelShuffle { .. }
        | Op::Quantize(_) => false,
        // A winner's position is a byte.
        Op::MaxPool { kernel, .. } => *kernel <= 15,
    })
}

/// The sizes of a convolution of a map of such a shape.
pub(super) fn sizes(conv: &graph::Conv, shape: &[usize]) -> Option<ConvSizes> {
    let &[inputs, height, width] = shape else { return None };
    let &graph::Conv { outputs, kernel, stride, groups, .. } = conv;
    let pads = conv.pads([height, width]);
    Some(ConvSizes { inputs, outputs, height, width, kernel, stride, pads, groups })
}

/// The activation that an operation is.
fn activation(op: &Op) -> Option<Activation> {
    match op {
        Op::Relu => Some(Activation::Relu),
        Op::Relu6 => Some(Activation::Relu6),
        _ => None,
    }
}

/// The units of a graph that the engine [knows]. `shown` says of each node whether somebody wants to see its value;
/// `batch_norm` says of a node whether it normalises by the batch's statistics; of the purpose it counts where the pass is
/// computed, and whether it is training, in which dropout is active and nothing is folded.
pub(super) fn units(
    graph: &Graph,
    isa: Isa,
    shown: &[bool],
    &Purpose { train, gpu, .. }: &Purpose,
    batch_norm: impl Fn(usize) -> bool,
) -> Result<Units> {
    let images = Value { map: map(isa, gpu, graph.input()), vector: false };
    let made = Units {
        units: Vec::new(),
        values: vec![images],
        norms: Vec::new(),
        shown: Vec::new(),
        winners: 0,
        convs_normalise: !gpu,
    };
    let mut builder = Builder {
        graph,
        isa,
        gpu,
        shown,
        train,
        readers: graph.readers(),
        made,
        reading: vec![None; graph.nodes().len()],
    };
    for (node, is_shown) in shown.iter().enumerate() {
        if builder.reading[node].is_none() {
            builder.node(node, &batch_norm)?;
        }
        if *is_shown {
            let value = builder.stored(node);
            builder.made.shown.push((node, value));
        }
    }
    Ok(builder.made)
}

/// A map of such a shape; on a GPU it has no padding channels.
fn map(isa: Isa, gpu: bool, shape @ [channels, height, width]: [usize; 3]) -> Map {
    match gpu {
        true => Map { height, width, channels, padded: channels },
        false => Map::new(isa, shape),
    }
}

struct Builder<'a> {
    graph: &'a Graph,
    isa: Isa,
    gpu: bool,
    shown: &'a [bool],
    train: bool,
    readers: Vec<Vec<usize>>,
    made: Units,
    /// How each node's value is read, once it is there.
    reading: Vec<Option<Read>>,
}

impl Builder<'_> {
    fn op(&self, node: usize) -> &Op {
        &self.graph.nodes()[node].op
    }

    fn input(&self, node: usize) -> usize {
        self.graph.nodes()[node].inputs[0].index()
    }

    /// The only reader of a node that nobody wants to see, if its operation is such.
    fn only_reader(&self, node: usize, is: impl Fn(&Op) -> bool) -> Option<usize> {
        match self.readers[node][..] {
            [reader] if !self.shown[node] && is(self.op(reader)) => Some(reader),
            _ => None,
        }
    }

    fn read(&self, node: usize) -> Read {
        let Some(read) = self.reading[node] else {
            unreachable!("a node stands behind its inputs")
        };
        read
    }

    /// A new value of the shape of a node.
    fn value(&mut self, node: usize) -> usize {
        let (map, vector) = match self.graph.nodes()[node].shape[..] {
            [channels, height, width] => ([channels, height, width], false),
            ref shape => ([shape.iter().product(), 1, 1], true),
        };
        self.made.values.push(Value { map: self::map(self.isa, self.gpu, map), vector });
        self.made.values.len() - 1
    }

    /// A unit that gives the value of a node.
    fn unit(&mut self, node: usize, work: Work, reads: Vec<Read>) -> Read {
        let output = self.value(node);
        self.made.units.push(Unit { work, reads, output });
        let read = Read::plain(output);
        self.reading[node] = Some(read);
        read
    }

    /// The value of a node as it is stored, which a unit of its own does where it is read through something or is the images.
    fn stored(&mut self, node: usize) -> usize {
        let read = self.read(node);
        if read.value == IMAGES {
            return self.unit(node, Work::Load, vec![]).value;
        }
        if read.is_plain() {
            return read.value;
        }
        let Read { activation, .. } = read;
        let read = Read { activation: Activation::Identity, ..read };
        self.unit(node, Work::Activate { activation }, vec![read]).value
    }

    /// How an [`Work::Activate`] reads a node.
    fn addend(&mut self, node: usize) -> Read {
        let read = self.read(node);
        match read.value != IMAGES && read.activation == Activation::Identity {
            true => read,
            false => Read::plain(self.stored(node)),
        }
    }

    /// Whether an activation's value is needed behind a max-pool only; and that max-pool.
    fn pooled(&self, activation: usize) -> Option<usize> {
        self.only_reader(activation, |op| matches!(op, Op::MaxPool { .. }))
    }

    /// The activation that is fused behind a node, and its node: not one that is applied behind a max-pool.
    fn fused(&self, node: usize) -> (Activation, Option<usize>) {
        let found = self.only_reader(node, |op| activation(op).is_some());
        let found = found.filter(|&found| self.pooled(found).is_none());
        let of = found.and_then(|node| activation(self.op(node)));
        (of.unwrap_or_default(), found)
    }

    fn node(&mut self, node: usize, batch_norm: &impl Fn(usize) -> bool) -> Result<()> {
        match self.op(node).clone() {
            Op::Images(_) => self.reading[node] = Some(Read::plain(IMAGES)),
            Op::Conv(conv) => self.conv(node, conv)?,
            Op::BatchNorm(config) => {
                let mut value = self.stored(self.input(node));
                if self.made.norms.iter().any(|norm| norm.value == value) {
                    // A value has the sums of one normalisation, so a second one gets a copy.
                    let copy = Work::Activate { activation: Activation::default() };
                    value = self.unit(node, copy, vec![Read::plain(value)]).value;
                }
                let norm = Norm { node, value, batch: batch_norm(node), config };
                self.made.norms.push(norm);
                let norm = Some(self.made.norms.len() - 1);
                self.reading[node] = Some(Read { norm, ..Read::plain(value) });
                let adds = |op: &Op| matches!(op, Op::Add) || activation(op).is_some();
                let stored = self.gpu && self.only_reader(node, adds).is_none();
                if stored || self.readers[node].len() != 1 {
                    self.stored(node);
                }
            }
            Op::Relu => self.activation(node, Activation::Relu),
            Op::Relu6 => self.activation(node, Activation::Relu6),
            Op::Add => {
                let inputs: Vec<usize> =
                    self.graph.nodes()[node].inputs.iter().map(|id| id.index()).collect();
                let reads = inputs.iter().map(|&input| self.addend(input)).collect();
                let (activation, fused) = self.fused(node);
                let read = self.unit(node, Work::Activate { activation }, reads);
                if let Some(fused) = fused {
                    self.reading[fused] = Some(read);
                }
            }
            Op::MaxPool { kernel, stride, padding } => {
                self.max_pool(node, Windows { kernel, stride, padding }, None);
            }
            Op::AveragePool { .. }
            | Op::Concat
            | Op::Channels { .. }
            | Op::ChannelShuffle { .. }
            | Op::Quantize(_) => {
                unreachable!("the engine does not know {:?}", self.op(node))
            }
            Op::SubsamplePad { .. } => self.single(node, Work::Subsample),
            Op::GlobalAveragePool => self.single(node, Work::GlobalAverage),
            Op::Flatten => match self.graph.nodes()[self.input(node)].shape.len() {
                // NCHW is the order of the vector.
                3 if !self.gpu => self.single(node, Work::Flatten),
                _ => self.reading[node] = Some(Read::plain(self.stored(self.input(node)))),
            },
            Op::Linear { .. } => {
                let (activation, fused) = self.fused(node);
                self.single(node, Work::Linear { node, activation });
                if let Some(fused) = fused {
                    self.reading[fused] = self.reading[node];
                }
            }
            Op::Dropout { share, layer } => match self.train && share > 0.0 {
                true => self.single(node, Work::Dropout { share, layer }),
                false => self.reading[node] = Some(Read::plain(self.stored(self.input(node)))),
            },
        }
        Ok(())
    }

    /// A unit that reads its only input as it is stored.
    fn single(&mut self, node: usize, work: Work) {
        let input = self.stored(self.input(node));
        self.unit(node, work, vec![Read::plain(input)]);
    }

    fn conv(&mut self, node: usize, conv: graph::Conv) -> Result<()> {
        let input = self.input(node);
        let Some(sizes) = sizes(&conv, &self.graph.nodes()[input].shape) else {
            unreachable!("a convolution reads a map")
        };
        let conv = Box::new(Conv::new(self.isa, sizes)?);
        let fold = match self.train {
            false => self.only_reader(node, |op| matches!(op, Op::BatchNorm(_))),
            true => None,
        };
        let fold = fold.and_then(|norm| match self.op(norm) {
            Op::BatchNorm(config) => Some((norm, *config)),
            _ => None,
        });
        let last = fold.map_or(node, |(norm, _)| norm);
        let (activation, fused) = self.fused(last);
        let read = match self.read(input) {
            Read { value: IMAGES, .. } if !self.gpu && !conv.reads_pictures() => {
                Read::plain(self.stored(input))
            }
            read => read,
        };
        let read = self.unit(node, Work::Conv { node, fold, activation, conv }, vec![read]);
        for node in fold.map(|(norm, _)| norm).into_iter().chain(fused) {
            self.reading[node] = Some(read);
        }
        Ok(())
    }

    fn activation(&mut self, node: usize, activation: Activation) {
        let input = self.input(node);
        if let Some(pool) = self.pooled(node)
            && let Op::MaxPool { kernel, stride, padding } = *self.op(pool)
        {
            let value = self.stored(input);
            self.reading[node] = Some(Read::plain(value));
            self.max_pool(pool, Windows { kernel, stride, padding }, Some((value, activation)));
            return;
        }
        let read = self.read(input);
        if read.norm.is_some() && read.activation == Activation::Identity {
            self.reading[node] = Some(Read { activation, ..read });
            if self.gpu || self.only_reader(node, |op| matches!(op, Op::Conv(_))).is_none() {
                self.stored(node);
            }
        } else {
            let read = self.addend(input);
            self.unit(node, Work::Activate { activation }, vec![read]);
        }
    }

    /// A max-pool; with `before` it reads that value, and the activation is applied to the maxima.
    fn max_pool(&mut self, node: usize, windows: Windows, before: Option<(usize, Activation)>) {
        let (input, activation) = match before {
            Some(before) => before,
            None => (self.stored(self.input(node)), Activation::Identity),
        };
        let work = Work::MaxPool { windows, activation, winners: self.made.winners };
        let read = self.unit(node, work, vec![Read::plain(input)]);
        self.made.winners += self.made.values[read.value].map.len();
    }
}
