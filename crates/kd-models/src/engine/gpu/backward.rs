//! The backward pass on a GPU.

use candle_core::{DType, Result, Tensor};
use kd_ops::cuda::nchw::{Span, aligned, unwritten};
use kd_ops::nhwc::Activation;

use super::super::gradients::{Back, Data};
use super::super::units::Work;
use super::Given;
use super::forward::{dropout, linear, linear_weights};

/// Parameters with their gradients.
type Found = Vec<(Tensor, Tensor)>;

/// A gradient's way through an activation that the next operation goes on its own way.
#[derive(Clone, Copy)]
struct Mask {
    value: usize,
    activation: Activation,
}

/// A backward pass that is under way.
struct Pass<'a> {
    given: Given<'a>,
    operations: &'a [Back],
    /// What the loss gave for a value, where it is the first gradient of it: it lies in a slot's stead.
    seeds: Vec<Option<Tensor>>,
    /// All gradients of parameters, and where each operation's begin.
    parameters: Tensor,
    starts: Vec<usize>,
    masked: Option<Mask>,
}

/// The gradients of all parameters that are trained, and of the images where that is asked for. `seeds` has the loss's gradient of
/// each value that is shown; `None` stands for zeros.
pub(super) fn backward(
    given: Given<'_>,
    seeds: Vec<Option<Tensor>>,
) -> Result<(Found, Option<Tensor>)> {
    let operations = &given.plan.operations[..];
    let (starts, len) = starts(given, operations);
    let parameters = unwritten(given.gpu, &[len], false)?;
    // Each slot is an operation's.
    let slots = operations.len();
    let mut pass =
        Pass { given, operations, seeds: vec![None; slots], parameters, starts, masked: None };
    let seeds = seeds.into_iter().map(|seed| seed.map(contiguous).transpose());
    let seeds: Vec<Option<Tensor>> = seeds.collect::<Result<_>>()?;
    let mut at = 0;
    while at < operations.len() {
        at += pass.compute(at, &seeds)?;
    }
    let of_images = given.plan.images.map(|slot| -> Result<Tensor> {
        let gradient = unwritten(given.gpu, given.images.dims(), false)?;
        given.gpu.copy(pass.slot(slot)?, Span::of(given.gpu, &gradient)?)?;
        Ok(gradient)
    });
    Ok((pass.found()?, of_images.transpose()?))
}

fn contiguous(seed: Tensor) -> Result<Tensor> {
    aligned(&seed.to_dtype(DType::F32)?)
}

/// The node whose parameters an operation gives the gradients of.
fn node(given: Given<'_>, operation: &Back) -> Option<usize> {
    match *operation {
        Back::Conv { unit, trains: true, .. } | Back::Linear { unit, trains: true, .. } => {
            match given.plan.units.units[unit].work {
                Work::Conv { node, .. } | Work::Linear { node, .. } => Some(node),
                _ => unreachable!("the operation is a convolution's or a linear layer's"),
            }
        }
        Back::Sums { norm, .. } => Some(given.plan.units.norms[norm].node),
        _ => None,
    }
}

/// How many of a node's tensors have gradients: a batch normalisation's statistics have none.
const WITH_GRADIENT: usize = 2;

/// Where each operation's gradients of parameters begin among all, each tensor's at a whole number of 256 bytes, and how many
/// numbers there are.
fn starts(given: Given<'_>, operations: &[Back]) -> (Vec<usize>, usize) {
    let mut len = 0;
    let starts = operations.iter().map(|operation| {
        let start = len;
        if let Some(node) = node(given, operation) {
            let tensors = given.tensors[node].iter().take(WITH_GRADIENT);
            len += tensors.map(|tensor| room(tensor)).sum::<usize>();
        }
        start
    });
    (starts.collect(), len)
}

fn room(tensor: &Tensor) -> usize {
    tensor.elem_count().next_multiple_of(64)
}

/// Whether an operation reads or writes a slot.
fn uses(operation: &Back, slot: usize) -> bool {
    match *operation {
        Back::Seed { to, .. } => to == slot,
        Back::Conv { from, data, .. } => from == slot || data.is_some_and(|data| data.to == slot),
        Back::Mask { slot: masked, .. } => masked == slot,
        Back::Sums { from, .. } => from == slot,
        Back::Norm { from, to, .. }
        | Back::Add { from, to }
        | Back::Copy { from, to }
        | Back::Through { from, to, .. } => from == slot || to == slot,
        Back::Linear { from, to, .. } => from == slot || to == Some(slot),
    }
}

impl<'a> Pass<'a> {
    /// The whole batch's gradient in a slot.
    fn slot(&self, slot: usize) -> Result<Span<'_>> {
        match &self.seeds[slot] {
            Some(seed) => Span::of(self.given.gpu, seed),
            None => {
                let plan = self.given.plan;
                Ok(self.given.memory.place(plan.slot(slot), plan.slot(slot).len))
            }
        }
    }

    /// Where an operation's gradient of a parameter goes: that of a node's first or second tensor.
    fn parameter(&self, at: usize, node: usize, second: bool) -> Result<Span<'_>> {
        let tensors = &self.given.tensors[node];
        let start = self.starts[at] + if second { room(&tensors[0]) } else { 0 };
        let of = &tensors[usize::from(second)];
        Ok(Span::of(self.given.gpu, &self.parameters)?.part(start, of.elem_count()))
    }

    /// Computes an operation and maybe those behind it: how many.
    fn compute(&mut self, at: usize, seeds: &[Option<Tensor>]) -> Result<usize> {
        let Given { gpu, plan, memory, .. } = self.given;
        let given = self.given;
        match self.operations[at] {
            Back::Seed { shown, to, add } => match (&seeds[shown], add) {
                (Some(seed), true) => gpu.add(Span::of(gpu, seed)?, self.slot(to)?)?,
                (Some(seed), false) => self.seeds[to] = Some(seed.clone()),
                (None, true) => {}
                (None, false) => gpu.zero(self.slot(to)?)?,
            },
            Back::Mask { slot, value, activation } => match self.goes_on_with_next(at) {
                true => self.masked = Some(Mask { value, activation }),
                false => gpu.mask(given.value(value)?, activation, self.slot(slot)?)?,
            },
            Back::Conv { unit, from, data, trains, .. } => {
                self.conv(at, unit, from, (data, trains))?;
            }
            Back::Sums { norm, from } => {
                let of = &plan.units.norms[norm];
                let x = given.value(of.value)?;
                let state = memory.norm(norm, given.norm(norm).size.channels);
                let parameters =
                    (self.parameter(at, of.node, false)?, self.parameter(at, of.node, true)?);
                given.norm(norm).parameter_gradients(
                    gpu,
                    (x, state, of.batch),
                    self.behind(x)?,
                    self.slot(from)?,
                    memory.sums(),
                    parameters,
                )?;
            }
            Back::Norm { norm, from, to } => {
                let of = &plan.units.norms[norm];
                let x = given.value(of.value)?;
                let state = memory.norm(norm, given.norm(norm).size.channels);
                let later = self.operations[at + 1..].iter().any(|later| uses(later, from));
                let through = later && self.masked.is_some();
                given.norm(norm).data_gradient(
                    gpu,
                    (x, state, given.parameters(of.node)?),
                    self.behind(x)?,
                    (self.slot(from)?, through),
                    self.slot(to)?,
                )?;
                self.masked = None;
            }
            Back::Add { from, to } => gpu.add(self.slot(from)?, self.slot(to)?)?,
            Back::Copy { from, to } => gpu.copy(self.slot(from)?, self.slot(to)?)?,
            Back::Through { unit, from, to } => return self.through(at, unit, (from, to)),
            Back::Linear { unit, from, to, trains } => {
                let of = &plan.units.units[unit];
                let Work::Linear { node, .. } = of.work else {
                    unreachable!("the operation is a linear layer's")
                };
                let layer = linear(given, of);
                let dy = self.slot(from)?;
                if trains {
                    let x = given.value(of.reads[0].value)?;
                    let parameters =
                        (self.parameter(at, node, false)?, self.parameter(at, node, true)?);
                    layer.weight_gradients(gpu, x, dy, parameters)?;
                }
                if let Some(to) = to {
                    let (weight, _) = linear_weights(given, node)?;
                    layer.data_gradient(gpu, Span::of(gpu, &weight)?, dy, self.slot(to)?)?;
                }
            }
        }
        Ok(1)
    }

    /// The value that the gradient's activation gave, and the activation, where the way through it has been left to this
    /// operation; else `x` stands for a value that is not looked at.
    fn behind<'s>(&'s self, x: Span<'s>) -> Result<(Span<'s>, Activation)> {
        match self.masked {
            Some(Mask { value, activation }) => Ok((self.given.value(value)?, activation)),
            None => Ok((x, Activation::Identity)),
        }
    }

    /// Whether what follows a [`Back::Mask`] goes through the activation on its way.
    fn goes_on_with_next(&self, at: usize) -> bool {
        let Given { plan, memory, .. } = self.given;
        let Back::Mask { slot, value, .. } = self.operations[at] else { return false };
        match self.operations.get(at + 1) {
            Some(&Back::Through { unit, from, .. }) => {
                from == slot && memory.pooled[unit].is_some()
            }
            Some(&Back::Conv { unit, from, .. }) => {
                let own = from == slot && plan.units.units[unit].output == value;
                own && !memory.conv(unit).is_nchw()
            }
            Some(&Back::Sums { norm, from }) => {
                let next = self.operations.get(at + 2);
                let same = |next: &Back| matches!(*next, Back::Norm { norm: of, from: next, .. } if of == norm && next == from);
                from == slot && next.is_some_and(same)
            }
            _ => false,
        }
    }

    /// A convolution's gradients; see [`Back::Conv`].
    fn conv(
        &mut self,
        at: usize,
        index: usize,
        from: usize,
        (data, trains): (Option<Data>, bool),
    ) -> Result<()> {
        let Given { gpu, plan, memory, .. } = self.given;
        let given = self.given;
        let unit = &plan.units.units[index];
        let Work::Conv { node, .. } = unit.work else {
            unreachable!("the operation is a convolution's")
        };
        let (conv, dy) = (memory.conv(index), self.slot(from)?);
        let in_place = data.is_some_and(|data| data.to == from);
        let dz = if memory.pooled.contains(&Some(index)) {
            dy
        } else if !conv.is_nchw() {
            conv.before_activation(gpu, self.behind(dy)?, dy, memory.z())?;
            memory.z()
        } else if in_place {
            gpu.copy(dy, memory.z())?;
            memory.z()
        } else {
            dy
        };
        let columns = memory.columns();
        if trains {
            let x = given.value(unit.reads[0].value)?;
            conv.weight_gradient(gpu, x, dz, columns, self.parameter(at, node, false)?)?;
            if given.tensors[node].len() > 1 {
                conv.bias_gradient(gpu, dz, memory.sums(), self.parameter(at, node, true)?)?;
            }
        }
        if let Some(Data { to, add, .. }) = data {
            let weight = aligned(&given.tensors[node][0])?;
            let to = (self.slot(to)?, add);
            conv.data_gradient(gpu, Span::of(gpu, &weight)?, dz, columns, to)?;
        }
        self.masked = None;
        Ok(())
    }

    /// Through a unit without parameters, and through an activation behind it: how many operations these are.
    fn through(&mut self, at: usize, index: usize, (from, to): (usize, usize)) -> Result<usize> {
        let Given { gpu, plan, memory, .. } = self.given;
        let given = self.given;
        let unit = &plan.units.units[index];
        let size = |value: usize| memory.size(&plan.units.values[value].map);
        let (before, after) = (size(unit.reads[0].value), size(unit.output));
        let (dy, dx) = (self.slot(from)?, self.slot(to)?);
        match unit.work {
            Work::MaxPool { windows, .. } => {
                let winners = memory.winners(index);
                match memory.pooled[index] {
                    Some(conv) => {
                        let (y, activation) = self.behind(given.value(unit.output)?)?;
                        let behind = (y, winners, activation);
                        memory.conv(conv).before_pool(gpu, behind, dy, dx)?;
                    }
                    None => gpu.max_pool_gradient((dy, after), winners, windows, (dx, before))?,
                }
            }
            Work::Subsample => gpu.subsample_gradient((dy, after), (dx, before))?,
            Work::GlobalAverage => gpu.global_average_gradient(dy, (dx, before))?,
            Work::Dropout { share, layer } => {
                let next = match self.operations.get(at + 1) {
                    Some(&Back::Mask { slot, value, activation }) if slot == to => {
                        Some((given.value(value)?, activation))
                    }
                    _ => None,
                };
                dropout(given, share, layer).apply(gpu, dy, dx, next)?;
                self.masked = None;
                return Ok(1 + usize::from(next.is_some()));
            }
            _ => unreachable!("no other unit has a gradient of this kind"),
        }
        self.masked = None;
        Ok(1)
    }

    /// The gradients of the parameters that are trained, of the parameters' shapes.
    fn found(self) -> Result<Found> {
        let mut found = Vec::new();
        for (at, operation) in self.operations.iter().enumerate() {
            let Some(node) = node(self.given, operation) else { continue };
            let mut start = self.starts[at];
            for tensor in self.given.tensors[node].iter().take(WITH_GRADIENT) {
                if tensor.track_op() {
                    let gradient = self.parameters.narrow(0, start, tensor.elem_count())?;
                    found.push((tensor.clone(), gradient.reshape(tensor.shape())?));
                }
                start += room(tensor);
            }
        }
        Ok(found)
    }
}
