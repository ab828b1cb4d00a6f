//! A convolution's products by cuDNN.
//!
//! A shape's descriptors and algorithms are made at its first use and kept. The algorithms follow from cuDNN's
//! own heuristics, not from timing, and only deterministic ones are taken, so that runs repeat. All
//! convolutions of a device share one workspace, since they run one after the other on its stream.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::cudnn::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, bail};

use super::graph::is_capturing;
use super::proposals::{Arithmetic, Proposal, Way, Ways, failed, ways};
use super::{Array, Number, int, memory, storage, with_number};
use crate::conv::geometry::Geometry;

const NAME: &str = "conv2d";

thread_local! {
    // cuDNN's handles may be used by one thread at a time.
    static DEVICES: RefCell<HashMap<DeviceId, Rc<RefCell<OnDevice>>>> = RefCell::default();
}

/// What this thread keeps for a device.
struct OnDevice {
    convolutions: HashMap<(Geometry, Arithmetic), Rc<CudnnConvolution>>,
    workspace: Option<CudaSlice<u8>>,
    handle: Rc<Handle>,
}

struct Handle {
    handle: sys::cudnnHandle_t,
    stream: Arc<CudaStream>,
}

impl Handle {
    fn new(stream: Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        let handle = Self { handle: result::create_handle().map_err(failed)?, stream };
        // SAFETY: both exist.
        unsafe { result::set_stream(handle.handle, handle.stream.cu_stream().cast()) }
            .map_err(failed)?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, destroyed once. At the end of a process cuDNN may already be gone;
        // an error then means nothing.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// cuDNN's descriptors of a convolution of one shape, and the algorithm that was chosen for each pass.
struct CudnnConvolution {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    weight: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
    handle: Rc<Handle>,
    forward: Ways<sys::cudnnConvolutionFwdAlgo_t>,
    data: Ways<sys::cudnnConvolutionBwdDataAlgo_t>,
    filter: Ways<sys::cudnnConvolutionBwdFilterAlgo_t>,
}

impl Drop for CudnnConvolution {
    fn drop(&mut self) {
        // SAFETY: each was made by its `create_...`, or is null where making it failed; destroyed once. Errors at the end of a
        // process mean nothing.
        unsafe {
            if !self.x.is_null() {
                let _ = result::destroy_tensor_descriptor(self.x);
            }
            if !self.y.is_null() {
                let _ = result::destroy_tensor_descriptor(self.y);
            }
            if !self.weight.is_null() {
                let _ = result::destroy_filter_descriptor(self.weight);
            }
            if !self.conv.is_null() {
                let _ = result::destroy_convolution_descriptor(self.conv);
            }
        }
    }
}

macro_rules! proposals {
    ($perfs:expr, $count:expr) => {
        $perfs.iter().take(usize::try_from($count).unwrap_or(0)).map(|perf| Proposal {
            algorithm: perf.algo,
            status: perf.status,
            bytes: perf.memory,
            determinism: perf.determinism,
            math: perf.mathType,
        })
    };
}

impl CudnnConvolution {
    fn new(handle: &Rc<Handle>, g: &Geometry, arithmetic: Arithmetic) -> Result<Self> {
        use sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
        use sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;
        use sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM;
        use sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        const NCHW: sys::cudnnTensorFormat_t = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        const F32: sys::cudnnDataType_t = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let number = match arithmetic {
            Arithmetic::F32 | Arithmetic::Tf32 => F32,
            Arithmetic::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        let x = [int(g.batch)?, int(g.in_channels)?, int(g.height)?, int(g.width)?];
        let y = [int(g.batch)?, int(g.out_channels)?, int(g.out_height)?, int(g.out_width)?];
        let weight = [x[1], int(g.kernel_height)?, int(g.kernel_width)?];
        let weight = [y[1], weight[0], weight[1], weight[2]];
        let (padding, stride, dilation) = (int(g.padding)?, int(g.stride)?, int(g.dilation)?);
        let h = handle.handle;
        let mut convolution = Self {
            x: std::ptr::null_mut(),
            y: std::ptr::null_mut(),
            weight: std::ptr::null_mut(),
            conv: std::ptr::null_mut(),
            handle: Rc::clone(handle),
            forward: Ways::none(),
            data: Ways::none(),
            filter: Ways::none(),
        };
        convolution.x = result::create_tensor_descriptor().map_err(failed)?;
        convolution.y = result::create_tensor_descriptor().map_err(failed)?;
        convolution.weight = result::create_filter_descriptor().map_err(failed)?;
        convolution.conv = result::create_convolution_descriptor().map_err(failed)?;
        // SAFETY: all descriptors were just made.
        unsafe {
            result::set_tensor4d_descriptor(convolution.x, NCHW, number, x).map_err(failed)?;
            result::set_tensor4d_descriptor(convolution.y, NCHW, number, y).map_err(failed)?;
            result::set_filter4d_descriptor(convolution.weight, number, NCHW, weight)
                .map_err(failed)?;
            result::set_convolution2d_descriptor(
                convolution.conv,
                padding,
                padding,
                stride,
                stride,
                dilation,
                dilation,
                CUDNN_CROSS_CORRELATION,
                F32,
            )
            .map_err(failed)?;
            result::set_convolution_math_type(convolution.conv, arithmetic.math())
                .map_err(failed)?;
        }

        /// cuDNN has 8 algorithms at most for a pass, some with two kinds of arithmetic.
        const ASKED: usize = 16;
        let mut count = 0;
        // SAFETY: these are plain C structures of numbers, and the memory holds `ASKED` of them; the
        // descriptors were set above.
        unsafe {
            let mut perfs: [sys::cudnnConvolutionFwdAlgoPerf_t; ASKED] = std::mem::zeroed();
            result::get_convolution_forward_algorithm(
                h,
                convolution.x,
                convolution.weight,
                convolution.conv,
                convolution.y,
                ASKED as i32,
                &mut count,
                perfs.as_mut_ptr(),
            )
            .map_err(failed)?;
            convolution.forward = ways(
                proposals!(perfs, count),
                arithmetic,
                CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
                convolution.conv,
                |a| {
                    result::get_convolution_forward_workspace_size(
                        h,
                        convolution.x,
                        convolution.weight,
                        convolution.conv,
                        convolution.y,
                        a,
                    )
                },
            )?;
            let mut perfs: [sys::cudnnConvolutionBwdDataAlgoPerf_t; ASKED] = std::mem::zeroed();
            result::set_convolution_math_type(convolution.conv, arithmetic.math())
                .map_err(failed)?;
            result::get_convolution_backward_data_algorithm(
                h,
                convolution.weight,
                convolution.y,
                convolution.conv,
                convolution.x,
                ASKED as i32,
                &mut count,
                perfs.as_mut_ptr(),
            )
            .map_err(failed)?;
            convolution.data = ways(
                proposals!(perfs, count),
                arithmetic,
                CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
                convolution.conv,
                |a| {
                    result::get_convolution_backward_data_workspace_size(
                        h,
                        convolution.weight,
                        convolution.y,
                        convolution.conv,
                        convolution.x,
                        a,
                    )
                },
            )?;
            let mut perfs: [sys::cudnnConvolutionBwdFilterAlgoPerf_t; ASKED] = std::mem::zeroed();
            result::set_convolution_math_type(convolution.conv, arithmetic.math())
                .map_err(failed)?;
            result::get_convolution_backward_filter_algorithm(
                h,
                convolution.x,
                convolution.y,
                convolution.conv,
                convolution.weight,
                ASKED as i32,
                &mut count,
                perfs.as_mut_ptr(),
            )
            .map_err(failed)?;
            convolution.filter = ways(
                proposals!(perfs, count),
                arithmetic,
                CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
                convolution.conv,
                |a| {
                    result::get_convolution_backward_filter_workspace_size(
                        h,
                        convolution.x,
                        convolution.y,
                        convolution.conv,
                        convolution.weight,
                        a,
                    )
                },
            )?;
        }
        Ok(convolution)
    }
}

/// Runs `body`, one call of cuDNN, with what is kept of a shape, the way in which the pass is computed, and the address of its
/// workspace. Where cuDNN refuses a way that it had proposed, the next is taken, from then on.
fn with_convolution<A: Copy>(
    device: &CudaDevice,
    geometry: &Geometry,
    dtype: DType,
    pass: impl Fn(&CudnnConvolution) -> &Ways<A>,
    body: impl Fn(&CudnnConvolution, Way<A>, *mut c_void) -> std::result::Result<(), result::CudnnError>,
) -> Result<()> {
    let on_device = DEVICES.with(|devices| {
        if let Some(on_device) = devices.borrow().get(&device.id()) {
            return Ok(Rc::clone(on_device));
        }
        let handle = Rc::new(Handle::new(device.cuda_stream())?);
        let on_device = OnDevice { convolutions: HashMap::new(), workspace: None, handle };
        let on_device = Rc::new(RefCell::new(on_device));
        devices.borrow_mut().insert(device.id(), Rc::clone(&on_device));
        Ok::<_, Error>(on_device)
    })?;
    let mut on_device = on_device.borrow_mut();
    let OnDevice { convolutions, workspace, handle } = &mut *on_device;
    let key = (*geometry, Arithmetic::of(dtype));
    let convolution = match convolutions.get(&key) {
        Some(convolution) => Rc::clone(convolution),
        None => {
            let convolution = Rc::new(CudnnConvolution::new(handle, geometry, key.1)?);
            convolutions.insert(key, Rc::clone(&convolution));
            convolution
        }
    };
    let ways = pass(&convolution);
    while let Some(way) = ways.current() {
        // SAFETY: the descriptor exists; the three passes share it, each with a math type of its own.
        unsafe { result::set_convolution_math_type(convolution.conv, way.math) }.map_err(failed)?;
        let computed = match way.workspace_bytes {
            0 => body(&convolution, way, std::ptr::null_mut()),
            bytes => {
                // A graph's workspace is its own: this one is replaced when another shape needs a larger one.
                let mut own = None;
                let workspace = if is_capturing() { &mut own } else { &mut *workspace };
                if workspace.as_ref().is_none_or(|workspace| workspace.len() < bytes) {
                    *workspace = None;
                    *workspace = Some(memory::<u8>(device, bytes)?);
                }
                let Some(workspace) = workspace else { unreachable!("it was just made") };
                let stream = Arc::clone(&convolution.handle.stream);
                let (address, _in_use) = workspace.device_ptr_mut(&stream);
                body(&convolution, way, address as *mut c_void)
            }
        };
        match computed {
            Ok(()) => return Ok(()),
            Err(error) => ways.refused(error).map_err(failed)?,
        }
    }
    bail!("{NAME}: cuDNN was not asked for an algorithm")
}

/// The factors of a product and of what is in the result's memory already.
const ONE: f32 = 1.0;
const ZERO: f32 = 0.0;

fn scalar(value: &f32) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

fn check(geometry: &Geometry) -> Result<()> {
    if geometry.batch == 0 {
        bail!("{NAME}: expected at least one image");
    }
    Ok(())
}

pub(super) fn forward(x: Array<'_>, weight: Array<'_>, geometry: &Geometry) -> Result<CudaStorage> {
    check(geometry)?;
    with_number!(NAME, x.dtype(), T => forward_of::<T>(x, weight, geometry))
}

fn forward_of<T: Number>(
    x: Array<'_>,
    weight: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    let device = x.device();
    let stream = device.cuda_stream();
    let (x, weight) = (x.values::<T>(NAME)?, weight.values::<T>(NAME)?);
    let mut y = memory::<T>(device, geometry.output_len())?;
    {
        let (x, _x) = x.device_ptr(&stream);
        let (weight, _weight) = weight.device_ptr(&stream);
        let (y, _y) = y.device_ptr_mut(&stream);
        // SAFETY: the descriptors say how large the memory is.
        with_convolution(
            device,
            geometry,
            T::DTYPE,
            |kept| &kept.forward,
            |convolution, way, workspace| unsafe {
                result::convolution_forward(
                    convolution.handle.handle,
                    scalar(&ONE),
                    convolution.x,
                    x as *const c_void,
                    convolution.weight,
                    weight as *const c_void,
                    convolution.conv,
                    way.algorithm,
                    workspace,
                    way.workspace_bytes,
                    scalar(&ZERO),
                    convolution.y,
                    y as *mut c_void,
                )
            },
        )?;
    }
    Ok(storage(y, device))
}

pub(super) fn data_gradient(
    weight: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    check(geometry)?;
    with_number!(NAME, dz.dtype(), T => data_gradient_of::<T>(weight, dz, geometry))
}

fn data_gradient_of<T: Number>(
    weight: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    let device = dz.device();
    let stream = device.cuda_stream();
    let (weight, dz) = (weight.values::<T>(NAME)?, dz.values::<T>(NAME)?);
    let mut dx = memory::<T>(device, geometry.input_len())?;
    {
        let (weight, _weight) = weight.device_ptr(&stream);
        let (dz, _dz) = dz.device_ptr(&stream);
        let (dx, _dx) = dx.device_ptr_mut(&stream);
        // SAFETY: the descriptors say how large the memory is.
        with_convolution(
            device,
            geometry,
            T::DTYPE,
            |kept| &kept.data,
            |convolution, way, workspace| unsafe {
                result::convolution_backward_data(
                    convolution.handle.handle,
                    scalar(&ONE),
                    convolution.weight,
                    weight as *const c_void,
                    convolution.y,
                    dz as *const c_void,
                    convolution.conv,
                    way.algorithm,
                    workspace,
                    way.workspace_bytes,
                    scalar(&ZERO),
                    convolution.x,
                    dx as *mut c_void,
                )
            },
        )?;
    }
    Ok(storage(dx, device))
}

pub(super) fn weight_gradient(
    x: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    check(geometry)?;
    with_number!(NAME, dz.dtype(), T => weight_gradient_of::<T>(x, dz, geometry))
}

fn weight_gradient_of<T: Number>(
    x: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    let device = dz.device();
    let stream = device.cuda_stream();
    let (x, dz) = (x.values::<T>(NAME)?, dz.values::<T>(NAME)?);
    let mut dweight = memory::<T>(device, geometry.weight_len())?;
    {
        let (x, _x) = x.device_ptr(&stream);
        let (dz, _dz) = dz.device_ptr(&stream);
        let (dweight, _dweight) = dweight.device_ptr_mut(&stream);
        // SAFETY: the descriptors say how large the memory is.
        with_convolution(
            device,
            geometry,
            T::DTYPE,
            |kept| &kept.filter,
            |convolution, way, workspace| unsafe {
                result::convolution_backward_filter(
                    convolution.handle.handle,
                    scalar(&ONE),
                    convolution.x,
                    x as *const c_void,
                    convolution.y,
                    dz as *const c_void,
                    convolution.conv,
                    way.algorithm,
                    workspace,
                    way.workspace_bytes,
                    scalar(&ZERO),
                    convolution.weight,
                    dweight as *mut c_void,
                )
            },
        )?;
    }
    Ok(storage(dweight, device))
}
