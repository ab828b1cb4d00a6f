//! The plan of a pass: units, gradients, the segments that need no batch-wide sum within them, and the memory of an image.

use std::ops::Range;

use kd_ops::nhwc::{Isa, Place};

use super::gradients::{Back, Gradients, gradients};
use super::memory::{Life, lay_out};
use super::units::{IMAGES, Units, Work, units};
use crate::Result;
use crate::graph::Graph;

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Purpose {
    /// Training, with a backward pass; else evaluation.
    pub(super) train: bool,
    /// The nodes that are shown besides the logits, in the graph's order.
    pub(super) shown: Vec<usize>,
    /// Whether the gradient of the images is asked for, too.
    pub(super) images: bool,
    /// Whether the pass is computed on a GPU, operation by operation over the whole batch; else on the CPU, image by image.
    pub(super) gpu: bool,
}

/// How a graph is computed for a purpose, whatever the size of the batch.
pub(super) struct Plan {
    pub(super) isa: Isa,
    pub(super) purpose: Purpose,
    pub(super) units: Units,
    pub(super) operations: Vec<Back>,
    /// Runs of units, each of which an image passes before the next one; a linear layer is alone in its run.
    pub(super) forward: Vec<Range<usize>>,
    /// The same of the backward pass's operations.
    pub(super) backward: Vec<Range<usize>>,
    /// Where each value lies.
    values: Vec<Place>,
    /// Where each slot lies.
    slots: Vec<Place>,
    /// The slot of the images' gradient, where it is asked for.
    pub(super) images: Option<usize>,
    /// Numbers of an image that stay from segment to segment.
    pub(super) kept: usize,
    /// Numbers that a segment needs for its image besides them.
    pub(super) local: usize,
    /// Where each normalisation's sums lie among an image's, and behind them how many there are.
    norm_sums: Vec<usize>,
}

impl Plan {
    pub(super) fn new(
        graph: &Graph,
        isa: Isa,
        purpose: Purpose,
        batch_norm: impl Fn(usize) -> bool,
        trains: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let mut shown = vec![false; graph.nodes().len()];
        for &node in &purpose.shown {
            shown[node] = true;
        }
        // The logits.
        shown[graph.nodes().len() - 1] = true;
        let units = units(graph, isa, &shown, &purpose, batch_norm)?;
        let Gradients { operations, slots, images } = match purpose.train {
            true => gradients(&units, trains, purpose.images),
            false => Gradients { operations: Vec::new(), slots: Vec::new(), images: None },
        };
        let forward = forward_segments(&units);
        let backward = backward_segments(&units, &operations);
        let lives = lives(&units, &operations, &slots, (images, purpose.gpu));
        let count = units.units.len();
        let segment = |position: usize| match position.checked_sub(count) {
            // Each operation goes over the whole batch.
            _ if purpose.gpu => Some(position),
            None => forward.iter().position(|run| run.contains(&position)),
            // Position `count` is where values are shown, between the passes.
            Some(0) => Some(forward.len()),
            Some(back) => backward
                .iter()
                .position(|run| run.contains(&(back - 1)))
                .map(|i| forward.len() + 1 + i),
        };
        // A batch's map begins where a GPU's words of 16 bytes do.
        let align = if purpose.gpu { 4 } else { 1 };
        let layout = lay_out(&lives, align, |position| segment(position).unwrap_or(usize::MAX));
        let (values, slots) = layout.places.split_at(units.values.len());
        let (values, slots) = (values.to_vec(), slots.to_vec());
        let mut norm_sums = vec![0];
        for norm in &units.norms {
            let before = norm_sums[norm_sums.len() - 1];
            norm_sums.push(before + 2 * units.values[norm.value].map.padded);
        }
        Ok(Self {
            isa,
            purpose,
            units,
            operations,
            forward,
            backward,
            values,
            slots,
            images,
            kept: layout.kept,
            local: layout.local,
            norm_sums,
        })
    }

    /// Where the sums of a normalisation lie among an image's.
    pub(super) fn norm_sums(&self, norm: usize) -> usize {
        self.norm_sums[norm]
    }

    /// The two sums of each padded channel of a normalisation, among an image's.
    pub(super) fn sums_of<'a>(
        &self,
        norm: usize,
        sums: &'a mut [f64],
    ) -> (&'a mut [f64], &'a mut [f64]) {
        let padded = self.units.values[self.units.norms[norm].value].map.padded;
        sums[self.norm_sums(norm)..][..2 * padded].split_at_mut(padded)
    }

    /// The normalisation by the batch's statistics of a value. There is at most one: a second one normalises a copy.
    pub(super) fn normalised(&self, value: usize) -> Option<usize> {
        self.units.norms.iter().position(|norm| norm.batch && norm.value == value)
    }

    /// Sums of an image: two for each padded channel of each normalisation.
    pub(super) fn sums(&self) -> usize {
        self.norm_sums[self.norm_sums.len() - 1]
    }

    pub(super) fn value(&self, value: usize) -> Place {
        self.values[value]
    }

    pub(super) fn slot(&self, slot: usize) -> Place {
        self.slots[slot]
    }
}

/// Cuts `0..count` before each position that `cut` says, given the run so far.
fn runs(count: usize, cut: impl Fn(Range<usize>, usize) -> bool) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    for position in 0..count {
        if position > start && cut(start..position, position) {
            runs.push(start..position);
            start = position;
        }
    }
    if start < count {
        runs.push(start..count);
    }
    runs
}

fn forward_segments(units: &Units) -> Vec<Range<usize>> {
    let linear = |unit: usize| matches!(units.units[unit].work, Work::Linear { .. });
    let several = |unit: usize| units.units[unit].work.conv().map(|conv| conv.images() > 1);
    runs(units.units.len(), |run, unit| {
        let waits = units.units[unit].reads.iter().filter_map(|read| read.norm).any(|norm| {
            let norm = &units.norms[norm];
            norm.batch && run.clone().any(|before| units.units[before].output == norm.value)
        });
        waits || differs(run.clone(), unit, several) || linear(unit) || linear(run.end - 1)
    })
}

fn backward_segments(units: &Units, operations: &[Back]) -> Vec<Range<usize>> {
    let linear = |at: usize| matches!(operations[at], Back::Linear { .. });
    let several = |at: usize| match operations[at] {
        Back::Conv { unit, .. } => units.units[unit].work.conv().map(|conv| conv.images() > 1),
        _ => None,
    };
    runs(operations.len(), |run, at| {
        let through = match operations[at] {
            Back::Conv { norm, .. } => norm,
            Back::Norm { norm, .. } => Some(norm),
            _ => None,
        };
        let waits = through.filter(|norm| units.norms[*norm].batch).is_some_and(|through| {
            run.clone().any(|before| operations[before].sums() == Some(through))
        });
        waits || differs(run.clone(), at, several) || linear(at) || linear(run.end - 1)
    })
}

/// Whether one of a convolution and of the last one before it in its run takes several images at once and the other does not
/// (`several`; `None` for what is no convolution): a segment has memory for as many images.
fn differs(run: Range<usize>, at: usize, several: impl Fn(usize) -> Option<bool>) -> bool {
    let before = run.rev().find_map(&several);
    several(at).is_some_and(|several| before.is_some_and(|before| before != several))
}

/// How many operations later than its place a GPU may go through an activation, together with what follows.
const MASK_WAITS: usize = 2;

/// When each value and then each slot is used; `images` is the slot that is read when all is done.
fn lives(
    units: &Units,
    operations: &[Back],
    slots: &[usize],
    (images, gpu): (Option<usize>, bool),
) -> Vec<Life> {
    let mut values: Vec<Life> =
        units.values.iter().map(|value| Life::of(value.map.len())).collect();
    let mut of_slots: Vec<Life> = slots.iter().map(|len| Life::of(*len)).collect();
    for (position, unit) in units.units.iter().enumerate() {
        values[unit.output].at(position);
        for read in &unit.reads {
            values[read.value].at(position);
        }
    }
    let between = units.units.len();
    for (_, value) in &units.shown {
        values[*value].at(between);
    }
    for (index, operation) in operations.iter().enumerate() {
        let position = between + 1 + index;
        let mut value = |value: usize| values[value].at(position);
        let mut slot = |slot: usize| of_slots[slot].at(position);
        match *operation {
            Back::Seed { to, .. } => slot(to),
            Back::Conv { unit, from, norm, data, trains } => {
                slot(from);
                if let Some(data) = data {
                    slot(data.to);
                }
                if norm.is_some() {
                    value(units.units[unit].output);
                }
                if trains || operation.sums().is_some() {
                    value(units.units[unit].reads[0].value);
                }
            }
            Back::Mask { slot: masked, value: by, .. } => {
                slot(masked);
                value(by);
                if gpu {
                    // One of the next two operations may do it on its way.
                    values[by].at(position + MASK_WAITS);
                }
            }
            Back::Sums { norm, from } => {
                slot(from);
                value(units.norms[norm].value);
            }
            Back::Norm { norm, from, to } => {
                slot(from);
                slot(to);
                value(units.norms[norm].value);
            }
            Back::Add { from, to } | Back::Copy { from, to } | Back::Through { from, to, .. } => {
                slot(from);
                slot(to);
            }
            Back::Linear { unit, from, to, trains } => {
                slot(from);
                to.into_iter().for_each(&mut slot);
                if trains {
                    value(units.units[unit].reads[0].value);
                }
            }
        }
    }
    if let Some(images) = images {
        of_slots[images].at(between + 1 + operations.len());
    }
    // The images are the caller's.
    values[IMAGES].used = None;
    values.extend(of_slots);
    values
}
