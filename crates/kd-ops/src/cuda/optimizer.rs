//! Optimisers and gradient norms on a GPU: many tensors in one launch, their addresses passed with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, DType, Device, Result, Tensor, Var, bail};

use super::graph::StepSize;
use super::{device, graph, hold, int, kernel, launch, memory, ptx};
use crate::sgd::SgdConfig;

const FILE: &str = "kd-ops optimizer";

/// Tensors of a launch, and elements of a block, as in kernels/optimizer.cu.
const TENSORS: usize = 96;
const CHUNK: usize = 4096;
const THREADS: u32 = 256;

/// Whether to take a step on a GPU.
pub(crate) fn are_on_gpu(parameters: &BTreeMap<String, Var>) -> bool {
    parameters.values().next().is_some_and(|parameter| parameter.device().is_cuda())
}

/// `struct Tensors` of kernels/optimizer.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tensors {
    parameter: [u64; TENSORS],
    grad: [u64; TENSORS],
    start: [u64; TENSORS],
    size: [u32; TENSORS],
    first_chunk: [u32; TENSORS + 1],
    count: u32,
}

// SAFETY: `repr(C)` and plain numbers, in the kernel's order; addresses are 64 bits wide on every GPU.
unsafe impl DeviceRepr for Tensors {}

/// A parameter with its gradient.
struct Pair<'a> {
    name: &'a str,
    parameter: &'a Tensor,
    /// Contiguous.
    grad: Tensor,
}

/// The parameters that have a gradient, in the order of their names.
fn pairs<'a>(
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
fn address(op: &str, device: &CudaDevice, tensor: &Tensor) -> Result<u64> {
    let held = hold(tensor);
    let values = held.values::<f32>(op)?;
    let stream = device.cuda_stream();
    let (address, _) = values.device_ptr(&stream);
    Ok(address)
}

/// Launches' tables; `start` says where a parameter's place among all is.
fn tables(
    op: &str,
    device: &CudaDevice,
    pairs: &[Pair<'_>],
    start: impl Fn(&str) -> usize,
) -> Result<Vec<Tensors>> {
    let table = |pairs: &[Pair<'_>]| {
        let mut table = Tensors {
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

impl Tensors {
    fn chunks(&self) -> usize {
        self.first_chunk[self.count as usize] as usize
    }
}

/// What an optimiser remembers of the parameters, in the GPU's memory; empty before its first step there.
///
/// A clone shares the memory until one of the two takes a step; the step of a captured graph counts as none, and changes both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Option<Arc<Remembered>>);

/// Two are equal when they are the same: what is on the GPU is not read for a comparison.
impl PartialEq for Memory {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Remembered {
    /// Where each parameter's elements lie in the tensors below, and how many they are.
    places: BTreeMap<String, (usize, usize)>,
    /// The parameters that have had a gradient.
    seen: BTreeSet<String>,
    /// f32, all parameters one behind the other; Adam has two of these, SGD one or none.
    kinds: Vec<Tensor>,
}

impl Memory {
    /// From what is remembered on the host; a parameter without that starts with zeros.
    pub(crate) fn new<'a>(
        op: &str,
        parameters: &BTreeMap<String, Var>,
        kinds: usize,
        saved: impl Fn(&str) -> Option<Vec<&'a [f32]>>,
    ) -> Result<Self> {
        let Some(first) = parameters.values().next() else { return Ok(Self(None)) };
        let (mut places, mut seen, mut start) = (BTreeMap::new(), BTreeSet::new(), 0);
        let mut values = vec![Vec::new(); kinds];
        for (name, parameter) in parameters {
            let len = parameter.elem_count();
            places.insert(name.clone(), (start, len));
            start += len;
            let saved = saved(name).filter(|saved| saved.iter().any(|values| !values.is_empty()));
            for (kind, values) in values.iter_mut().enumerate() {
                match saved.as_ref().and_then(|saved| saved.get(kind)) {
                    Some(saved) if saved.len() != len => bail!(
                        "{op}: what was saved of {name} has {} elements, the parameter has {len}",
                        saved.len()
                    ),
                    Some(saved) => values.extend_from_slice(saved),
                    None => values.resize(start, 0.0),
                }
            }
            if saved.is_some() {
                seen.insert(name.clone());
            }
        }
        let kinds =
            values.into_iter().map(|values| Tensor::from_vec(values, start, first.device()));
        Ok(Self(Some(Arc::new(Remembered { places, seen, kinds: kinds.collect::<Result<_>>()? }))))
    }

    /// Whether it has `kinds` numbers for each element of these parameters.
    pub(crate) fn fits(&self, parameters: &BTreeMap<String, Var>, kinds: usize) -> bool {
        let Some(remembered) = self.0.as_ref().filter(|r| r.kinds.len() == kinds) else {
            return false;
        };
        let sizes = parameters.iter().map(|(name, parameter)| (name, parameter.elem_count()));
        remembered.places.iter().map(|(name, &(_, len))| (name, len)).eq(sizes)
    }

    /// What is remembered of each parameter that has had a gradient; nothing where there is none.
    pub(crate) fn fetch<const KINDS: usize>(&self) -> Result<Vec<(String, [Vec<f32>; KINDS])>> {
        let Some(remembered) = self.0.as_ref().filter(|r| r.kinds.len() == KINDS) else {
            return Ok(Vec::new());
        };
        let kinds: Vec<Vec<f32>> =
            remembered.kinds.iter().map(|kind| kind.to_vec1()).collect::<Result<_>>()?;
        let seen = remembered.places.iter().filter(|(name, _)| remembered.seen.contains(*name));
        let of = |(name, &(start, len)): (&String, &(usize, usize))| {
            let values = std::array::from_fn(|kind| kinds[kind][start..start + len].to_vec());
            (name.clone(), values)
        };
        Ok(seen.map(of).collect())
    }

    /// To be changed: a memory of its own where a clone shares it.
    fn own(&mut self) -> Result<Option<&mut Remembered>> {
        if let Some(shared) = &mut self.0
            && Arc::get_mut(shared).is_none()
        {
            let kinds = shared.kinds.iter().map(Tensor::copy).collect::<Result<_>>()?;
            let (places, seen) = (shared.places.clone(), shared.seen.clone());
            *shared = Arc::new(Remembered { places, seen, kinds });
        }
        Ok(self.0.as_mut().and_then(Arc::get_mut))
    }

    /// A step of Adam; `scalars` are the kernel's first, in its order.
    pub(crate) fn adam(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        grads: &GradStore,
        scalars: [f32; 6],
        StepSize { step_size, root }: StepSize,
    ) -> Result<()> {
        let pairs = pairs("adam", parameters, grads)?;
        let Some(remembered) = self.own()? else { return Ok(()) };
        let [first, second] = remembered.kinds.as_slice() else {
            bail!("adam: expected two moments")
        };
        let Some(pair) = pairs.first() else { return Ok(()) };
        let device = device("adam", pair.parameter)?;
        let (first, second) = (address("adam", &device, first)?, address("adam", &device, second)?);
        let now = graph::numbers_of_captured_step();
        let start = |name: &str| remembered.places.get(name).map_or(0, |place| place.0);
        for table in tables("adam", &device, &pairs, start)? {
            let function = kernel(&device, FILE, "adam", ptx::OPTIMIZER)?;
            let mut args = function.builder();
            args.arg(&table).arg(&first).arg(&second);
            for scalar in &scalars {
                args.arg(scalar);
            }
            args.arg(&step_size).arg(&root).arg(&now);
            // SAFETY: the table's addresses are those of contiguous f32 tensors of the sizes given; `fits` has
            // seen to it that the moments have a place for each parameter. Nothing on the host reads what is
            // written, and what reads it on the GPU comes later on the stream.
            unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
        }
        remembered.seen.extend(pairs.iter().map(|pair| pair.name.to_string()));
        Ok(())
    }

    /// A step of SGD.
    pub(crate) fn sgd(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        grads: &GradStore,
        config: &SgdConfig,
    ) -> Result<()> {
        let pairs = pairs("sgd", parameters, grads)?;
        let Some(remembered) = self.own()? else { return Ok(()) };
        let Some(pair) = pairs.first() else { return Ok(()) };
        let device = device("sgd", pair.parameter)?;
        let sums = match remembered.kinds.first() {
            Some(sums) if config.momentum > 0.0 => address("sgd", &device, sums)?,
            None if config.momentum > 0.0 => bail!("sgd: expected a sum of gradients"),
            _ => 0,
        };
        let (lr, momentum) = (config.lr as f32, config.momentum as f32);
        let (nesterov, weight_decay) = (i32::from(config.nesterov), config.weight_decay as f32);
        let now = graph::numbers_of_captured_step();
        let start = |name: &str| remembered.places.get(name).map_or(0, |place| place.0);
        for table in tables("sgd", &device, &pairs, start)? {
            let function = kernel(&device, FILE, "sgd", ptx::OPTIMIZER)?;
            let mut args = function.builder();
            args.arg(&table).arg(&sums).arg(&lr).arg(&momentum).arg(&nesterov).arg(&weight_decay);
            args.arg(&now);
            // SAFETY: as for Adam; a null pointer stands for no sums.
            unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
        }
        if sums != 0 {
            remembered.seen.extend(pairs.iter().map(|pair| pair.name.to_string()));
        }
        Ok(())
    }
}

/// The norm of each gradient on the GPU, f64, in the order of the names, and the launches' tables.
fn norms_on_gpu(pairs: &[Pair<'_>]) -> Result<Option<(CudaDevice, Tensor, Vec<Tensors>)>> {
    const NAME: &str = "grad_norm";
    let Some(pair) = pairs.first() else { return Ok(None) };
    let device = device(NAME, pair.parameter)?;
    let tables = tables(NAME, &device, pairs, |_| 0)?;
    let mut norms = memory::<f64>(&device, pairs.len())?;
    for (i, table) in tables.iter().enumerate() {
        let mut squares = memory::<f64>(&device, table.chunks())?;
        let function = kernel(&device, FILE, "grad_norm_chunks", ptx::OPTIMIZER)?;
        let mut args = function.builder();
        args.arg(table).arg(&mut squares);
        // SAFETY: the table's addresses are those of contiguous f32 tensors of the sizes given; a number a chunk.
        unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
        let count = table.count as usize;
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
    let pairs = pairs("grad_norm", parameters, grads)?;
    let Some((_, norms, _)) = norms_on_gpu(&pairs)? else { return Ok(BTreeMap::new()) };
    let names = pairs.iter().map(|pair| pair.name.to_string());
    Ok(names.zip(norms.to_vec1::<f64>()?).collect())
}

/// As [`crate::clip_grad_norm_on_device`].
pub(crate) fn clip_grad_norm(
    parameters: &BTreeMap<String, Var>,
    grads: &mut GradStore,
    max_norm: f64,
) -> Result<Tensor> {
    const NAME: &str = "grad_norm";
    // Scaled in place: a strided gradient's copy is put in its stead first.
    for parameter in parameters.values() {
        if let Some(grad) = grads.remove(parameter.as_tensor()) {
            grads.insert(parameter.as_tensor(), grad.contiguous()?);
        }
    }
    let pairs = pairs(NAME, parameters, grads)?;
    let Some((device, norms, tables)) = norms_on_gpu(&pairs)? else {
        let device = parameters.values().next().map_or(Device::Cpu, |p| p.device().clone());
        return Tensor::zeros((), DType::F64, &device);
    };
    let mut total = memory::<f64>(&device, 1)?;
    let norms = hold(&norms);
    let norms = norms.values::<f64>(NAME)?;
    let count = int(pairs.len())?;
    let function = kernel(&device, FILE, "grad_norm_total", ptx::OPTIMIZER)?;
    let mut args = function.builder();
    args.arg(&norms).arg(&count).arg(&mut total);
    // SAFETY: `norms` has `count` numbers; one warp.
    unsafe { launch(args, (1, 1), (32, 1)) }?;
    for table in &tables {
        let function = kernel(&device, FILE, "grad_norm_clip", ptx::OPTIMIZER)?;
        let mut args = function.builder();
        args.arg(table).arg(&total).arg(&max_norm);
        // SAFETY: as in `norms_on_gpu`; the gradients are borrowed mutably.
        unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
    }
    Ok(super::tensor(total, &device, ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels' PTX says how large a table they take.
    #[test]
    fn the_table_has_the_size_that_the_kernels_expect() {
        let size = size_of::<Tensors>();
        for kernel in ["adam", "sgd", "grad_norm_chunks", "grad_norm_tensors", "grad_norm_clip"] {
            assert!(ptx::OPTIMIZER.contains(&format!("{kernel}_param_0[{size}]")), "{kernel}");
        }
    }
}
