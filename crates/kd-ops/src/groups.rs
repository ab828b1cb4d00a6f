//! Groups of parameters, each with an optimiser of its own: trained at a share of the learning rate, or from a later step on.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Var, bail};

use crate::optimizer::Optimizer;

/// Parameters that are trained alike: one of the dictionaries that PyTorch's optimisers take.
#[derive(Clone, Debug)]
pub struct ParameterGroup {
    /// The parameters, by name.
    pub parameters: BTreeMap<String, Var>,
    /// What changes them. It counts the steps of this group alone.
    pub optimizer: Optimizer,
    /// The share of the learning rate at which they are trained: timm's `lr_scale`.
    pub lr_scale: f64,
    /// The number of steps of the run before they are trained, during which they are left as they are.
    pub after_steps: u64,
}

/// All parameters in their groups.
///
/// A parameter that is trained from a later step on begins there as a new one does: its moments are zero and Adam's bias correction
/// counts its own steps, as `torch.optim.Adam` does for a parameter that had no gradient before. The learning rate is the one that the
/// run has at that step.
#[derive(Clone, Debug)]
pub struct ParameterGroups {
    groups: Vec<ParameterGroup>,
}

impl ParameterGroups {
    /// All of `parameters` in one group, trained from the first step on at the whole learning rate.
    pub fn one(optimizer: Optimizer, parameters: &BTreeMap<String, Var>) -> Self {
        Self::new(&optimizer, parameters, |_| (1.0, 0))
    }

    /// Puts parameters together for which `of` gives the same: their share of the learning rate and the number of steps before they are
    /// trained. Each group gets a copy of `optimizer`, which has not taken a step.
    pub fn new(
        optimizer: &Optimizer,
        parameters: &BTreeMap<String, Var>,
        of: impl Fn(&str) -> (f64, u64),
    ) -> Self {
        let mut groups: Vec<ParameterGroup> = Vec::new();
        for (name, parameter) in parameters {
            let (lr_scale, after_steps) = of(name);
            let same = |group: &ParameterGroup| {
                (group.lr_scale, group.after_steps) == (lr_scale, after_steps)
            };
            let at = groups.iter().position(same).unwrap_or_else(|| {
                let (parameters, optimizer) = (BTreeMap::new(), optimizer.clone());
                groups.push(ParameterGroup { parameters, optimizer, lr_scale, after_steps });
                groups.len() - 1
            });
            groups[at].parameters.insert(name.clone(), parameter.clone());
        }
        Self { groups }
    }

    /// The groups, in the order of their first parameters' names.
    pub fn groups(&self) -> &[ParameterGroup] {
        &self.groups
    }

    /// The optimiser of all parameters, where they are one group that is trained from the first step on at the whole learning rate.
    pub fn only(&mut self) -> Option<&mut Optimizer> {
        let is_one = self.is_one();
        self.groups.first_mut().filter(|_| is_one).map(|group| &mut group.optimizer)
    }

    /// Whether there is one group, which is trained from the first step on at the whole learning rate.
    pub fn is_one(&self) -> bool {
        let [group] = &self.groups[..] else { return false };
        (group.lr_scale, group.after_steps) == (1.0, 0)
    }

    /// Takes the step after `steps` steps of the run, at this learning rate: changes every parameter that has a gradient and whose group
    /// is trained by then.
    ///
    /// # Errors
    /// As [`Optimizer::step`]'s.
    pub fn step(&mut self, steps: u64, learning_rate: f64, gradients: &GradStore) -> Result<()> {
        for group in self.groups.iter_mut().filter(|group| steps >= group.after_steps) {
            let rate = learning_rate * group.lr_scale;
            group.optimizer.step(rate, &group.parameters, gradients)?;
        }
        Ok(())
    }

    /// What the optimisers remember of each parameter, as [`Optimizer::state`] names it: the groups don't show in it.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn state(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut state = BTreeMap::new();
        for group in &self.groups {
            state.extend(group.optimizer.state()?);
        }
        Ok(state)
    }

    /// Takes over a [`state`](Self::state) from after `steps` steps of the run.
    ///
    /// # Errors
    /// When it is of a parameter that no group has, or another optimiser's.
    pub fn restore(&mut self, steps: u64, state: BTreeMap<String, Vec<f32>>) -> Result<()> {
        let mut parts = vec![BTreeMap::new(); self.groups.len()];
        for (full_name, values) in state {
            let name = full_name.split_once('/').map_or("", |(_, name)| name);
            let of = self.groups.iter().position(|group| group.parameters.contains_key(name));
            let Some(at) = of else { bail!("{full_name} is of no parameter that is trained") };
            parts[at].insert(full_name, values);
        }
        for (group, part) in self.groups.iter_mut().zip(parts) {
            group.optimizer.restore(steps.saturating_sub(group.after_steps), part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::adam::{Adam, AdamConfig, WeightDecay};
    use crate::sgd::{Sgd, SgdConfig};

    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn parameters() -> BTreeMap<String, Var> {
        let values = [vec![1.0f32, -2.0], vec![0.5, 3.0], vec![2.0]];
        let var = |values: Vec<f32>| Var::from_vec(values.clone(), values.len(), &Device::Cpu);
        NAMES.iter().zip(values).map(|(name, v)| (name.to_string(), var(v).unwrap())).collect()
    }

    fn groups(optimizer: &Optimizer, parameters: &BTreeMap<String, Var>) -> ParameterGroups {
        ParameterGroups::new(optimizer, parameters, |name| match name {
            "b" => (0.3, 0),
            "c" => (1.0, 2),
            _ => (1.0, 0),
        })
    }

    /// Step `step` of four with these gradients times its number; c has one from the third on.
    fn step(groups: &mut ParameterGroups, parameters: &BTreeMap<String, Var>, step: u64) {
        let mut gradients = parameters["a"].sum_all().unwrap().backward().unwrap();
        for (name, gradient) in NAMES.iter().zip([vec![0.5f32, -1.0], vec![2.0, 0.25], vec![0.75]])
        {
            let values = gradient.iter().map(|value| value * (step + 1) as f32).collect();
            let gradient = Tensor::from_vec(values, gradient.len(), &Device::Cpu).unwrap();
            if *name != "c" || step >= 2 {
                gradients.insert(parameters[*name].as_tensor(), gradient);
            }
        }
        groups.step(step, 0.1, &gradients).unwrap();
    }

    fn values(parameters: &BTreeMap<String, Var>) -> Vec<f32> {
        let of = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        parameters.values().flat_map(of).collect()
    }

    /// The expected values are PyTorch 2.15's: `torch.optim.Adam([{"params": [a]}, {"params": [b], "lr": 0.03}, {"params": [c]}], lr=0.1)`
    /// with `c.grad` None in the first two steps, and the same of AdamW and SGD with the settings below.
    #[test]
    fn groups_are_trained_as_pytorchs() {
        let adam = AdamConfig::default();
        let decay = WeightDecay::DecoupledForAll;
        let adamw = AdamConfig { weight_decay: 0.02, decay, ..adam };
        let sgd = SgdConfig { momentum: 0.9, weight_decay: 0.01, ..SgdConfig::default() };
        let cases: [(Optimizer, [f64; 5]); 3] = [
            (
                Optimizer::Adam(Adam::new(adam)),
                [0.61164069, -1.61164057, 0.38349217, 2.88349223, 1.80026770],
            ),
            (
                Optimizer::Adam(Adam::new(adamw)),
                [0.60484082, -1.59686482, 0.38239926, 2.87640500, 1.79247582],
            ),
            (
                Optimizer::Sgd(Sgd::new(sgd)),
                [0.06399601, -0.12799202, -0.61454338, 2.85271120, 1.26692700],
            ),
        ];
        for (optimizer, expected) in cases {
            let parameters = parameters();
            let mut whole = groups(&optimizer, &parameters);
            assert_eq!(whole.groups().len(), 3);
            for at in 0..3 {
                step(&mut whole, &parameters, at);
            }
            // Another process goes on.
            let mut resumed = groups(&optimizer, &parameters);
            resumed.restore(3, whole.state().unwrap()).unwrap();
            step(&mut resumed, &parameters, 3);
            for (found, expected) in values(&parameters).into_iter().zip(expected) {
                assert!(
                    (f64::from(found) - expected).abs() < 2e-6,
                    "{found} {expected} {optimizer:?}"
                );
            }
        }
    }

    #[test]
    fn one_group_alone_is_captured_and_a_foreign_state_is_refused() {
        let (parameters, adam) = (parameters(), Optimizer::Adam(Adam::default()));
        let mut one = ParameterGroups::one(adam.clone(), &parameters);
        assert!(one.is_one() && one.only().is_some());
        let mut scaled = ParameterGroups::new(&adam, &parameters, |_| (0.5, 0));
        assert!(scaled.groups().len() == 1 && scaled.only().is_none());
        assert!(!groups(&adam, &parameters).is_one());
        let state = BTreeMap::from([("adam.first/d".to_string(), vec![0.0])]);
        let message = one.restore(1, state).unwrap_err().to_string();
        assert!(message.contains("adam.first/d is of no parameter"), "{message}");
    }
}
