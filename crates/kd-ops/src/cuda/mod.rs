//! NVIDIA GPUs (feature `cuda`): settings, and what the GPU side of every operation shares.
//!
//! Each operation's function picks its GPU side by where its input lies. Kernels are in `kernels/*.cu`, a
//! subject a file, compiled to PTX by `build.rs`. None uses atomics, so results repeat bit for bit on the same
//! GPU and libraries; none waits for the GPU. Everything runs on the device's stream, in order. Use a device from
//! one thread: the stream of candle's `Device::new_cuda` is another one in each thread.
//!
//! `tests/cuda.rs` compares with the CPU's operations where a GPU is found, and on one that is
//! emulated (`parity/emulated-gpu`); `parity/kernels/check.sh` runs the kernels' code on the host with sanitizers.

pub(crate) mod batch_norm;
mod columns;
pub(crate) mod conv;
#[cfg(feature = "cudnn")]
mod cudnn;
pub(crate) mod dropout;
pub(crate) mod figures;
pub(crate) mod grad_norm;
pub mod graph;
pub(crate) mod linear;
pub(crate) mod max_pool;
pub mod nchw;
pub(crate) mod optimizer;
mod products;
#[cfg(feature = "cudnn")]
mod proposals;
pub(crate) mod relu;
pub(crate) mod shortcut;
pub(crate) mod tensor_table;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, DeviceRepr, LaunchArgs, LaunchConfig, sys,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor,
    bail,
};

/// The kernels' PTX: a constant for each `.cu` file.
#[allow(missing_docs, unreachable_pub)]
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

static TF32: AtomicBool = AtomicBool::new(false);

/// Sets whether convolutions (with feature `cudnn`) and matrix products may round their f32 factors to TF32, which has 10
/// bits of mantissa and which tensor cores multiply much faster; sums stay f32. It is off by default, and holds for the
/// whole process, candle's own matrix products included.
pub fn allow_tf32(allow: bool) {
    TF32.store(allow, Ordering::Relaxed);
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(allow);
}

#[cfg(feature = "cudnn")]
fn tf32() -> bool {
    TF32.load(Ordering::Relaxed)
}

/// Lets the driver keep freed memory for the next allocation instead of giving it back to the system whenever the host
/// waits for the GPU. Call it once for a device; on a device that is no GPU it does nothing.
///
/// # Errors
/// When the driver refuses.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    let Device::Cuda(device) = device else { return Ok(()) };
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device exists as long as its context; the attribute is a 64-bit number.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()).result().w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result().w()
    }
}

/// Stops candle from creating two events with every new tensor, which order its uses on several streams. They cost time on
/// the host, and a small network's step on a GPU is mostly that. On a device that is no GPU it does nothing.
///
/// # Safety
/// The device must be used by one thread alone from here on: the stream of candle's `Device::new_cuda` is another
/// one in each thread.
pub unsafe fn use_one_thread(device: &Device) {
    if let Device::Cuda(device) = device {
        // SAFETY: the caller's promise: there is one stream.
        unsafe { device.disable_event_tracking() };
    }
}

/// A type that the numbers of a map may be stored as: f32 or bf16. The arithmetic is f32 for both, and what belongs to
/// parameters is always f32.
pub(crate) trait Number: CudaDType + DeviceRepr {
    /// What the names of this type's kernels end in.
    const NAME: &'static str;
    /// The type as cuDNN is told it.
    #[cfg(feature = "cudnn")]
    const DTYPE: DType;
}

impl Number for f32 {
    const NAME: &'static str = "f32";
    #[cfg(feature = "cudnn")]
    const DTYPE: DType = DType::F32;
}

impl Number for half::bf16 {
    const NAME: &'static str = "bf16";
    #[cfg(feature = "cudnn")]
    const DTYPE: DType = DType::BF16;
}

/// Evaluates `body` with `T` as the [`Number`] that a dtype stands for; any other dtype is an error of the operation `op`.
macro_rules! with_number {
    ($op:expr, $dtype:expr, $number:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $number = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $number = half::bf16;
                $body
            }
            other => candle_core::bail!("{}: expected f32 or bf16, found {other:?}", $op),
        }
    };
}
pub(crate) use with_number;

/// A tensor's memory with its layout, as candle gives them to an operation.
#[derive(Clone, Copy)]
pub(crate) struct Array<'a> {
    pub(crate) storage: &'a CudaStorage,
    pub(crate) layout: &'a Layout,
}

impl<'a> Array<'a> {
    /// The numbers of a contiguous argument of the operation `op`.
    pub(crate) fn values<T: CudaDType>(&self, op: &str) -> Result<CudaView<'a, T>> {
        let slice = self.storage.as_cuda_slice::<T>()?;
        match self.layout.contiguous_offsets() {
            Some((from, to)) => Ok(slice.slice(from..to)),
            None => {
                bail!("{op}: the argument of shape {:?} is not contiguous", self.layout.shape())
            }
        }
    }

    pub(crate) fn device(&self) -> &'a CudaDevice {
        &self.storage.device
    }

    pub(crate) fn dtype(&self) -> DType {
        self.storage.dtype()
    }
}

/// A tensor whose memory is borrowed for reading, as backward passes need it.
pub(crate) struct Held<'a, S> {
    storage: S,
    layout: &'a Layout,
}

/// Borrows a tensor's memory.
pub(crate) fn hold(tensor: &Tensor) -> Held<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Held { storage, layout }
}

impl<S: Deref<Target = Storage>> Held<'_, S> {
    pub(crate) fn array(&self, op: &str) -> Result<Array<'_>> {
        match &*self.storage {
            Storage::Cuda(storage) => Ok(Array { storage, layout: self.layout }),
            _ => bail!("{op}: expected all tensors on the same GPU"),
        }
    }

    pub(crate) fn values<T: CudaDType>(&self, op: &str) -> Result<CudaView<'_, T>> {
        self.array(op)?.values(op)
    }
}

/// The GPU that a tensor lies on.
pub(crate) fn device(op: &str, tensor: &Tensor) -> Result<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.clone()),
        _ => bail!("{op}: expected all tensors on the same GPU"),
    }
}

/// Memory whose contents are arbitrary, for `len` numbers.
pub(crate) fn memory<T: CudaDType + DeviceRepr>(
    device: &CudaDevice,
    len: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: every kernel here writes all of its results before anything reads them.
    unsafe { device.alloc::<T>(len) }
}

/// Memory as the result of an operation.
pub(crate) fn storage<T: CudaDType>(values: CudaSlice<T>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(values, device.clone())
}

/// Memory as a tensor that no gradient flows through.
pub(crate) fn tensor<T: CudaDType>(
    values: CudaSlice<T>,
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Tensor {
    tensor_of(storage(values, device), shape)
}

/// The same of memory that is the result of an operation already.
pub(crate) fn tensor_of(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// The error that `cpu_fwd` of an operation for a GPU returns.
pub(crate) fn not_on_cpu(op: &str) -> Result<(CpuStorage, Shape)> {
    bail!("{op}: this operation was made for a GPU")
}

/// A kernel, and the stream that it runs on.
pub(crate) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    /// Takes the kernel's arguments, one after the other.
    pub(crate) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

/// The kernel `name` of the file whose PTX is `ptx`; `file` is the name under which the driver keeps that file, unique in the
/// process.
pub(crate) fn kernel(device: &CudaDevice, file: &str, name: &str, ptx: &str) -> Result<Kernel> {
    let function = device.get_or_load_custom_func(name, file, ptx)?.into_cuda_function();
    Ok(Kernel { function, stream: device.cuda_stream() })
}

/// The same of a kernel that exists for each [`Number`].
pub(crate) fn kernel_of<T: Number>(
    device: &CudaDevice,
    file: &str,
    name: &str,
    ptx: &str,
) -> Result<Kernel> {
    kernel(device, file, &format!("{name}_{}", T::NAME), ptx)
}

/// Launches with a grid of (x, y) blocks of (x, y) threads.
///
/// # Safety
/// The arguments must be those of the kernel, and their memory as large as it expects.
pub(crate) unsafe fn launch(
    mut args: LaunchArgs<'_>,
    (x, y): (usize, usize),
    (threads_x, threads_y): (u32, u32),
) -> Result<()> {
    let (Ok(x), Ok(y @ 0..=65535)) = (i32::try_from(x), u32::try_from(y)) else {
        bail!("a tensor is too large for the GPU: a grid of {x} x {y} blocks")
    };
    if x == 0 || y == 0 {
        return Ok(());
    }
    let config = LaunchConfig {
        grid_dim: (x as u32, y, 1),
        block_dim: (threads_x, threads_y, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the caller's promise.
    unsafe { args.launch(config) }.w()?;
    Ok(())
}

/// A size as kernels take it, as a C `int`.
pub(crate) fn int(size: usize) -> Result<i32> {
    match i32::try_from(size) {
        Ok(size) => Ok(size),
        Err(_) => bail!("a size of {size} is too large for the GPU"),
    }
}

/// How many blocks of 256 threads go over `count` numbers. Where there are many, a thread takes several.
pub(crate) fn blocks_over(count: usize) -> usize {
    count.div_ceil(256).min(1 << 14)
}

/// Threads of a block that goes over one plane of `pixels` numbers: whole warps, 256 at most.
pub(crate) fn threads_over(pixels: usize) -> u32 {
    (pixels.clamp(1, 256).div_ceil(32) * 32) as u32
}

/// The grid and the threads of a kernel that goes over `planes` planes of `pixels` numbers of T, in words of 16 bytes where a plane
/// is a whole number of them: a row of threads for a plane, each with four words under way, and as many rows in a block as fill
/// it and divide the planes.
pub(crate) fn over_planes<T>(planes: usize, pixels: usize) -> ((usize, usize), (u32, u32)) {
    let wide = 16 / size_of::<T>();
    let words = if pixels % wide == 0 { pixels / wide } else { pixels };
    let x = words.div_ceil(4).next_power_of_two().clamp(8, 256);
    let y = 1 << planes.trailing_zeros().min((256 / x).ilog2());
    ((planes / y, 1), (x as u32, y as u32))
}

/// How a channel's sum over all images is cut into parts: their number, and the threads of a block in x and y. It depends on
/// the sizes alone, so that sums are added in the same order in every run.
pub(crate) fn parts(images: usize, pixels: usize) -> (usize, (u32, u32)) {
    let threads = threads_over(pixels);
    ((images * pixels / 4096).clamp(1, images.clamp(1, 64)), (threads, 256 / threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_warps_and_parts_no_more_than_images() {
        for images in [1, 2, 7, 128, 100_000] {
            for pixels in [1, 31, 33, 64, 1024, 70_000] {
                let (count, (x, y)) = parts(images, pixels);
                assert!((1..=images.min(64)).contains(&count), "{images} images: {count} parts");
                assert!(x % 32 == 0 && y > 0 && x * y <= 256, "{pixels} pixels: {x} x {y} threads");
                assert_eq!(x, threads_over(pixels));
            }
        }
        for planes in [0, 1, 6, 64, 4096] {
            for pixels in [1, 9, 64, 1024, 70_000] {
                let ((grid, _), (x, y)) = over_planes::<f32>(planes, pixels);
                assert_eq!(grid * y as usize, planes, "{planes} planes of {pixels} pixels");
                assert!(x * y <= 256, "{planes} planes of {pixels} pixels: {x} x {y} threads");
            }
        }
        assert_eq!(over_planes::<f32>(64, 1024), ((16, 1), (64, 4)));
        assert_eq!(over_planes::<half::bf16>(64, 64), ((2, 1), (8, 32)));
        assert_eq!((blocks_over(0), blocks_over(1), blocks_over(257)), (0, 1, 2));
        assert_eq!(blocks_over(usize::MAX), 1 << 14);
    }
}
