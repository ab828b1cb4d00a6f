//! A step of training as a CUDA graph: what it submits is captured once, and from then on launched as a whole.
//!
//! A small network's step is some hundred short pieces of work. Submitting them, with memory for each, is some 250 calls of the
//! driver, and may take the host longer than the work takes the GPU. A graph is submitted by one call.

use std::cell::Cell;
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaGraph, CudaSlice, CudaStream, DevicePtr, PushKernelArg,
};
use candle_core::{CudaDevice, Device, Result, bail};

use super::{kernel, launch, ptx};

thread_local! {
    /// Where a step that is being captured finds its `struct Step` of kernels/step.cuh, or 0.
    static STEP: Cell<u64> = const { Cell::new(0) };
}

/// The address that kernels take as `const Step *`: null unless this thread is capturing a step.
pub(super) fn address_of_step() -> u64 {
    STEP.get()
}

/// Whether this thread is capturing a step.
pub(crate) fn is_capturing() -> bool {
    STEP.get() != 0
}

/// A capture that has begun. It ends in any case, also when the thread panics.
struct Capturing {
    stream: Arc<CudaStream>,
    ended: bool,
}

impl Capturing {
    fn begin(stream: &Arc<CudaStream>, step: u64) -> Result<Self> {
        // Other threads may go on with what a capture forbids.
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        STEP.set(step);
        Ok(Self { stream: Arc::clone(stream), ended: false })
    }

    fn end(&mut self) -> Result<Option<CudaGraph>> {
        self.ended = true;
        STEP.set(0);
        // A tensor that could not be freed leaves its error to the next call, and `end_capture` must be made.
        let freed = self.stream.context().check_err();
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        freed.w()?;
        graph.w()
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

/// What changes in an optimiser's arithmetic from one step to the next: at most four numbers, which its kernel reads where
/// a captured step finds them. Each optimiser says itself what they are: see
/// [`Adam::next_step`](crate::adam::Adam::next_step) and [`Sgd::next_step`](crate::sgd::Sgd::next_step).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepScalars(pub [f32; 4]);

/// Makes candle keep, on the GPU, the small tables that it uploads with its operations, for as long as the returned value
/// lives. A capture may upload nothing: run the step that is to be captured once or twice beforehand while the value lives,
/// and the capture finds the tables. On a device that is no GPU there is nothing to keep.
#[must_use]
pub fn keep_uploads(device: &Device) -> Option<impl Drop + use<>> {
    match device {
        Device::Cuda(device) => Some(device.enable_cuda_graph_htod_cache()),
        _ => None,
    }
}

/// 64-bit words of `struct Step` of kernels/step.cuh.
const WORDS: usize = 3;

/// A captured step.
pub struct Graph {
    graph: CudaGraph,
    /// `struct Step` of kernels/step.cuh: the step's number, then four f32, two in a word.
    step: CudaSlice<u64>,
    device: CudaDevice,
}

impl Graph {
    /// Captures what `body` submits to the GPU; none of it is carried out. What changes from one step to the next reaches a graph in
    /// two ways: dropout and optimisers read what [`launch`](Self::launch) is given, and all else must be copied
    /// beforehand into tensors that `body` used. What `body` computes must likewise be copied into such tensors, and
    /// everything that it makes must be dropped when it returns.
    ///
    /// `body` must have run before, with [`keep_uploads`]: a capture may load no kernel and upload nothing. Nor may it free
    /// what was made outside of it.
    ///
    /// # Safety
    /// All memory on the GPU that `body` used and did not make must stay where it is for as long as the graph is launched:
    /// parameters, tensors that were copied into, an optimiser's state. That moves when the optimiser takes a step of other
    /// parameters, or while a clone of it lives.
    ///
    /// # Errors
    /// When `body` does what can't be captured, or fails. Work can be submitted as before then.
    pub unsafe fn capture<E: From<candle_core::Error>>(
        device: &Device,
        body: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let Device::Cuda(device) = device else {
            return Err(candle_core::Error::Msg("a graph needs an NVIDIA GPU".into()).into());
        };
        let stream = device.cuda_stream();
        let step = device.alloc_zeros::<u64>(WORDS)?;
        let address = step.device_ptr(&stream).0;
        let _uploads = device.enable_cuda_graph_htod_cache();
        let mut capturing = Capturing::begin(&stream, address)?;
        let done = body();
        let graph = capturing.end();
        done?;
        let Some(graph) = graph? else {
            return Err(candle_core::Error::Msg("the driver captured no graph".into()).into());
        };
        // Where the card has too little memory, this fails, and not the first launch.
        graph.upload().w()?;
        Ok(Self { graph, step, device: device.clone() })
    }

    /// Takes the step: submits all that was captured, with the step's number `step`, which is the
    /// [`DropoutKey`](crate::DropoutKey)'s, and the scalars of the optimiser that the captured step took.
    ///
    /// # Errors
    /// When the driver refuses, or another step is being captured.
    pub fn launch(&mut self, step: u64, scalars: StepScalars) -> Result<()> {
        if is_capturing() {
            bail!("a graph can't be launched while another one is captured")
        }
        let set_step = kernel(&self.device, "kd-ops step", "set_step", ptx::STEP)?;
        let mut args = set_step.builder();
        args.arg(&step);
        for scalar in &scalars.0 {
            args.arg(scalar);
        }
        args.arg(&mut self.step);
        // SAFETY: the memory holds a `struct Step`; one thread writes it, before the graph on the same stream.
        unsafe { launch(args, (1, 1), (1, 1)) }?;
        self.graph.launch().w()
    }
}
