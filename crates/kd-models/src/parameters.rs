//! Weights in memory: those that are trained and those that are not.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;

use crate::graph::TensorSpec;
use crate::{Error, Result};

/// Weights that are trained, by name and in the names' order, and beside them the running statistics of batch
/// normalisation, which no gradient reaches and which training changes in place.
pub type Parameters = BTreeMap<String, Var>;

/// Weights and running statistics that are not trained, by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Gives a network weights that are trained: gradients reach `parameters`.
pub fn var_builder(parameters: &Parameters) -> VarBuilder<'static> {
    builder(parameters.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect())
}

/// Gives a network weights that are trained, except for those for whose name `is_frozen` is true: no gradient reaches
/// them.
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

/// Gives a network weights that are not trained: a teacher's. No gradient reaches `tensors`, and a forward pass keeps
/// nothing for one.
pub fn frozen(tensors: &Tensors) -> VarBuilder<'static> {
    builder(tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect())
}

fn builder(tensors: HashMap<String, Tensor>) -> VarBuilder<'static> {
    let device = tensors.values().next().map_or(Device::Cpu, |tensor| tensor.device().clone());
    VarBuilder::from_tensors(tensors, DType::F32, &device)
}

/// The tensor that a node of the network `network` needs.
pub(crate) fn find<'a>(network: &str, spec: &TensorSpec, from: &'a Tensors) -> Result<&'a Tensor> {
    let found = match from.get(&spec.name) {
        None => "there is none".to_string(),
        Some(tensor) if tensor.dims() != spec.shape => format!("its shape is {:?}", tensor.dims()),
        Some(tensor) if tensor.dtype() != DType::F32 => format!("it is {:?}", tensor.dtype()),
        Some(tensor) => return Ok(tensor),
    };
    Err(Error::WrongTensor {
        network: network.into(),
        name: spec.name.clone(),
        expected: spec.shape.clone(),
        found,
    })
}
