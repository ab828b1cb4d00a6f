//! The fused operation on an NVIDIA GPU: launches the kernels of `kernel.cu` and waits for none of them.

use std::sync::Mutex;

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::{bf16, f16};

use super::operands::{FusedTerms, NAME, Operands};

/// The name under which candle keeps the loaded kernels.
const MODULE: &str = "kd_loss_fused";
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/fused.ptx"));

/// How many floats the kernels keep of a row, the size of `Row` in `kernel.cu`.
const ROW: usize = 8;
/// Up to this many classes a warp computes a row, above it a block does.
const WARP_CLASSES: usize = 1024;
/// Threads of a block in which each warp computes a row.
const WARP_BLOCK: usize = 128;
/// Threads of the block that adds up the rows.
const MEAN_BLOCK: u32 = 256;

/// What the forward pass leaves.
pub(super) struct Forward {
    /// The weighted sum of the terms, one f32.
    pub(super) total: CudaStorage,
    /// f32 `[2]`: cross-entropy and divergence before their weights.
    pub(super) parts: Tensor,
    /// What the backward pass needs, for logits that need a gradient.
    pub(super) backward: Option<Rows>,
}

/// What the backward pass needs.
pub(super) struct Rows {
    /// f32 `[B, ROW]`: the sums of each row that the forward pass found.
    rows: CudaSlice<f32>,
    /// The gradient that the forward pass computed, which the first backward pass takes; a later one computes its own from `rows`.
    /// f16 gradients are always computed from `rows`: small values would be rounded to 0 before a loss scale is multiplied in.
    gradient: Mutex<Option<CudaStorage>>,
}

trait Element: CudaDType + DeviceRepr {
    const NAME: &'static str;
    /// Whether the type's range allows a gradient to be rounded first and multiplied by the loss scale afterwards.
    const WIDE: bool;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const WIDE: bool = true;
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const WIDE: bool = true;
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const WIDE: bool = false;
}

/// The forward pass, which also computes a first gradient.
pub(super) fn forward(op: &Operands, storage: &CudaStorage, layout: &Layout) -> Result<Forward> {
    match storage_dtype(storage) {
        DType::F32 => forward_as::<f32>(op, storage, layout),
        DType::BF16 => forward_as::<bf16>(op, storage, layout),
        DType::F16 => forward_as::<f16>(op, storage, layout),
        other => bail!("{NAME}: expected f32, bf16 or f16 logits, found {other:?}"),
    }
}

fn storage_dtype(storage: &CudaStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

fn forward_as<T: Element>(
    op: &Operands,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<Forward> {
    let (batch, classes) = layout.shape().dims2()?;
    let device = &storage.device;
    // SAFETY: the kernels write every element of what is allocated here before anything reads it.
    let (mut rows, mut total, mut parts) = unsafe {
        (device.alloc::<f32>(batch * ROW)?, device.alloc::<f32>(1)?, device.alloc::<f32>(2)?)
    };
    let mut gradient = match op.with_gradient && T::WIDE {
        // SAFETY: as above.
        true => Some(unsafe { device.alloc::<T>(batch * classes)? }),
        false => None,
    };
    launch_rows::<T>(op, storage, layout, gradient.as_mut(), Pass::Forward(&mut rows))?;

    let mean = device.get_or_load_custom_func("mean_rows", MODULE, PTX)?;
    let FusedTerms { labels_weight, kd_weight, temperature, .. } = op.terms;
    let (labels_weight, kd_weight) = (labels_weight as f32, kd_weight as f32);
    let (batch, temperature) = (int(batch)?, temperature as f32);
    let mut builder = mean.builder();
    builder.arg(&rows).arg(&mut total).arg(&mut parts);
    builder.arg(&batch).arg(&temperature).arg(&labels_weight).arg(&kd_weight);
    // SAFETY: the arguments are those of `mean_rows`; it reads `batch` rows and writes one and two floats.
    unsafe { builder.launch(one_dimension(1, MEAN_BLOCK)) }.w()?;

    let wrap = |slice| CudaStorage::wrap_cuda_slice(slice, device.clone());
    let parts = Tensor::from_storage(Storage::Cuda(wrap(parts)), 2, BackpropOp::none(), false);
    let backward = match op.with_gradient {
        true => {
            let gradient =
                gradient.map(|slice| CudaStorage::wrap_cuda_slice(slice, device.clone()));
            Some(Rows { rows, gradient: Mutex::new(gradient) })
        }
        false => None,
    };
    Ok(Forward { total: wrap(total), parts, backward })
}

/// The gradient of the logits, times `upstream`, a f32 scalar that stays on the device.
pub(super) fn backward(
    op: &Operands,
    backward: &Rows,
    student: &Tensor,
    upstream: &Tensor,
) -> Result<Tensor> {
    let upstream = upstream.contiguous()?;
    let (upstream, upstream_layout) = upstream.storage_and_layout();
    let (Storage::Cuda(upstream), Some((from, to))) =
        (&*upstream, upstream_layout.contiguous_offsets())
    else {
        bail!("{NAME}: the gradient from above is not on the GPU")
    };
    let upstream = upstream.as_cuda_slice::<f32>()?.slice(from..to);
    let (storage, layout) = student.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("{NAME}: the logits are not on the GPU") };
    let gradient = match student.dtype() {
        DType::F32 => backward_as::<f32>(op, backward, storage, layout, &upstream)?,
        DType::BF16 => backward_as::<bf16>(op, backward, storage, layout, &upstream)?,
        _ => backward_as::<f16>(op, backward, storage, layout, &upstream)?,
    };
    let gradient = Storage::Cuda(gradient);
    Ok(Tensor::from_storage(gradient, student.shape(), BackpropOp::none(), false))
}

fn backward_as<T: Element>(
    op: &Operands,
    backward: &Rows,
    storage: &CudaStorage,
    layout: &Layout,
    upstream: &CudaView<'_, f32>,
) -> Result<CudaStorage> {
    let device = &storage.device;
    let count = layout.shape().elem_count();
    let first = backward.gradient.lock().map(|mut first| first.take()).unwrap_or(None);
    if let Some(mut gradient) = first {
        let function = format!("scale_{}", T::NAME);
        let scale = device.get_or_load_custom_func(&function, MODULE, PTX)?;
        // `upstream` is mostly 1; the threads then read it and are done.
        let blocks = count.div_ceil(256 * 8).clamp(1, 2048) as u32;
        let mut builder = scale.builder();
        builder.arg(gradient.as_cuda_slice_mut::<T>()?).arg(upstream).arg(&count);
        // SAFETY: the arguments are those of `scale_*`; the gradient has `count` elements.
        unsafe { builder.launch(one_dimension(blocks, 256)) }.w()?;
        return Ok(gradient);
    }
    // SAFETY: the kernel writes every element.
    let mut gradient = unsafe { device.alloc::<T>(count)? };
    let pass = Pass::Backward(&backward.rows, upstream);
    launch_rows(op, storage, layout, Some(&mut gradient), pass)?;
    Ok(CudaStorage::wrap_cuda_slice(gradient, device.clone()))
}

/// What the rows' kernel is launched for.
enum Pass<'a> {
    /// The sums of each row are computed and written.
    Forward(&'a mut CudaSlice<f32>),
    /// The sums are there, and the gradient is multiplied by the scalar.
    Backward(&'a CudaSlice<f32>, &'a CudaView<'a, f32>),
}

/// Launches the kernel that has a warp or a block for each row.
fn launch_rows<T: Element>(
    op: &Operands,
    storage: &CudaStorage,
    layout: &Layout,
    mut gradient: Option<&mut CudaSlice<T>>,
    pass: Pass<'_>,
) -> Result<()> {
    let (batch, classes) = layout.shape().dims2()?;
    let student = view::<T>(storage, layout)?;
    let teacher = op.teacher.as_ref().map(Tensor::storage_and_layout);
    let teacher = match &teacher {
        Some((storage, layout)) => match &**storage {
            Storage::Cuda(storage) => Some(view::<T>(storage, layout)?),
            _ => bail!("{NAME}: the teacher's logits are not on the GPU"),
        },
        None => None,
    };
    let labels = op.labels.as_ref().map(Tensor::storage_and_layout);
    let labels = match &labels {
        Some((storage, layout)) => match &**storage {
            Storage::Cuda(storage) => Some(view::<u32>(storage, layout)?),
            _ => bail!("{NAME}: the labels are not on the GPU"),
        },
        None => None,
    };
    let (team, config) = if classes <= WARP_CLASSES {
        let blocks = batch.div_ceil(WARP_BLOCK / 32);
        ("warp", one_dimension(int(blocks)? as u32, WARP_BLOCK as u32))
    } else {
        // At least 16 classes for each thread; no more threads than let two blocks share a multiprocessor.
        let threads = (classes / 16).next_multiple_of(32).clamp(128, 512);
        ("block", one_dimension(int(batch)? as u32, threads as u32))
    };
    let function = format!("{team}_rows_{}", T::NAME);
    let function = storage.device.get_or_load_custom_func(&function, MODULE, PTX)?;
    let terms = op.terms;
    let (temperature, smoothing) = (terms.temperature as f32, terms.smoothing as f32);
    let (labels_weight, kd_weight) = (terms.labels_weight as f32, terms.kd_weight as f32);
    let (batch, classes) = (int(batch)?, int(classes)?);
    let null = 0u64;
    let mut builder = function.builder();
    builder.arg(&student);
    match &teacher {
        Some(teacher) => builder.arg(teacher),
        None => builder.arg(&null),
    };
    match &labels {
        Some(labels) => builder.arg(labels),
        None => builder.arg(&null),
    };
    match &mut gradient {
        Some(gradient) => builder.arg(&mut **gradient),
        None => builder.arg(&null),
    };
    match pass {
        Pass::Forward(rows) => builder.arg(rows).arg(&null),
        Pass::Backward(rows, upstream) => builder.arg(rows).arg(upstream),
    };
    builder.arg(&batch).arg(&classes).arg(&temperature).arg(&smoothing);
    builder.arg(&labels_weight).arg(&kd_weight);
    // SAFETY: the arguments are those of `warp_rows_*` and `block_rows_*`: logits and gradient have batch x
    // classes elements, the labels `batch`, `rows` ROW floats for each image, `upstream` one.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

fn view<'a, T: CudaDType>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        None => bail!("{NAME}: expected contiguous tensors"),
    }
}

fn one_dimension(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// A number of images or classes as the kernels count them, in 32 bits.
fn int(count: usize) -> Result<i32> {
    match i32::try_from(count) {
        Ok(count) if count < 1 << 30 => Ok(count),
        _ => bail!("{NAME}: {count} images or classes are more than the GPU's kernels count"),
    }
}
