//! The backward pass over a batch.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use kd_ops::nhwc::{
    Backward, Conv, Incoming, NormSums, Outgoing, WeightSums, add, add_gradient_sums, from_nchw,
    global_average_gradient, mask_by_value, max_pool_gradient, norm_gradient, subsample_gradient,
    with_values,
};

use super::forward::{Given, drop_out, input, place, whole};
use super::gradients::{Back, Data};
use super::linear;
use super::plan::Plan;
use super::units::{IMAGES, Unit, Work};
use super::weights::Weights;
use super::workspace::{Groups, Image, Stack, Workspace};

/// The gradients of a node's parameters, in the node's order, those that nobody trains among them.
pub(super) struct NodeGradients {
    pub(super) node: usize,
    pub(super) parameters: Vec<Vec<f32>>,
}

/// All gradients of parameters. `seeds` has the loss's gradient of each value that is shown, NCHW; `None` stands for zeros.
pub(super) fn backward(
    given: Given<'_>,
    weights: &mut Weights,
    workspace: &mut Workspace,
    seeds: &[Option<Tensor>],
) -> Result<Vec<NodeGradients>> {
    let plan = given.plan;
    weights.turn_back(plan, given.tensors)?;
    let seeds = seeds.iter().map(|seed| match seed {
        Some(seed) => with_values(seed, |values| Ok(Some(values.to_vec()))),
        None => Ok(None),
    });
    let seeds: Vec<Option<Vec<f32>>> = seeds.collect::<Result<_>>()?;
    let mut found = Vec::new();
    for run in &plan.backward {
        let operations = &plan.operations[run.clone()];
        if let [operation @ Back::Linear { .. }] = operations {
            found.extend(linear::backward(given, workspace, operation)?);
            continue;
        }
        let sums = Sums::of(plan, operations);
        let read = &*weights;
        let total = workspace.images_with_sums(
            plan,
            stack(plan, operations),
            (sums.groups, sums.len),
            given.processes,
            |images, scratch, memory| {
                for (operation, of) in operations.iter().zip(&sums.of) {
                    let sums = &mut memory[of.clone()];
                    compute(given, read, &seeds, operation, (&mut *images, &mut *scratch), sums);
                }
            },
        )?;
        for (operation, of) in operations.iter().zip(&sums.of) {
            if let Back::Conv { unit, trains: true, .. } = *operation {
                found.push(finish_conv(given, unit, &total[of.clone()]));
            }
        }
        for operation in operations {
            if let Some(norm) = operation.sums() {
                let parameters = weights.take_gradient_sums(given, workspace, norm)?;
                found.push(NodeGradients { node: plan.units.norms[norm].node, parameters });
            }
        }
    }
    Ok(found)
}

/// The sums over images that a run's convolutions, or its linear layer, add to.
pub(super) struct Sums {
    /// Each operation's among them.
    of: Vec<Range<usize>>,
    /// How many numbers a piece of memory for them has.
    pub(super) len: usize,
    pub(super) groups: Groups,
}

impl Sums {
    pub(super) fn of(plan: &Plan, operations: &[Back]) -> Self {
        let mut len = 0;
        let of = operations.iter().map(|operation| {
            let start = len;
            if let Back::Conv { unit, trains: true, .. } | Back::Linear { unit, trains: true, .. } =
                *operation
            {
                len += linear::sums_len(plan, unit).unwrap_or_else(|| conv_sums_len(plan, unit));
            }
            start..len
        });
        let of = of.collect();
        let groups = match (operations, len) {
            // Products of a few rows each are slow.
            ([Back::Linear { .. }], _) => linear::GROUPS,
            (_, 0..=0x1_0000) => Groups::Sixteen,
            (_, 0x1_0001..=0x10_0000) => Groups::Eight,
            _ => Groups::Four,
        };
        Self { of, len, groups }
    }
}

/// Numbers of the sums for the gradients of a convolution's weight and bias.
fn conv_sums_len(plan: &Plan, unit: usize) -> usize {
    let unit = &plan.units.units[unit];
    let of_weight = unit.work.conv().map_or(0, Conv::sums_len);
    of_weight + plan.units.values[unit.output].map.padded
}

/// How images pass some operations.
pub(super) fn stack(plan: &Plan, operations: &[Back]) -> Stack {
    let convs = operations.iter().filter_map(|operation| match *operation {
        Back::Conv { unit, .. } => plan.units.units[unit].work.conv(),
        _ => None,
    });
    let seeds = operations.iter().filter_map(|operation| match *operation {
        Back::Seed { shown, .. } => {
            let (_, value) = plan.units.shown[shown];
            Some(plan.units.values[value].map.len())
        }
        _ => None,
    });
    Stack {
        images: convs.clone().map(Conv::images).max().unwrap_or(1),
        scratch: convs.map(Conv::scratch_len).chain(seeds).max().unwrap_or(0),
    }
}

/// Computes an operation for some images.
fn compute(
    given: Given<'_>,
    weights: &Weights,
    seeds: &[Option<Vec<f32>>],
    operation: &Back,
    (images, scratch): (&mut [Image<'_>], &mut [f32]),
    sums: &mut [f32],
) {
    match *operation {
        Back::Conv { unit, from, norm, data, trains } => {
            conv(given, weights, (images, scratch), sums, (unit, from, norm, data, trains));
        }
        _ => images
            .iter_mut()
            .for_each(|image| compute_single(given, weights, seeds, operation, (image, scratch))),
    }
}

/// Computes an operation that is no convolution's for one image.
fn compute_single(
    given: Given<'_>,
    weights: &Weights,
    seeds: &[Option<Vec<f32>>],
    operation: &Back,
    (image, scratch): (&mut Image<'_>, &mut [f32]),
) {
    let plan = given.plan;
    let isa = plan.isa;
    match *operation {
        Back::Seed { shown, to, add: add_to } => {
            let map = &plan.units.values[plan.units.shown[shown].1].map;
            let ([], [to]) = image.memory.places([], [plan.slot(to)]);
            let Some(seed) = &seeds[shown] else {
                if !add_to {
                    to.fill(0.0);
                }
                return;
            };
            let seed = &seed[image.index * map.values()..(image.index + 1) * map.values()];
            if add_to {
                let from = &mut scratch[..map.len()];
                from_nchw(isa, seed, map, from, &whole(map));
                add(isa, to, from);
            } else {
                from_nchw(isa, seed, map, to, &whole(map));
            }
        }
        Back::Mask { slot, value, activation } => {
            let ([y], [g]) = image.memory.places([plan.value(value)], [plan.slot(slot)]);
            mask_by_value(isa, g, y, activation);
        }
        Back::Sums { norm, from } => {
            let value = plan.units.norms[norm].value;
            let ([z], [g]) = image.memory.places([plan.value(value)], [plan.slot(from)]);
            let (sums, products) = plan.sums_of(norm, image.sums);
            sums.fill(0.0);
            products.fill(0.0);
            add_gradient_sums(isa, g, z, &weights.norms[norm].mean, sums, products);
        }
        Back::Norm { norm, from, to } => {
            let value = plan.units.norms[norm].value;
            let read = [plan.slot(from), plan.value(value)];
            let ([g, z], [to]) = image.memory.places(read, [plan.slot(to)]);
            norm_gradient(isa, (g, z), weights.norms[norm].gradient(), to);
        }
        Back::Add { from, to } => {
            let ([from], [to]) = image.memory.places([plan.slot(from)], [plan.slot(to)]);
            add(isa, to, from);
        }
        Back::Copy { from, to } => {
            let ([from], [to]) = image.memory.places([plan.slot(from)], [plan.slot(to)]);
            to.copy_from_slice(from);
        }
        Back::Through { unit, from, to } => {
            let unit = &plan.units.units[unit];
            let result = &plan.units.values[unit.output].map;
            let map = &plan.units.values[unit.reads[0].value].map;
            let ([g], [to]) = image.memory.places([plan.slot(from)], [plan.slot(to)]);
            match unit.work {
                Work::MaxPool { windows, winners, .. } => {
                    let winners = &image.winners[winners..winners + result.len()];
                    max_pool_gradient((g, result), winners, windows, (to, map));
                }
                Work::Subsample => subsample_gradient((g, result), (to, map)),
                Work::GlobalAverage => global_average_gradient(g, (to, map)),
                Work::Flatten => from_nchw(isa, &g[..result.channels], map, to, &whole(map)),
                Work::Dropout { share, layer } => {
                    to.copy_from_slice(g);
                    drop_out(given, image.index, share, layer, map, to);
                }
                _ => unreachable!("no other unit has a gradient of this kind"),
            }
        }
        Back::Conv { .. } => unreachable!("a convolution may take several images"),
        Back::Linear { .. } => unreachable!("a linear layer takes the whole batch"),
    }
}

/// A convolution's gradients for some images; see [`Back::Conv`].
fn conv(
    given: Given<'_>,
    weights: &Weights,
    (images, scratch): (&mut [Image<'_>], &mut [f32]),
    sums: &mut [f32],
    (index, from, norm, data, trains): (usize, usize, Option<usize>, Option<Data>, bool),
) {
    let plan = given.plan;
    let unit = &plan.units.units[index];
    let Some(conv) = unit.work.conv() else { unreachable!("the operation is a convolution's") };
    let packed = weights.conv(index);
    let pass = |image| conv_pass(given, weights, image, unit, (from, norm, data, trains));
    for images in images.chunks_mut(conv.images()) {
        let weight = trains.then(|| {
            let (weight, bias) = sums.split_at_mut(conv.sums_len());
            WeightSums { weight, bias: packed.bias.is_some().then_some(bias) }
        });
        match images {
            [image] => conv.backward(&mut [pass(image)], &packed.weight, scratch, weight),
            images => {
                let mut passes: Vec<_> = images.iter_mut().map(pass).collect();
                conv.backward(&mut passes, &packed.weight, scratch, weight);
            }
        }
    }
}

/// A convolution's reading and writing of one image.
fn conv_pass<'a>(
    given: Given<'a>,
    weights: &'a Weights,
    image: &'a mut Image<'_>,
    unit: &Unit,
    (from, norm, data, trains): (usize, Option<usize>, Option<Data>, bool),
) -> Backward<'a> {
    let (plan, read) = (given.plan, &unit.reads[0]);
    let reads_input = trains || data.is_some_and(|data| data.sums.is_some());
    // What nobody asks for may have given its place to another value.
    let nothing = place(plan, IMAGES);
    let asked = |asked: bool, value: usize| if asked { place(plan, value) } else { nothing };
    // A sum's gradient may be its input's, too, to which the convolution on its other side adds.
    let in_place = data.is_some_and(|data| data.to == from);
    let reads = [
        if in_place { nothing } else { plan.slot(from) },
        asked(norm.is_some(), unit.output),
        asked(reads_input, read.value),
    ];
    let written = [data.map_or(nothing, |data| plan.slot(data.to))];
    let ([gradient, z, x], [to]) = image.memory.places(reads, written);
    let incoming = Incoming {
        gradient: (!in_place).then_some(gradient),
        norm: norm.map(|norm| (z, weights.norms[norm].gradient())),
    };
    let sums = &mut *image.sums;
    let outgoing = data.map(|data| Outgoing {
        to,
        add: data.add,
        norm: data.sums.map(|norm| {
            let (sums, products) = plan.sums_of(norm, sums);
            NormSums { mean: &weights.norms[norm].mean, sums, products }
        }),
    });
    let input = reads_input.then(|| input(given, weights, image.index, read, x));
    Backward { input, incoming, outgoing }
}

/// The gradients of a convolution's weight and bias from the sums over all images.
fn finish_conv(given: Given<'_>, unit: usize, sums: &[f32]) -> NodeGradients {
    let unit = &given.plan.units.units[unit];
    let Work::Conv { node, conv, .. } = &unit.work else {
        unreachable!("the operation is a convolution's")
    };
    let (weight, bias) = sums.split_at(conv.sums_len());
    let channels = given.plan.units.values[unit.output].map.channels;
    let mut parameters = vec![conv.finish_weight(weight)];
    if given.tensors[*node].len() > 1 {
        parameters.push(bias[..channels].to_vec());
    }
    NodeGradients { node: *node, parameters }
}

impl NodeGradients {
    /// The gradients as tensors of the parameters' shapes.
    pub(super) fn tensors(self, of: &[Tensor]) -> Result<Vec<Tensor>> {
        let tensors = self.parameters.into_iter().zip(of);
        tensors.map(|(values, of)| Tensor::from_vec(values, of.shape(), &Device::Cpu)).collect()
    }
}
