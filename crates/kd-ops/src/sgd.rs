//! The optimiser SGD (stochastic gradient descent) with PyTorch's semantics and a state that can be saved.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var, bail};
use rayon::prelude::*;

use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::{
    graph::StepScalars,
    optimizer::{OptimizerState, SgdConstants},
    tensor_table::are_on_gpu,
};

/// The settings of [`Sgd`]; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdConfig {
    /// Learning rate.
    pub lr: f64,
    /// The share of the sum of past gradients that each step keeps, in [0, 1); 0 keeps no sum.
    pub momentum: f64,
    /// Nesterov's momentum: the step looks one step of momentum ahead. Without momentum it changes nothing.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// Gradient descent with momentum (Sutskever et al., "On the importance of initialization and momentum in deep learning",
/// 2013), as `torch.optim.SGD` computes it in f32 with its dampening of 0.
///
/// All of its state is public, by parameter name, so that a run can be saved and continued exactly. Where the
/// parameters lie on a GPU the sums lie there as well: [`fetch`](Self::fetch) brings them into `momentum`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Sgd {
    /// The settings; `lr` may be changed between steps.
    pub config: SgdConfig,
    /// Each parameter's decaying sum of gradients, an entry for each element, row-major; a parameter
    /// gets its own at its first step, and none without momentum.
    pub momentum: BTreeMap<String, Vec<f32>>,
    #[cfg(feature = "cuda")]
    gpu: OptimizerState,
}

impl Sgd {
    /// An optimiser that has not taken a step.
    pub fn new(config: SgdConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes one step: changes, in place, every parameter that has a gradient.
    ///
    /// # Errors
    /// When a parameter is not a contiguous f32 tensor, or a saved sum doesn't have its size.
    pub fn step(&mut self, parameters: &BTreeMap<String, Var>, grads: &GradStore) -> Result<()> {
        #[cfg(feature = "cuda")]
        if are_on_gpu(parameters) {
            return self.step_on_gpu(parameters, grads);
        }
        for (name, parameter) in parameters {
            let Some(grad) = grads.get(parameter.as_tensor()) else { continue };
            let len = parameter.elem_count();
            let mut none = Vec::new();
            let sums = match self.config.momentum > 0.0 {
                // Zeros: the first step's sum is then its gradient, as in PyTorch.
                true => self.momentum.entry(name.clone()).or_insert_with(|| vec![0.0; len]),
                false => &mut none,
            };
            if self.config.momentum > 0.0 && sums.len() != len {
                let found = sums.len();
                bail!(
                    "sgd: the saved momentum of {name} has {found} elements, the parameter has {len}"
                );
            }
            cpu::with_slice("sgd", grad, |grad| {
                let update = SgdUpdate { grad, sums: Mutex::new(sums), config: &self.config };
                parameter.inplace_op1(&update)
            })?;
        }
        Ok(())
    }
}

impl Sgd {
    /// Brings `momentum` up to date. Where the parameters lie on a GPU, `step` changes the sums there and reads
    /// `momentum` at its first step alone, so this copies them back, which waits for the GPU. On the CPU there is
    /// nothing to do.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn fetch(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        for (name, [sum]) in self.gpu.fetch()? {
            self.momentum.insert(name, sum);
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn step_on_gpu(&mut self, parameters: &BTreeMap<String, Var>, grads: &GradStore) -> Result<()> {
        let kinds = usize::from(self.config.momentum > 0.0);
        if !self.gpu.fits(parameters, kinds) {
            self.fetch()?;
            self.gpu = OptimizerState::new("sgd", parameters, kinds, |name| {
                Some(self.momentum.get(name).iter().map(|sum| sum.as_slice()).collect())
            })?;
        }
        let SgdConfig { momentum, nesterov, weight_decay, .. } = self.config;
        let (momentum, weight_decay) = (momentum as f32, weight_decay as f32);
        let constants = SgdConstants { momentum, nesterov, weight_decay };
        self.gpu.sgd(parameters, grads, constants, self.next_step())
    }

    /// What a captured [`Graph`](crate::cuda::graph::Graph) that is about to take a step is launched with: the learning
    /// rate. The launch changes the sums on the GPU, of this optimiser and of a clone that shares them.
    #[cfg(feature = "cuda")]
    pub fn next_step(&self) -> StepScalars {
        StepScalars([self.config.lr as f32, 0.0, 0.0, 0.0])
    }
}

/// One parameter's step on the CPU, as an operation in place.
struct SgdUpdate<'a> {
    grad: &'a [f32],
    // Empty without momentum; in a mutex because `cpu_fwd` gets the operation by shared reference.
    sums: Mutex<&'a mut Vec<f32>>,
    config: &'a SgdConfig,
}

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

impl InplaceOp1 for SgdUpdate<'_> {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(&self, parameter: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(parameter) = parameter else { bail!("sgd: expected f32 parameters") };
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("sgd: a parameter of shape {:?} is not contiguous", layout.shape())
        };
        let parameter = &mut parameter[from..to];
        let SgdConfig { lr, momentum, nesterov, weight_decay } = *self.config;
        let (lr, momentum, weight_decay) = (lr as f32, momentum as f32, weight_decay as f32);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.is_empty() {
            let chunks = parameter.par_chunks_mut(CHUNK).zip(self.grad.par_chunks(CHUNK));
            chunks.for_each(|(parameter, grad)| {
                for (parameter, &grad) in parameter.iter_mut().zip(grad) {
                    *parameter -= lr * (grad + weight_decay * *parameter);
                }
            });
            return Ok(());
        }
        parameter
            .par_chunks_mut(CHUNK)
            .zip(self.grad.par_chunks(CHUNK))
            .zip(sums.par_chunks_mut(CHUNK))
            .for_each(|((parameter, grad), sums)| {
                for ((parameter, &grad), sum) in parameter.iter_mut().zip(grad).zip(sums) {
                    let grad = grad + weight_decay * *parameter;
                    *sum = momentum * *sum + grad;
                    *parameter -= lr * if nesterov { grad + momentum * *sum } else { *sum };
                }
            });
        Ok(())
    }
}
