//! A graph computed in f64, node by node, with its gradients: loops that say what each operation is, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use kd_models::Graph;
use kd_models::graph::{Conv, Norm, Op};
use kd_ops::DropoutKey;

/// A batch of values of one node: `[B, C, H, W]` or `[B, F]`, one after the other.
pub(crate) type Values = Vec<f64>;

/// What is computed.
pub(crate) struct Pass<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) batch: usize,
    /// Parameters and running statistics by name; a training pass changes the latter.
    pub(crate) tensors: BTreeMap<String, Values>,
    /// The names of the parameters that are not trained.
    pub(crate) frozen: &'a BTreeSet<String>,
    /// The key of the dropout masks in training; `None` in evaluation.
    pub(crate) train: Option<DropoutKey>,
    pub(crate) values: Vec<Values>,
    /// Of each normalisation by the batch, mean and 1 / sqrt(variance + eps) of each channel.
    statistics: BTreeMap<usize, (Values, Values)>,
    /// Dropout masks by node.
    masks: BTreeMap<usize, Values>,
    /// How near the values came to a place where a gradient jumps, over the largest value there: before a ReLU the least
    /// distance from its corners, in a window of a max-pool that between its two largest values.
    pub(crate) margin: f64,
    /// The least variance of a channel beside its mean's square and the eps: what is normalised there is rounding.
    pub(crate) spread: f64,
}

impl<'a> Pass<'a> {
    pub(crate) fn forward(
        graph: &'a Graph,
        batch: usize,
        images: Values,
        tensors: BTreeMap<String, Values>,
        frozen: &'a BTreeSet<String>,
        train: Option<DropoutKey>,
    ) -> Self {
        let mut pass = Self {
            graph,
            batch,
            tensors,
            frozen,
            train,
            values: vec![images],
            statistics: BTreeMap::new(),
            masks: BTreeMap::new(),
            margin: f64::INFINITY,
            spread: f64::INFINITY,
        };
        for node in 1..graph.nodes().len() {
            let value = pass.node(node);
            pass.values.push(value);
        }
        pass
    }

    fn input(&self, node: usize, which: usize) -> usize {
        self.graph.nodes()[node].inputs[which].index()
    }

    fn tensor(&self, node: usize, what: &str) -> &Values {
        &self.tensors[&format!("{}.{what}", self.graph.nodes()[node].name)]
    }

    /// The shape of a map.
    fn map(&self, node: usize) -> [usize; 3] {
        self.graph.nodes()[node].shape[..].try_into().expect("a map")
    }

    /// Whether a normalisation takes the batch's statistics.
    fn by_batch(&self, node: usize) -> bool {
        let weight = format!("{}.weight", self.graph.nodes()[node].name);
        self.train.is_some() && !self.frozen.contains(&weight)
    }

    fn near(&mut self, distance: f64, values: &[f64]) {
        let largest = values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        self.margin = self.margin.min(distance / largest.max(1e-30));
    }

    fn node(&mut self, node: usize) -> Values {
        let op = self.graph.nodes()[node].op.clone();
        let x = self.values[self.input(node, 0)].clone();
        match op {
            Op::Conv(conv) => {
                let mut y = vec![0.0; self.len(node)];
                let weight = self.tensor(node, "weight");
                self.windows(node, &conv, |out, input, w| y[out] += x[input] * weight[w]);
                if conv.bias {
                    let bias = self.tensor(node, "bias").clone();
                    self.channels(node, |channel, i| y[i] += bias[channel]);
                }
                y
            }
            Op::BatchNorm(norm) => self.norm(node, &norm, &x),
            Op::Relu => {
                // An exact zero is one in f32, too.
                let distances = x.iter().map(|x| x.abs()).filter(|distance| *distance > 0.0);
                self.near(distances.fold(f64::INFINITY, f64::min), &x);
                x.iter().map(|x| x.max(0.0)).collect()
            }
            Op::Relu6 => {
                let distances = x.iter().flat_map(|x| [x.abs(), (x - 6.0).abs()]);
                let distances = distances.filter(|distance| *distance > 0.0);
                self.near(distances.fold(f64::INFINITY, f64::min), &x);
                x.iter().map(|x| x.clamp(0.0, 6.0)).collect()
            }
            Op::MaxPool { kernel, stride, padding } => {
                let pooled = self.pooled(node, (kernel, stride, padding), &x);
                let gap = pooled.iter().map(|(_, gap)| *gap).fold(f64::INFINITY, f64::min);
                self.near(gap, &x);
                pooled.iter().map(|(winner, _)| x[*winner]).collect()
            }
            Op::Add => {
                let other = &self.values[self.input(node, 1)];
                x.iter().zip(other).map(|(a, b)| a + b).collect()
            }
            Op::SubsamplePad { .. } => {
                let mut y = vec![0.0; self.len(node)];
                self.subsampled(node, |out, input| y[out] = x[input]);
                y
            }
            Op::GlobalAveragePool => {
                let [_, height, width] = self.map(self.input(node, 0));
                let pixels = height * width;
                x.chunks(pixels).map(|map| map.iter().sum::<f64>() / pixels as f64).collect()
            }
            Op::Flatten => x,
            Op::Linear { outputs, .. } => {
                let inputs = x.len() / self.batch;
                let (weight, bias) = (self.tensor(node, "weight"), self.tensor(node, "bias"));
                let row = |x: &[f64]| {
                    let of = |o: usize| {
                        let w = &weight[o * inputs..(o + 1) * inputs];
                        bias[o] + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()
                    };
                    (0..outputs).map(of).collect::<Vec<f64>>()
                };
                x.chunks(inputs).flat_map(row).collect()
            }
            Op::Dropout { share, layer } => {
                let Some(key) = self.train else { return x };
                // The mask is drawn by the position alone.
                let ones = Tensor::ones(x.len(), DType::F32, &Device::Cpu).unwrap();
                let mask = kd_ops::dropout(&ones, share, key, layer).unwrap();
                let kept = mask.to_vec1::<f32>().unwrap();
                let kept: Values = kept
                    .iter()
                    .map(|k| if *k == 0.0 { 0.0 } else { 1.0 / (1.0 - share) })
                    .collect();
                let y = x.iter().zip(&kept).map(|(x, k)| x * k).collect();
                self.masks.insert(node, kept);
                y
            }
            other => unreachable!("no graph here has {other:?}"),
        }
    }

    fn len(&self, node: usize) -> usize {
        self.batch * self.graph.nodes()[node].shape.iter().product::<usize>()
    }

    /// Calls `each` with every channel and position of a map.
    fn channels(&self, node: usize, mut each: impl FnMut(usize, usize)) {
        let [channels, height, width] = self.map(node);
        let pixels = height * width;
        for i in 0..self.batch * channels * pixels {
            each(i / pixels % channels, i);
        }
    }

    /// Calls `each` for every product of a convolution: position of the result, of the input and of the weight.
    fn windows(&self, node: usize, conv: &Conv, mut each: impl FnMut(usize, usize, usize)) {
        let [inputs, height, width] = self.map(self.input(node, 0));
        let [outputs, out_height, out_width] = self.map(node);
        let (k, per_group) = (conv.kernel, inputs / conv.groups);
        let pads = |side: usize| match conv.same_padding {
            // TensorFlow's: the smaller half of the zeros comes first.
            true => ((side.div_ceil(conv.stride) - 1) * conv.stride + k).saturating_sub(side) / 2,
            false => conv.padding,
        };
        let (top, left) = (pads(height), pads(width));
        for image in 0..self.batch {
            for o in 0..outputs {
                let first = o / (outputs / conv.groups) * per_group;
                for (y, x) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y, x))) {
                    let out = ((image * outputs + o) * out_height + y) * out_width + x;
                    for i in 0..per_group {
                        for (dy, dx) in (0..k).flat_map(|dy| (0..k).map(move |dx| (dy, dx))) {
                            let row = (y * conv.stride + dy).wrapping_sub(top);
                            let column = (x * conv.stride + dx).wrapping_sub(left);
                            if row < height && column < width {
                                let from = (image * inputs + first + i) * height + row;
                                let w = ((o * per_group + i) * k + dy) * k + dx;
                                each(out, from * width + column, w);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Of each window the position of its first maximum, and how far the second largest value is.
    fn pooled(
        &self,
        node: usize,
        (kernel, stride, padding): (usize, usize, usize),
        x: &[f64],
    ) -> Vec<(usize, f64)> {
        let [channels, height, width] = self.map(self.input(node, 0));
        let [_, out_height, out_width] = self.map(node);
        let mut found = Vec::new();
        for map in 0..self.batch * channels {
            for (y, left) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y, x))) {
                let mut inside = Vec::new();
                for (dy, dx) in (0..kernel).flat_map(|dy| (0..kernel).map(move |dx| (dy, dx))) {
                    let row = (y * stride + dy).wrapping_sub(padding);
                    let column = (left * stride + dx).wrapping_sub(padding);
                    if row < height && column < width {
                        inside.push((map * height + row) * width + column);
                    }
                }
                let winner = inside.iter().copied().reduce(|a, b| if x[b] > x[a] { b } else { a });
                let winner = winner.expect("a window with a pixel");
                let others = inside.iter().filter(|position| **position != winner);
                let gap = others.map(|p| x[winner] - x[*p]).fold(f64::INFINITY, f64::min);
                // Exact ties go to the first in f32, too.
                found.push((winner, if gap == 0.0 { f64::INFINITY } else { gap }));
            }
        }
        found
    }

    /// Calls `each` with the positions in the result and in the input of every second pixel.
    fn subsampled(&self, node: usize, mut each: impl FnMut(usize, usize)) {
        let [inputs, height, width] = self.map(self.input(node, 0));
        let [outputs, out_height, out_width] = self.map(node);
        let before = (outputs - inputs) / 2;
        for (image, channel) in (0..self.batch).flat_map(|b| (0..inputs).map(move |c| (b, c))) {
            for (y, x) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y, x))) {
                let out = ((image * outputs + before + channel) * out_height + y) * out_width + x;
                let from = ((image * inputs + channel) * height + 2 * y) * width + 2 * x;
                each(out, from);
            }
        }
    }

    /// Ioffe and Szegedy, "Batch Normalization" (2015), with PyTorch's running statistics.
    fn norm(&mut self, node: usize, norm: &Norm, x: &[f64]) -> Values {
        let channels = self.map(node)[0];
        let (mut mean, mut var) =
            (self.tensor(node, "running_mean").clone(), self.tensor(node, "running_var").clone());
        if self.by_batch(node) {
            let count = (x.len() / channels) as f64;
            let (mut m, mut v) = (vec![0.0; channels], vec![0.0; channels]);
            self.channels(node, |c, i| m[c] += x[i] / count);
            self.channels(node, |c, i| v[c] += (x[i] - m[c]).powi(2) / count);
            let name = &self.graph.nodes()[node].name;
            let blend = |old: &f64, new: f64| (1.0 - norm.momentum) * old + norm.momentum * new;
            let means = mean.iter().zip(&m).map(|(old, m)| blend(old, *m)).collect();
            let unbiased = count / (count - 1.0);
            let vars = var.iter().zip(&v).map(|(old, v)| blend(old, v * unbiased)).collect();
            self.tensors.insert(format!("{name}.running_mean"), means);
            self.tensors.insert(format!("{name}.running_var"), vars);
            for (m, v) in m.iter().zip(&v) {
                // Where a channel hardly varies beside its mean, f32 has few digits of what is left.
                self.spread = self.spread.min((v + norm.eps) / (m * m).max(1e-30));
            }
            (mean, var) = (m, v);
        }
        let inverse: Values = var.iter().map(|v| 1.0 / (v + norm.eps).sqrt()).collect();
        let (weight, bias) = (self.tensor(node, "weight"), self.tensor(node, "bias"));
        let mut y = vec![0.0; x.len()];
        self.channels(node, |c, i| y[i] = (x[i] - mean[c]) * inverse[c] * weight[c] + bias[c]);
        self.statistics.insert(node, (mean, inverse));
        y
    }

    /// The gradients of all trained parameters. `seeds` are those of the loss by node.
    pub(crate) fn backward(&self, seeds: &BTreeMap<usize, Values>) -> BTreeMap<String, Values> {
        let nodes = self.graph.nodes();
        let mut of: Vec<Values> = (0..nodes.len()).map(|node| vec![0.0; self.len(node)]).collect();
        let mut found = BTreeMap::new();
        for node in (1..nodes.len()).rev() {
            if let Some(seed) = seeds.get(&node) {
                of[node].iter_mut().zip(seed).for_each(|(g, s)| *g += s);
            }
            let g = std::mem::take(&mut of[node]);
            let input = self.input(node, 0);
            let x = &self.values[input];
            let mut dx = vec![0.0; x.len()];
            let mut parameters: Vec<(&str, Values)> = Vec::new();
            match &nodes[node].op {
                Op::Conv(conv) => {
                    let weight = self.tensor(node, "weight");
                    let mut dw = vec![0.0; weight.len()];
                    self.windows(node, conv, |out, from, w| {
                        dx[from] += g[out] * weight[w];
                        dw[w] += g[out] * x[from];
                    });
                    parameters.push(("weight", dw));
                    if conv.bias {
                        let mut db = vec![0.0; conv.outputs];
                        self.channels(node, |c, i| db[c] += g[i]);
                        parameters.push(("bias", db));
                    }
                }
                Op::BatchNorm(_) => {
                    let (mean, inverse) = &self.statistics[&node];
                    let channels = mean.len();
                    let (mut dw, mut db) = (vec![0.0; channels], vec![0.0; channels]);
                    self.channels(node, |c, i| {
                        dw[c] += g[i] * (x[i] - mean[c]) * inverse[c];
                        db[c] += g[i];
                    });
                    let weight = self.tensor(node, "weight");
                    let count = (x.len() / channels) as f64;
                    let batch = self.by_batch(node);
                    self.channels(node, |c, i| {
                        let through = match batch {
                            true => (db[c] + (x[i] - mean[c]) * inverse[c] * dw[c]) / count,
                            false => 0.0,
                        };
                        dx[i] = weight[c] * inverse[c] * (g[i] - through);
                    });
                    parameters.extend([("weight", dw), ("bias", db)]);
                }
                Op::Relu => {
                    for ((dx, g), x) in dx.iter_mut().zip(&g).zip(x) {
                        *dx = if *x > 0.0 { *g } else { 0.0 };
                    }
                }
                Op::Relu6 => {
                    for ((dx, g), x) in dx.iter_mut().zip(&g).zip(x) {
                        *dx = if *x > 0.0 && *x < 6.0 { *g } else { 0.0 };
                    }
                }
                &Op::MaxPool { kernel, stride, padding } => {
                    let pooled = self.pooled(node, (kernel, stride, padding), x);
                    for ((winner, _), g) in pooled.iter().zip(&g) {
                        dx[*winner] += g;
                    }
                }
                Op::Add => {
                    let other = self.input(node, 1);
                    of[other].iter_mut().zip(&g).for_each(|(d, g)| *d += g);
                    dx.copy_from_slice(&g);
                }
                Op::SubsamplePad { .. } => self.subsampled(node, |out, from| dx[from] = g[out]),
                Op::GlobalAveragePool => {
                    let pixels = dx.len() / g.len();
                    for (map, g) in dx.chunks_mut(pixels).zip(&g) {
                        map.fill(g / pixels as f64);
                    }
                }
                Op::Flatten => dx.copy_from_slice(&g),
                Op::Linear { outputs, .. } => {
                    let inputs = x.len() / self.batch;
                    let weight = self.tensor(node, "weight");
                    let (mut dw, mut db) = (vec![0.0; weight.len()], vec![0.0; *outputs]);
                    for image in 0..self.batch {
                        for o in 0..*outputs {
                            let g = g[image * outputs + o];
                            db[o] += g;
                            for i in 0..inputs {
                                dw[o * inputs + i] += g * x[image * inputs + i];
                                dx[image * inputs + i] += g * weight[o * inputs + i];
                            }
                        }
                    }
                    parameters.extend([("weight", dw), ("bias", db)]);
                }
                Op::Dropout { .. } => match self.masks.get(&node) {
                    Some(mask) => {
                        dx.iter_mut().zip(&g).zip(mask).for_each(|((dx, g), m)| *dx = g * m);
                    }
                    None => dx.copy_from_slice(&g),
                },
                other => unreachable!("no graph here has {other:?}"),
            }
            of[input].iter_mut().zip(&dx).for_each(|(sum, dx)| *sum += dx);
            for (what, gradient) in parameters {
                let name = format!("{}.{what}", nodes[node].name);
                if !self.frozen.contains(&name) {
                    found.insert(name, gradient);
                }
            }
        }
        found
    }
}
