//! A checkpoint's bytes: how they are made, and what they say.
//!
//! A checkpoint is one safetensors file: `parameter/<name>` (running statistics among them), where an average of them is kept
//! `average/<name>`, the optimiser's state (`adam.first/<name>` and `adam.second/<name>`, or `sgd.momentum/<name>`), and as bytes under `state` a JSON text with the
//! rest. Random draws depend on the seed, the epoch and the step alone, so no generator's state is among them. The metadata
//! holds a format number and a SHA-256 of all tensors.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::State;
use crate::recipe::{self, Relation};
use crate::task::{AVERAGE, PARAMETER};
use kd_ops::optimizer::KINDS;
use kd_record::hash::hex;

pub(super) const FORMAT: u32 = 1;
/// The one metadata entry; with several, safetensors' hash map would make the bytes vary.
pub(super) const KEY: &str = "kd-checkpoint";
/// The tensor with the JSON text.
const STATE: &str = "state";

/// The metadata entry.
#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) sha256: String,
}

/// What a checkpoint must fit.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// The run's resolved recipe, as TOML.
    pub recipe: &'a str,
    /// The shape of each parameter, by name.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Whether a setting of the run depends on its number of epochs, so that a checkpoint of a shorter run does not fit.
    pub tied_to_length: bool,
    /// Epochs of the run.
    pub epochs: usize,
    /// Steps of an epoch.
    pub batches: usize,
}

/// What is read back.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the run is.
    pub state: State,
    /// The task's [state](crate::task::Task::state), on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Why a checkpoint can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is damaged, or not of this run: the checkpoint before it may be whole.
    #[error(transparent)]
    Damaged(#[from] anyhow::Error),
    /// It is whole and of another format. Passing over it could lose what it holds.
    #[error(
        "this checkpoint has format {0}, and this version of kd reads format {FORMAT}: go on with the version that wrote it, or start anew in another folder (--out)"
    )]
    Format(u32),
    /// It is whole and of another recipe, which differs in these keys. Passing over it could lose what it holds.
    #[error("this checkpoint is of another recipe; it differs in {0}")]
    Recipe(String),
}

/// The bytes of a checkpoint.
///
/// # Errors
/// When a value is not finite.
pub(super) fn bytes(state: &State, tensors: &BTreeMap<String, Tensor>) -> anyhow::Result<Vec<u8>> {
    let mut data: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, tensor) in tensors {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        check_finite(name, &values)?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        data.insert(name, (tensor.dims().to_vec(), bytes));
    }
    let state = serde_json::to_vec(state).context("the state can't be written as JSON")?;
    data.insert(STATE, (vec![state.len()], state));
    let tensors: BTreeMap<&str, TensorView<'_>> = data
        .iter()
        .map(|(name, (shape, bytes))| {
            let dtype = if *name == STATE { Dtype::U8 } else { Dtype::F32 };
            Ok((*name, TensorView::new(dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    let header = Header { format: FORMAT, sha256: checksum(&tensors) };
    let header = HashMap::from([(KEY.to_string(), serde_json::to_string(&header)?)]);
    Ok(safetensors::serialize(tensors, Some(header))?)
}

fn check_finite(name: &str, values: &[f32]) -> anyhow::Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => bail!("{name} is {} at element {index}", values[index]),
    }
}

/// SHA-256 of names, types, shapes and contents.
pub(super) fn checksum(tensors: &BTreeMap<&str, TensorView<'_>>) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in tensors {
        hash.update(format!("{name} {} {:?}\n", tensor.dtype(), tensor.shape()));
        hash.update(tensor.data());
    }
    hex(hash)
}

/// What a checkpoint's bytes say.
///
/// # Errors
/// When they are no whole checkpoint, or one that doesn't fit.
pub fn parse(contents: &[u8], expected: &Expected<'_>) -> Result<Checkpoint, Unusable> {
    let damaged = |error: safetensors::SafeTensorError| Unusable::Damaged(error.into());
    let (_, metadata) = SafeTensors::read_metadata(contents).map_err(damaged)?;
    let header = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let header = read_header(header)?;
    let tensors = SafeTensors::deserialize(contents).map_err(damaged)?;
    let views = tensors.tensors();
    let views: BTreeMap<&str, TensorView<'_>> =
        views.iter().map(|(name, view)| (name.as_str(), view.clone())).collect();
    let found = checksum(&views);
    if found != header.sha256 {
        let expected = header.sha256;
        return Err(anyhow::anyhow!("its SHA-256 is {found}; expected {expected}").into());
    }
    let state = views.get(STATE).context("it has no state")?;
    let state: State = serde_json::from_slice(state.data()).context("its state can't be read")?;
    check_recipe(&state.recipe, expected)?;
    state.check(expected.epochs, expected.batches)?;
    let tensors = read_tensors(&views, &expected.shapes)?;
    Ok(Checkpoint { state, tensors })
}

fn read_header(header: Option<&String>) -> Result<Header, Unusable> {
    /// Read first: a later format may differ in all else.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let header = header.context("it is no checkpoint of kd: the metadata is missing")?;
    let version: Version = serde_json::from_str(header).context("its metadata can't be read")?;
    if version.format != FORMAT {
        return Err(Unusable::Format(version.format));
    }
    Ok(serde_json::from_str(header).context("its metadata can't be read")?)
}

/// The path of the teacher's file may differ: its hash says whether it is the same teacher. The run may have been started for fewer
/// epochs, where none of its settings depends on their number.
fn check_recipe(there: &str, asked: &Expected<'_>) -> Result<(), Unusable> {
    match recipe::relation(there, "the checkpoint's recipe", asked.recipe)? {
        Relation::Same => Ok(()),
        Relation::Epochs { from, to } if from < to && !asked.tied_to_length => Ok(()),
        Relation::Epochs { from, to } => {
            Err(Unusable::Recipe(format!("training.epochs ({from} there, {to} asked for)")))
        }
        Relation::Differs(keys) => Err(Unusable::Recipe(keys)),
    }
}

/// All tensors but the state; each must have the shape of its parameter, or be flat and as large.
fn read_tensors(
    views: &BTreeMap<&str, TensorView<'_>>,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (full_name, view) in views {
        let Some((kind, name)) = full_name.split_once('/') else { continue };
        let shape = shapes.get(name).with_context(|| format!("{full_name} is not the run's"))?;
        let flat = [shape.iter().product::<usize>()];
        let shaped = kind == PARAMETER || kind == AVERAGE;
        let expected = if shaped { shape.as_slice() } else { &flat };
        ensure!(
            view.shape() == expected && view.dtype() == Dtype::F32,
            "{full_name} is {} {:?}; the run's is F32 {shape:?}",
            view.dtype(),
            view.shape()
        );
        ensure!(shaped || KINDS.contains(&kind), "{full_name} is nothing that a checkpoint holds");
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        check_finite(full_name, &values)?;
        tensors.insert((*full_name).into(), Tensor::from_vec(values, expected, &Device::Cpu)?);
    }
    let missing = shapes.keys().find(|name| !tensors.contains_key(&format!("{PARAMETER}/{name}")));
    ensure!(missing.is_none(), "parameter {} is missing", missing.map_or("", String::as_str));
    Ok(tensors)
}
