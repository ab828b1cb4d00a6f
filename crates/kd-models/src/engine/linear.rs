//! Linear layers. They take a group of parts at once, so that what is summed over images is summed group by group, and so that
//! an image's values do not depend on how many processes share the batch.

use candle_core::Result;
use kd_ops::nhwc::{Activation, Place, View, activation, matmul, with_scratch, with_values};

use super::backward::NodeGradients;
use super::forward::Given;
use super::gradients::Back;
use super::plan::Plan;
use super::units::{Unit, Work};
use super::workspace::{Groups, Part, Workspace};

/// Few, because products of a few rows each are slow.
pub(super) const GROUPS: Groups = Groups::Four;

/// The numbers that an image's input and output have.
fn sizes(plan: &Plan, unit: &Unit) -> (usize, usize) {
    let channels = |value: usize| plan.units.values[value].map.channels;
    (channels(unit.reads[0].value), channels(unit.output))
}

/// Numbers of the sums for the gradients of a linear layer's weight and bias; none for another unit.
pub(super) fn sums_len(plan: &Plan, unit: usize) -> Option<usize> {
    let unit = &plan.units.units[unit];
    let (inputs, outputs) = sizes(plan, unit);
    matches!(unit.work, Work::Linear { .. }).then_some(outputs * inputs + outputs)
}

/// Copies the vectors at a place to rows, one for each image of some parts.
fn rows(parts: &[Part], plan: &Plan, place: Place, rows: &mut [f32], len: usize) {
    let vectors = parts.iter().flat_map(|part| part.vectors(plan, place));
    for (row, vector) in rows.chunks_exact_mut(len).zip(vectors) {
        row.copy_from_slice(&vector[..len]);
    }
}

/// Stores rows, one for each image of some parts, as the vectors at a place.
fn store_rows(parts: &mut [Part], plan: &Plan, place: Place, rows: &[f32], len: usize) {
    let vectors = parts.iter_mut().flat_map(|part| part.vectors_mut(plan, place));
    for (row, vector) in rows.chunks_exact(len).zip(vectors) {
        let (values, beyond) = vector.split_at_mut(len);
        values.copy_from_slice(row);
        beyond.fill(0.0);
    }
}

fn images(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.images.len()).sum()
}

/// A linear layer with what follows it.
pub(super) fn forward(
    given: Given<'_>,
    unit: &Unit,
    (node, behind): (usize, Activation),
    workspace: &mut Workspace,
) -> Result<()> {
    let plan = given.plan;
    let (inputs, outputs) = sizes(plan, unit);
    let (from, to) = (plan.value(unit.reads[0].value), plan.value(unit.output));
    let [weight, bias] = &given.tensors[node][..] else {
        unreachable!("a linear layer has a weight and a bias")
    };
    with_values(weight, |weight| {
        with_values(bias, |bias| {
            workspace.groups(GROUPS, |parts| {
                let images = images(parts);
                with_scratch(images * (inputs + outputs), |scratch| {
                    let (x, y) = scratch.split_at_mut(images * inputs);
                    rows(parts, plan, from, x, inputs);
                    y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
                    let weight = View::transposed(weight, inputs);
                    matmul(y, (images, inputs, outputs), View::rows(x, inputs), weight, true);
                    activation(plan.isa, behind, y);
                    store_rows(parts, plan, to, y, outputs);
                });
            });
            Ok(())
        })
    })
}

/// The gradients of a linear layer; see [`Back::Linear`].
pub(super) fn backward(
    given: Given<'_>,
    workspace: &mut Workspace,
    operation: &Back,
) -> Result<Option<NodeGradients>> {
    let plan = given.plan;
    let Back::Linear { unit, from, to, trains } = *operation else {
        unreachable!("the caller has a linear layer")
    };
    let unit_of = &plan.units.units[unit];
    let Work::Linear { node, .. } = unit_of.work else {
        unreachable!("the operation is a linear layer's")
    };
    let (inputs, outputs) = sizes(plan, unit_of);
    let sums = if trains { sums_len(plan, unit).unwrap_or(0) } else { 0 };
    let sums = with_values(&given.tensors[node][0], |weight| {
        workspace.sum(plan, (GROUPS, sums), given.processes, |parts, sums| {
            let images = images(parts);
            with_scratch(images * (inputs + outputs), |scratch| {
                let (other, dy) = scratch.split_at_mut(images * inputs);
                rows(parts, plan, plan.slot(from), dy, outputs);
                if let Some(to) = to {
                    let (dy, weight) = (View::rows(dy, outputs), View::rows(weight, inputs));
                    matmul(other, (images, outputs, inputs), dy, weight, false);
                    store_rows(parts, plan, plan.slot(to), other, inputs);
                }
                if !trains {
                    return;
                }
                rows(parts, plan, plan.value(unit_of.reads[0].value), other, inputs);
                let (of_weight, of_bias) = sums.split_at_mut(outputs * inputs);
                let (dy_by_output, x) = (View::transposed(dy, outputs), View::rows(other, inputs));
                matmul(of_weight, (outputs, images, inputs), dy_by_output, x, false);
                of_bias.fill(0.0);
                for row in dy.chunks_exact(outputs) {
                    for (sum, dy) in of_bias.iter_mut().zip(row) {
                        *sum += dy;
                    }
                }
            });
        })
    })?;
    let (weight, bias) = sums.split_at(if trains { outputs * inputs } else { 0 });
    let parameters = vec![weight.to_vec(), bias.to_vec()];
    Ok(trains.then_some(NodeGradients { node, parameters }))
}
