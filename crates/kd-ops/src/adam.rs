//! The optimisers Adam and AdamW with PyTorch's semantics and a state that can be saved.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::graph::{StepScalars, is_capturing};
#[cfg(feature = "cuda")]
use crate::cuda::{optimizer::OptimizerState, tensor_table::are_on_gpu};

/// Adam's settings; the defaults are PyTorch's (no weight decay).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the running mean of the gradients, in [0, 1).
    pub beta1: f64,
    /// Decay of the running mean of the squared gradients, in [0, 1).
    pub beta2: f64,
    /// Added to the denominator, the root of the mean of the squared gradients.
    pub eps: f64,
    /// How strongly parameters are drawn to zero; 0 does not.
    pub weight_decay: f64,
    /// What the weight decay does.
    pub decay: WeightDecay,
}

/// What a weight decay does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDecay {
    /// Times the parameter it is added to the gradient of each parameter, an L2 penalty: `torch.optim.Adam`.
    #[default]
    L2,
    /// Before its step a parameter is multiplied by 1 - learning rate * weight decay (Loshchilov and Hutter, "Decoupled Weight Decay
    /// Regularization", 2019, algorithm 2: `torch.optim.AdamW`). A parameter of fewer than two dimensions is not: these are biases
    /// and the weights of batch normalisations, which big_vision and timm leave out, too.
    Decoupled,
    /// The same for each parameter, as `torch.optim.AdamW` does it where it is given no groups of parameters.
    DecoupledForAll,
}

impl AdamConfig {
    /// What the parameter's values are multiplied by before a step: 1 where no decoupled weight decay is meant for it.
    fn shrinks_by(&self, parameter: &Tensor) -> f64 {
        let decoupled = match self.decay {
            WeightDecay::L2 => false,
            WeightDecay::Decoupled => parameter.rank() >= 2,
            WeightDecay::DecoupledForAll => true,
        };
        if decoupled { 1.0 - self.lr * self.weight_decay } else { 1.0 }
    }

    /// What the L2 penalty multiplies the parameter by; 0 where the weight decay is a decoupled one.
    fn penalty(&self) -> f64 {
        if self.decay == WeightDecay::L2 { self.weight_decay } else { 0.0 }
    }
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decay: WeightDecay::L2,
        }
    }
}

/// Adam's state of one parameter. Each vector has an entry for each element, row-major, and both are empty before the
/// first step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Running mean of the gradients.
    pub first: Vec<f32>,
    /// Running mean of the squared gradients.
    pub second: Vec<f32>,
}

/// Adam (Kingma and Ba, 2015, algorithm 1), as `torch.optim.Adam` computes it in f32, or AdamW by its [`WeightDecay`].
///
/// All of its state is public, by parameter name, so that a run can be saved and continued exactly. Where the
/// parameters lie on a GPU the moments lie there as well: [`fetch`](Self::fetch) brings them into `moments`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Adam {
    /// The settings; `lr` may be changed between steps.
    pub config: AdamConfig,
    /// Steps taken so far.
    pub steps: u64,
    /// The moments of each parameter, by name; a parameter gets its entry at its first step.
    pub moments: BTreeMap<String, Moments>,
    #[cfg(feature = "cuda")]
    gpu: OptimizerState,
}

impl Adam {
    /// An optimiser that has not taken a step.
    pub fn new(config: AdamConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes one step: changes, in place, every parameter that has a gradient.
    ///
    /// # Errors
    /// When a parameter is not a contiguous f32 tensor, or saved moments don't have its size.
    pub fn step(&mut self, parameters: &BTreeMap<String, Var>, grads: &GradStore) -> Result<()> {
        #[cfg(feature = "cuda")]
        if are_on_gpu(parameters) {
            return self.step_on_gpu(parameters, grads);
        }
        self.steps += 1;
        for (name, parameter) in parameters {
            let Some(grad) = grads.get(parameter.as_tensor()) else { continue };
            let moments = match self.moments.get_mut(name) {
                Some(moments) => moments,
                None => self.moments.entry(name.clone()).or_default(),
            };
            let len = parameter.elem_count();
            if moments.first.is_empty() {
                moments.first.resize(len, 0.0);
                moments.second.resize(len, 0.0);
            }
            if moments.first.len() != len || moments.second.len() != len {
                bail!(
                    "adam: the saved moments of {name} have {} and {} elements, the parameter has {len}",
                    moments.first.len(),
                    moments.second.len()
                );
            }
            cpu::with_slice("adam", grad, |grad| {
                update(parameter, grad, moments, self.steps, &self.config)
            })?;
        }
        Ok(())
    }
}

impl Adam {
    /// Brings `moments` up to date. Where the parameters lie on a GPU, `step` changes the moments there and reads
    /// `moments` at its first step alone, so this copies them back, which waits for the GPU. On the CPU there is
    /// nothing to do.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn fetch(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        for (name, [first, second]) in self.gpu.fetch()? {
            self.moments.insert(name, Moments { first, second });
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn step_on_gpu(&mut self, parameters: &BTreeMap<String, Var>, grads: &GradStore) -> Result<()> {
        if !self.gpu.fits(parameters, 2) {
            self.fetch()?;
            self.gpu = OptimizerState::new("adam", parameters, 2, |name| {
                let Moments { first, second } = self.moments.get(name)?;
                Some(vec![first.as_slice(), second.as_slice()])
            })?;
        }
        // A captured step is taken, and counted, when its graph is launched.
        let scalars = match is_capturing() {
            true => StepScalars::default(),
            false => self.next_step(),
        };
        let AdamConfig { beta1, beta2, eps, .. } = self.config;
        let constants = [beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, self.config.penalty()];
        let decay = self.config.decay;
        let constants = constants.map(|constant| constant as f32);
        self.gpu.adam(parameters, grads, constants, decay, scalars)
    }

    /// Counts a step that a captured [`Graph`](crate::cuda::graph::Graph) is about to take, and gives what the graph is
    /// launched with: `lr / (1 - beta1^step)`, `sqrt(1 - beta2^step)` and `1 - lr * weight decay`. The launch changes the moments on the GPU, of
    /// this optimiser and of a clone that shares them.
    #[cfg(feature = "cuda")]
    pub fn next_step(&mut self) -> StepScalars {
        self.steps += 1;
        let step = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let AdamConfig { lr, beta1, beta2, weight_decay, .. } = self.config;
        let step_size = lr / (1.0 - beta1.powi(step));
        let root = (1.0 - beta2.powi(step)).sqrt();
        let shrinks_by = 1.0 - lr * weight_decay;
        StepScalars([step_size as f32, root as f32, shrinks_by as f32, 0.0])
    }
}

/// One parameter's step on the CPU; `step` counts from 1.
fn update(
    parameter: &Tensor,
    grad: &[f32],
    moments: &mut Moments,
    step: u64,
    config: &AdamConfig,
) -> Result<()> {
    let step = i32::try_from(step).unwrap_or(i32::MAX);
    let op = AdamUpdate {
        grad,
        moments: std::sync::Mutex::new(moments),
        step_size: config.lr / (1.0 - config.beta1.powi(step)),
        bias_correction2_sqrt: (1.0 - config.beta2.powi(step)).sqrt(),
        shrinks_by: config.shrinks_by(parameter),
        config,
    };
    parameter.inplace_op1(&op)
}

/// One parameter's step, as an operation in place.
struct AdamUpdate<'a> {
    grad: &'a [f32],
    // In a mutex because `cpu_fwd` gets the operation by shared reference.
    moments: std::sync::Mutex<&'a mut Moments>,
    step_size: f64,
    bias_correction2_sqrt: f64,
    shrinks_by: f64,
    config: &'a AdamConfig,
}

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

impl InplaceOp1 for AdamUpdate<'_> {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(&self, parameter: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(parameter) = parameter else { bail!("adam: expected f32 parameters") };
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("adam: a parameter of shape {:?} is not contiguous", layout.shape())
        };
        let parameter = &mut parameter[from..to];
        let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
        let (rest1, rest2) = ((1.0 - self.config.beta1) as f32, (1.0 - self.config.beta2) as f32);
        let weight_decay = self.config.penalty() as f32;
        let shrinks_by = self.shrinks_by as f32;
        let eps = self.config.eps as f32;
        let step_size = self.step_size as f32;
        let root = self.bias_correction2_sqrt as f32;
        let mut moments = self.moments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Moments { first, second } = &mut **moments;
        parameter
            .par_chunks_mut(CHUNK)
            .zip(self.grad.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .for_each(|(((parameter, grad), first), second)| {
                let elements = parameter.iter_mut().zip(grad).zip(first).zip(second);
                for (((parameter, &grad), first), second) in elements {
                    *parameter *= shrinks_by;
                    let grad = grad + weight_decay * *parameter;
                    *first = beta1 * *first + rest1 * grad;
                    *second = beta2 * *second + rest2 * grad * grad;
                    *parameter -= step_size * *first / (second.sqrt() / root + eps);
                }
            });
        Ok(())
    }
}
