//! The forward pass on a GPU.

use candle_core::{Result, Tensor};
use kd_ops::cuda::nchw::{DropoutLayer, Input, Linear, Norm, Parameters, Span, aligned};
use kd_ops::nhwc::Activation;

use super::super::units::{IMAGES, Read, Unit, Work};
use super::Given;

impl<'a> Given<'a> {
    /// A value of the whole batch, where it lies: the images with the caller, what is shown where it is handed out.
    pub(super) fn value(&self, value: usize) -> Result<Span<'a>> {
        if value == IMAGES {
            return Span::of(self.gpu, self.images);
        }
        match self.plan.units.shown.iter().position(|(_, shown)| *shown == value) {
            Some(shown) => Span::of(self.gpu, &self.shown[shown]),
            None => {
                let len = self.plan.units.values[value].map.len();
                Ok(self.memory.place(self.plan.value(value), len))
            }
        }
    }

    /// The tensors of a node, which is a batch normalisation.
    pub(super) fn parameters(&self, node: usize) -> Result<Parameters<'a>> {
        let [weight, bias, mean, var] = &self.tensors[node][..] else {
            unreachable!("a batch normalisation has four tensors")
        };
        let span = |tensor| Span::of(self.gpu, tensor);
        Ok(Parameters {
            weight: span(weight)?,
            bias: span(bias)?,
            mean: span(mean)?,
            var: span(var)?,
        })
    }

    /// The normalisation `norm` of the plan.
    pub(super) fn norm(&self, norm: usize) -> Norm {
        let of = &self.plan.units.norms[norm];
        let size = self.memory.size(&self.plan.units.values[of.value].map);
        Norm { size, eps: of.config.eps }
    }

    /// A value as a sum reads it.
    fn input(&self, read: &Read) -> Result<Input<'a>> {
        let Some(norm) = read.norm else { return Ok((self.value(read.value)?, None)) };
        let of = &self.plan.units.norms[norm];
        let channels = self.plan.units.values[of.value].map.channels;
        let state = self.memory.norm(norm, channels);
        Ok((self.value(read.value)?, Some((state, self.parameters(of.node)?))))
    }
}

/// Computes all units; what is shown lies where it is handed out then.
pub(super) fn forward(given: Given<'_>) -> Result<()> {
    let units = &given.plan.units;
    for (index, unit) in units.units.iter().enumerate() {
        compute(given, (index, unit))?;
        statistics(given, unit.output)?;
    }
    // Of a value that is shown twice the first has it.
    for (index, (_, value)) in units.shown.iter().enumerate() {
        let from = given.value(*value)?;
        let to = Span::of(given.gpu, &given.shown[index])?;
        if !from.begins_like(&to) {
            given.gpu.copy(from, to)?;
        }
    }
    Ok(())
}

/// Takes the statistics of the normalisation of a value that has been computed, if there is one.
fn statistics(given: Given<'_>, value: usize) -> Result<()> {
    for (index, of) in given.plan.units.norms.iter().enumerate() {
        if of.value != value {
            continue;
        }
        let (norm, parameters) = (given.norm(index), given.parameters(of.node)?);
        let state = given.memory.norm(index, norm.size.channels);
        match of.batch {
            true => norm.batch_statistics(
                given.gpu,
                given.value(value)?,
                (parameters, of.config.momentum),
                given.memory.sums(),
                state,
            )?,
            false => norm.running_statistics(given.gpu, parameters, state)?,
        }
    }
    Ok(())
}

/// The weight of a convolution, and its bias, if it has one: those of a folded normalisation, which lie in the pass's memory.
fn weights(given: Given<'_>, index: usize) -> Result<(Tensor, Option<Tensor>)> {
    let Work::Conv { node, .. } = given.plan.units.units[index].work else {
        unreachable!("the unit is a convolution")
    };
    let tensors = &given.tensors[node];
    Ok((aligned(&tensors[0])?, tensors.get(1).map(aligned).transpose()?))
}

/// Computes a unit. What a max-pool makes of a convolution's products is left to that pool, the bias included.
fn compute(given: Given<'_>, (index, unit): (usize, &Unit)) -> Result<()> {
    let Given { gpu, plan, memory, .. } = given;
    let values = &plan.units.values;
    let output = given.value(unit.output)?;
    let map = &values[unit.output].map;
    let read = |at: usize| given.value(unit.reads[at].value);
    let size_read = |at: usize| memory.size(&values[unit.reads[at].value].map);
    match &unit.work {
        Work::Load => gpu.copy(Span::of(gpu, given.images)?, output),
        Work::Conv { fold, activation, conv: of, .. } => {
            let (weight, bias) = weights(given, index)?;
            let (weight, bias) = (Span::of(gpu, &weight)?, span(given, &bias)?);
            let conv = memory.conv(index);
            let (weight, bias) = match fold {
                None => (weight, bias),
                Some((node, config)) => {
                    let sizes = of.sizes();
                    let window = sizes.inputs * sizes.kernel * sizes.kernel;
                    let norm = Norm { size: memory.size(map), eps: config.eps };
                    let folded = memory.folded(index);
                    norm.fold(gpu, (weight, bias, window), given.parameters(*node)?, folded)?;
                    (folded.0, Some(folded.1))
                }
            };
            let (x, columns) = (read(0)?, memory.columns());
            if memory.pooled.contains(&Some(index)) {
                return conv.products(gpu, x, weight, columns, output);
            }
            let z = if conv.is_nchw() { output } else { memory.z() };
            conv.products(gpu, x, weight, columns, z)?;
            match conv.is_nchw() && bias.is_none() && *activation == Activation::Identity {
                true => Ok(()),
                false => conv.finish(gpu, z, bias, *activation, output),
            }
        }
        Work::Activate { activation } => {
            let second = unit.reads.get(1).map(|read| given.input(read)).transpose()?;
            let first = given.input(&unit.reads[0])?;
            gpu.sum(memory.size(map), first, second, *activation, output)
        }
        Work::MaxPool { windows, activation, .. } => {
            let winners = memory.winners(index);
            let Some(conv) = memory.pooled[index] else {
                let from = (read(0)?, size_read(0));
                let to = (output, memory.size(map));
                return gpu.max_pool(from, *windows, *activation, to, winners);
            };
            let (_, own) = weights(given, conv)?;
            let bias = match &plan.units.units[conv].work {
                Work::Conv { fold: Some(_), .. } => Some(memory.folded(conv).1),
                _ => span(given, &own)?,
            };
            memory.conv(conv).pool(gpu, read(0)?, bias, *activation, (output, winners))
        }
        Work::Subsample => gpu.subsample((read(0)?, size_read(0)), (output, memory.size(map))),
        Work::GlobalAverage => gpu.global_average((read(0)?, size_read(0)), output),
        Work::Linear { node, activation } => {
            let (weight, bias) = linear_weights(given, *node)?;
            let layer = linear(given, unit);
            let weights = (Span::of(gpu, &weight)?, Span::of(gpu, &bias)?);
            layer.forward(gpu, read(0)?, weights, *activation, output)
        }
        Work::Dropout { share, layer } => {
            dropout(given, *share, *layer).apply(gpu, read(0)?, output, None)
        }
        Work::Flatten => unreachable!("a map's order is the vector's"),
    }
}

/// Where a tensor lies that may be missing.
fn span<'a>(given: Given<'a>, tensor: &'a Option<Tensor>) -> Result<Option<Span<'a>>> {
    tensor.as_ref().map(|tensor| Span::of(given.gpu, tensor)).transpose()
}

/// The weight and bias of a linear layer.
pub(super) fn linear_weights(given: Given<'_>, node: usize) -> Result<(Tensor, Tensor)> {
    let [weight, bias] = &given.tensors[node][..] else {
        unreachable!("a linear layer has a weight and a bias")
    };
    Ok((aligned(weight)?, aligned(bias)?))
}

/// The sizes of a linear layer.
pub(super) fn linear(given: Given<'_>, unit: &Unit) -> Linear {
    let len = |value: usize| given.plan.units.values[value].map.values();
    let (inputs, outputs) = (len(unit.reads[0].value), len(unit.output));
    Linear { batch: given.memory.batch, inputs, outputs }
}

/// A layer's dropout in this step.
pub(super) fn dropout(given: Given<'_>, share: f64, layer: u64) -> DropoutLayer {
    let Some(key) = given.key else { unreachable!("a pass in training has a key") };
    DropoutLayer { share, key, layer }
}
