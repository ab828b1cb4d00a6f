//! Figures of a step on a GPU.

use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr, PushKernelArg};
use candle_core::{DType, Result, Tensor, bail};

use super::{device, hold, int, kernel, launch, memory, ptx};

const NAME: &str = "figures";
const FILE: &str = "kd-ops figures";

/// Tensors of one launch, as in kernels/figures.cu.
const PIECES: usize = 32;

/// `struct Pieces` of kernels/figures.cu, which says what its fields are.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pieces {
    from: [u64; PIECES],
    first: [u32; PIECES + 1],
    wide: u32,
    count: u32,
}

// SAFETY: `repr(C)` and plain numbers, in the kernel's order; addresses are 64 bits wide on every GPU.
unsafe impl DeviceRepr for Pieces {}

/// Whether one launch joins these tensors.
pub(crate) fn takes(tensors: &[Tensor]) -> bool {
    let known = |tensor: &Tensor| matches!(tensor.dtype(), DType::F32 | DType::F64);
    let on_gpu = |tensor: &Tensor| tensor.device().is_cuda() && known(tensor);
    (1..=PIECES).contains(&tensors.len()) && tensors.iter().all(on_gpu)
}

/// As [`crate::figures::join_f64`], of tensors that [`takes`] says.
pub(crate) fn join_f64(tensors: &[Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else { bail!("{NAME}: expected a tensor") };
    let device = device(NAME, first)?;
    let stream = device.cuda_stream();
    // They live until the kernel has been launched.
    let tensors = tensors.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let mut pieces =
        Pieces { from: [0; PIECES], first: [0; PIECES + 1], wide: 0, count: tensors.len() as u32 };
    let mut len = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        let held = hold(tensor);
        pieces.from[i] = match tensor.dtype() {
            DType::F64 => {
                pieces.wide |= 1 << i;
                held.values::<f64>(NAME)?.device_ptr(&stream).0
            }
            _ => held.values::<f32>(NAME)?.device_ptr(&stream).0,
        };
        len += tensor.elem_count();
        pieces.first[i + 1] = int(len)? as u32;
    }
    let mut joined = memory::<f64>(&device, len)?;
    let function = kernel(&device, FILE, "join_f64", ptx::FIGURES)?;
    let mut args = function.builder();
    args.arg(&pieces).arg(&mut joined);
    // SAFETY: each piece has the numbers that `first` says, the result all of them.
    unsafe { launch(args, (len.div_ceil(256), 1), (256, 1)) }?;
    Ok(super::tensor(joined, &device, len))
}

/// How many entries of two u32 lists are the same, an f32 scalar.
pub(crate) fn count_equal(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("{NAME}: expected lists of the same length, found {:?} and {:?}", a.dims(), b.dims())
    }
    let device = device(NAME, a)?;
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let mut equal = memory::<f32>(&device, 1)?;
    {
        let (a, b) = (hold(&a), hold(&b));
        let (a, b) = (a.values::<u32>(NAME)?, b.values::<u32>(NAME)?);
        let count = int(a.len())? as u32;
        let function = kernel(&device, FILE, "count_equal", ptx::FIGURES)?;
        let mut args = function.builder();
        args.arg(&a).arg(&b).arg(&count).arg(&mut equal);
        // SAFETY: both lists have `count` entries; one block.
        unsafe { launch(args, (1, 1), (256, 1)) }?;
    }
    Ok(super::tensor(equal, &device, ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's PTX says how large its table is.
    #[test]
    fn the_table_has_the_size_that_the_kernel_expects() {
        let parameter = format!("join_f64_param_0[{}]", size_of::<Pieces>());
        assert!(ptx::FIGURES.contains(&parameter));
    }
}
