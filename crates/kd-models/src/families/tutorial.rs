//! The networks of PyTorch's tutorial on knowledge distillation: 3x3 convolutions with ReLU, some followed by a 2x2
//! max-pool, then two linear layers with ReLU and dropout between.

use crate::Result;
use crate::graph::{Conv, Graph, GraphBuilder};

/// A network of the tutorial's kind.
#[derive(Clone, Debug, PartialEq)]
pub struct TutorialConfig {
    /// The network's name, for messages.
    pub name: String,
    /// The shape of the images, `[C, H, W]`.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// The output channels of each convolution, and whether a max-pool follows it.
    pub convs: Vec<(usize, bool)>,
    /// The width of the hidden linear layer.
    pub hidden: usize,
    /// The share of the hidden layer that dropout sets to zero in training.
    pub dropout: f64,
}

impl TutorialConfig {
    /// The tutorial's `DeepNN`, its teacher: 1,186,986 parameters with ten classes. The feature map that the tutorial
    /// distils from is `features.9`, `[32, 8, 8]`.
    pub fn teacher() -> Self {
        let convs = vec![(128, false), (64, true), (64, false), (32, true)];
        Self { name: "teacher".into(), convs, hidden: 512, ..Self::student() }
    }

    /// The tutorial's `LightNN`, its student: 267,738 parameters with ten classes. The feature map that the tutorial
    /// compares with the teacher's is `features.5`, `[16, 8, 8]`.
    pub fn student() -> Self {
        Self {
            name: "student".into(),
            input: [3, 32, 32],
            classes: 10,
            convs: vec![(16, true), (16, true)],
            hidden: 256,
            dropout: 0.1,
        }
    }
}

/// The network of a config, with the tutorial's names: `features.0` is the first convolution, `features.1` its ReLU and
/// so on, `classifier.0` and `classifier.3` are the linear layers. Every module before dropout is a feature place of its
/// own name.
///
/// # Errors
/// When the images are too small for the pools, or a number makes no sense.
pub fn tutorial(config: &TutorialConfig) -> Result<Graph> {
    let mut g = GraphBuilder::new(&config.name, config.input)?;
    let mut x = g.images();
    let mut modules = (0..).map(|index| format!("features.{index}"));
    let mut next = || modules.next().unwrap_or_default();
    for &(outputs, pool) in &config.convs {
        x = g.conv(&next(), x, Conv { padding: 1, ..Conv::new(outputs, 3) })?;
        g.place_as_named(x)?;
        x = g.relu(&next(), x)?;
        g.place_as_named(x)?;
        if pool {
            x = g.max_pool(&next(), x, 2, 2)?;
            g.place_as_named(x)?;
        }
    }
    x = g.flatten("flat", x)?;
    x = g.linear("classifier.0", x, config.hidden)?;
    g.place_as_named(x)?;
    x = g.relu("classifier.1", x)?;
    g.place_as_named(x)?;
    x = g.dropout("classifier.2", x, config.dropout)?;
    x = g.linear("classifier.3", x, config.classes)?;
    g.finish(x)
}
