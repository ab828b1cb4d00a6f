//! The figure that a comparison is of.

use std::str::FromStr;

use super::document::Run;

/// The figure of each run that a comparison is of, a share from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Figure {
    /// Share of correct predictions on the test images.
    #[default]
    Accuracy,
    /// The mean of the classes' accuracies, [`balanced_accuracy`](kd_record::Evaluation::balanced_accuracy) of an evaluation.
    BalancedAccuracy,
    /// The mean of the classes' F1 scores, [`macro_f1`](kd_record::Evaluation::macro_f1) of an evaluation.
    MacroF1,
}

impl Figure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Accuracy, Self::BalancedAccuracy, Self::MacroF1];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced-accuracy",
            Self::MacroF1 => "macro-f1",
        }
    }

    /// What people call it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced accuracy",
            Self::MacroF1 => "macro F1",
        }
    }

    /// A run's figure; `None` where it is not recorded.
    pub(super) fn of(self, run: &Run) -> Option<f64> {
        match self {
            Self::Accuracy => Some(run.accuracy),
            Self::BalancedAccuracy => run.balanced_accuracy,
            Self::MacroF1 => run.macro_f1,
        }
    }
}

impl FromStr for Figure {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|figure| figure.name() == name);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no figure {name:?}; expected one of {known}"))
    }
}
