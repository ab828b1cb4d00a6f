//! A figure that others published of what a run trains, to stand beside ours.

use serde::{Deserialize, Serialize};

/// The accuracy that a publication gives for what a run trains.
///
/// It is no setting: nothing that is trained depends on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Accuracy on the test images in per cent, 0 to 100.
    pub accuracy: f64,
    /// Where it stands, such as a repository and its file.
    pub source: String,
    /// The epoch that it is of; `None` where the publication and its code don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<PublishedEpoch>,
}

/// The epoch of a run that a published accuracy is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublishedEpoch {
    /// The last epoch, as kd's own figures are.
    Last,
    /// The epoch with the highest accuracy on the test images, which were looked at to choose it.
    BestOnTest,
}

impl Published {
    /// What is wrong with the figure, as the field, its value and what is expected; `None` where nothing is.
    pub fn mistake(&self) -> Option<(&'static str, String, &'static str)> {
        if !(0.0..=100.0).contains(&self.accuracy) {
            let expected = "a percentage from 0 to 100";
            return Some(("accuracy", self.accuracy.to_string(), expected));
        }
        let expected = "where the figure stands, such as a repository and its file";
        self.source.trim().is_empty().then(|| ("source", "empty".into(), expected))
    }

    /// The figure with the name of its epoch, for a table's cell.
    pub(super) fn cell(&self) -> String {
        match self.epoch {
            Some(epoch) => format!("{:.2} ({})", self.accuracy, epoch.words()),
            None => format!("{:.2}", self.accuracy),
        }
    }
}

impl PublishedEpoch {
    fn words(self) -> &'static str {
        match self {
            Self::Last => "last epoch",
            Self::BestOnTest => "best epoch on test",
        }
    }
}
