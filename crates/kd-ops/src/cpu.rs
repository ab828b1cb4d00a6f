//! What the CPU side of every operation shares: reading the numbers of a tensor, making a tensor of
//! numbers, and scratch memory.

use std::cell::RefCell;

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};

/// The numbers of a contiguous f32 argument of the operation `op`.
pub(crate) fn slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("{op}: expected f32, got {:?}", storage_dtype(storage))
    };
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&values[from..to]),
        None => bail!("{op}: the argument of shape {:?} is not contiguous", layout.shape()),
    }
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Runs `body` on the numbers of a CPU tensor; a strided tensor is copied first.
pub(crate) fn with_slice<T>(
    op: &str,
    tensor: &Tensor,
    body: impl FnOnce(&[f32]) -> Result<T>,
) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => body(slice(op, cpu, layout)?),
        _ => bail!("{op}: the tensor is not on the CPU"),
    }
}

/// A tensor on the CPU, outside of any graph, that takes over `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &candle_core::Device::Cpu)
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with `len` numbers of this thread's scratch memory, whose contents are arbitrary.
///
/// The memory stays with the thread: a fresh allocation of some megabytes costs a page fault
/// every 4 KiB, more than the arithmetic done in it.
pub fn with_scratch<T>(len: usize, body: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with(|scratch| {
        // Taken out while in use: a nested call (work stealing) then gets memory of its own.
        let mut memory = scratch.take();
        if memory.len() < len {
            // The old one goes first, or there would be both for a moment.
            drop(std::mem::take(&mut memory));
            memory = vec![0.0; len];
        }
        let result = body(&mut memory[..len]);
        if scratch.borrow().len() < memory.len() {
            scratch.replace(memory);
        }
        result
    })
}
