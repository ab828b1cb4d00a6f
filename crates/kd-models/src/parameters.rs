//! Weights in memory: those that train and those that don't.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;

/// Weights that train, by name and in the names' order, and beside them the running statistics of
/// batch normalisation, which no gradient reaches and which training changes in place.
pub type Parameters = BTreeMap<String, Var>;

/// Gives a network weights that train: gradients reach `parameters`.
pub fn var_builder(parameters: &Parameters) -> VarBuilder<'static> {
    builder(parameters.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect())
}

/// The same, but no gradient reaches those for whose name `is_frozen` is true.
pub fn partly_frozen(
    parameters: &Parameters,
    is_frozen: impl Fn(&str) -> bool,
) -> VarBuilder<'static> {
    let tensor = |(name, var): (&String, &Var)| {
        let tensor = var.as_tensor();
        (name.clone(), if is_frozen(name) { tensor.detach() } else { tensor.clone() })
    };
    builder(parameters.iter().map(tensor).collect())
}

/// Gives a network weights that don't train: a teacher's. No gradient reaches `tensors`, and a
/// forward pass keeps nothing for one.
pub fn frozen(tensors: &BTreeMap<String, Tensor>) -> VarBuilder<'static> {
    builder(tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect())
}

fn builder(tensors: HashMap<String, Tensor>) -> VarBuilder<'static> {
    let device = tensors.values().next().map_or(Device::Cpu, |tensor| tensor.device().clone());
    VarBuilder::from_tensors(tensors, DType::F32, &device)
}
