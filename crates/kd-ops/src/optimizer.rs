//! One of this crate's optimisers, whichever it is, and its state under one kind of names.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Var, bail};

use crate::adam::{Adam, Moments};
#[cfg(feature = "cuda")]
use crate::cuda::graph::StepScalars;
use crate::sgd::Sgd;

/// An optimiser with its state.
#[derive(Clone, Debug, PartialEq)]
pub enum Optimizer {
    /// Adam.
    Adam(Adam),
    /// Stochastic gradient descent.
    Sgd(Sgd),
}

impl Optimizer {
    /// Takes one step at this learning rate: changes every parameter that has a gradient.
    ///
    /// # Errors
    /// When a parameter is not a contiguous f32 tensor, or what is remembered of it has another size.
    pub fn step(
        &mut self,
        learning_rate: f64,
        parameters: &BTreeMap<String, Var>,
        gradients: &GradStore,
    ) -> Result<()> {
        match self {
            Self::Adam(adam) => {
                adam.config.lr = learning_rate;
                adam.step(parameters, gradients)
            }
            Self::Sgd(sgd) => {
                sgd.config.lr = learning_rate;
                sgd.step(parameters, gradients)
            }
        }
    }

    /// Counts a step at this learning rate that a captured graph takes, and returns what the graph is launched with.
    #[cfg(feature = "cuda")]
    pub fn next_step(&mut self, learning_rate: f64) -> StepScalars {
        match self {
            Self::Adam(adam) => {
                adam.config.lr = learning_rate;
                adam.next_step()
            }
            Self::Sgd(sgd) => {
                sgd.config.lr = learning_rate;
                sgd.next_step()
            }
        }
    }

    /// What the optimiser remembers of each parameter, as `<kind>/<parameter>` with `adam.first`, `adam.second` or
    /// `sgd.momentum` as the kind. It waits for the GPU, where the parameters are on one.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn state(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        // On a GPU a clone shares the memory there until one of the two takes a step.
        let mut state = BTreeMap::new();
        match self.clone() {
            Self::Adam(mut adam) => {
                adam.fetch()?;
                for (name, Moments { first, second }) in adam.moments {
                    state.insert(format!("{}/{name}", KINDS[0]), first);
                    state.insert(format!("{}/{name}", KINDS[1]), second);
                }
            }
            Self::Sgd(mut sgd) => {
                sgd.fetch()?;
                for (name, sum) in sgd.momentum {
                    state.insert(format!("{}/{name}", KINDS[2]), sum);
                }
            }
        }
        Ok(state)
    }

    /// Takes over a [`state`](Self::state) from after `steps` steps.
    ///
    /// # Errors
    /// When it is another optimiser's.
    pub fn restore(&mut self, steps: u64, state: BTreeMap<String, Vec<f32>>) -> Result<()> {
        for (full_name, values) in state {
            let (kind, name) = full_name.split_once('/').unwrap_or((&full_name, ""));
            match (&mut *self, kind) {
                (Self::Adam(adam), "adam.first") => {
                    adam.moments.entry(name.to_string()).or_default().first = values;
                }
                (Self::Adam(adam), "adam.second") => {
                    adam.moments.entry(name.to_string()).or_default().second = values;
                }
                (Self::Sgd(sgd), "sgd.momentum") => {
                    sgd.momentum.insert(name.to_string(), values);
                }
                _ => bail!("{full_name} is not this optimiser's"),
            }
        }
        if let Self::Adam(adam) = self {
            adam.steps = steps;
        }
        Ok(())
    }
}

/// The first part of the names in a [`state`](Optimizer::state).
pub const KINDS: [&str; 3] = ["adam.first", "adam.second", "sgd.momentum"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_restored_by_its_own_optimizer_alone() {
        let mut adam = Adam::default();
        adam.moments.insert("w".into(), Moments { first: vec![0.3], second: vec![1e-12] });
        adam.steps = 7;
        let mut sgd = Sgd::default();
        sgd.momentum.insert("w".into(), vec![0.5]);
        let optimizers = [Optimizer::Adam(adam), Optimizer::Sgd(sgd)];
        let new = || [Optimizer::Adam(Adam::default()), Optimizer::Sgd(Sgd::default())];
        for (of, optimizer) in optimizers.iter().enumerate() {
            for (into, mut restored) in new().into_iter().enumerate() {
                let done = restored.restore(7, optimizer.state().unwrap());
                match of == into {
                    true => assert_eq!(restored, *optimizer),
                    false => {
                        let message = done.unwrap_err().to_string();
                        assert!(message.contains("/w is not this optimiser's"), "{message}");
                    }
                }
            }
        }
    }
}
