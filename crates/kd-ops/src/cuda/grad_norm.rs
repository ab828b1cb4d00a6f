//! Norms of gradients on a GPU, and clipping by the norm of all of them together.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CudaDevice, DType, Device, Result, Tensor, Var};

use super::tensor_table::{FILE, Pair, TENSORS, THREADS, TensorTable, pairs};
use super::{device, hold, int, kernel, launch, memory, ptx};

const NAME: &str = "grad_norm";

/// The norm of each gradient, f64 on the GPU in the order of `pairs`, and the tables of the launches that computed them;
/// nothing where there is no gradient.
fn norms_on_gpu(pairs: &[Pair<'_>]) -> Result<Option<(CudaDevice, Tensor, Vec<TensorTable>)>> {
    let Some(pair) = pairs.first() else { return Ok(None) };
    let device = device(NAME, pair.parameter)?;
    let tables = TensorTable::of(NAME, &device, pairs, |_| 0)?;
    let mut norms = memory::<f64>(&device, pairs.len())?;
    for (i, table) in tables.iter().enumerate() {
        let mut squares = memory::<f64>(&device, table.chunks())?;
        let function = kernel(&device, FILE, "grad_norm_chunks", ptx::OPTIMIZER)?;
        let mut args = function.builder();
        args.arg(table).arg(&mut squares);
        // SAFETY: the table's addresses are those of contiguous f32 tensors of the sizes given; a number a chunk.
        unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
        let count = table.tensors();
        let mut of_table = norms.slice_mut(i * TENSORS..i * TENSORS + count);
        let function = kernel(&device, FILE, "grad_norm_tensors", ptx::OPTIMIZER)?;
        let mut args = function.builder();
        args.arg(table).arg(&squares).arg(&mut of_table);
        // SAFETY: as above; a warp a tensor.
        unsafe { launch(args, (count, 1), (32, 1)) }?;
    }
    Ok(Some((device.clone(), super::tensor(norms, &device, pairs.len()), tables)))
}

/// As [`crate::grad_norms`]; it waits for the GPU once.
pub(crate) fn grad_norms(
    parameters: &BTreeMap<String, Var>,
    grads: &GradStore,
) -> Result<BTreeMap<String, f64>> {
    let pairs = pairs(NAME, parameters, grads)?;
    let Some((_, norms, _)) = norms_on_gpu(&pairs)? else { return Ok(BTreeMap::new()) };
    let names = pairs.iter().map(|pair| pair.name.to_string());
    Ok(names.zip(norms.to_vec1::<f64>()?).collect())
}

/// As [`crate::clip_grad_norm_on_device`]: names, norms and total norm, the fields of its result.
pub(crate) fn clip_grad_norm(
    parameters: &BTreeMap<String, Var>,
    grads: &mut GradStore,
    max_norm: f64,
) -> Result<(Vec<String>, Tensor, Tensor)> {
    // Scaled in place: a strided gradient's copy is put in its stead first.
    for parameter in parameters.values() {
        if let Some(grad) = grads.remove(parameter.as_tensor()) {
            grads.insert(parameter.as_tensor(), grad.contiguous()?);
        }
    }
    let pairs = pairs(NAME, parameters, grads)?;
    let Some((device, each, tables)) = norms_on_gpu(&pairs)? else {
        let device = parameters.values().next().map_or(Device::Cpu, |p| p.device().clone());
        let each = Tensor::zeros(0, DType::F64, &device)?;
        return Ok((Vec::new(), each, Tensor::zeros((), DType::F64, &device)?));
    };
    let mut total = memory::<f64>(&device, 1)?;
    let count = int(pairs.len())?;
    {
        let held = hold(&each);
        let norms = held.values::<f64>(NAME)?;
        let function = kernel(&device, FILE, "grad_norm_total", ptx::OPTIMIZER)?;
        let mut args = function.builder();
        args.arg(&norms).arg(&count).arg(&mut total);
        // SAFETY: `norms` has `count` numbers; one warp.
        unsafe { launch(args, (1, 1), (32, 1)) }?;
    }
    // An infinite norm scales nothing.
    for table in tables.iter().filter(|_| max_norm.is_finite()) {
        let function = kernel(&device, FILE, "grad_norm_clip", ptx::OPTIMIZER)?;
        let mut args = function.builder();
        args.arg(table).arg(&total).arg(&max_norm);
        // SAFETY: as in `norms_on_gpu`; the gradients are borrowed mutably.
        unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
    }
    let names = pairs.iter().map(|pair| pair.name.to_string()).collect();
    Ok((names, each, super::tensor(total, &device, ())))
}
