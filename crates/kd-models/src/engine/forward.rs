//! The forward pass over a batch.

use candle_core::{Device, Result, Tensor};
use kd_ops::DropoutKey;
use kd_ops::nhwc::{
    self, Frame, Map, Memory, View, activate, from_nchw, global_average, matmul, max_pool,
    subsample, unframe, with_values,
};
use rayon::prelude::*;

use super::plan::Plan;
use super::units::{IMAGES, Read, Unit, Work};
use super::weights::{Tensors, Weights};
use super::workspace::{Image, Workspace};

/// What a pass reads.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tensors: &'a Tensors,
    /// The batch's images, NCHW.
    pub(super) images: &'a [f32],
    /// The key of the dropout masks, in training.
    pub(super) key: Option<DropoutKey>,
}

/// Computes all units. The values that are shown are in the workspace then.
pub(super) fn forward(
    given: Given<'_>,
    weights: &mut Weights,
    workspace: &mut Workspace,
) -> Result<()> {
    let plan = given.plan;
    let batched = plan.units.norms.iter().any(|norm| norm.batch);
    for run in &plan.forward {
        let units = &plan.units.units[run.clone()];
        if let [unit @ Unit { work: Work::Linear { node, relu }, .. }] = units {
            linear(given, unit, *node, *relu, workspace)?;
        } else {
            let frames = units.iter().map(|unit| frames_len(&unit.work)).max().unwrap_or(0);
            let read = &*weights;
            workspace.images(plan, frames, |image| {
                for (unit, index) in units.iter().zip(run.clone()) {
                    compute(given, read, unit, index, image);
                }
            });
        }
        if batched {
            weights.take_statistics(plan, given.tensors, workspace, units)?;
        }
    }
    Ok(())
}

/// Numbers of the frames of a convolution's forward pass, and what the convolution needs besides.
pub(super) fn frames_len(work: &Work) -> usize {
    match work {
        Work::Conv { conv, .. } => conv.input().len() + conv.output().len() + conv.scratch_len(),
        _ => 0,
    }
}

/// Computes a unit for one image.
fn compute(given: Given<'_>, weights: &Weights, unit: &Unit, index: usize, image: &mut Image<'_>) {
    let plan = given.plan;
    let (isa, map) = (plan.isa, &plan.units.values[unit.output].map);
    let output = plan.value(unit.output);
    match &unit.work {
        Work::Load => {
            let ([], [to]) = image.memory.places([], [output]);
            from_nchw(isa, pixels(given, image.index), map, to, &whole(map));
        }
        Work::Conv { conv, relu, .. } => {
            let packed = weights.conv(index);
            let (input, output_frame) = (conv.input(), conv.output());
            let (from, rest) = image.frames.split_at_mut(input.len());
            let (result, scratch) = rest.split_at_mut(output_frame.len());
            lay_out_input(given, weights, unit, (image.index, &mut image.memory), from);
            conv.forward(from, &packed.forward, scratch, result);
            let ([], [to]) = image.memory.places([], [output]);
            unframe(isa, (result, &output_frame), packed.bias.as_deref(), *relu, (to, map), false);
        }
        Work::Activate { relu } => {
            let affine = |read: &Read| read.norm.map(|norm| weights.norms[norm].affine());
            match &unit.reads[..] {
                [a] => {
                    let ([x], [to]) = image.memory.places([plan.value(a.value)], [output]);
                    activate(isa, map.padded, (x, affine(a)), None, *relu, to);
                }
                [a, b] => {
                    let read = [plan.value(a.value), plan.value(b.value)];
                    let ([x, y], [to]) = image.memory.places(read, [output]);
                    activate(isa, map.padded, (x, affine(a)), Some((y, affine(b))), *relu, to);
                }
                _ => unreachable!("a sum has one or two inputs"),
            }
        }
        Work::MaxPool { windows, relu, winners } => {
            let from = &plan.units.values[unit.reads[0].value].map;
            let ([x], [to]) = image.memory.places([plan.value(unit.reads[0].value)], [output]);
            let winners = &mut image.winners[*winners..*winners + map.len()];
            max_pool(isa, (x, from), *windows, (&mut *to, map), winners);
            if *relu {
                nhwc::relu(isa, to);
            }
        }
        Work::Subsample | Work::GlobalAverage | Work::Flatten | Work::Dropout { .. } => {
            let from = &plan.units.values[unit.reads[0].value].map;
            let ([x], [to]) = image.memory.places([plan.value(unit.reads[0].value)], [output]);
            match unit.work {
                Work::Subsample => subsample((x, from), (to, map)),
                Work::GlobalAverage => global_average(isa, (x, from), to),
                Work::Flatten => {
                    let (values, beyond) = to.split_at_mut(map.channels);
                    nhwc::to_nchw(isa, x, from, values);
                    beyond.fill(0.0);
                }
                Work::Dropout { share, layer } => {
                    to.copy_from_slice(x);
                    drop_out(given, image.index, share, layer, map, to);
                }
                _ => unreachable!("the outer arm has these four"),
            }
        }
        Work::Linear { .. } => unreachable!("a linear layer takes the whole batch"),
    }
    for (norm, of) in plan.units.norms.iter().enumerate() {
        if of.batch && of.value == unit.output {
            let ([x], []) = image.memory.places([output], []);
            let sums = &mut image.sums[plan.norm_sums(norm)..][..2 * map.padded];
            let (mean, squares) = sums.split_at_mut(map.padded);
            nhwc::moments(isa, x, mean, squares);
        }
    }
}

/// The frame of a map that is nothing but the map.
pub(super) fn whole(map: &Map) -> Frame {
    Frame { rows: map.height, line: map.width, channels: map.padded, corner: 0 }
}

/// One image as the caller gave it.
fn pixels<'a>(given: Given<'a>, index: usize) -> &'a [f32] {
    let len = given.plan.units.values[IMAGES].map.values();
    &given.images[index * len..(index + 1) * len]
}

/// Lays out what a convolution reads in its input's frame.
pub(super) fn lay_out_input(
    given: Given<'_>,
    weights: &Weights,
    unit: &Unit,
    (index, memory): (usize, &mut Memory<'_>),
    to: &mut [f32],
) {
    let Work::Conv { conv, .. } = &unit.work else { unreachable!("the caller has a convolution") };
    let (plan, read) = (given.plan, &unit.reads[0]);
    let map = &plan.units.values[read.value].map;
    if read.value == IMAGES {
        from_nchw(plan.isa, pixels(given, index), map, to, &conv.input());
        return;
    }
    let ([x], []) = memory.places([plan.value(read.value)], []);
    let affine = read.norm.map(|norm| weights.norms[norm].affine());
    nhwc::frame(plan.isa, (x, map), affine, read.relu, to, &conv.input());
}

/// Dropout of one image's values in place, or of their gradient.
pub(super) fn drop_out(
    given: Given<'_>,
    index: usize,
    share: f64,
    layer: u64,
    map: &Map,
    values: &mut [f32],
) {
    let Some(key) = given.key else { unreachable!("a pass in training has a key") };
    let Map { channels, .. } = *map;
    let first = (index * map.values()) as u64;
    if map.pixels() == 1 {
        nhwc::dropout(&mut values[..channels], share, key, layer, first);
        return;
    }
    // The mask's order is that of NCHW.
    let mut planes = vec![0.0; map.values()];
    nhwc::to_nchw(given.plan.isa, values, map, &mut planes);
    nhwc::dropout(&mut planes, share, key, layer, first);
    from_nchw(given.plan.isa, &planes, map, values, &whole(map));
}

/// The rows of a vector value, one for each image.
pub(super) fn rows(workspace: &Workspace, plan: &Plan, place: nhwc::Place, map: &Map) -> Vec<f32> {
    assert!(place.kept, "what a linear layer reads outlives its segment");
    let mut rows = Vec::with_capacity(workspace.batch * map.channels);
    for image in 0..workspace.batch {
        let kept = workspace.kept(plan, image);
        rows.extend_from_slice(&kept[place.offset..place.offset + map.channels]);
    }
    rows
}

/// Stores rows, one for each image, as the value at `place`.
pub(super) fn store_rows(
    workspace: &mut Workspace,
    plan: &Plan,
    place: nhwc::Place,
    map: &Map,
    rows: &[f32],
) {
    assert!(place.kept, "what a linear layer gives outlives its segment");
    for image in 0..workspace.batch {
        let row = &rows[image * map.channels..(image + 1) * map.channels];
        let kept = workspace.kept_mut(plan, image);
        let (to, beyond) = kept[place.offset..place.offset + place.len].split_at_mut(map.channels);
        to.copy_from_slice(row);
        beyond.fill(0.0);
    }
}

/// A linear layer of the whole batch.
fn linear(
    given: Given<'_>,
    unit: &Unit,
    node: usize,
    relu: bool,
    workspace: &mut Workspace,
) -> Result<()> {
    let plan = given.plan;
    let input = unit.reads[0].value;
    let (from, to) = (&plan.units.values[input].map, &plan.units.values[unit.output].map);
    let (inputs, outputs) = (from.channels, to.channels);
    let x = rows(workspace, plan, plan.value(input), from);
    let [weight, bias] = &given.tensors[node][..] else {
        unreachable!("a linear layer has a weight and a bias")
    };
    let mut y = with_values(bias, |bias| Ok(bias.repeat(workspace.batch)))?;
    with_values(weight, |weight| {
        let sizes = (workspace.batch, inputs, outputs);
        let weight = View::transposed(weight, inputs);
        matmul(&mut y, sizes, View::rows(&x, inputs), weight, true);
        Ok(())
    })?;
    if relu {
        nhwc::relu(plan.isa, &mut y);
    }
    store_rows(workspace, plan, plan.value(unit.output), to, &y);
    Ok(())
}

/// A value of the whole batch as a tensor: `[B, C, H, W]` or `[B, F]`.
pub(super) fn show(plan: &Plan, workspace: &Workspace, value: usize) -> Result<Tensor> {
    let of = &plan.units.values[value];
    let (map, place) = (&of.map, plan.value(value));
    let len = map.values();
    let mut values = vec![0.0; workspace.batch * len];
    let images = values.par_chunks_mut(len.max(1)).enumerate();
    images.for_each(|(image, to)| {
        let kept = workspace.kept(plan, image);
        nhwc::to_nchw(plan.isa, &kept[place.offset..place.offset + place.len], map, to);
    });
    let batch = workspace.batch;
    match of.vector {
        true => Tensor::from_vec(values, (batch, map.channels), &Device::Cpu),
        false => {
            Tensor::from_vec(values, (batch, map.channels, map.height, map.width), &Device::Cpu)
        }
    }
}
