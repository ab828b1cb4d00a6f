//! A run's folder of checkpoints: writing one, finding the newest, removing the oldest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use candle_core::Tensor;

use super::State;
use super::format::{self, Checkpoint, Expected, Unusable, parse};
use crate::{Error, Result};
use kd_record::write::write_whole;

/// A checkpoint holds the parameters at most four times (with their average and Adam's two moments) and little else; a file larger by more is not read.
const MAX_REST: u64 = 256 << 20;

/// Writes `step-<step>.safetensors` into `folder`: the state and a task's tensors.
pub(crate) fn save(
    folder: &Path,
    state: &State,
    tensors: &BTreeMap<String, Tensor>,
) -> anyhow::Result<PathBuf> {
    let path = folder.join(file_name(state.step));
    let bytes = format::bytes(state, tensors)
        .with_context(|| format!("no checkpoint is written after step {}", state.step))?;
    write_whole(&path, &bytes)?;
    Ok(path)
}

pub(super) fn file_name(step: u64) -> String {
    format!("step-{step:09}.safetensors")
}

/// Reads a checkpoint.
pub(super) fn load(path: &Path, expected: &Expected<'_>) -> Result<Checkpoint, Unusable> {
    parse(&contents(path, expected)?, expected)
}

fn contents(path: &Path, expected: &Expected<'_>) -> anyhow::Result<Vec<u8>> {
    let shapes = expected.shapes.values();
    let values: usize = shapes.map(|shape| shape.iter().product::<usize>()).sum();
    let limit = 16 * values as u64 + MAX_REST;
    let len = fs::metadata(path)?.len();
    ensure!(len <= limit, "it has {len} bytes; expected at most {limit}");
    Ok(fs::read(path)?)
}

/// The newest checkpoint in `folder` that is whole; damaged ones are passed over with a warning.
///
/// # Errors
/// When one is of another format or recipe.
pub(crate) fn latest(folder: &Path, expected: &Expected<'_>) -> Result<Option<Checkpoint>> {
    for path in list(folder)?.into_iter().rev() {
        match load(&path, expected) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(Unusable::Recipe(differences)) => {
                return Err(Error::AnotherRecipe { path, what: "checkpoint", differences });
            }
            Err(error @ Unusable::Format(_)) => {
                return Err(anyhow::Error::new(error).context(path.display().to_string()).into());
            }
            Err(Unusable::Damaged(error)) => {
                tracing::warn!(
                    "{}: this checkpoint can't be used: {error:#}; looking for the one before",
                    path.display()
                );
            }
        }
    }
    Ok(None)
}

/// Removes all but the newest `keep` checkpoints and the best one, and any of steps after the present one, which a damaged
/// checkpoint leaves behind.
pub(crate) fn prune(folder: &Path, keep: usize, state: &State) -> anyhow::Result<()> {
    let last = folder.join(file_name(state.step));
    let (mut past, future): (Vec<_>, Vec<_>) =
        list(folder)?.into_iter().partition(|path| *path <= last);
    past.truncate(past.len().saturating_sub(keep));
    let best = state.best_step.map(|(step, _)| folder.join(file_name(step)));
    past.retain(|path| Some(path) != best.as_ref());
    for path in past.iter().chain(&future) {
        fs::remove_file(path).with_context(|| format!("{}: can't be removed", path.display()))?;
    }
    Ok(())
}

/// The checkpoints in `folder`, oldest first.
pub(super) fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
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
