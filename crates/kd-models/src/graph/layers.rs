//! What names of layers mean: which parameters are frozen, and at which share of the learning rate each is trained.

use std::collections::{BTreeMap, BTreeSet};

use super::{Graph, TensorSpec};
use crate::{Error, Result};

impl Graph {
    /// The names of the layers that have parameters, from the input to the output.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        let trained = self.nodes.iter().filter(|node| !node.parameters.is_empty());
        trained.map(|node| node.name.as_str())
    }

    /// The parameters that `name` means: a parameter's own name, a layer's, or what stands before a dot in the names of several
    /// layers (`layer1` means `layer1.0.conv1.weight` and all beside it).
    ///
    /// # Errors
    /// When the name means nothing.
    pub fn parameters_of(&self, name: &str) -> Result<BTreeSet<String>> {
        let means = |spec: &&TensorSpec| {
            let rest = spec.name.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let found: BTreeSet<String> =
            self.parameters().filter(means).map(|spec| spec.name.clone()).collect();
        match found.is_empty() {
            false => Ok(found),
            true => Err(Error::UnknownLayer {
                network: self.name.as_str().into(),
                layer: name.to_owned(),
                known: self.layers().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The parameters that `names` mean together, each as in [`parameters_of`](Self::parameters_of), for freezing.
    ///
    /// # Errors
    /// When a name means nothing, or all parameters are meant and nothing is left to train.
    pub fn frozen_parameters(&self, names: &[String]) -> Result<BTreeSet<String>> {
        let mut frozen = BTreeSet::new();
        for name in names {
            frozen.extend(self.parameters_of(name)?);
        }
        match frozen.len() < self.parameters().count() {
            true => Ok(frozen),
            false => Err(Error::NothingToTrain { network: self.name.as_str().into() }),
        }
    }

    /// The share of the learning rate at which each parameter is trained that `scales` names, each name as in
    /// [`parameters_of`](Self::parameters_of); of several names that mean a parameter the longest counts. Parameters that no name means
    /// are left out: they are trained at the whole learning rate.
    ///
    /// # Errors
    /// When a name means nothing, or changes nothing: its parameters would have the same share without it, or are all among `never`, the
    /// ones that are not trained.
    pub fn lr_scales(
        &self,
        scales: &BTreeMap<String, f64>,
        never: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, f64>> {
        let of = |without: Option<&str>| {
            let mut by_length: Vec<_> =
                scales.iter().filter(|(name, _)| Some(name.as_str()) != without).collect();
            by_length.sort_by_key(|(name, _)| name.len());
            let mut found = BTreeMap::new();
            for (name, scale) in by_length {
                let trained = self.parameters_of(name)?.into_iter();
                found.extend(trained.filter(|name| !never.contains(name)).map(|one| (one, *scale)));
            }
            found.retain(|_, scale| *scale != 1.0);
            Ok::<_, Error>(found)
        };
        let all = of(None)?;
        for (name, scale) in scales {
            if of(Some(name))? == all {
                return Err(Error::ScaleWithoutEffect {
                    network: self.name.as_str().into(),
                    layer: name.clone(),
                    scale: *scale,
                });
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, ModelConfig};

    fn scales(entries: &[(&str, f64)], frozen: &[&str]) -> Result<BTreeMap<String, f64>> {
        let graph = ModelConfig::new(Architecture::RESNET8, 10).graph().unwrap();
        let frozen: Vec<String> = frozen.iter().map(|name| name.to_string()).collect();
        let never = graph.frozen_parameters(&frozen).unwrap();
        let entries = entries.iter().map(|(name, scale)| (name.to_string(), *scale)).collect();
        graph.lr_scales(&entries, &never)
    }

    #[test]
    fn the_longest_name_gives_a_parameter_its_share_of_the_learning_rate() {
        assert!(scales(&[], &[]).unwrap().is_empty());
        let found = scales(&[("layer1", 0.1), ("layer1.0.bn1", 1.0), ("conv1", 0.3)], &[]).unwrap();
        assert_eq!(found["layer1.0.conv1.weight"], 0.1);
        assert_eq!(found["layer1.0.bn2.bias"], 0.1);
        assert_eq!(found["conv1.weight"], 0.3);
        assert!(!found.contains_key("layer1.0.bn1.weight") && !found.contains_key("linear.weight"));
        // What is frozen has none; the rest of the layer has.
        let found = scales(&[("layer1", 0.1)], &["layer1.0.bn1"]).unwrap();
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn a_share_that_means_or_changes_nothing_is_refused() {
        let refused = |entries: &[(&str, f64)], frozen: &[&str]| {
            scales(entries, frozen).unwrap_err().to_string()
        };
        assert!(refused(&[("layer", 0.1)], &[]).contains("has no layer \"layer\"; it has conv1"));
        let of_one = refused(&[("layer1", 1.0)], &[]);
        assert!(of_one.contains("1 for \"layer1\" changes nothing"), "{of_one}");
        let twice = refused(&[("layer1", 0.1), ("layer1.0", 0.1)], &[]);
        assert!(twice.contains("changes nothing"), "{twice}");
        let hidden = refused(&[("conv1", 0.1), ("conv1.weight", 0.2)], &[]);
        assert!(hidden.contains("0.1 for \"conv1\" changes nothing"), "{hidden}");
        assert!(refused(&[("layer1", 0.1)], &["layer1"]).contains("changes nothing"));
    }
}
