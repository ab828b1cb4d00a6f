//! Learning rates over a run, each step's from its number alone.

use serde::{Deserialize, Serialize};

/// How the learning rate changes over a run: a recipe's `training.schedule`, which is one line:
///
/// ```toml
/// [training]
/// schedule = { name = "cosine", warmup_epochs = 5 }
/// ```
///
/// Every schedule but the one-cycle can begin with a linear warm-up. Learning rates are given as shares of the optimiser's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LrSchedule {
    /// After the warm-up, the optimiser's learning rate throughout.
    Constant {
        /// Length of the warm-up in epochs; 0 for none.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the learning rate that the warm-up begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// The learning rate is multiplied by `factor` at each milestone (PyTorch's `MultiStepLR`). Milestones count the epochs of the
    /// whole run, warm-up included.
    Step {
        /// The numbers of finished epochs after which the learning rate falls.
        milestones: Vec<f64>,
        /// What it is multiplied by.
        #[serde(default = "factor")]
        factor: f64,
        /// Length of the warm-up in epochs; 0 for none.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the learning rate that the warm-up begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// After the warm-up, half a cosine from the learning rate down to a share of it (PyTorch's `CosineAnnealingLR`; Loshchilov and
    /// Hutter, 2017, without restarts).
    Cosine {
        /// The share of the learning rate at the end.
        #[serde(default)]
        down_to: f64,
        /// Length of the warm-up in epochs; 0 for none.
        #[serde(default)]
        warmup_epochs: f64,
        /// The share of the learning rate that the warm-up begins with.
        #[serde(default = "warmup_from")]
        warmup_from: f64,
    },
    /// From a share of the learning rate up to all of it, and down to nearly nothing (PyTorch's `OneCycleLR` with
    /// `cycle_momentum=False` and otherwise its defaults; Smith and Topin, 2018). The rise is its warm-up.
    OneCycle {
        /// The share of the run's steps in which the learning rate rises.
        #[serde(default = "rise")]
        rise: f64,
        /// The learning rate is this many times the one at the start.
        #[serde(default = "div_factor")]
        div_factor: f64,
        /// The learning rate at the start is this many times the one at the end.
        #[serde(default = "final_div_factor")]
        final_div_factor: f64,
        /// The curve of rise and fall.
        #[serde(default)]
        anneal: Anneal,
    },
}

/// The curve between two learning rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cos,
    /// A straight line.
    Linear,
}

fn warmup_from() -> f64 {
    0.01
}

fn factor() -> f64 {
    0.1
}

fn rise() -> f64 {
    0.3
}

fn div_factor() -> f64 {
    25.0
}

fn final_div_factor() -> f64 {
    1e4
}

impl Default for LrSchedule {
    fn default() -> Self {
        Self::Constant { warmup_epochs: 0.0, warmup_from: warmup_from() }
    }
}

impl Anneal {
    fn between(self, from: f64, to: f64, share: f64) -> f64 {
        match self {
            Self::Cos => to + (from - to) / 2.0 * (1.0 + (std::f64::consts::PI * share).cos()),
            Self::Linear => from + (to - from) * share,
        }
    }
}

impl LrSchedule {
    /// The name of a schedule whose learning rates depend on the number of epochs of the whole run: the first epochs of a longer run
    /// then have others. `None` for one that counts from the start of the run.
    pub fn tied_to_length(&self) -> Option<&'static str> {
        match self {
            Self::Constant { .. } | Self::Step { .. } => None,
            Self::Cosine { .. } => Some("cosine"),
            Self::OneCycle { .. } => Some("one-cycle"),
        }
    }

    /// Whether the learning rate is the same in every step.
    pub fn is_constant(&self) -> bool {
        matches!(self, Self::Constant { warmup_epochs: 0.0, .. })
    }

    /// The share of the optimiser's rate in step `step` (from 0) of `epochs` epochs of `batches` steps.
    pub fn share(&self, step: u64, batches: usize, epochs: usize) -> f64 {
        let (step, batches) = (step as f64, batches as f64);
        let total = batches * epochs as f64;
        // Steps are whole, whatever part of an epoch is asked for.
        let steps = |epochs: f64| (epochs * batches).round();
        let warmup = |length: f64, from: f64| match step < steps(length) {
            true => from + (1.0 - from) * step / steps(length),
            false => 1.0,
        };
        match *self {
            Self::Constant { warmup_epochs, warmup_from } => warmup(warmup_epochs, warmup_from),
            Self::Step { ref milestones, factor, warmup_epochs, warmup_from } => {
                let passed = milestones.iter().filter(|&&epoch| step >= steps(epoch)).count();
                warmup(warmup_epochs, warmup_from) * factor.powi(passed as i32)
            }
            Self::Cosine { down_to, warmup_epochs, warmup_from } => {
                let start = steps(warmup_epochs);
                match step < start {
                    true => warmup(warmup_epochs, warmup_from),
                    false => {
                        let share = (step - start) / (total - start).max(1.0);
                        Anneal::Cos.between(1.0, down_to, share)
                    }
                }
            }
            Self::OneCycle { rise, div_factor, final_div_factor, anneal } => {
                let first = 1.0 / div_factor;
                // The last step of the rise, and the last of all, as PyTorch counts them.
                let (top, last) = ((rise * total - 1.0).max(0.0), total - 1.0);
                match step < top {
                    true => anneal.between(first, 1.0, step / top),
                    false => {
                        let share = (step - top) / (last - top).max(1.0);
                        anneal.between(1.0, first / final_div_factor, share.min(1.0))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line of a recipe, and what PyTorch's schedulers give for 12 steps in 6 epochs with a rate of 1, by
    /// `p = nn.Parameter(zeros(1)); o = optim.SGD([p], lr=1.0)`, the scheduler below, and `o.param_groups[0]["lr"]`
    /// before each `o.step(); s.step()`.
    #[test]
    fn rates_are_pytorchs() {
        let cases: [(&str, &[f64]); 6] = [
            // LinearLR(o, start_factor=0.1, total_iters=3)
            (
                "{ name = 'constant', warmup_epochs = 1.5, warmup_from = 0.1 }",
                &[0.1, 0.4, 0.7, 1.0, 1.0],
            ),
            // ChainedScheduler([LinearLR(o, 0.01, total_iters=4), MultiStepLR(o, [6, 10], 0.1)])
            (
                "{ name = 'step', milestones = [3, 5], warmup_epochs = 2 }",
                &[0.01, 0.2575, 0.505, 0.7525, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01],
            ),
            // CosineAnnealingLR(o, 12)
            (
                "{ name = 'cosine' }",
                &[
                    1.0,
                    0.9829629131445341,
                    0.9330127018922194,
                    0.8535533905932737,
                    0.75,
                    0.6294095225512604,
                    0.5,
                    0.3705904774487397,
                    0.2500000000000001,
                    0.14644660940672627,
                    0.06698729810778065,
                    0.0170370868554659,
                ],
            ),
            // SequentialLR(o, [LinearLR(o, 0.01, total_iters=4), CosineAnnealingLR(o, 8, eta_min=0.05)], [4])
            (
                "{ name = 'cosine', down_to = 0.05, warmup_epochs = 2 }",
                &[
                    0.01,
                    0.2575,
                    0.505,
                    0.7525,
                    1.0,
                    0.9638427779428612,
                    0.8608757210636101,
                    0.7067746303734178,
                    0.525,
                    0.3432253696265824,
                    0.18912427893638994,
                    0.0861572220571388,
                ],
            ),
            // OneCycleLR(o, 1.0, total_steps=12)
            (
                "{ name = 'one-cycle' }",
                &[
                    0.040000000000000036,
                    0.3497896542195831,
                    0.8792851591221287,
                    0.9944154354509117,
                    0.9330129698414117,
                    0.811745653949763,
                    0.6473789976951033,
                    0.46263710266697505,
                    0.28306099820869923,
                    0.1334775301888306,
                    0.03456698742539522,
                ],
            ),
            // OneCycleLR(o, 1.0, total_steps=12, pct_start=0.4, div_factor=10, final_div_factor=100, anneal_strategy="linear")
            (
                "{ name = 'one-cycle', rise = 0.4, div_factor = 10, final_div_factor = 100, anneal = 'linear' }",
                &[
                    0.1,
                    0.33684210526315783,
                    0.5736842105263157,
                    0.8105263157894735,
                    0.97225,
                    0.8335,
                    0.69475,
                    0.556,
                    0.41725,
                    0.2785,
                    0.13975,
                ],
            ),
        ];
        for (line, expected) in cases {
            let table: toml::Table = format!("schedule = {line}").parse().unwrap();
            let schedule: LrSchedule = table["schedule"].clone().try_into().unwrap();
            let longer =
                (0..12).all(|step| schedule.share(step, 2, 6) == schedule.share(step, 2, 9));
            assert_eq!(schedule.tied_to_length().is_none(), longer, "{line}");
            for (step, expected) in expected.iter().enumerate() {
                let found = schedule.share(step as u64, 2, 6);
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{line}, step {step}: {found}, {expected}"
                );
            }
        }
        assert_eq!(LrSchedule::default().share(7, 2, 6), 1.0);
    }
}
