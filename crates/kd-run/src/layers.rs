//! Which layers of a run's network are trained, from which epoch on, and at which share of the learning rate.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{anyhow, ensure};
use kd_models::{Graph, ModelConfig};

use crate::Result;
use crate::initial::Initial;
use crate::recipe::RunConfig;

/// How the layers of a run's network are trained.
pub(crate) struct Layers {
    /// The names of the parameters that are frozen at the start.
    pub(crate) frozen: BTreeSet<String>,
    /// The number of epochs after which these are trained; `None`: never.
    pub(crate) unfreeze_at: Option<usize>,
    /// The share of the learning rate at which parameters are trained for which it is not 1.
    pub(crate) lr_scales: BTreeMap<String, f64>,
}

impl Layers {
    /// What the run says of its layers.
    ///
    /// # Errors
    /// When the network has no layer of such a name, when no layer is left to train, when an entry changes nothing, or when the last
    /// layer is frozen although it starts fresh.
    pub(crate) fn of(
        config: &ModelConfig,
        run: &RunConfig,
        initial: Option<&Initial>,
    ) -> Result<Self> {
        let in_run = |error: anyhow::Error| error.context(format!("run {}", run.name));
        let graph = config.graph()?;
        let frozen = frozen(&graph, &run.freeze, initial).map_err(in_run)?;
        let unfreeze_at = run.unfreeze_at;
        let mut layers = Self { frozen, unfreeze_at, lr_scales: BTreeMap::new() };
        let found = graph.lr_scales(&run.lr_scale, &layers.never_trained());
        layers.lr_scales = found.map_err(|error| in_run(anyhow!("lr_scale: {error}")))?;
        Ok(layers)
    }

    /// The names of the parameters that the whole run leaves as they are.
    pub(crate) fn never_trained(&self) -> BTreeSet<String> {
        if self.unfreeze_at.is_some() { BTreeSet::new() } else { self.frozen.clone() }
    }

    /// The names of the parameters that are frozen in epoch `epoch`, counted from 0.
    pub(crate) fn frozen_in(&self, epoch: usize) -> BTreeSet<String> {
        match self.unfreeze_at {
            Some(after) if epoch >= after => BTreeSet::new(),
            _ => self.frozen.clone(),
        }
    }

    /// The share of the learning rate at which a parameter is trained, and after how many steps it begins to be; an epoch has `batches`.
    pub(crate) fn group(&self, parameter: &str, batches: usize) -> (f64, u64) {
        let scale = self.lr_scales.get(parameter).copied().unwrap_or(1.0);
        let late = self.unfreeze_at.filter(|_| self.frozen.contains(parameter));
        (scale, late.unwrap_or(0) as u64 * batches as u64)
    }

    /// What there is to say of them before the run begins, as sentences.
    pub(crate) fn notes(&self, run: &RunConfig) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(after) = self.unfreeze_at {
            notes.push(format!(
                "{} {} frozen for {after} {} and trained from epoch {} on",
                run.freeze.join(", "),
                if run.freeze.len() == 1 { "is" } else { "are" },
                if after == 1 { "epoch" } else { "epochs" },
                after + 1
            ));
        }
        if !self.lr_scales.is_empty() {
            let of = |(layer, scale): (&String, &f64)| format!("{layer} at {scale}");
            let scales: Vec<String> = run.lr_scale.iter().map(of).collect();
            notes.push(format!(
                "layers are trained at shares of the learning rate: {}",
                scales.join(", ")
            ));
        }
        notes.into_iter().map(|note| format!("{}: {note}", run.name)).collect()
    }
}

/// The names of the parameters that `freeze` names: each entry is a parameter's name, a layer's, or what stands before a dot in
/// the names of several layers.
fn frozen(
    graph: &Graph,
    freeze: &[String],
    initial: Option<&Initial>,
) -> anyhow::Result<BTreeSet<String>> {
    let frozen = graph.frozen_parameters(freeze).map_err(|error| anyhow!("freeze: {error}"))?;
    let head = graph.head();
    let is_new = initial.is_some_and(|initial| initial.start.other_classes.is_some());
    ensure!(
        !(is_new && head.parameters.iter().any(|parameter| frozen.contains(&parameter.name))),
        "freeze: {} can't be frozen: it starts fresh, because the initial weights classify another number of classes than the data has",
        head.name
    );
    Ok(frozen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kd_models::Architecture;

    #[test]
    fn layers_are_frozen_by_name_or_by_what_stands_before_a_dot() {
        let config = ModelConfig::new(Architecture::RESNET8, 10);
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            frozen(&config.graph().unwrap(), &names, None)
        };
        assert_eq!(of(&[]).unwrap().len(), 0);
        assert_eq!(of(&["conv1", "bn1", "layer1"]).unwrap().len(), 1 + 2 + 6);
        assert_eq!(of(&["layer1.0", "layer1.0.bn1.bias"]).unwrap().len(), 6);
        // A name is whole up to a dot.
        for unknown in ["layer", "conv", "layer1.0.bn1.running_mean", ""] {
            let message = of(&[unknown]).unwrap_err().to_string();
            assert!(
                message.contains(&format!(
                    "has no layer {unknown:?}; it has conv1, bn1, layer1.0.conv1, "
                )),
                "{message}"
            );
        }
        let all = ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"];
        assert!(of(&all).unwrap_err().to_string().contains("no layer is left to train"));
    }
}
