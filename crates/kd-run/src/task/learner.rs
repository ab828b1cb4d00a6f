//! A network in training.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use kd_models::{Classifier, Parameters};
use kd_ops::optimizer::Optimizer;

use crate::Result;
use crate::error::other;

/// A network with its parameters and the optimiser that changes them.
pub struct Learner {
    /// The network, which computes with `parameters`.
    pub network: Box<dyn Classifier + Send + Sync>,
    /// The network's weights and running statistics and, as `method.<n>.<name>`, what the methods learn besides it.
    pub parameters: Parameters,
    /// What changes the parameters in each step.
    pub optimizer: Optimizer,
}

/// The kind of a parameter's own values in a [`state`](Learner::state).
pub(crate) const PARAMETER: &str = "parameter";

impl Learner {
    /// The parameters as `parameter/<name>`, and what the optimiser remembers of them as `<kind>/<name>`; f32, on the CPU.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, parameter) in &self.parameters {
            let values = parameter.as_detached_tensor().to_device(&Device::Cpu)?;
            state.insert(format!("{PARAMETER}/{name}"), values);
        }
        for (name, values) in self.optimizer.state()? {
            let count = values.len();
            state.insert(name, Tensor::from_vec(values, count, &Device::Cpu)?);
        }
        Ok(state)
    }

    /// Takes over a [`state`](Self::state) from after `steps` steps.
    ///
    /// # Errors
    /// When it names a parameter that the learner lacks, or is another optimiser's.
    pub fn restore(&mut self, steps: u64, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut remembered = BTreeMap::new();
        for (full_name, tensor) in state {
            match full_name.split_once('/') {
                Some((PARAMETER, name)) => {
                    let parameter = self.parameters.get(name);
                    let parameter =
                        parameter.ok_or_else(|| other!("the network has no parameter {name}"))?;
                    parameter.set(&tensor.to_device(parameter.device())?)?;
                }
                _ => {
                    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
                    remembered.insert(full_name.clone(), values);
                }
            }
        }
        Ok(self.optimizer.restore(steps, remembered)?)
    }
}
