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
    workspace: Workspace,
    handle: Rc<Handle>,
}

/// The memory that convolutions work in, one after the other on the device's stream.
#[derive(Default)]
struct Workspace {
    current: Option<CudaSlice<u8>>,
    /// Whether a graph was captured that uses the current memory.
    in_graph: bool,
    /// What graphs use and a larger one has taken the place of.
    replaced: Vec<CudaSlice<u8>>,
}

impl Workspace {
    /// At least so many bytes. A step that is captured uses what the same step used before, so that its graph allocates none; from
    /// then on that memory stays.
    fn of(&mut self, device: &CudaDevice, bytes: usize) -> Result<&mut CudaSlice<u8>> {
        if self.current.as_ref().is_none_or(|memory| memory.len() < bytes) {
            if is_capturing() {
                bail!(
                    "{NAME}: a step that is captured needs {bytes} bytes for cuDNN, more than the same step did before it was captured"
                )
            }
            let before = self.current.take();
            if std::mem::take(&mut self.in_graph) {
                self.replaced.extend(before);
            }
            self.current = Some(memory::<u8>(device, bytes)?);
        }
        self.in_graph |= is_capturing();
        let Some(current) = &mut self.current else { unreachable!("it was just made") };
        Ok(current)
    }
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
        let on_device =
            OnDevice { convolutions: HashMap::new(), workspace: Workspace::default(), handle };
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
                let workspace = workspace.of(device, bytes)?;
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
    let (to, result) = (geometry.output_len(), forward_at);
    with_number!(NAME, x.dtype(), T => computed::<T>([x, weight], geometry, to, result))
}

pub(super) fn data_gradient(
    weight: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    let (to, result) = (geometry.input_len(), |device: &_, dtype, geometry: &_, addresses| {
        data_gradient_at(device, dtype, geometry, addresses, false)
    });
    with_number!(NAME, dz.dtype(), T => computed::<T>([weight, dz], geometry, to, result))
}

pub(super) fn weight_gradient(
    x: Array<'_>,
    dz: Array<'_>,
    geometry: &Geometry,
) -> Result<CudaStorage> {
    let (to, result) = (geometry.weight_len(), weight_gradient_at);
    with_number!(NAME, dz.dtype(), T => computed::<T>([x, dz], geometry, to, result))
}

/// What `body` computes of two arrays at the addresses that it is given, in new memory for `to` numbers: its last address.
fn computed<T: Number>(
    of: [Array<'_>; 2],
    geometry: &Geometry,
    to: usize,
    body: impl Fn(&CudaDevice, DType, &Geometry, [u64; 3]) -> Result<()>,
) -> Result<CudaStorage> {
    let device = of[0].device();
    let stream = device.cuda_stream();
    let (first, second) = (of[0].values::<T>(NAME)?, of[1].values::<T>(NAME)?);
    let mut result = memory::<T>(device, to)?;
    {
        let (first, _first) = first.device_ptr(&stream);
        let (second, _second) = second.device_ptr(&stream);
        let (result, _result) = result.device_ptr_mut(&stream);
        body(device, T::DTYPE, geometry, [first, second, result])?;
    }
    Ok(storage(result, device))
}

/// The products, to `y`. The addresses are those of whole maps and weights of `dtype`, of the sizes that `geometry` says.
pub(super) fn forward_at(
    device: &CudaDevice,
    dtype: DType,
    geometry: &Geometry,
    [x, weight, y]: [u64; 3],
) -> Result<()> {
    check(geometry)?;
    with_convolution(
        device,
        geometry,
        dtype,
        |kept| &kept.forward,
        // SAFETY: the descriptors say how large the memory is, which the caller has.
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
    )
}

/// The gradient of x, to `dx`, or added to it; addresses as for [`forward_at`].
pub(super) fn data_gradient_at(
    device: &CudaDevice,
    dtype: DType,
    geometry: &Geometry,
    [weight, dz, dx]: [u64; 3],
    add: bool,
) -> Result<()> {
    check(geometry)?;
    with_convolution(
        device,
        geometry,
        dtype,
        |kept| &kept.data,
        // SAFETY: as for `forward_at`.
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
                scalar(if add { &ONE } else { &ZERO }),
                convolution.x,
                dx as *mut c_void,
            )
        },
    )
}

/// The gradient of the weight, to `dweight`; addresses as for [`forward_at`].
pub(super) fn weight_gradient_at(
    device: &CudaDevice,
    dtype: DType,
    geometry: &Geometry,
    [x, dz, dweight]: [u64; 3],
) -> Result<()> {
    check(geometry)?;
    with_convolution(
        device,
        geometry,
        dtype,
        |kept| &kept.filter,
        // SAFETY: as for `forward_at`.
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
    )
}
