//! The optimiser of a run: which one, and its state.

use std::collections::BTreeMap;

use anyhow::ensure;
use candle_core::backprop::GradStore;
use kd_models::Parameters;
use kd_ops::adam::{Adam, Moments};
use kd_ops::sgd::Sgd;

use crate::recipe::OptimizerConfig;

/// An optimiser with its state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Optimizer {
    Adam(Adam),
    Sgd(Sgd),
}

impl Optimizer {
    pub(crate) fn new(config: &OptimizerConfig) -> Self {
        match *config {
            OptimizerConfig::Adam(config) => Self::Adam(Adam::new(config)),
            OptimizerConfig::Sgd(config) => Self::Sgd(Sgd::new(config)),
        }
    }

    /// One step at this learning rate.
    pub(crate) fn step(
        &mut self,
        lr: f64,
        parameters: &Parameters,
        gradients: &GradStore,
    ) -> candle_core::Result<()> {
        match self {
            Self::Adam(adam) => {
                adam.config.lr = lr;
                adam.step(parameters, gradients)
            }
            Self::Sgd(sgd) => {
                sgd.config.lr = lr;
                sgd.step(parameters, gradients)
            }
        }
    }

    /// What a captured graph is launched with to take a step at this learning rate.
    #[cfg(feature = "cuda")]
    pub(crate) fn next_step(&mut self, lr: f64) -> kd_ops::cuda::graph::StepScalars {
        match self {
            Self::Adam(adam) => {
                adam.config.lr = lr;
                adam.next_step()
            }
            Self::Sgd(sgd) => {
                sgd.config.lr = lr;
                sgd.next_step()
            }
        }
    }

    /// Brings what it remembers from a GPU, for [`state`](Self::state).
    pub(crate) fn fetch(&mut self) -> candle_core::Result<()> {
        match self {
            Self::Adam(adam) => adam.fetch(),
            Self::Sgd(sgd) => sgd.fetch(),
        }
    }

    /// What it remembers of each parameter, as `<kind>/<parameter>`, one of [`KINDS`] first.
    pub(crate) fn state(&self) -> BTreeMap<String, &[f32]> {
        let mut state = BTreeMap::new();
        match self {
            Self::Adam(adam) => {
                for (name, Moments { first, second }) in &adam.moments {
                    state.insert(format!("adam.first/{name}"), first.as_slice());
                    state.insert(format!("adam.second/{name}"), second.as_slice());
                }
            }
            Self::Sgd(sgd) => {
                for (name, sum) in &sgd.momentum {
                    state.insert(format!("sgd.momentum/{name}"), sum.as_slice());
                }
            }
        }
        state
    }

    /// Takes over a [`state`](Self::state) after `steps` steps.
    ///
    /// # Errors
    /// When it is another optimiser's.
    pub(crate) fn restore(
        &mut self,
        steps: u64,
        state: BTreeMap<String, Vec<f32>>,
    ) -> anyhow::Result<()> {
        let kinds: &[&str] = match self {
            Self::Adam(_) => &["adam.first", "adam.second"],
            Self::Sgd(_) => &["sgd.momentum"],
        };
        for (full_name, values) in state {
            let (kind, name) = full_name.split_once('/').unwrap_or((&full_name, ""));
            ensure!(kinds.contains(&kind), "{full_name} is not this optimiser's");
            match self {
                Self::Adam(adam) => {
                    let moments = adam.moments.entry(name.to_string()).or_default();
                    *(if kind == "adam.first" {
                        &mut moments.first
                    } else {
                        &mut moments.second
                    }) = values;
                }
                Self::Sgd(sgd) => _ = sgd.momentum.insert(name.to_string(), values),
            }
        }
        if let Self::Adam(adam) = self {
            adam.steps = steps;
        }
        Ok(())
    }
}

/// The first part of the names in a [`state`](Optimizer::state).
pub(crate) const KINDS: [&str; 3] = ["adam.first", "adam.second", "sgd.momentum"];
