//! Operations on a whole batch of maps at places that the caller chose: what a planned network is made of on a GPU.
//!
//! A *map* of the batch is f32 `[images, channels, height, width]`, without gaps, at a [`Span`] of an [`Arena`] or of a tensor. Nothing
//! here allocates, waits for the GPU or copies from the host, so all of it can be captured as a graph once it has run. Every
//! operation checks that its spans are as long as its sizes ask; what lies where, and what may be written over, is the caller's
//! plan.

mod conv;
mod gemm;
mod linear;
mod maps;
mod norm;

use std::marker::PhantomData;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CudaDevice, Device, Result, Tensor, bail};

use super::memory;
use super::products::Products;
use super::tensor_table::address;
use crate::nhwc::Activation;

pub use conv::Conv;
pub use linear::Linear;
pub use maps::{DropoutLayer, Size};
pub use norm::{Input, Norm, NormState, Parameters};

/// The GPU that operations run on, and the library that computes its convolutions.
#[derive(Clone, Debug)]
pub struct Gpu {
    device: CudaDevice,
    products: Products,
}

impl Gpu {
    /// The GPU that a device is.
    ///
    /// # Errors
    /// When the device is none, or the environment variable `KD_CONVOLUTIONS` names no library that is there.
    pub fn of(device: &Device) -> Result<Self> {
        match device {
            Device::Cuda(device) => {
                Ok(Self { device: device.clone(), products: Products::chosen()? })
            }
            _ => bail!("a planned pass on a GPU: expected all tensors on a GPU, found {device:?}"),
        }
    }

    /// The GPU as candle's device.
    pub fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    /// Whether this thread is capturing a step as a graph: no memory that outlives the step may be taken then.
    pub fn captures(&self) -> bool {
        super::graph::is_capturing()
    }

    /// Whether a tensor lies on this GPU.
    pub fn holds(&self, tensor: &Tensor) -> bool {
        matches!(tensor.device(), Device::Cuda(device) if device.id() == self.device.id())
    }
}

/// Memory of a plan: f32 numbers on the GPU, arbitrary at first.
#[derive(Debug)]
pub struct Arena {
    /// Freed when the arena is dropped.
    _memory: CudaSlice<f32>,
    address: u64,
    len: usize,
}

impl Arena {
    /// Memory for `len` numbers; it begins where 256 bytes do.
    ///
    /// # Errors
    /// When the GPU has too little.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let memory = memory::<f32>(&gpu.device, len.max(1))?;
        let address = memory.device_ptr(&gpu.device.cuda_stream()).0;
        Ok(Self { _memory: memory, address, len })
    }

    /// `len` of its numbers, from number `offset` on.
    ///
    /// # Panics
    /// When it has not so many.
    pub fn span(&self, offset: usize, len: usize) -> Span<'_> {
        assert!(offset + len <= self.len, "a span of {len} numbers from {offset} of {}", self.len);
        Span {
            address: self.address + (offset * size_of::<f32>()) as u64,
            len,
            memory: PhantomData,
        }
    }
}

/// f32 numbers in a GPU's memory. It is no borrow of what is written: the GPU does one operation after the other, and what each
/// of them writes is the caller's plan.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    address: u64,
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> Span<'a> {
    /// The numbers of a contiguous f32 tensor on `gpu`.
    ///
    /// # Errors
    /// When the tensor is of another kind, or begins where 16 bytes don't.
    pub fn of(gpu: &Gpu, tensor: &'a Tensor) -> Result<Self> {
        if !gpu.holds(tensor) {
            bail!(
                "a planned pass: expected all tensors on the GPU of the images, found {:?}",
                tensor.device()
            )
        }
        let address = address("a planned pass", &gpu.device, tensor)?;
        if !address.is_multiple_of(16) {
            bail!(
                "a planned pass: a tensor of shape {:?} begins between words of 16 bytes",
                tensor.shape()
            )
        }
        Ok(Self { address, len: tensor.elem_count(), memory: PhantomData })
    }

    /// How many numbers the span has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` of the numbers, from number `offset` on.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn part(&self, offset: usize, len: usize) -> Self {
        assert!(offset + len <= self.len, "{len} numbers from {offset} of {}", self.len);
        Self {
            address: self.address + (offset * size_of::<f32>()) as u64,
            len,
            memory: self.memory,
        }
    }

    /// Whether both begin at the same number.
    pub fn begins_like(&self, other: &Self) -> bool {
        self.address == other.address
    }

    /// The address, where there are at least `len` numbers.
    fn at(&self, what: &str, len: usize) -> Result<u64> {
        match self.len >= len {
            true => Ok(self.address),
            false => bail!("{what}: expected memory of {len} numbers, found {}", self.len),
        }
    }
}

/// A tensor of f32 on the GPU whose contents are arbitrary, for what a pass hands out; a variable where `variable`.
///
/// # Errors
/// When the GPU has too little memory.
pub fn unwritten(gpu: &Gpu, shape: &[usize], variable: bool) -> Result<Tensor> {
    let values = memory::<f32>(&gpu.device, shape.iter().product::<usize>().max(1))?;
    let storage = candle_core::Storage::Cuda(super::storage(values, &gpu.device));
    let none = candle_core::op::BackpropOp::none();
    Ok(Tensor::from_storage(storage, shape, none, variable))
}

/// A contiguous tensor that begins where 16 bytes do: the same, or a copy.
///
/// # Errors
/// When it can't be copied.
pub fn aligned(tensor: &Tensor) -> Result<Tensor> {
    super::conv::aligned(tensor)
}

/// An activation as kernels take it.
fn code(activation: Activation) -> i32 {
    match activation {
        Activation::Identity => 0,
        Activation::Relu => 1,
        Activation::Relu6 => 2,
    }
}

/// The address of what may be missing: null then.
fn address_or_null(span: Option<Span<'_>>, what: &str, len: usize) -> Result<u64> {
    span.map_or(Ok(0), |span| span.at(what, len))
}
