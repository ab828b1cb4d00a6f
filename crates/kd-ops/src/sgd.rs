//! Stochastic gradient descent with PyTorch's semantics and a state that can be saved.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var, bail};
use rayon::prelude::*;

use crate::cpu;

/// The settings of [`Sgd`]; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdConfig {
    /// Learning rate.
    pub lr: f64,
    /// What is kept of the sum of past gradients in each step.
    pub momentum: f64,
    /// Nesterov's momentum: the step looks one step of momentum ahead.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// Gradient descent with momentum (Sutskever et al., 2013), as `torch.optim.SGD` computes it
/// (dampening 0).
///
/// All of its state is public, by parameter name, so that a run can be saved and go on exactly. Where the
/// parameters are on a GPU the sums are there too: [`fetch`](Self::fetch) brings them into `momentum`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Sgd {
    /// The settings; `lr` may be changed between steps.
    pub config: SgdConfig,
    /// Each parameter's decaying sum of gradients, an entry for each element, row-major; a parameter
    /// gets its own at its first step, and none without momentum.
    pub momentum: BTreeMap<String, Vec<f32>>,
    #[cfg(feature = "cuda")]
    gpu: crate::cuda::optimizer::Memory,
}

impl Sgd {
    /// An optimiser that has not taken a step.
    pub fn new(config: SgdConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes one step: changes every parameter that has a gradient.
    ///
    /// # Errors
    /// When a parameter is not a contiguous f32 tensor, or a saved sum doesn't have its size.
    pub fn step(&mut self, parameters: &BTreeMap<String, Var>, grads: &GradStore) -> Result<()> {
        #[cfg(feature = "cuda")]
        if crate::cuda::optimizer::are_on_gpu(parameters) {
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
    /// Brings `momentum` up to date: where the parameters are on a GPU, `step` changes the sums there, and
    /// reads `momentum` at its first step alone. It waits for the GPU. On the CPU there is nothing to do.
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
            self.gpu = crate::cuda::optimizer::Memory::new("sgd", parameters, kinds, |name| {
                Some(self.momentum.get(name).iter().map(|sum| sum.as_slice()).collect())
            })?;
        }
        self.gpu.sgd(parameters, grads, &self.config)
    }

    /// How large the next step is: for a step that a captured [`Graph`](crate::cuda::graph::Graph) takes.
    /// A clone from before shares the memory that the graph changes.
    #[cfg(feature = "cuda")]
    pub fn next_step_size(&self) -> crate::cuda::graph::StepSize {
        crate::cuda::graph::StepSize { step_size: self.config.lr as f32, root: 1.0 }
    }
}

struct SgdUpdate<'a> {
    grad: &'a [f32],
    // `cpu_fwd` gets the operation by shared reference. Empty without momentum.
    sums: Mutex<&'a mut Vec<f32>>,
    config: &'a SgdConfig,
}

/// Elements a thread takes at a time.
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
