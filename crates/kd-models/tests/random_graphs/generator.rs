//! Small graphs drawn by a seed, out of every kind of node.

use kd_models::graph::{Conv, GraphBuilder, NodeId, Norm, Op};
use kd_models::{Graph, Place};

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `from` to `to`.
    pub(crate) fn between(&mut self, from: usize, to: usize) -> usize {
        from + (self.next() % (to - from + 1) as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// A number in [-1, 1) that f32 has exactly.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 41) as f32 / (1u64 << 22) as f32 - 1.0
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.between(0, list.len() - 1)]
    }
}

/// A graph and what is done with it.
pub(crate) struct Case {
    pub(crate) graph: Graph,
    pub(crate) batch: usize,
    /// The places that are asked for.
    pub(crate) places: Vec<String>,
    /// The layers that are not trained.
    pub(crate) frozen: Vec<String>,
}

impl Case {
    /// The graph, a line for each node, and the rest.
    pub(crate) fn print(&self) -> String {
        let mut text =
            format!("batch {}, places {:?}, frozen {:?}\n", self.batch, self.places, self.frozen);
        for node in self.graph.nodes() {
            let inputs: Vec<usize> = node.inputs.iter().map(|id| id.index()).collect();
            text += &format!("  {} {:?} of {inputs:?}: {:?}\n", node.name, node.op, node.shape);
        }
        text
    }
}

/// What is drawn so far.
struct Drawing<'a> {
    draws: &'a mut Draws,
    graph: GraphBuilder,
    /// Every node with its shape.
    nodes: Vec<(NodeId, Vec<usize>)>,
    read: Vec<bool>,
    /// The number of the next dropout layer.
    dropouts: u64,
}

pub(crate) fn case(seed: u64) -> Case {
    let mut draws = Draws(seed);
    let sides = [draws.between(4, 11), draws.between(4, 11)];
    let batch = draws.between(1, 9);
    let images = [3, sides[0], sides[1]];
    let graph = GraphBuilder::new("random", images).unwrap();
    let nodes = vec![(graph.images(), images.to_vec())];
    let mut drawing = Drawing { draws: &mut draws, graph, nodes, read: vec![false], dropouts: 0 };
    for _ in 0..drawing.draws.between(4, 14) {
        drawing.layer(batch);
    }
    let logits = drawing.head();
    let mut graph = drawing.graph;
    // Places anywhere: each node is one with this chance.
    let shown: Vec<NodeId> =
        drawing.nodes.iter().map(|(id, _)| *id).filter(|id| *id != logits).collect();
    for id in shown {
        if draws.chance(25) {
            graph.place(&format!("place{}", id.index()), id).unwrap();
        }
    }
    let graph = graph.finish(logits).unwrap();
    let places = graph.places().into_iter().map(|place: Place| place.name);
    let places = places.filter(|_| draws.chance(60)).collect();
    let layers: Vec<String> = graph.layers().map(str::to_owned).collect();
    let mut frozen = Vec::new();
    if draws.chance(30) {
        frozen = layers.iter().filter(|_| draws.chance(40)).cloned().collect();
        if frozen.len() == layers.len() {
            frozen.clear();
        }
    }
    Case { graph, batch, places, frozen }
}

impl Drawing<'_> {
    fn add(&mut self, op: Op, inputs: &[usize]) -> usize {
        let ids: Vec<NodeId> = inputs.iter().map(|index| self.nodes[*index].0).collect();
        let name = format!("n{}", self.nodes.len());
        let shape = self.shape_of(&op, inputs);
        self.dropouts += u64::from(matches!(op, Op::Dropout { .. }));
        let id = self.graph.add(&name, op, &ids).unwrap();
        for index in inputs {
            self.read[*index] = true;
        }
        self.nodes.push((id, shape));
        self.read.push(false);
        self.nodes.len() - 1
    }

    /// The shape of the result.
    fn shape_of(&self, op: &Op, inputs: &[usize]) -> Vec<usize> {
        let shape = self.shape(inputs[0]);
        let windows = |side: usize, kernel: usize, stride: usize, padding: usize| {
            (side + 2 * padding - kernel) / stride + 1
        };
        match op {
            Op::Conv(conv) => {
                let side = |side: usize| match conv.same_padding {
                    true => side.div_ceil(conv.stride),
                    false => windows(side, conv.kernel, conv.stride, conv.padding),
                };
                vec![conv.outputs, side(shape[1]), side(shape[2])]
            }
            &Op::MaxPool { kernel, stride, padding } => {
                let side = |side: usize| windows(side, kernel, stride, padding);
                vec![shape[0], side(shape[1]), side(shape[2])]
            }
            Op::SubsamplePad { channels } => {
                vec![*channels, shape[1].div_ceil(2), shape[2].div_ceil(2)]
            }
            Op::GlobalAveragePool => vec![shape[0]],
            Op::Flatten => vec![shape.iter().product()],
            Op::Linear { outputs, .. } => vec![*outputs],
            _ => shape.to_vec(),
        }
    }

    fn shape(&self, index: usize) -> &[usize] {
        &self.nodes[index].1
    }

    /// A node that is a map: most often the last one.
    fn map(&mut self) -> usize {
        let maps: Vec<usize> =
            (0..self.nodes.len()).filter(|index| self.shape(*index).len() == 3).collect();
        match self.draws.chance(70) {
            true => maps[maps.len() - 1],
            false => self.draws.one_of(&maps),
        }
    }

    fn conv(&mut self, input: usize) -> usize {
        let &[channels, height, width] = self.shape(input) else { unreachable!("a map") };
        let side = height.min(width);
        let kernel = self.draws.one_of(&[1, 1, 2, 3, 3, 3, 3, 4, 5, 7]);
        let stride = self.draws.one_of(&[1, 1, 1, 2, 2, 3]);
        let same_padding = self.draws.chance(15);
        let padding = if same_padding { 0 } else { self.draws.between(0, kernel / 2) };
        let kernel = if same_padding { kernel } else { kernel.min(side + 2 * padding) };
        let (groups, outputs) = match self.draws.between(0, 5) {
            // Depthwise, and depthwise with two outputs for each input.
            0 => (channels, channels),
            1 if channels <= 8 => (channels, 2 * channels),
            2 if channels.is_multiple_of(2) => (2, 2 * self.draws.between(1, 6)),
            _ => (1, self.draws.one_of(&[1, 3, 5, 8, 12, 16, 17, 20])),
        };
        let bias = self.draws.chance(50);
        self.add(
            Op::Conv(Conv {
                stride,
                padding,
                same_padding,
                groups,
                bias,
                ..Conv::new(outputs, kernel)
            }),
            &[input],
        )
    }

    /// A normalisation; not of so few values that their variance says nothing.
    fn norm(&mut self, input: usize, batch: usize) -> usize {
        let &[_, height, width] = self.shape(input) else { unreachable!("a map") };
        if batch * height * width < 8 {
            return input;
        }
        let eps = self.draws.one_of(&[1e-5, 1e-3, 0.1]);
        let momentum = self.draws.one_of(&[0.1, 0.01, 1.0, 0.0]);
        self.add(Op::BatchNorm(Norm { eps, momentum }), &[input])
    }

    fn activation(&mut self, input: usize) -> usize {
        match self.draws.between(0, 3) {
            0 => input,
            1 => self.add(Op::Relu6, &[input]),
            _ => self.add(Op::Relu, &[input]),
        }
    }

    fn layer(&mut self, batch: usize) {
        let input = self.map();
        let &[channels, height, width] = self.shape(input) else { unreachable!("a map") };
        match self.draws.between(0, 9) {
            0..=3 => {
                let mut x = self.conv(input);
                if self.draws.chance(60) {
                    x = self.norm(x, batch);
                }
                self.activation(x);
            }
            4 => {
                self.activation(input);
            }
            5 => {
                self.norm(input, batch);
            }
            6 => {
                let kernel = self.draws.between(1, 3.min(height).min(width));
                let padding = self.draws.between(0, kernel / 2);
                let stride = self.draws.between(1, 3);
                self.add(Op::MaxPool { kernel, stride, padding }, &[input]);
            }
            7 => {
                // A sum of two values of one shape, perhaps of a value with itself.
                let shape = self.shape(input).to_vec();
                let alike: Vec<usize> =
                    (0..self.nodes.len()).filter(|index| self.shape(*index) == shape).collect();
                let other = self.draws.one_of(&alike);
                let sum = self.add(Op::Add, &[input, other]);
                self.activation(sum);
            }
            8 if channels <= 16 => {
                let channels = channels + 2 * self.draws.between(0, 3);
                self.add(Op::SubsamplePad { channels }, &[input]);
            }
            _ => {
                let layer = self.dropouts;
                let share = self.draws.one_of(&[0.0, 0.2, 0.5]);
                self.add(Op::Dropout { share, layer }, &[input]);
            }
        }
    }

    /// Brings all that nobody reads together in a linear layer.
    fn head(&mut self) -> NodeId {
        let open: Vec<usize> = (0..self.nodes.len()).filter(|index| !self.read[*index]).collect();
        let mut sum = None;
        for index in open {
            let vector = match self.draws.chance(40) {
                true => self.add(Op::GlobalAveragePool, &[index]),
                false => self.add(Op::Flatten, &[index]),
            };
            let init = kd_models::graph::LinearInit::PyTorch;
            let mut linear = self.add(Op::Linear { outputs: 6, init }, &[vector]);
            if self.draws.chance(50) {
                linear = self.activation(linear);
            }
            sum = Some(match sum {
                None => linear,
                Some(before) => self.add(Op::Add, &[before, linear]),
            });
        }
        let last = sum.expect("the last node is open");
        let init = kd_models::graph::LinearInit::PyTorch;
        let head = self.add(Op::Linear { outputs: 4, init }, &[last]);
        self.nodes[head].0
    }
}
