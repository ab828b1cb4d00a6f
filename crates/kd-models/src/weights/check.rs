//! Whether a file's tensors are those of a network.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};

use super::metadata::Metadata;
use crate::graph::{Graph, TensorSpec};
use crate::{Error, Result};

/// Compares the names, shapes and types that a file's header gives with the network's.
pub(super) fn check_tensors(
    path: &Path,
    graph: &Graph,
    metadata: Option<&Metadata>,
    found: &HashMap<String, &TensorInfo>,
) -> Result<()> {
    let network = graph.name().into();
    let expected: BTreeMap<&str, &TensorSpec> =
        graph.tensors().map(|spec| (spec.name.as_str(), spec)).collect();
    let counts_batches = |name: &str| {
        let norm = name.strip_suffix(".num_batches_tracked");
        norm.is_some_and(|norm| expected.contains_key(format!("{norm}.running_mean").as_str()))
    };
    let is_extra = |name: &&String| !expected.contains_key(name.as_str()) && !counts_batches(name);
    // The first by name, so that the same file always gives the same message.
    if let Some(name) = found.keys().filter(is_extra).min() {
        let (name, found) = (name.clone(), found[name].shape.clone());
        return Err(Error::ExtraTensor { path: path.into(), network, name, found });
    }
    for spec in graph.tensors() {
        if !found.contains_key(&spec.name) {
            let (name, expected) = (spec.name.clone(), spec.shape.clone());
            return Err(Error::MissingTensor { path: path.into(), network, name, expected });
        }
    }
    // Another number of classes shows as another shape of the head; say what it means.
    if let Some(classes) = classes(graph, metadata, found)
        && classes != graph.classes()
    {
        let expected = graph.classes();
        return Err(Error::ClassCount { path: path.into(), found: classes, expected });
    }
    for spec in graph.tensors() {
        let info = found[&spec.name];
        if info.shape != spec.shape {
            if let Some(input) = metadata.map(|metadata| metadata.input)
                && input != graph.input()
            {
                let (found, expected) = (input, graph.input());
                return Err(Error::InputShape { path: path.into(), network, found, expected });
            }
            return Err(Error::TensorShape {
                path: path.into(),
                network,
                name: spec.name.clone(),
                found: info.shape.clone(),
                expected: spec.shape.clone(),
            });
        }
        if info.dtype != Dtype::F32 {
            let (name, found) = (spec.name.clone(), info.dtype.to_string());
            return Err(Error::TensorDtype { path: path.into(), name, found });
        }
    }
    Ok(())
}

/// The number of classes of a file with a network like this one: what its description says, or the rows of its head.
pub(super) fn classes(
    graph: &Graph,
    metadata: Option<&Metadata>,
    found: &HashMap<String, &TensorInfo>,
) -> Option<usize> {
    if let Some(metadata) = metadata {
        return Some(metadata.classes);
    }
    let head = graph.head().parameters.first()?;
    let shape = &found.get(&head.name)?.shape;
    (shape.len() == head.shape.len() && shape[1..] == head.shape[1..]).then(|| shape[0])
}

/// Checks a running variance: a negative one would make every output NaN, without a word of why.
pub(super) fn check_variance(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| *value < 0.0) {
        None => Ok(()),
        Some(index) => Err(Error::Malformed {
            path: path.into(),
            reason: format!(
                "{name} is {} at element {index}; a variance is not negative",
                values[index]
            ),
        }),
    }
}

/// Checks that all values are finite.
pub(super) fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let (name, value) = (name.to_string(), values[index]);
            Err(Error::NotFinite { path: path.into(), name, index, value })
        }
    }
}
