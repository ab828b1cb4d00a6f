//! How a method's weight changes over a run.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, RunStep, check};

/// The factor that a method's weight is multiplied with in each step; by default always 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// The share of the run's steps, in [0, 1], over which the weight grows evenly to its value; 0 for no warm-up.
    #[serde(skip_serializing_if = "is_zero")]
    pub warmup: f64,
    /// How the weight falls over the run.
    #[serde(skip_serializing_if = "Decay::is_none")]
    pub decay: Decay,
}

/// How a weight falls from its value in the first step towards 0 after the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// It does not fall.
    #[default]
    None,
    /// It falls by the same amount in each step: `1 - step / steps`.
    Linear,
    /// It falls along half a cosine: `(1 + cos(π step / steps)) / 2`.
    Cosine,
}

impl Decay {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

// serde hands the field over by reference.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Schedule {
    /// Checks that the warm-up is a share.
    ///
    /// # Errors
    /// When it is not in [0, 1].
    pub fn validate(&self) -> Result<()> {
        check::share("warmup", self.warmup)
    }

    /// Whether the factor of a step depends on the number of steps of the whole run.
    pub fn is_tied_to_length(&self) -> bool {
        self.warmup > 0.0 || self.decay != Decay::None
    }

    /// The factor in a step.
    ///
    /// The warm-up is that of DKD's authors (Zhao et al., "Decoupled Knowledge Distillation", 2022), who count epochs. Counting
    /// steps also works in a run of few epochs: of `w` steps of warm-up the first has `1 / w` of the weight, the `w`-th all of it.
    ///
    /// # Errors
    /// When the step is past the end of the run.
    pub fn factor(&self, RunStep { step, steps }: RunStep) -> Result<f64> {
        if step >= steps {
            return Err(Error::Option {
                field: "step",
                found: step.to_string(),
                expected: "a number below the run's steps",
            });
        }
        let warm = match self.warmup * steps as f64 {
            length if length > 0.0 => ((step + 1) as f64 / length).min(1.0),
            _ => 1.0,
        };
        let done = step as f64 / steps as f64;
        let left = match self.decay {
            Decay::None => 1.0,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
        };
        Ok(warm * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: Schedule, steps: u64) -> Vec<f64> {
        (0..steps)
            .map(|step| schedule.factor(RunStep { step, steps }).unwrap_or(f64::NAN))
            .collect()
    }

    #[test]
    fn without_settings_a_weight_stays() {
        assert_eq!(factors(Schedule::default(), 3), [1.0, 1.0, 1.0]);
    }

    /// DKD's authors: 240 epochs (of one step here), `min(epoch / 20, 1)` with epochs from 1.
    #[test]
    fn the_warm_up_is_that_of_dkd() -> Result<()> {
        let schedule = Schedule { warmup: 1.0 / 12.0, decay: Decay::None };
        for (step, expected) in [(0, 0.05), (9, 0.5), (19, 1.0), (20, 1.0), (239, 1.0)] {
            assert!(
                (schedule.factor(RunStep { step, steps: 240 })? - expected).abs() < 1e-12,
                "step {step}"
            );
        }
        Ok(())
    }

    #[test]
    fn decay_goes_towards_zero() {
        let linear = Schedule { warmup: 0.0, decay: Decay::Linear };
        assert_eq!(factors(linear, 4), [1.0, 0.75, 0.5, 0.25]);
        let cosine = factors(Schedule { warmup: 0.5, decay: Decay::Cosine }, 4);
        let expected = [0.5, (1.0 + 0.5f64.sqrt()) / 2.0, 0.5, (1.0 - 0.5f64.sqrt()) / 2.0];
        assert!(cosine.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{cosine:?}");
    }

    #[test]
    fn a_step_past_the_end_is_an_error() {
        assert!(Schedule::default().factor(RunStep { step: 3, steps: 3 }).is_err());
        assert!(Schedule::default().factor(RunStep { step: 0, steps: 0 }).is_err());
        assert!(Schedule { warmup: 1.5, decay: Decay::None }.validate().is_err());
    }
}
