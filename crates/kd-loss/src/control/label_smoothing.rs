//! Label smoothing: cross-entropy with softened labels, which shows what soft targets achieve without a teacher.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::inputs::{Inputs, Needs};
use crate::logits::labels_cross_entropy;
use crate::method::{About, Definition, Kind, Method};
use crate::{Result, Setup, check};

/// Options of the method "label-smoothing": [`cross_entropy_smoothed`](crate::cross_entropy_smoothed) as a control that has no teacher. It takes the place of
/// the labels' own cross-entropy, whose weight is then 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelSmoothingConfig {
    /// The share of each target that is spread over the classes, in [0, 1].
    pub smoothing: f64,
}

impl Default for LabelSmoothingConfig {
    /// The paper's smoothing of 0.1.
    fn default() -> Self {
        Self { smoothing: 0.1 }
    }
}

pub(crate) struct LabelSmoothing;

impl Definition for LabelSmoothing {
    type Options = LabelSmoothingConfig;

    const ABOUT: About = About {
        kind: Kind::Control,
        across_images: false,
        summary: "cross-entropy with smoothed labels, in place of the labels'",
        paper: "Szegedy et al. 2016",
        weight: 1.0,
        labels: 0.0,
        source: "Szegedy et al. 2016, section 7: epsilon = 0.1",
        options: &[("smoothing", "share of each label that is spread over the classes, 0 to 1")],
    };
    const NEEDS_LABELS: bool = true;

    fn validate(options: &LabelSmoothingConfig) -> Result<()> {
        check::share("smoothing", options.smoothing)
    }

    fn build(
        options: &LabelSmoothingConfig,
        _: &Setup,
        _: VarBuilder<'_>,
    ) -> Result<Box<dyn Method>> {
        Ok(Box::new(options.clone()))
    }
}

impl Method for LabelSmoothingConfig {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        labels_cross_entropy(inputs, self.smoothing)
    }
}

#[cfg(test)]
mod tests {
    use crate::cross_entropy_smoothed;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["label_smoothing"], 1, |s, t| cross_entropy_smoothed(&s[0], &t[0], 0.1));
    }
}
