//! A network's weights as a pass reads them: packed convolutions, biases, and batch normalisations as scales and shifts.

use candle_core::{Result, Tensor, bail};
use kd_ops::nhwc::{Affine, Map, NormGradient, blend, with_values};
use rayon::prelude::*;

use super::forward::Given;
use super::gradients::Back;
use super::plan::Plan;
use super::units::{Unit, Work};
use super::workspace::Workspace;
use crate::block_sums::in_turn_f64;
use crate::graph::Norm;

/// The parameters and buffers of each node, in the node's order.
pub(super) type Tensors = [Vec<Tensor>];

/// What units take of their weights; of most units nothing.
pub(super) struct Weights {
    convs: Vec<Option<PackedConv>>,
    pub(super) norms: Vec<NormState>,
    /// Whether they have been taken from tensors.
    pub(super) filled: bool,
}

/// A convolution's weights.
#[derive(Default)]
pub(super) struct PackedConv {
    /// For the pass that is under way: the weight as the convolution takes it or, in the backward pass, as its gradient does.
    pub(super) weight: Vec<f32>,
    /// As long as the padded channels.
    pub(super) bias: Option<Vec<f32>>,
}

/// A batch normalisation in a pass. All but `inv_std` is by padded channel.
#[derive(Default)]
pub(super) struct NormState {
    scale: Vec<f32>,
    shift: Vec<f32>,
    pub(super) mean: Vec<f32>,
    /// 1 / sqrt(variance + eps).
    inv_std: Vec<f64>,
    slope: Vec<f32>,
    gradient_shift: Vec<f32>,
}

impl NormState {
    pub(super) fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, shift: &self.shift }
    }

    pub(super) fn gradient(&self) -> NormGradient<'_> {
        NormGradient {
            scale: &self.scale,
            slope: &self.slope,
            mean: &self.mean,
            shift: &self.gradient_shift,
        }
    }

    /// A normalisation by this mean and variance.
    fn set(
        &mut self,
        (tensors, config): (&[Tensor], &Norm),
        mean: &[f64],
        var: &[f64],
        map: &Map,
    ) -> Result<()> {
        let (weight, bias) = (values(&tensors[0])?, values(&tensors[1])?);
        self.inv_std = var.iter().map(|var| 1.0 / (var + config.eps).sqrt()).collect();
        let scale: Vec<f64> =
            weight.iter().zip(&self.inv_std).map(|(&w, inv)| f64::from(w) * inv).collect();
        let shift = bias.iter().zip(&scale).zip(mean);
        self.shift = padded(shift.map(|((&b, scale), mean)| f64::from(b) - mean * scale), map);
        self.scale = padded(scale.iter().copied(), map);
        self.mean = padded(mean.iter().copied(), map);
        self.slope = vec![0.0; map.padded];
        self.gradient_shift = vec![0.0; map.padded];
        Ok(())
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    with_values(tensor, |values| Ok(values.to_vec()))
}

fn as_f64(tensor: &Tensor) -> Result<Vec<f64>> {
    with_values(tensor, |values| Ok(values.iter().map(|&v| f64::from(v)).collect()))
}

/// Numbers by channel, zeros behind them.
fn padded(values: impl Iterator<Item = f64>, map: &Map) -> Vec<f32> {
    let mut padded: Vec<f32> = values.map(|value| value as f32).collect();
    padded.resize(map.padded, 0.0);
    padded
}

impl Weights {
    /// Room for the weights of a plan.
    pub(super) fn new(plan: &Plan) -> Self {
        let convs =
            plan.units.units.iter().map(|unit| unit.work.conv().map(|_| PackedConv::default()));
        let norms = plan.units.norms.iter().map(|_| NormState::default());
        Self { convs: convs.collect(), norms: norms.collect(), filled: false }
    }

    /// Takes the weights that `tensors` have now, for a forward pass.
    pub(super) fn fill(&mut self, plan: &Plan, tensors: &Tensors) -> Result<()> {
        let units = plan.units.units.par_iter().zip(&mut self.convs);
        units.try_for_each(|(unit, packed)| match packed {
            Some(packed) => conv(plan, unit, tensors, packed),
            None => Ok(()),
        })?;
        for (norm, state) in plan.units.norms.iter().zip(&mut self.norms) {
            if !norm.batch {
                let tensors = &tensors[norm.node];
                let (mean, var) = (as_f64(&tensors[2])?, as_f64(&tensors[3])?);
                state.set(
                    (tensors, &norm.config),
                    &mean,
                    &var,
                    &plan.units.values[norm.value].map,
                )?;
            }
        }
        self.filled = true;
        Ok(())
    }

    /// Behind the forward pass: takes the weights of the convolutions through which a gradient goes, in the same memory.
    pub(super) fn turn_back(&mut self, plan: &Plan, tensors: &Tensors) -> Result<()> {
        let goes_through = |unit: usize| {
            let through = |back: &Back| matches!(*back, Back::Conv { unit: of, data: Some(_), .. } if of == unit);
            plan.operations.iter().any(through)
        };
        let units = plan.units.units.par_iter().zip(&mut self.convs).enumerate();
        units.try_for_each(|(index, (unit, packed))| match (&unit.work, packed) {
            (Work::Conv { node, conv, .. }, Some(packed)) if goes_through(index) => {
                with_values(&tensors[*node][0], |weight| {
                    conv.pack(weight, true, &mut packed.weight);
                    Ok(())
                })
            }
            _ => Ok(()),
        })
    }

    /// The weights of a unit that is a convolution.
    pub(super) fn conv(&self, unit: usize) -> &PackedConv {
        let Some(packed) = &self.convs[unit] else { unreachable!("a convolution has weights") };
        packed
    }

    /// Takes the batch's statistics, which the images' sums have, for the normalisations of the values that the units `run`
    /// gave.
    pub(super) fn take_statistics(
        &mut self,
        given: Given<'_>,
        workspace: &Workspace,
        run: &[Unit],
    ) -> Result<()> {
        let plan = given.plan;
        for (index, norm) in plan.units.norms.iter().enumerate() {
            if !norm.batch || run.iter().all(|unit| unit.output != norm.value) {
                continue;
            }
            let map = &plan.units.values[norm.value].map;
            let count = workspace.whole * map.pixels();
            if count < 2 {
                bail!(
                    "batch_norm: a batch of {} images of {}x{} pixels has {count} values in each channel; its variance needs at least 2",
                    workspace.whole,
                    map.height,
                    map.width
                );
            }
            let (mean, squares) = moments(given, workspace, index, map)?;
            let tensors = &given.tensors[norm.node];
            let share = norm.config.momentum;
            let unbiased = squares.iter().map(|squares| squares / (count - 1) as f64).collect();
            blend(&tensors[2], share, mean.clone())?;
            blend(&tensors[3], share, unbiased)?;
            let var: Vec<f64> = squares.iter().map(|squares| squares / count as f64).collect();
            self.norms[index].set((tensors, &norm.config), &mean, &var, map)?;
        }
        Ok(())
    }

    /// Takes the sums of a normalisation's backward pass over the images; the gradients of its weight and bias.
    pub(super) fn take_gradient_sums(
        &mut self,
        given: Given<'_>,
        workspace: &Workspace,
        norm: usize,
    ) -> Result<Vec<Vec<f32>>> {
        let plan = given.plan;
        let of = &plan.units.norms[norm];
        let map = &plan.units.values[of.value].map;
        // Of each channel both sums.
        let mut totals = vec![0.0; 2 * map.channels];
        in_turn_f64(given.processes, &mut totals, |totals| {
            for image in image_sums(plan, workspace, norm, map) {
                let (sums, products) = image.split_at(map.padded);
                for ((total, sum), product) in totals.chunks_exact_mut(2).zip(sums).zip(products) {
                    total[0] += sum;
                    total[1] += product;
                }
            }
        })?;
        let totals = || totals.chunks_exact(2);
        let state = &mut self.norms[norm];
        let inv_std = &state.inv_std;
        let of_weight = totals().zip(inv_std).map(|(total, inv)| (total[1] * inv) as f32);
        let gradients = vec![of_weight.collect(), totals().map(|total| total[0] as f32).collect()];
        if of.batch {
            // Through the batch's mean and variance.
            let count = (workspace.whole * map.pixels()) as f64;
            let scale = state.scale.iter().map(|&scale| f64::from(scale));
            let slope = totals().zip(inv_std).zip(scale.clone());
            let slope = slope.map(|((total, inv), scale)| -scale * total[1] * inv * inv / count);
            state.slope = padded(slope, map);
            let shift = totals().zip(scale).map(|(total, scale)| -scale * total[0] / count);
            state.gradient_shift = padded(shift, map);
        }
        Ok(gradients)
    }
}

/// The images' sums of a normalisation, in the images' order.
fn image_sums<'a>(
    plan: &'a Plan,
    workspace: &'a Workspace,
    norm: usize,
    map: &Map,
) -> impl Iterator<Item = &'a [f64]> {
    let (first, len) = (plan.norm_sums(norm), 2 * map.padded);
    let images = workspace.parts.iter().flat_map(|part| part.sums.chunks_exact(plan.sums()));
    images.map(move |image| &image[first..first + len])
}

/// Each channel's mean over the batch, and its sum of squared distances from that mean: the images' own, put together by the
/// formula of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).
fn moments(
    given: Given<'_>,
    workspace: &Workspace,
    norm: usize,
    map: &Map,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut totals = vec![0.0; 2 * map.channels];
    in_turn_f64(given.processes, &mut totals, |totals| {
        let (mean, squares) = totals.split_at_mut(map.channels);
        for (image, sums) in image_sums(given.plan, workspace, norm, map).enumerate() {
            // Before this image there were so many of the same size.
            let before = (given.first + image) as f64;
            let share = 1.0 / (before + 1.0);
            let between = before * share * map.pixels() as f64;
            let (image_mean, image_squares) = sums.split_at(map.padded);
            for channel in 0..map.channels {
                let distance = image_mean[channel] - mean[channel];
                mean[channel] += distance * share;
                squares[channel] += image_squares[channel] + distance * distance * between;
            }
        }
    })?;
    let squares = totals.split_off(map.channels);
    Ok((totals, squares))
}

/// The weights of a convolution, with a folded batch normalisation in them.
fn conv(plan: &Plan, unit: &Unit, tensors: &Tensors, packed: &mut PackedConv) -> Result<()> {
    let Work::Conv { node, fold, conv, .. } = &unit.work else {
        unreachable!("the caller has a convolution")
    };
    let map = &plan.units.values[unit.output].map;
    let mut bias = tensors[*node].get(1).map(values).transpose()?;
    let mut folded = Vec::new();
    if let Some((fold, Norm { eps, .. })) = fold {
        let [weight, shift, mean, var] = &tensors[*fold][..] else {
            unreachable!("a batch normalisation has four tensors")
        };
        let (weight, shift, mean, var) =
            (as_f64(weight)?, as_f64(shift)?, as_f64(mean)?, as_f64(var)?);
        let scale: Vec<f64> =
            weight.iter().zip(&var).map(|(w, var)| w / (var + eps).sqrt()).collect();
        folded = values(&tensors[*node][0])?;
        for (of_channel, scale) in
            folded.chunks_exact_mut(tensors[*node][0].elem_count() / map.channels).zip(&scale)
        {
            for weight in of_channel {
                *weight = (f64::from(*weight) * scale) as f32;
            }
        }
        let before = bias.unwrap_or_else(|| vec![0.0; map.channels]);
        let channels = before.iter().zip(&mean).zip(&scale).zip(&shift);
        bias = Some(
            channels
                .map(|(((&b, mean), scale), shift)| ((f64::from(b) - mean) * scale + shift) as f32)
                .collect(),
        );
    }
    if let Some(bias) = &mut bias {
        bias.resize(map.padded, 0.0);
    }
    packed.bias = bias;
    let mut pack = |weight: &[f32]| {
        conv.pack(weight, false, &mut packed.weight);
        Ok(())
    };
    match folded.is_empty() {
        true => with_values(&tensors[*node][0], pack),
        false => pack(&folded),
    }
}
