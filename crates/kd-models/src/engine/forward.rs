//! The forward pass over a batch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};
use kd_ops::DropoutKey;
use kd_ops::nhwc::{
    self, Conv, Forward, Frame, Input, Map, Moments, Output, Place, activate, activation,
    from_nchw, global_average, max_pool, subsample,
};
use rayon::prelude::*;

use super::linear;
use super::plan::Plan;
use super::units::{IMAGES, Read, Unit, Work};
use super::weights::{PackedConv, Tensors, Weights};
use super::workspace::{Image, Stack, Workspace};
use crate::block_sums::BlockSums;

/// What a pass reads.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tensors: &'a Tensors,
    /// The images that this process computes, NCHW.
    pub(super) images: &'a [f32],
    /// The position of the first of them in the batch.
    pub(super) first: usize,
    /// The processes that share the batch.
    pub(super) processes: &'a dyn BlockSums,
    /// Whether these are fewer images than threads, which then share each image.
    pub(super) few_images: bool,
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
        if let [unit @ Unit { work: Work::Linear { node, activation }, .. }] = units {
            linear::forward(given, unit, (*node, *activation), workspace)?;
        } else {
            let read = &*weights;
            workspace.images(plan, stack(units), |images, scratch| {
                for (unit, index) in units.iter().zip(run.clone()) {
                    compute(given, read, (unit, index), images, scratch);
                }
            });
        }
        if batched {
            weights.take_statistics(given, workspace, units)?;
        }
    }
    Ok(())
}

/// How long a thread looks for work before it may go to sleep; longer than a layer of one image takes.
const PATIENCE: Duration = Duration::from_millis(2);

/// Computes `body` while rayon's other threads stay awake: where threads share each image, they meet at every layer, and to wake
/// one takes about as long as its rows.
pub(super) fn with_threads_awake<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let done = AtomicBool::new(false);
    let look_for_work = || {
        let mut since = Instant::now();
        while !done.load(Ordering::Relaxed) && since.elapsed() < PATIENCE {
            match rayon::yield_now() {
                Some(rayon::Yield::Executed) => since = Instant::now(),
                _ => std::hint::spin_loop(),
            }
        }
    };
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| look_for_work());
        }
        let result = body();
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// How images pass some units.
pub(super) fn stack(units: &[Unit]) -> Stack {
    let convs = units.iter().filter_map(|unit| unit.work.conv());
    Stack {
        images: convs.clone().map(Conv::images).max().unwrap_or(1),
        scratch: convs.map(Conv::scratch_len).max().unwrap_or(0),
    }
}

/// Computes a unit for some images.
fn compute(
    given: Given<'_>,
    weights: &Weights,
    (unit, index): (&Unit, usize),
    images: &mut [Image<'_>],
    scratch: &mut [f32],
) {
    let Work::Conv { conv, .. } = &unit.work else {
        images.iter_mut().for_each(|image| compute_single(given, weights, unit, image));
        return;
    };
    let packed = weights.conv(index);
    let pass = |image| conv_pass(given, weights, (unit, packed), image);
    let share_rows = given.few_images && given.plan.normalised(unit.output).is_none();
    for images in images.chunks_mut(conv.images()) {
        match images {
            [image] => {
                let mut image = pass(image);
                match share_rows {
                    true => conv.forward_by_threads(&mut image, &packed.weight),
                    false => conv.forward(&mut [image], &packed.weight, scratch),
                }
            }
            images => {
                let mut passes: Vec<_> = images.iter_mut().map(pass).collect();
                conv.forward(&mut passes, &packed.weight, scratch);
            }
        }
    }
}

/// A convolution's reading and writing of one image.
fn conv_pass<'a>(
    given: Given<'a>,
    weights: &'a Weights,
    (unit, packed): (&Unit, &'a PackedConv),
    image: &'a mut Image<'_>,
) -> Forward<'a> {
    let Work::Conv { activation, .. } = unit.work else {
        unreachable!("the caller has a convolution")
    };
    let (plan, read) = (given.plan, &unit.reads[0]);
    let ([x], [to]) = image.memory.places([place(plan, read.value)], [plan.value(unit.output)]);
    let moments = plan.normalised(unit.output).map(|norm| moments(plan, norm, image.sums));
    Forward {
        input: input(given, weights, image.index, read, x),
        output: Output { bias: packed.bias.as_deref(), activation, to, moments },
    }
}

/// Computes a unit that is no convolution for one image.
fn compute_single(given: Given<'_>, weights: &Weights, unit: &Unit, image: &mut Image<'_>) {
    let plan = given.plan;
    let (isa, map) = (plan.isa, &plan.units.values[unit.output].map);
    let output = plan.value(unit.output);
    match &unit.work {
        Work::Load => {
            let ([], [to]) = image.memory.places([], [output]);
            from_nchw(isa, pixels(given, image.index), map, to, &whole(map));
        }
        Work::Activate { activation } => {
            let read = |of: &Read, x| read(weights, of, x);
            match &unit.reads[..] {
                [a] => {
                    let ([x], [to]) = image.memory.places([plan.value(a.value)], [output]);
                    let a = nhwc::Read { activation: *activation, ..read(a, x) };
                    activate(isa, map.padded, a, None, to);
                }
                [a, b] => {
                    let places = [plan.value(a.value), plan.value(b.value)];
                    let ([x, y], [to]) = image.memory.places(places, [output]);
                    let a = nhwc::Read { activation: *activation, ..read(a, x) };
                    activate(isa, map.padded, a, Some((y, read(b, y).affine)), to);
                }
                _ => unreachable!("a sum has one or two inputs"),
            }
        }
        Work::MaxPool { windows, activation: behind, winners } => {
            let from = &plan.units.values[unit.reads[0].value].map;
            let ([x], [to]) = image.memory.places([plan.value(unit.reads[0].value)], [output]);
            let winners = &mut image.winners[*winners..*winners + map.len()];
            max_pool(isa, (x, from), *windows, (&mut *to, map), winners);
            activation(isa, *behind, to);
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
        Work::Conv { .. } => unreachable!("a convolution may take several images"),
        Work::Linear { .. } => unreachable!("a linear layer takes the whole batch"),
    }
    if let Some(norm) = plan.normalised(unit.output) {
        let ([x], []) = image.memory.places([output], []);
        moments(plan, norm, image.sums).whole(isa, x);
    }
}

/// Where an image has the moments of what a normalisation normalises.
fn moments<'a>(plan: &Plan, norm: usize, sums: &'a mut [f64]) -> Moments<'a> {
    let (mean, squares) = plan.sums_of(norm, sums);
    Moments { mean, squares }
}

/// The frame of a map that is nothing but the map.
pub(super) fn whole(map: &Map) -> Frame {
    Frame { rows: map.height, line: map.width, channels: map.padded, top: 0, left: 0 }
}

/// One image as the caller gave it.
fn pixels<'a>(given: Given<'a>, index: usize) -> &'a [f32] {
    let len = given.plan.units.values[IMAGES].map.values();
    &given.images[index * len..(index + 1) * len]
}

/// Where a value lies; of the images, which lie with the caller, nothing.
pub(super) fn place(plan: &Plan, value: usize) -> Place {
    match value {
        IMAGES => Place { kept: false, offset: 0, len: 0 },
        value => plan.value(value),
    }
}

/// What a convolution reads of the image `index`; `x` is what lies at the [`place`] of the value.
pub(super) fn input<'a>(
    given: Given<'a>,
    weights: &'a Weights,
    index: usize,
    of: &Read,
    x: &'a [f32],
) -> Input<'a> {
    match of.value {
        IMAGES => Input::Picture(pixels(given, index)),
        _ => Input::Map(read(weights, of, x)),
    }
}

/// A value `x` as it is read.
fn read<'a>(weights: &'a Weights, of: &Read, x: &'a [f32]) -> nhwc::Read<'a> {
    let affine = of.norm.map(|norm| weights.norms[norm].affine());
    nhwc::Read { x, affine, activation: of.activation }
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
    let first = ((given.first + index) * map.values()) as u64;
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

/// A value of the whole batch as a tensor: `[B, C, H, W]` or `[B, F]`.
pub(super) fn show(plan: &Plan, workspace: &Workspace, value: usize) -> Result<Tensor> {
    let of = &plan.units.values[value];
    let shown = planes(plan, workspace, plan.value(value), &of.map)?;
    if of.vector { shown.flatten_from(1) } else { Ok(shown) }
}

/// A map of the whole batch, or a gradient of that shape, as a tensor `[B, C, H, W]`.
pub(super) fn planes(
    plan: &Plan,
    workspace: &Workspace,
    place: Place,
    map: &Map,
) -> Result<Tensor> {
    let len = map.values();
    let mut values = vec![0.0; workspace.batch * len];
    let images = values.par_chunks_mut(len.max(1)).enumerate();
    images.for_each(|(image, to)| {
        let kept = workspace.kept(plan, image);
        nhwc::to_nchw(plan.isa, &kept[place.offset..place.offset + place.len], map, to);
    });
    let shape = (workspace.batch, map.channels, map.height, map.width);
    Tensor::from_vec(values, shape, &Device::Cpu)
}
