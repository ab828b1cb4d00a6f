//! A network in training.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use kd_models::{Classifier, Parameters};
use kd_ops::average::Average;
use kd_ops::groups::ParameterGroups;

use crate::Result;
use crate::error::other;

/// A network with its parameters and the optimisers that change them.
pub struct Learner {
    /// The network, which computes with `parameters`.
    pub network: Box<dyn Classifier + Send + Sync>,
    /// The network's weights and running statistics and, as `method.<n>.<name>`, what the methods learn besides it.
    pub parameters: Parameters,
    /// What changes the parameters in each step.
    pub optimizer: ParameterGroups,
    /// An average of weights and running statistics that is evaluated and saved in their place.
    pub average: Option<Average>,
}

/// The kind of a parameter's own values in a [`state`](Learner::state).
pub(crate) const PARAMETER: &str = "parameter";
/// The kind of its average.
pub(crate) const AVERAGE: &str = "average";

impl Learner {
    /// Brings the average up to date after step `step`, counted from 1.
    ///
    /// # Errors
    /// When the device fails.
    pub fn average_step(&mut self, step: u64) -> Result<()> {
        let Self { average: Some(average), parameters, .. } = self else { return Ok(()) };
        Ok(average.approach(parameters, average.config.weight_after_step(step))?)
    }

    /// Brings the average up to date after epoch `epoch`, counted from 1, of `epochs`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn average_epoch(&mut self, epoch: usize, epochs: usize) -> Result<()> {
        let Self { average: Some(average), parameters, .. } = self else { return Ok(()) };
        Ok(average.approach(parameters, average.config.weight_after_epoch(epoch, epochs))?)
    }

    /// What is evaluated and saved after epoch `epoch`, counted from 1, of `epochs`: the average where it counts, else the
    /// parameters.
    pub fn evaluated(&self, epoch: usize, epochs: usize) -> &BTreeMap<String, Var> {
        let average = self.average.as_ref();
        let counts = average.filter(|average| average.config.counts(epoch, epochs));
        counts.map_or(&self.parameters, |average| &average.values)
    }

    /// The parameters as `parameter/<name>`, their average as `average/<name>`, and what the optimiser remembers of them as
    /// `<kind>/<name>`; f32, on the CPU.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, parameter) in &self.parameters {
            let values = parameter.as_detached_tensor().to_device(&Device::Cpu)?;
            state.insert(format!("{PARAMETER}/{name}"), values);
        }
        for (name, average) in self.average.iter().flat_map(|average| &average.values) {
            let values = average.as_detached_tensor().to_device(&Device::Cpu)?;
            state.insert(format!("{AVERAGE}/{name}"), values);
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
    /// When it names a parameter that the learner lacks, lacks an average that the learner keeps, or is another optimiser's.
    pub fn restore(&mut self, steps: u64, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let averaged = self.average.iter().flat_map(|average| average.values.keys());
        for name in averaged {
            if !state.contains_key(&format!("{AVERAGE}/{name}")) {
                return Err(other!("the average of {name} is missing"));
            }
        }
        let mut remembered = BTreeMap::new();
        for (full_name, tensor) in state {
            match full_name.split_once('/') {
                Some((PARAMETER, name)) => {
                    let parameter = self.parameters.get(name);
                    let parameter =
                        parameter.ok_or_else(|| other!("the network has no parameter {name}"))?;
                    parameter.set(&tensor.to_device(parameter.device())?)?;
                }
                Some((AVERAGE, name)) => match &mut self.average {
                    Some(average) => average.restore(name, tensor)?,
                    None => return Err(other!("no average of {name} is kept")),
                },
                _ => {
                    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
                    remembered.insert(full_name.clone(), values);
                }
            }
        }
        Ok(self.optimizer.restore(steps, remembered)?)
    }
}
