//! Which of cuDNN's proposals a pass of a convolution is computed by: the algorithm together with the arithmetic that it was
//! proposed with, and the next one where cuDNN refuses what it had proposed.

use std::cell::Cell;

use candle_core::cuda_backend::cudarc::cudnn::{result, sys};
use candle_core::{DType, Error, Result, bail};

use super::graph::is_capturing;
use super::tf32;

const NAME: &str = "conv2d";

/// The largest workspace that an algorithm may ask for. What more memory would gain is small, and cuDNN has other
/// algorithms.
const MAX_WORKSPACE_BYTES: usize = 1 << 30;

pub(super) fn failed(error: result::CudnnError) -> Error {
    Error::wrap(error).context("cuDNN refused a convolution")
}

/// What the factors of the products are; their sums are f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Arithmetic {
    F32,
    /// f32 numbers, rounded when multiplied.
    Tf32,
    /// bf16 numbers, whose products are exact.
    Bf16,
}

impl Arithmetic {
    pub(super) fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            _ if tf32() => Self::Tf32,
            _ => Self::F32,
        }
    }
}

/// One of cuDNN's proposals of an algorithm, for any of the three passes.
pub(super) struct Proposal<A> {
    pub(super) algorithm: A,
    pub(super) status: sys::cudnnStatus_t,
    pub(super) bytes: usize,
    pub(super) determinism: sys::cudnnDeterminism_t,
    pub(super) math: sys::cudnnMathType_t,
}

impl Arithmetic {
    /// What a descriptor allows while cuDNN is asked for proposals. Its default lets f32 become TF32; FMA does not. bf16 needs
    /// tensor cores to be quick.
    pub(super) fn math(self) -> sys::cudnnMathType_t {
        match self {
            Self::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            Self::Tf32 => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
            Self::Bf16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        }
    }

    /// The math type that a proposal is computed with, which is its own; `None` where that would round f32 that may not be
    /// rounded.
    fn allowed(self, proposed: sys::cudnnMathType_t) -> Option<sys::cudnnMathType_t> {
        use sys::cudnnMathType_t::{CUDNN_DEFAULT_MATH, CUDNN_FMA_MATH};
        match (self, proposed) {
            // The default would be TF32 on every card that has it.
            (Self::F32, CUDNN_FMA_MATH | CUDNN_DEFAULT_MATH) => Some(CUDNN_FMA_MATH),
            (Self::F32, _) => None,
            (Self::Tf32 | Self::Bf16, own) => Some(own),
        }
    }
}

/// Those of cuDNN's proposals, the quickest first by its heuristics, that are deterministic, round f32 only where that is asked
/// for, and are content with the memory, which `workspace` asks for again; then `last`, which is deterministic and always there.
/// The descriptor is set to each way's math type, which decides with its algorithm what is computed, as PyTorch does before every call
/// (`aten/src/ATen/native/cudnn/Conv_v7.cpp`).
pub(super) fn ways<A: Copy>(
    proposals: impl Iterator<Item = Proposal<A>>,
    arithmetic: Arithmetic,
    last: A,
    conv: sys::cudnnConvolutionDescriptor_t,
    workspace: impl Fn(A) -> std::result::Result<usize, result::CudnnError>,
) -> Result<Ways<A>> {
    let good = proposals.filter(|proposal| {
        proposal.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
            && proposal.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
            && proposal.bytes <= MAX_WORKSPACE_BYTES
    });
    let proposed = good.filter_map(|proposal| {
        arithmetic.allowed(proposal.math).map(|math| (proposal.algorithm, math))
    });
    let mut ways = Vec::new();
    let mut refused = None;
    for (algorithm, math) in proposed.chain([(last, arithmetic.math())]) {
        // SAFETY: the caller's descriptor exists.
        let asked = unsafe { result::set_convolution_math_type(conv, math) }
            .and_then(|()| workspace(algorithm));
        match asked {
            Ok(workspace_bytes) if workspace_bytes <= MAX_WORKSPACE_BYTES => {
                ways.push(Way { algorithm, math, workspace_bytes });
            }
            Ok(_) => {}
            Err(error) => refused = Some(error),
        }
    }
    match (ways.is_empty(), refused) {
        (false, _) => Ok(Ways { ways, current: Cell::new(0) }),
        (true, Some(error)) => Err(failed(error)),
        (true, None) => bail!(
            "{NAME}: cuDNN has no deterministic algorithm for this convolution that needs at most {MAX_WORKSPACE_BYTES} bytes of \
             workspace; set the environment variable KD_CONVOLUTIONS to `cublas`"
        ),
    }
}

/// The ways in which one pass can be computed, best first, and which of them is in use.
pub(super) struct Ways<A> {
    ways: Vec<Way<A>>,
    /// Moves on when cuDNN refuses a way that it had proposed.
    current: Cell<usize>,
}

/// An algorithm, the arithmetic that it was proposed with, and the workspace that it needs.
#[derive(Clone, Copy)]
pub(super) struct Way<A> {
    pub(super) algorithm: A,
    pub(super) math: sys::cudnnMathType_t,
    pub(super) workspace_bytes: usize,
}

impl<A: Copy> Ways<A> {
    /// Before cuDNN was asked.
    pub(super) fn none() -> Self {
        Self { ways: Vec::new(), current: Cell::new(0) }
    }

    /// The way in use; `refused` moves on to the next after an error, and returns that error if there is none.
    pub(super) fn current(&self) -> Option<Way<A>> {
        self.ways.get(self.current.get()).copied()
    }

    pub(super) fn refused(
        &self,
        error: result::CudnnError,
    ) -> std::result::Result<(), result::CudnnError> {
        let next = self.current.get() + 1;
        if next >= self.ways.len() || is_capturing() {
            return Err(error);
        }
        self.current.set(next);
        Ok(())
    }
}
