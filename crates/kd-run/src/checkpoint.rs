//! Checkpoints: everything that a run needs to go on exactly where it was.
//!
//! One safetensors file each: `parameter/<name>` (running statistics among them), the optimiser's state
//! (`adam.first/<name>` and `adam.second/<name>`, or `sgd.momentum/<name>`), and as bytes under `state` a
//! JSON text with the rest. Random draws depend on the seed, the epoch and the
//! step alone, so no generator's state is among them. The metadata holds a format number and a SHA-256 of all tensors.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};
use kd_models::Parameters;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::evaluate::Evaluation;
use crate::files;
use crate::optimizer::{KINDS, Optimizer};

const FORMAT: u32 = 1;
/// The one metadata entry; with several, safetensors' hash map would make the bytes vary.
const KEY: &str = "kd-checkpoint";
/// A checkpoint holds the parameters three times and little else; a file larger by more is not read.
const MAX_REST: u64 = 256 << 20;

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The run's resolved recipe.
    pub recipe: String,
    /// Whole epochs done.
    pub epoch: usize,
    /// Batches done of the epoch after those.
    pub batch: usize,
    /// Steps taken in all.
    pub step: u64,
    /// Of the epoch that is going on.
    pub sums: Sums,
    /// On the test images, after the last whole epoch, or the best one where that is chosen.
    pub evaluation: Option<Evaluation>,
    /// The best epoch so far (from 1) and its share of right answers, where a run chooses it.
    #[serde(default)]
    pub best: Option<(usize, f64)>,
    /// `events.jsonl` so far.
    pub events: String,
}

/// Sums over the batches of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    /// Of the batches' losses.
    pub loss: f64,
    /// Of the loss's parts, by name, before their weights.
    pub parts: BTreeMap<String, f64>,
    /// Images seen.
    pub images: usize,
    /// Images told right.
    pub right: usize,
    /// Spent.
    pub seconds: f64,
}

/// The metadata entry.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    sha256: String,
}

/// What is read back.
pub(crate) struct Checkpoint {
    pub(crate) state: State,
    pub(crate) parameters: BTreeMap<String, Tensor>,
    /// [`Optimizer::state`].
    pub(crate) optimizer: BTreeMap<String, Vec<f32>>,
}

/// Writes `step-<step>.safetensors` into `folder`.
pub(crate) fn save(
    folder: &Path,
    state: &State,
    parameters: &Parameters,
    optimizer: &Optimizer,
) -> anyhow::Result<PathBuf> {
    let path = folder.join(file_name(state.step));
    let mut data: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, parameter) in parameters {
        let values = parameter.flatten_all()?.to_vec1::<f32>()?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            bail!(
                "{name} is {} at element {index} after step {}; no checkpoint is written of it",
                values[index],
                state.step
            );
        }
        data.insert(format!("parameter/{name}"), (parameter.dims().to_vec(), bytes(&values)));
    }
    for (name, values) in optimizer.state() {
        data.insert(name, (vec![values.len()], bytes(values)));
    }
    let state = serde_json::to_vec(state).context("the state can't be written as JSON")?;
    data.insert("state".into(), (vec![state.len()], state));

    let tensors: BTreeMap<&str, TensorView<'_>> = data
        .iter()
        .map(|(name, (shape, bytes))| {
            let dtype = if name == "state" { Dtype::U8 } else { Dtype::F32 };
            Ok((name.as_str(), TensorView::new(dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    let header = Header { format: FORMAT, sha256: checksum(&tensors) };
    let header = HashMap::from([(KEY.to_string(), serde_json::to_string(&header)?)]);
    files::write_whole(&path, &safetensors::serialize(tensors, Some(header))?)?;
    Ok(path)
}

fn file_name(step: u64) -> String {
    format!("step-{step:09}.safetensors")
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Of names, shapes and contents.
fn checksum(tensors: &BTreeMap<&str, TensorView<'_>>) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in tensors {
        hash.update(format!("{name} {} {:?}\n", tensor.dtype(), tensor.shape()));
        hash.update(tensor.data());
    }
    files::hex(hash)
}

/// Reads a checkpoint for parameters of these shapes.
fn load(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) -> anyhow::Result<Checkpoint> {
    let values: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
    let limit = 12 * values as u64 + MAX_REST;
    let len = fs::metadata(path)?.len();
    ensure!(len <= limit, "it has {len} bytes; expected at most {limit}");
    let contents = fs::read(path)?;
    let (_, metadata) = SafeTensors::read_metadata(&contents)?;
    let header = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let header = header.context("it is no checkpoint of kd: the metadata is missing")?;
    let header: Header = serde_json::from_str(header).context("its metadata can't be read")?;
    ensure!(
        header.format == FORMAT,
        "its format is {}; this version of kd reads format {FORMAT}",
        header.format
    );
    let tensors = SafeTensors::deserialize(&contents)?;
    let views = tensors.tensors();
    let views: BTreeMap<&str, TensorView<'_>> =
        views.iter().map(|(name, view)| (name.as_str(), view.clone())).collect();
    let found = checksum(&views);
    ensure!(found == header.sha256, "its SHA-256 is {found}; expected {}", header.sha256);

    let state = views.get("state").context("it has no state")?;
    let state: State = serde_json::from_slice(state.data()).context("its state can't be read")?;
    let mut parameters = BTreeMap::new();
    let mut optimizer = BTreeMap::new();
    for (full_name, view) in &views {
        let Some((kind, name)) = full_name.split_once('/') else { continue };
        let shape = shapes.get(name).with_context(|| format!("{full_name} is not the run's"))?;
        let right_shape = match kind {
            "parameter" => view.shape() == shape,
            _ => view.shape() == [shape.iter().product::<usize>()],
        };
        ensure!(
            right_shape && view.dtype() == Dtype::F32,
            "{full_name} is {} {:?}; the run's is F32 {shape:?}",
            view.dtype(),
            view.shape()
        );
        let values = floats(view.data());
        match kind {
            "parameter" => {
                let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
                parameters.insert(name.to_string(), tensor);
            }
            kind if KINDS.contains(&kind) => _ = optimizer.insert((*full_name).to_string(), values),
            _ => bail!("{full_name} is nothing that a checkpoint holds"),
        }
    }
    let missing = shapes.keys().find(|name| !parameters.contains_key(*name));
    ensure!(missing.is_none(), "parameter {} is missing", missing.map_or("", String::as_str));
    Ok(Checkpoint { state, parameters, optimizer })
}

/// The newest checkpoint in `folder` that is whole and of this recipe; damaged ones are passed over
/// with a warning.
pub(crate) fn latest(
    folder: &Path,
    recipe: &str,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> anyhow::Result<Option<Checkpoint>> {
    for path in list(folder)?.into_iter().rev() {
        let checkpoint = load(&path, shapes).and_then(|checkpoint| {
            ensure!(checkpoint.state.recipe == recipe, "it was made with another recipe");
            Ok(checkpoint)
        });
        match checkpoint {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) => {
                tracing::warn!(
                    "{}: this checkpoint can't be used: {error:#}; looking for the one before",
                    path.display()
                );
            }
        }
    }
    Ok(None)
}

/// Removes all but the newest `keep` checkpoints, and any from after `step` (of a damaged future).
pub(crate) fn prune(folder: &Path, keep: usize, step: u64) -> anyhow::Result<()> {
    let last = folder.join(file_name(step));
    let (past, future): (Vec<_>, Vec<_>) =
        list(folder)?.into_iter().partition(|path| *path <= last);
    let old = past.len().saturating_sub(keep);
    for path in past[..old].iter().chain(&future) {
        fs::remove_file(path).with_context(|| format!("{}: can't be removed", path.display()))?;
    }
    Ok(())
}

/// The checkpoints in `folder`, oldest first.
fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("{}: the folder can't be read", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("step-").and_then(|n| n.strip_suffix(".safetensors"));
        if number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            paths.push(path);
        }
    }
    // Numbers have leading zeros, so names sort as numbers do.
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use kd_ops::adam::{Adam, Moments};

    fn made(folder: &Path, step: u64) -> (State, Parameters, Optimizer, PathBuf) {
        let values = [0.1f32, -2.5, f32::MIN_POSITIVE, 3e30];
        let weight = Var::from_slice(&values, (2, 2), &Device::Cpu).unwrap();
        let parameters = Parameters::from([("w".to_string(), weight)]);
        let mut adam = Adam::default();
        let moments = Moments { first: vec![0.3; 4], second: vec![1e-12; 4] };
        adam.moments.insert("w".into(), moments);
        let optimizer = Optimizer::Adam(adam);
        // A sum that has no short decimal form.
        let sums = Sums { loss: 0.1 + 0.2, seconds: 1.0 / 3.0, ..Sums::default() };
        let state = State { recipe: "r".into(), step, sums, ..State::default() };
        let path = save(folder, &state, &parameters, &optimizer).unwrap();
        (state, parameters, optimizer, path)
    }

    fn shapes() -> BTreeMap<String, Vec<usize>> {
        BTreeMap::from([("w".to_string(), vec![2, 2])])
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (state, parameters, optimizer, path) = made(folder.path(), 7);
        let bytes = fs::read(&path).unwrap();
        let found = load(&path, &shapes()).unwrap();
        assert_eq!(found.state, state);
        let mut restored = Optimizer::Adam(Adam::default());
        restored.restore(0, found.optimizer).unwrap();
        assert_eq!(restored, optimizer);
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&found.parameters["w"]), values(&parameters["w"]));
        made(folder.path(), 7);
        assert_eq!(fs::read(&path).unwrap(), bytes, "the same state gives the same file");
    }

    #[test]
    fn any_changed_byte_and_any_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (.., path) = made(folder.path(), 7);
        let bytes = fs::read(&path).unwrap();
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 4;
            fs::write(&path, &damaged).unwrap();
            // Changed blanks that pad the header say nothing.
            if let Ok(found) = load(&path, &shapes()) {
                assert_eq!(bytes[index], b' ', "byte {index} of {}", bytes.len());
                assert_eq!(found.state.step, 7);
            }
        }
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(load(&path, &shapes()).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_damaged_newest_checkpoint_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        made(folder.path(), 7);
        let (.., newest) = made(folder.path(), 12);
        assert_eq!(latest(folder.path(), "r", &shapes()).unwrap().unwrap().state.step, 12);
        fs::write(&newest, b"half").unwrap();
        assert_eq!(latest(folder.path(), "r", &shapes()).unwrap().unwrap().state.step, 7);
        assert!(latest(folder.path(), "another", &shapes()).unwrap().is_none());
    }

    #[test]
    fn only_the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in [0, 5, 10, 15] {
            made(folder.path(), step);
        }
        prune(folder.path(), 2, 10).unwrap();
        let names: Vec<_> = list(folder.path())
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, [file_name(5).as_str(), file_name(10).as_str()]);
    }

    #[test]
    fn weights_that_are_not_finite_are_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let weight = Var::from_slice(&[1.0, f32::NAN], 2, &Device::Cpu).unwrap();
        let parameters = Parameters::from([("w".to_string(), weight)]);
        let error =
            save(folder.path(), &State::default(), &parameters, &Optimizer::Adam(Adam::default()));
        let message = error.unwrap_err().to_string();
        assert!(message.contains("w is NaN at element 1"), "{message}");
        assert!(list(folder.path()).unwrap().is_empty());
    }
}
