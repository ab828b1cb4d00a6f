//! Norms of gradients, and clipping by the norm of all of them together.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use rayon::prelude::*;

use crate::cpu;

/// The Euclidean norm of each parameter's gradient, by name; parameters without a gradient are left out.
///
/// Sums are in f64, where the square of no f32 overflows: a norm is finite exactly when every element is.
/// On a GPU this waits for the results; [`clip_grad_norm_on_device`] does not wait.
///
/// # Errors
/// When a gradient is not f32.
pub fn grad_norms(
    parameters: &BTreeMap<String, Var>,
    grads: &GradStore,
) -> Result<BTreeMap<String, f64>> {
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor_table::are_on_gpu(parameters) {
        return crate::cuda::grad_norm::grad_norms(parameters, grads);
    }
    let with_grad = |(name, parameter): (&String, &Var)| {
        let grad = grads.get(parameter.as_tensor())?;
        Some(norm(grad).map(|norm| (name.clone(), norm)))
    };
    parameters.iter().filter_map(with_grad).collect()
}

/// Elements of a partial sum; partial sums are added in order, so that the threads don't change the result.
const CHUNK: usize = 1 << 14;

fn norm(grad: &Tensor) -> Result<f64> {
    if !grad.device().is_cpu() {
        return Ok(grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt());
    }
    cpu::with_slice("grad_norm", grad, |grad| {
        let partial: Vec<Vec<f64>> = grad.par_chunks(ABREAST * CHUNK).map(chunk_sums).collect();
        Ok(partial.iter().flatten().sum::<f64>().sqrt())
    })
}

/// Chunks that are summed abreast: one chunk's additions wait for each other, and those of four together take a quarter of the
/// time (262,144 elements on one core: 0.34 and 0.08 ms).
const ABREAST: usize = 4;

/// The sum of squares of each [`CHUNK`] of at most [`ABREAST`] chunks.
fn chunk_sums(values: &[f32]) -> Vec<f64> {
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    let chunks: Vec<&[f32]> = values.chunks(CHUNK).collect();
    if let [a, b, c, d] = chunks[..]
        && d.len() == CHUNK
    {
        let mut sums = [0.0; ABREAST];
        for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
            sums[0] += square(a);
            sums[1] += square(b);
            sums[2] += square(c);
            sums[3] += square(d);
        }
        return sums.to_vec();
    }
    chunks.iter().map(|chunk| chunk.iter().map(square).sum()).collect()
}

/// The Euclidean norm of all gradients together, from the norms that [`grad_norms`] gives.
pub fn total_norm(norms: &BTreeMap<String, f64>) -> f64 {
    norms.values().map(|norm| norm * norm).sum::<f64>().sqrt()
}

/// Clips the gradients by their norm: scales all of them by `max_norm / (total_norm + 1e-6)` where that is below 1, as
/// PyTorch's `torch.nn.utils.clip_grad_norm_` does with its default norm, the Euclidean one. `total_norm` is that of
/// [`total_norm`].
///
/// # Errors
/// When candle refuses.
pub fn clip_grad_norm(
    parameters: &BTreeMap<String, Var>,
    grads: &mut GradStore,
    total_norm: f64,
    max_norm: f64,
) -> Result<()> {
    let scale = max_norm / (total_norm + 1e-6);
    if scale >= 1.0 {
        return Ok(());
    }
    for parameter in parameters.values() {
        if let Some(grad) = grads.remove(parameter.as_tensor()) {
            grads.insert(parameter.as_tensor(), (grad * scale)?);
        }
    }
    Ok(())
}

/// Norms of gradients as tensors on the gradients' device, from [`clip_grad_norm_on_device`].
#[derive(Clone, Debug)]
pub struct GradNorms {
    /// The parameters that have a gradient, in the order of their names.
    pub names: Vec<String>,
    /// The Euclidean norm of each of their gradients before clipping, f64 `[names]`. A norm is finite exactly when
    /// every element of the gradient is.
    pub each: Tensor,
    /// The Euclidean norm of all gradients together before clipping, an f64 scalar.
    pub total: Tensor,
}

/// Clips the gradients by their norm as [`clip_grad_norm`] does, and computes that norm itself. It returns the norms on the
/// gradients' device, so on a GPU (feature `cuda`) nothing waits for them. With an infinite `max_norm` no gradient is scaled.
///
/// # Errors
/// When a gradient is not f32.
pub fn clip_grad_norm_on_device(
    parameters: &BTreeMap<String, Var>,
    grads: &mut GradStore,
    max_norm: f64,
) -> Result<GradNorms> {
    #[cfg(feature = "cuda")]
    if crate::cuda::tensor_table::are_on_gpu(parameters) {
        let (names, each, total) =
            crate::cuda::grad_norm::clip_grad_norm(parameters, grads, max_norm)?;
        return Ok(GradNorms { names, each, total });
    }
    let norms = grad_norms(parameters, grads)?;
    let total = total_norm(&norms);
    clip_grad_norm(parameters, grads, total, max_norm)?;
    let (names, each): (Vec<_>, Vec<_>) = norms.into_iter().unzip();
    let count = each.len();
    let each = Tensor::from_vec(each, count, &Device::Cpu)?;
    Ok(GradNorms { names, each, total: Tensor::new(total, &Device::Cpu)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_abreast_have_the_sums_of_chunks_one_by_one() {
        let values: Vec<f32> = (0..ABREAST * CHUNK).map(|i| (i % 1013) as f32 / 7.0).collect();
        for count in [1, CHUNK, 3 * CHUNK + 5, ABREAST * CHUNK - 1, ABREAST * CHUNK] {
            let mut expected = Vec::new();
            for chunk in values[..count].chunks(CHUNK) {
                let mut sum = 0.0f64;
                for value in chunk {
                    sum += f64::from(*value) * f64::from(*value);
                }
                expected.push(sum);
            }
            assert_eq!(chunk_sums(&values[..count]), expected, "{count}");
        }
    }
}
