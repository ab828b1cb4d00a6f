//! Convolutions on a GPU: the products by cuDNN or, on columns of windows, by cuBLAS; bias, ReLU and 2x2 max-pool by this
//! crate's own kernels.

use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::{CudaView, PushKernelArg};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail,
};

use super::products::Products;
use super::{
    Array, Number, device, hold, int, kernel, kernel_of, launch, memory, not_on_cpu, over_planes,
    parts, ptx, with_number,
};
use crate::conv::geometry::{Conv2dConfig, Geometry};

const NAME: &str = "conv2d";
const FILE: &str = "kd-ops conv";

/// As [`crate::conv2d`], which has checked the shapes and gives the sizes. An f32 weight beside a bf16 x is multiplied as bf16 and has an
/// f32 gradient.
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Geometry,
    config: &Conv2dConfig,
) -> Result<Tensor> {
    let (x, weight) = (aligned(x)?, aligned(&weight.to_dtype(x.dtype())?)?);
    let products = Products::chosen()?;
    let op = Conv2d {
        geometry,
        products,
        relu: config.relu,
        max_pool2: config.max_pool2,
        winners: OnceLock::new(),
    };
    match bias {
        // Nothing follows the products where they come as NCHW.
        None if !op.relu && !op.max_pool2 && products.is_nchw() => {
            x.apply_op2(&weight, ProductsAlone { geometry, products })
        }
        Some(bias) => x.apply_op3(&weight, &bias.to_dtype(DType::F32)?.contiguous()?, op),
        None => {
            let zeros = Tensor::zeros(geometry.out_channels, DType::F32, weight.device())?;
            x.apply_op3(&weight, &zeros, op)
        }
    }
}

/// The tensor, contiguous and at an address that 16 bytes divide: cuDNN's and cuBLAS's kernels for tensor cores, and kernels that
/// read 16 bytes at a time, take no other. Memory as a whole is so aligned; only a view into it may have to be copied.
pub(super) fn aligned(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    let bytes = tensor.layout().start_offset() * tensor.dtype().size_in_bytes();
    if bytes % 16 == 0 { Ok(tensor) } else { tensor.force_contiguous() }
}

/// How a map of products lies in memory: numbers from one image to the next, and from one channel to the next.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) image: usize,
    pub(super) channel: usize,
}

impl Order {
    pub(super) fn new(geometry: &Geometry, products: Products) -> Self {
        let pixels = geometry.out_pixels();
        match products.is_nchw() {
            true => Self { image: geometry.out_channels * pixels, channel: pixels },
            false => Self { image: pixels, channel: geometry.batch * pixels },
        }
    }
}

fn out_shape(geometry: &Geometry) -> Shape {
    let Geometry { batch, out_channels, out_height, out_width, .. } = *geometry;
    Shape::from((batch, out_channels, out_height, out_width))
}

/// The products as candle's operation on x and weight, where nothing follows them.
struct ProductsAlone {
    geometry: Geometry,
    products: Products,
}

impl CustomOp2 for ProductsAlone {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(NAME)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let x = Array { storage: x, layout: x_layout };
        let weight = Array { storage: weight, layout: weight_layout };
        Ok((self.products.forward(x, weight, &self.geometry)?, out_shape(&self.geometry)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        product_gradients(self.products, &self.geometry, x, weight, &aligned(dy)?)
    }
}

/// The gradients of x and weight, each where a gradient flows through it; `dz` lies in the products' order.
fn product_gradients(
    products: Products,
    geometry: &Geometry,
    x: &Tensor,
    weight: &Tensor,
    dz: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (x_held, weight_held, dz) = (hold(x), hold(weight), hold(dz));
    let (x_array, weight_array) = (x_held.array(NAME)?, weight_held.array(NAME)?);
    let dz = dz.array(NAME)?;
    let dx = match x.track_op() {
        true => {
            let dx = products.data_gradient(weight_array, dz, geometry)?;
            Some(super::tensor_of(dx, x.shape()))
        }
        false => None,
    };
    let dweight = match weight.track_op() {
        true => {
            let dweight = products.weight_gradient(x_array, dz, geometry)?;
            Some(super::tensor_of(dweight, weight.shape()))
        }
        false => None,
    };
    Ok((dx, dweight))
}

/// Products, bias, ReLU and max-pool as candle's operation on x, weight and bias.
struct Conv2d {
    geometry: Geometry,
    products: Products,
    relu: bool,
    max_pool2: bool,
    /// Which of a window's four pixels was the largest, u8; kept by the forward pass for the backward pass.
    winners: OnceLock<Tensor>,
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(NAME)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let x = Array { storage: x, layout: x_layout };
        let weight = Array { storage: weight, layout: weight_layout };
        let bias = Array { storage: bias, layout: bias_layout }.values::<f32>(NAME)?;
        let products = self.products.forward(x, weight, &self.geometry)?;
        with_number!(NAME, x.dtype(), T => self.after_products::<T>(&products, bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = aligned(dy)?;
        let dz = match self.relu || self.max_pool2 || !self.products.is_nchw() {
            true => with_number!(NAME, y.dtype(), T => self.before_what_follows::<T>(y, &dy)?),
            false => dy,
        };
        let (dx, dweight) = product_gradients(self.products, &self.geometry, x, weight, &dz)?;
        let dbias = match bias.track_op() {
            true => Some(with_number!(NAME, dz.dtype(), T => self.bias_gradient::<T>(&dz)?)),
            false => None,
        };
        Ok((dx, dweight, dbias))
    }
}

impl Conv2d {
    /// Adds the bias to the products; then ReLU and pool.
    fn after_products<T: Number>(
        &self,
        products: &CudaStorage,
        bias: CudaView<'_, f32>,
    ) -> Result<(CudaStorage, Shape)> {
        let (z, device) = (products.as_cuda_slice::<T>()?, &products.device);
        let Geometry { batch, out_channels, out_height, out_width, .. } = self.geometry;
        let order = Order::new(&self.geometry, self.products);
        let (channels, relu) = (int(out_channels)?, i32::from(self.relu));
        let planes = batch * out_channels;
        let (grid, threads) = over_planes::<T>(planes, self.geometry.out_pixels());
        if !self.max_pool2 {
            let pixels = int(self.geometry.out_pixels())?;
            let mut y = memory::<T>(device, z.len())?;
            let function = kernel_of::<T>(device, FILE, "conv_bias_forward", ptx::CONV)?;
            let mut args = function.builder();
            args.arg(z).arg(&order.image).arg(&order.channel).arg(&bias).arg(&channels);
            args.arg(&pixels).arg(&relu).arg(&mut y);
            // SAFETY: the memory has the sizes that are passed.
            unsafe { launch(args, grid, threads) }?;
            return Ok((super::storage(y, device), out_shape(&self.geometry)));
        }
        let shape = Shape::from((batch, out_channels, out_height / 2, out_width / 2));
        let mut y = memory::<T>(device, shape.elem_count())?;
        let mut winners = memory::<u8>(device, shape.elem_count())?;
        let (height, width) = (int(out_height)?, int(out_width)?);
        let function = kernel_of::<T>(device, FILE, "conv_pool_forward", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(z).arg(&order.image).arg(&order.channel).arg(&bias).arg(&channels);
        args.arg(&height).arg(&width).arg(&relu).arg(&mut y).arg(&mut winners);
        // SAFETY: as above.
        unsafe { launch(args, grid, threads) }?;
        // `cuda_fwd` runs once for each operation that is built, so the cell is empty here.
        let _ = self.winners.set(super::tensor(winners, device, shape.clone()));
        Ok((super::storage(y, device), shape))
    }

    /// The gradient of the products, in their order, from that of the result.
    fn before_what_follows<T: Number>(&self, y: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let device = device(NAME, y)?;
        let Geometry { batch, out_channels, out_height, out_width, .. } = self.geometry;
        let order = Order::new(&self.geometry, self.products);
        let pixels = self.geometry.out_pixels();
        let mut dz = memory::<T>(&device, batch * out_channels * pixels)?;
        let (channels, relu) = (int(out_channels)?, i32::from(self.relu));
        let (grid, threads) = over_planes::<T>(batch * out_channels, pixels);
        {
            let (y, dy) = (hold(y), hold(dy));
            let (y, dy) = (y.values::<T>(NAME)?, dy.values::<T>(NAME)?);
            if self.max_pool2 {
                let Some(winners) = self.winners.get() else {
                    bail!("{NAME}: backward before forward")
                };
                let winners = hold(winners);
                let winners = winners.values::<u8>(NAME)?;
                let (height, width) = (int(out_height)?, int(out_width)?);
                let function = kernel_of::<T>(&device, FILE, "conv_pool_backward", ptx::CONV)?;
                let mut args = function.builder();
                args.arg(&y).arg(&winners).arg(&dy).arg(&channels).arg(&height).arg(&width);
                args.arg(&relu).arg(&mut dz).arg(&order.image).arg(&order.channel);
                // SAFETY: the memory has the sizes that are passed.
                unsafe { launch(args, grid, threads) }?;
            } else {
                let pixels = int(pixels)?;
                let function = kernel_of::<T>(&device, FILE, "conv_bias_backward", ptx::CONV)?;
                let mut args = function.builder();
                args.arg(&y).arg(&dy).arg(&channels).arg(&pixels).arg(&relu).arg(&mut dz);
                args.arg(&order.image).arg(&order.channel);
                // SAFETY: as above.
                unsafe { launch(args, grid, threads) }?;
            }
        }
        let len = dz.len();
        Ok(super::tensor(dz, &device, len))
    }

    fn bias_gradient<T: Number>(&self, dz: &Tensor) -> Result<Tensor> {
        let device = device(NAME, dz)?;
        let Geometry { batch, out_channels, .. } = self.geometry;
        let order = Order::new(&self.geometry, self.products);
        let dz = hold(dz);
        let dz = dz.values::<T>(NAME)?;
        let (part_count, threads) = parts(batch, self.geometry.out_pixels());
        let mut partial = memory::<f64>(&device, 2 * out_channels * part_count)?;
        let mut dbias = memory::<f32>(&device, out_channels)?;
        let (images, pixels) = (int(batch)?, int(self.geometry.out_pixels())?);
        let function = kernel_of::<T>(&device, FILE, "conv_bias_sums", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&dz).arg(&order.image).arg(&order.channel).arg(&images).arg(&pixels);
        args.arg(&mut partial);
        // SAFETY: the memory has the sizes that are passed; a block for each pair in `partial`.
        unsafe { launch(args, (out_channels, part_count), threads) }?;
        let part_count = int(part_count)?;
        let function = kernel(&device, FILE, "conv_bias_totals", ptx::CONV)?;
        let mut args = function.builder();
        args.arg(&partial).arg(&part_count).arg(&mut dbias);
        // SAFETY: a warp a channel.
        unsafe { launch(args, (out_channels, 1), (32, 1)) }?;
        Ok(super::tensor(dbias, &device, out_channels))
    }
}
