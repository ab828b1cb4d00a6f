//! Matrix products by cuBLAS, on matrices at addresses.

use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::gemm_reduced_precision_f32;
use candle_core::{Error, Result};

use super::super::int;
use super::Gpu;

/// A factor of a product: its address, and whether its rows are the columns of what is stored. Rows lie one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) address: u64,
    pub(super) transposed: bool,
}

impl Factor {
    pub(super) fn rows(address: u64) -> Self {
        Self { address, transposed: false }
    }

    pub(super) fn transposed(address: u64) -> Self {
        Self { address, transposed: true }
    }
}

/// `c [m, n] = a [m, k] * b [k, n]`; the same call that candle makes for these factors.
///
/// # Safety
/// The addresses must have as many numbers as the sizes say.
pub(super) unsafe fn product(
    gpu: &Gpu,
    (m, n, k): (usize, usize, usize),
    a: Factor,
    b: Factor,
    c: u64,
) -> Result<()> {
    use sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
    const F32: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_32F;
    let arithmetic = match gemm_reduced_precision_f32() {
        true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let operation = |factor: Factor| if factor.transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
    let (of_a, of_b) =
        (int(if a.transposed { m } else { k })?, int(if b.transposed { k } else { n })?);
    let (rows, columns, terms) = (int(m)?, int(n)?, int(k)?);
    let (one, zero) = (1.0f32, 0.0f32);
    // cuBLAS's matrices lie by columns: the product is that of the transposed factors, the second one first.
    // SAFETY: the caller's promise; the factors of the sum are read before the call returns.
    let done = unsafe {
        result::gemm_strided_batched_ex(
            *gpu.device.cublas_handle().handle(),
            operation(b),
            operation(a),
            columns,
            rows,
            terms,
            std::ptr::from_ref(&one).cast(),
            b.address as *const _,
            F32,
            of_b,
            0,
            a.address as *const _,
            F32,
            of_a,
            0,
            std::ptr::from_ref(&zero).cast(),
            c as *mut _,
            F32,
            columns,
            0,
            1,
            arithmetic,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    };
    done.map_err(Error::wrap)
}
