//! Whether a file's tensors are those of a network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::contents::{Stored, Type};
use super::metadata::Metadata;
use crate::graph::{Graph, Node, Op};
use crate::{Error, Result};

/// The first tensor by name that the network lacks. A count of batches beside a normalisation's statistics is none of the
/// network's, and is passed over.
pub(super) fn extra<'a>(graph: &Graph, found: &'a BTreeMap<String, &Stored>) -> Option<&'a str> {
    let expected: BTreeSet<&str> = graph.tensors().map(|spec| spec.name.as_str()).collect();
    let counts_batches = |name: &str| {
        let norm = name.strip_suffix(".num_batches_tracked");
        norm.is_some_and(|norm| expected.contains(format!("{norm}.running_mean").as_str()))
    };
    let is_extra = |name: &&str| !expected.contains(name) && !counts_batches(name);
    found.keys().map(String::as_str).find(is_extra)
}

/// Compares the names, shapes and types that a file gives with the network's.
pub(super) fn check_tensors(
    path: &Path,
    graph: &Graph,
    metadata: Option<&Metadata>,
    found: &BTreeMap<String, &Stored>,
) -> Result<()> {
    let network = graph.name().into();
    if let Some(name) = extra(graph, found) {
        let (name, found) = (name.to_string(), found[name].shape.clone());
        let without_weights = |node: &Node| matches!(node.op, Op::SubsamplePad { .. });
        let of_shortcut = name.contains(".downsample.") || name.contains(".shortcut.");
        return Err(match of_shortcut && graph.nodes().iter().any(without_weights) {
            true => Error::ProjectionShortcut { path: path.into(), network, name, found },
            false => Error::ExtraTensor { path: path.into(), network, name, found },
        });
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
        if let Type::Other(found) = &info.dtype {
            let (name, found) = (spec.name.clone(), found.clone());
            let expected = "F32, F16, BF16 or F64";
            return Err(Error::TensorDtype { path: path.into(), name, found, expected });
        }
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
    }
    Ok(())
}

/// The number of classes of a file with a network like this one: what its description says, or the rows of its head.
pub(super) fn classes(
    graph: &Graph,
    metadata: Option<&Metadata>,
    found: &BTreeMap<String, &Stored>,
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
