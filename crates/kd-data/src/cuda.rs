//! Batches out of images that lie on a GPU (feature `cuda`): nothing but an epoch's order and views is copied
//! there, once an epoch; the same batches as on the CPU, bit for bit.
//!
//! `tests/cuda.rs` compares with the CPU's batches where a GPU is found, and on one that is emulated
//! (`parity/emulated-gpu`).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, DeviceId, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::augment::Views;
use crate::batch::{Batch, BatchConfig};
use crate::sampler::order;
use crate::source::{Block, Source};
use crate::{Result, View};

/// The kernel's PTX.
#[allow(missing_docs, unreachable_pub)]
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// A source's block on a GPU.
struct OnGpu {
    /// Where the source lies in memory. No other can lie there as long as `lives` holds on to the place.
    address: usize,
    /// Whether the source is still in use.
    lives: Box<dyn Fn() -> bool + Send + Sync>,
    device: DeviceId,
    images: CudaSlice<u8>,
    labels: CudaSlice<u32>,
}

/// The blocks that have been copied to a GPU; each stays there as long as its source lives.
static COPIES: Mutex<Vec<Arc<OnGpu>>> = Mutex::new(Vec::new());

/// The copy of the source's block, made at its first use.
fn on_gpu<S: Source + ?Sized + 'static>(
    source: &Arc<S>,
    block: Block<'_>,
    device: &CudaDevice,
) -> candle_core::Result<Arc<OnGpu>> {
    let mut copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    copies.retain(|copy| (copy.lives)());
    let address = Arc::as_ptr(source).cast::<()>().addr();
    let same = |copy: &&Arc<OnGpu>| copy.address == address && copy.device == device.id();
    if let Some(copy) = copies.iter().find(same) {
        return Ok(Arc::clone(copy));
    }
    let weak = Arc::downgrade(source);
    let copy = Arc::new(OnGpu {
        address,
        lives: Box::new(move || weak.strong_count() > 0),
        device: device.id(),
        images: device.clone_htod(block.images)?,
        labels: device.clone_htod(block.labels)?,
    });
    copies.push(Arc::clone(&copy));
    Ok(copy)
}

/// What is left of an epoch.
pub(crate) struct Gathered {
    device: CudaDevice,
    copy: Arc<OnGpu>,
    /// Channels, height and width of an image.
    shape: [usize; 3],
    batch_size: usize,
    /// Side of the square that is cut out.
    cutout: usize,
    /// The place in `order` of the next batch's first image.
    next: usize,
    /// The numbers of the epoch's images, in the order in which they come.
    order: Vec<u32>,
    /// `order` on the GPU, u32 `[N]`.
    rows: Tensor,
    /// Each image's view, in the order of `order`.
    views: Vec<View>,
    /// The number of all of them.
    view: usize,
    /// The same as the kernel takes them, two words each; `None` where no image is changed.
    views_on_gpu: Option<CudaSlice<u32>>,
    /// The input of each byte, by channel: `[3, 256]`.
    table: CudaSlice<f32>,
}

impl std::fmt::Debug for Gathered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gathered").field("next", &self.next).finish_non_exhaustive()
    }
}

/// Sets up an epoch of a source that has a block; both and the settings have been checked.
pub(crate) fn gather<S: Source + ?Sized + 'static>(
    source: &Arc<S>,
    block: Block<'_>,
    config: &BatchConfig,
    device: &CudaDevice,
) -> Result<Gathered> {
    let copy = on_gpu(source, block, device)?;
    const CHUNK: usize = 1024;
    let (order, shape) = (order(&**source, config)?, source.shape());
    let (seed, sampler) = (config.shuffle_seed.unwrap_or(0), config.sampler);
    let drawn = order.par_chunks(CHUNK).enumerate().flat_map_iter(|(chunk, indices)| {
        let mut views = Views::new(config.augment, shape, seed, config.view());
        let positions = (chunk * CHUNK..).zip(indices);
        positions.map(move |(position, &index)| views.view(sampler.view_number(position, index)))
    });
    let views: Vec<View> = drawn.collect();
    let views_on_gpu = match config.augment.is_off() {
        true => None,
        false => {
            let words: Vec<u32> = views.iter().flat_map(words).collect();
            Some(device.clone_htod(&words)?)
        }
    };
    Ok(Gathered {
        device: device.clone(),
        copy,
        shape,
        batch_size: config.batch_size,
        cutout: config.augment.cutout,
        next: config.first_batch * config.batch_size,
        rows: tensor(device.clone_htod(&order)?, device, order.len()),
        order,
        views,
        view: if config.augment.is_off() { 0 } else { config.view() },
        views_on_gpu,
        table: device.clone_htod(config.normalization.table().as_flattened())?,
    })
}

/// A view as the two words that kernels/gather.cu takes.
fn words(view: &View) -> [u32; 2] {
    let (row, column) = view.cutout.unwrap_or((0, 0));
    let change = [view.dy as u8, view.dx as u8, view.flip.into(), view.cutout.is_some().into()];
    [u32::from_le_bytes(change), u32::from_le_bytes([row, column, 0, 0])]
}

impl Gathered {
    /// The next batch; there must be one left.
    pub(crate) fn next(&mut self) -> Result<Batch> {
        let (from, to) = (self.next, (self.next + self.batch_size).min(self.order.len()));
        self.next = to;
        let (images, labels) = self.launch(from, to)?;
        let (indices, views) = (self.order[from..to].to_vec(), self.views[from..to].to_vec());
        let rows = self.rows.narrow(0, from, to - from)?;
        Ok(Batch { images, labels, indices, rows, views, mixed: None, view: self.view })
    }

    fn launch(&self, from: usize, to: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let [channels, height, width] = self.shape;
        let count = to - from;
        let int = |size: usize| match i32::try_from(size) {
            Ok(size) => Ok(size),
            Err(_) => bail!("a size of {size} is too large for the GPU"),
        };
        let (grid, rows, columns) = (int(count)?, int(height)?, int(width)?);
        int(height * width)?;
        let cutout = int(self.cutout)?;
        // SAFETY: the kernel writes all of it.
        let (mut inputs, mut classes) = unsafe {
            let inputs = self.device.alloc::<f32>(count * channels * height * width)?;
            (inputs, self.device.alloc::<u32>(count)?)
        };
        let function =
            self.device.get_or_load_custom_func("gather", "kd-data gather", ptx::GATHER)?;
        let none = 0u64;
        let mut args = function.builder();
        let (rows_on_gpu, _) = self.rows.storage_and_layout();
        let Storage::Cuda(rows_on_gpu) = &*rows_on_gpu else {
            bail!("the order is not on the GPU")
        };
        args.arg(&self.copy.images).arg(&self.copy.labels).arg(rows_on_gpu.as_cuda_slice::<u32>()?);
        match &self.views_on_gpu {
            Some(views) => args.arg(views),
            None => args.arg(&none),
        };
        args.arg(&self.table).arg(&from).arg(&rows).arg(&columns).arg(&cutout);
        args.arg(&mut inputs).arg(&mut classes);
        let config = LaunchConfig {
            grid_dim: (grid as u32, 1, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the block was checked, so every number in `order` is that of one of its images; `order` and
        // `views` have an entry for each of `from..to`; a null pointer stands for no views.
        unsafe { args.launch(config) }.w()?;
        let images = tensor(inputs, &self.device, (count, channels, height, width));
        Ok((images, tensor(classes, &self.device, count)))
    }
}

fn tensor<T: CudaDType>(
    values: CudaSlice<T>,
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(values, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}
