//! Many tensors in one launch: parameters and their gradients, whose addresses are passed with the launch itself.
//!
//! Optimisers and gradient norms touch every parameter of a network, most of them small: a launch for each would cost
//! the host more time than the arithmetic takes the GPU.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr};
use candle_core::{CudaDevice, Result, Tensor, Var, bail};

use super::{hold, int};

/// The name under which the driver keeps the kernels of kernels/optimizer.cu, which all take such a table.
pub(super) const FILE: &str = "kd-ops optimizer";

/// Tensors of one launch, as in kernels/optimizer.cu.
pub(super) const TENSORS: usize = 96;
/// Elements that one block works on, as in kernels/optimizer.cu.
const CHUNK: usize = 1024;
/// Threads of a block.
pub(super) const THREADS: u32 = 256;

/// Whether the parameters lie on a GPU, where all of a network's do or none; the first one tells.
pub(crate) fn are_on_gpu(parameters: &BTreeMap<String, Var>) -> bool {
    parameters.values().next().is_some_and(|parameter| parameter.device().is_cuda())
}

/// A parameter with its gradient.
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) parameter: &'a Tensor,
    /// Contiguous, with as many elements as the parameter.
    pub(super) grad: Tensor,
}

/// The parameters that have a gradient and at least one element, in the order of their names; `op` names the operation
/// in errors.
///
/// # Errors
/// When a gradient has another number of elements than its parameter.
pub(super) fn pairs<'a>(
    op: &str,
    parameters: &'a BTreeMap<String, Var>,
    grads: &GradStore,
) -> Result<Vec<Pair<'a>>> {
    let mut pairs = Vec::with_capacity(parameters.len());
    for (name, parameter) in parameters {
        let Some(grad) = grads.get(parameter.as_tensor()) else { continue };
        if grad.elem_count() != parameter.elem_count() {
            let (found, expected) = (grad.shape(), parameter.shape());
            bail!("{op}: the gradient of {name} has shape {found:?}, expected {expected:?}");
        }
        if grad.elem_count() > 0 {
            let parameter = parameter.as_tensor();
            pairs.push(Pair { name, parameter, grad: grad.contiguous()? });
        }
    }
    Ok(pairs)
}

/// Where a contiguous f32 tensor starts in the GPU's memory.
pub(super) fn address(op: &str, device: &CudaDevice, tensor: &Tensor) -> Result<u64> {
    let held = hold(tensor);
    let values = held.values::<f32>(op)?;
    let stream = device.cuda_stream();
    let (address, _) = values.device_ptr(&stream);
    Ok(address)
}

/// `struct Tensors` of kernels/optimizer.cu, which says what its fields are.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct TensorTable {
    parameter: [u64; TENSORS],
    grad: [u64; TENSORS],
    start: [u64; TENSORS],
    size: [u32; TENSORS],
    first_chunk: [u32; TENSORS + 1],
    count: u32,
}

// SAFETY: `repr(C)` and plain numbers, in the kernel's order; addresses are 64 bits wide on every GPU.
unsafe impl DeviceRepr for TensorTable {}

impl TensorTable {
    /// The tables of as many launches as `pairs` need. `start` gives the place of a parameter's first element among those
    /// of all parameters, which is where the optimiser's state of it begins.
    pub(super) fn of(
        op: &str,
        device: &CudaDevice,
        pairs: &[Pair<'_>],
        start: impl Fn(&str) -> usize,
    ) -> Result<Vec<Self>> {
        let table = |pairs: &[Pair<'_>]| {
            let mut table = Self {
                parameter: [0; TENSORS],
                grad: [0; TENSORS],
                start: [0; TENSORS],
                size: [0; TENSORS],
                first_chunk: [0; TENSORS + 1],
                count: pairs.len() as u32,
            };
            for (i, Pair { name, parameter, grad }) in pairs.iter().enumerate() {
                let size = int(parameter.elem_count())? as u32;
                table.parameter[i] = address(op, device, parameter)?;
                table.grad[i] = address(op, device, grad)?;
                table.start[i] = start(name) as u64;
                table.size[i] = size;
                table.first_chunk[i + 1] = table.first_chunk[i] + size.div_ceil(CHUNK as u32);
            }
            Ok(table)
        };
        pairs.chunks(TENSORS).map(table).collect()
    }

    /// The tensors in it.
    pub(super) fn tensors(&self) -> usize {
        self.count as usize
    }

    /// The blocks that a launch needs, one for each chunk of each tensor.
    pub(super) fn chunks(&self) -> usize {
        self.first_chunk[self.tensors()] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::ptx;
    use super::*;

    /// The kernels' PTX says how large a table they take.
    #[test]
    fn the_table_has_the_size_that_the_kernels_expect() {
        let size = size_of::<TensorTable>();
        for kernel in ["adam", "sgd", "grad_norm_chunks", "grad_norm_tensors", "grad_norm_clip"] {
            assert!(ptx::OPTIMIZER.contains(&format!("{kernel}_param_0[{size}]")), "{kernel}");
        }
    }
}
