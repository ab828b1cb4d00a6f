//! A convolution's products by cuBLAS, on a matrix with a column for each window. It is correct and simple, but the matrix
//! takes memory, which cuDNN (feature `cudnn`) does not need.
//!
//! The matrix has a row for each weight of one output channel and a column for each output pixel of all images,
//! so the products come as CNHW, and each pass is one matrix product.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    DevicePtr, DevicePtrMut, DeviceRepr, PushKernelArg,
};
use candle_core::{CudaDevice, CudaStorage, Layout, Result};

use super::{Array, Number, int, kernel_of, launch, memory, ptx, threads_over, with_number};
use crate::conv::geometry::Geometry;

const NAME: &str = "conv2d";
const FILE: &str = "kd-ops conv";

/// A convolution's sizes as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sizes([i32; 11]);

// SAFETY: `struct Sizes` of kernels/conv.cu is eleven ints.
unsafe impl DeviceRepr for Sizes {}

impl Sizes {
    fn new(g: &Geometry) -> Result<Self> {
        let sizes = [
            g.batch,
            g.in_channels,
            g.height,
            g.width,
            g.kernel_height,
            g.kernel_width,
            g.stride,
            g.padding,
            g.dilation,
            g.out_height,
            g.out_width,
        ];
        let mut ints = [0; 11];
        for (to, size) in ints.iter_mut().zip(sizes) {
            *to = int(size)?;
        }
        Ok(Self(ints))
    }
}

/// Output pixels of all images.
fn pixels(geometry: &Geometry) -> usize {
    geometry.batch * geometry.out_pixels()
}

fn columns(x: Array<'_>, geometry: &Geometry) -> Result<CudaStorage> {
    with_number!(NAME, x.dtype(), T => columns_of::<T>(x, geometry))
}

fn columns_of<T: Number>(x: Array<'_>, geometry: &Geometry) -> Result<CudaStorage> {
    let device = x.device();
    let x = x.values::<T>(NAME)?;
    let mut columns = memory::<T>(device, columns_len(geometry))?;
    {
        let stream = device.cuda_stream();
        let (x, _x) = x.device_ptr(&stream);
        let (columns, _columns) = columns.device_ptr_mut(&stream);
        columns_at::<T>(device, x, geometry, columns)?;
    }
    Ok(super::storage(columns, device))
}

/// Numbers of the matrix.
pub(super) fn columns_len(geometry: &Geometry) -> usize {
    geometry.window_len() * pixels(geometry)
}

/// The matrix of the map at the address `x`, to the address `columns`.
pub(super) fn columns_at<T: Number>(
    device: &CudaDevice,
    x: u64,
    geometry: &Geometry,
    columns: u64,
) -> Result<()> {
    let sizes = Sizes::new(geometry)?;
    let function = kernel_of::<T>(device, FILE, "conv_columns", ptx::CONV)?;
    let mut args = function.builder();
    args.arg(&x).arg(&sizes).arg(&columns);
    let grid = (geometry.window_len(), geometry.batch.min(1 << 15));
    // SAFETY: the memory has the sizes that are passed; blocks beyond 32,768 images take several.
    unsafe { launch(args, grid, (threads_over(geometry.out_pixels()), 1)) }
}

/// The weight as a matrix with a row for each output channel.
fn weight_layout(weight: Array<'_>, geometry: &Geometry) -> Layout {
    let shape = (geometry.out_channels, geometry.window_len());
    Layout::contiguous_with_offset(shape, weight.layout.start_offset())
}

pub(super) fn forward(x: Array<'_>, weight: Array<'_>, geometry: &Geometry) -> Result<CudaStorage> {
    let (m, n, k) = (geometry.out_channels, pixels(geometry), geometry.window_len());
    let columns = columns(x, geometry)?;
    let layout = weight_layout(weight, geometry);
    weight.storage.matmul(&columns, (1, m, n, k), &layout, &Layout::contiguous((k, n)))
}

/// `dz` as CNHW.
pub(super) fn weight_gradient(
    x: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    let (m, n, k) = (geometry.out_channels, geometry.window_len(), pixels(geometry));
    let columns = columns(x, geometry)?;
    let dz_layout = Layout::contiguous_with_offset((m, k), dz.layout.start_offset());
    let transposed = Layout::contiguous((n, k)).transpose(0, 1)?;
    dz.storage.matmul(&columns, (1, m, n, k), &dz_layout, &transposed)
}

/// `dz` as CNHW.
pub(super) fn data_gradient(
    weight: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    let (m, n, k) = (geometry.window_len(), pixels(geometry), geometry.out_channels);
    let dz_layout = Layout::contiguous_with_offset((k, n), dz.layout.start_offset());
    let transposed = weight_layout(weight, geometry).transpose(0, 1)?;
    let columns = weight.storage.matmul(dz.storage, (1, m, n, k), &transposed, &dz_layout)?;
    with_number!(NAME, dz.dtype(), T => from_columns::<T>(&columns, geometry))
}

/// The gradient of x: adds each entry of the columns to where it was read from.
fn from_columns<T: Number>(columns: &CudaStorage, geometry: &Geometry) -> Result<CudaStorage> {
    let (columns, device) = (columns.as_cuda_slice::<T>()?, &columns.device);
    let mut dx = memory::<T>(device, geometry.input_len())?;
    {
        let stream = device.cuda_stream();
        let (columns, _columns) = columns.device_ptr(&stream);
        let (dx, _dx) = dx.device_ptr_mut(&stream);
        from_columns_at::<T>(device, columns, geometry, dx, false)?;
    }
    Ok(super::storage(dx, device))
}

/// The same of a matrix at an address, to the map at the address `dx`, or added to it.
pub(super) fn from_columns_at<T: Number>(
    device: &CudaDevice,
    columns: u64,
    geometry: &Geometry,
    dx: u64,
    add: bool,
) -> Result<()> {
    let (sizes, add) = (Sizes::new(geometry)?, i32::from(add));
    let function = kernel_of::<T>(device, FILE, "conv_from_columns", ptx::CONV)?;
    let mut args = function.builder();
    args.arg(&columns).arg(&sizes).arg(&add).arg(&dx);
    let grid = (geometry.batch * geometry.in_channels, 1);
    // SAFETY: the memory has the sizes that are passed.
    unsafe { launch(args, grid, (threads_over(geometry.height * geometry.width), 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels' PTX says how large their sizes are.
    #[test]
    fn the_sizes_have_the_size_that_the_kernels_expect() {
        for kernel in ["conv_columns_f32", "conv_from_columns_f32", "conv_columns_bf16"] {
            let parameter = format!("{kernel}_param_1[{}]", size_of::<Sizes>());
            assert!(ptx::CONV.contains(&parameter), "{kernel}");
        }
    }
}
