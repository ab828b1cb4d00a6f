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
use crate::recipe;

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
    /// The step of the best checkpoint at an epoch's end and its share of right answers: it is kept beside the last ones.
    #[serde(default)]
    pub best_step: Option<(u64, f64)>,
    /// `events.jsonl` so far.
    pub events: String,
}

impl State {
    /// Notes that a checkpoint is about to be written at an epoch's end, where this share of answers is right.
    pub(crate) fn count_best(&mut self, accuracy: f64) {
        // Of equal ones the first.
        if self.best_step.is_none_or(|(_, best)| accuracy > best) {
            self.best_step = Some((self.step, accuracy));
        }
    }

    /// Checks that a run of so many epochs and batches can be where this says.
    fn check(&self, epochs: usize, batches: usize) -> anyhow::Result<()> {
        let (epoch, batch, step) = (self.epoch, self.batch, self.step);
        let in_epoch = if epoch < epochs { batch < batches } else { epoch == epochs && batch == 0 };
        ensure!(
            in_epoch,
            "it is at batch {batch} of epoch {epoch}; the run has {epochs} epochs of {batches}"
        );
        let expected = epoch as u64 * batches as u64 + batch as u64;
        ensure!(step == expected, "it is at step {step}; expected {expected} in this epoch");
        let sums = &self.sums;
        let mut values = sums.parts.values().chain([&sums.loss, &sums.seconds]);
        ensure!(
            values.all(|sum| sum.is_finite()) && (sums.images > 0) == (batch > 0),
            "its sums over {batch} batches are of {} images, or not finite",
            sums.images
        );
        ensure!(self.evaluation.is_some() == (epoch > 0), "its evaluation is not of epoch {epoch}");
        Ok(())
    }
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

/// What a checkpoint must fit.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// The run's.
    pub recipe: &'a str,
    /// Of the parameters, by name.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Of the run.
    pub epochs: usize,
    /// Steps of an epoch.
    pub batches: usize,
}

/// Not damaged, but not to be gone on from either: passing over it could lose what it holds.
#[derive(Debug, thiserror::Error)]
enum Foreign {
    #[error(
        "this checkpoint has format {0}, and this version of kd reads format {FORMAT}: go on with the version that wrote it, or start anew in another folder (--out)"
    )]
    Format(u32),
    #[error(
        "this checkpoint is of another recipe; it differs in {0}; choose another --out or --name, or remove the folder"
    )]
    Recipe(String),
}

/// What is read back.
pub struct Checkpoint {
    /// Where the run is.
    pub state: State,
    /// The network's and the methods' helpers', by name.
    pub parameters: BTreeMap<String, Tensor>,
    /// What the optimiser remembers of each parameter, as `<kind>/<parameter>`.
    pub optimizer: BTreeMap<String, Vec<f32>>,
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
        check_finite(name, &values)
            .with_context(|| format!("no checkpoint is written after step {}", state.step))?;
        data.insert(format!("parameter/{name}"), (parameter.dims().to_vec(), bytes(&values)));
    }
    for (name, values) in optimizer.state() {
        check_finite(&name, values)
            .with_context(|| format!("no checkpoint is written after step {}", state.step))?;
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

fn check_finite(name: &str, values: &[f32]) -> anyhow::Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => bail!("{name} is {} at element {index}", values[index]),
    }
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

/// Reads a checkpoint.
fn load(path: &Path, expected: &Expected<'_>) -> anyhow::Result<Checkpoint> {
    let shapes = &expected.shapes;
    let values: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
    let limit = 12 * values as u64 + MAX_REST;
    let len = fs::metadata(path)?.len();
    ensure!(len <= limit, "it has {len} bytes; expected at most {limit}");
    parse(&fs::read(path)?, expected)
}

/// What a checkpoint's bytes say.
///
/// # Errors
/// When they are no whole checkpoint, or one that doesn't fit.
pub fn parse(contents: &[u8], expected: &Expected<'_>) -> anyhow::Result<Checkpoint> {
    /// Read first: a later format may differ in all else.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let shapes = &expected.shapes;
    let (_, metadata) = SafeTensors::read_metadata(contents)?;
    let header = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let header = header.context("it is no checkpoint of kd: the metadata is missing")?;
    let version: Version = serde_json::from_str(header).context("its metadata can't be read")?;
    ensure!(version.format == FORMAT, Foreign::Format(version.format));
    let header: Header = serde_json::from_str(header).context("its metadata can't be read")?;
    let tensors = SafeTensors::deserialize(contents)?;
    let views = tensors.tensors();
    let views: BTreeMap<&str, TensorView<'_>> =
        views.iter().map(|(name, view)| (name.as_str(), view.clone())).collect();
    let found = checksum(&views);
    ensure!(found == header.sha256, "its SHA-256 is {found}; expected {}", header.sha256);

    let state = views.get("state").context("it has no state")?;
    let state: State = serde_json::from_slice(state.data()).context("its state can't be read")?;
    check_recipe(&state.recipe, expected.recipe)?;
    state.check(expected.epochs, expected.batches)?;
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
        check_finite(full_name, &values)?;
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

/// The teacher's path may differ: its hash says whether it is the same.
fn check_recipe(there: &str, asked: &str) -> anyhow::Result<()> {
    if there == asked {
        return Ok(());
    }
    let differing = recipe::differences_in_text(there, "the checkpoint's recipe", asked)?;
    ensure!(differing.is_empty(), Foreign::Recipe(differing.join(", ")));
    Ok(())
}

/// The newest checkpoint in `folder` that is whole; damaged ones are passed over with a warning.
///
/// # Errors
/// When one is of another format or recipe.
pub(crate) fn latest(folder: &Path, expected: &Expected<'_>) -> anyhow::Result<Option<Checkpoint>> {
    for path in list(folder)?.into_iter().rev() {
        match load(&path, expected) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) if error.is::<Foreign>() => {
                return Err(error.context(path.display().to_string()));
            }
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

/// Removes all but the newest `keep` checkpoints and the best one, and any from after the present step (of a damaged
/// future).
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
        let evaluation = (step >= 10).then(evaluation);
        let state = State {
            recipe: "r".into(),
            epoch: step as usize / 10,
            batch: step as usize % 10,
            step,
            sums: Sums { images: step as usize % 10, ..sums },
            evaluation,
            ..State::default()
        };
        let path = save(folder, &state, &parameters, &optimizer).unwrap();
        (state, parameters, optimizer, path)
    }

    fn evaluation() -> Evaluation {
        Evaluation {
            format: 1,
            accuracy: 0.5,
            loss: 1.0,
            classes: Vec::new(),
            confusion: Vec::new(),
            per_class_accuracy: Vec::new(),
        }
    }

    fn expected(recipe: &str) -> Expected<'_> {
        let shapes = BTreeMap::from([("w".to_string(), vec![2, 2])]);
        Expected { recipe, shapes, epochs: 3, batches: 10 }
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (state, parameters, optimizer, path) = made(folder.path(), 7);
        let bytes = fs::read(&path).unwrap();
        let found = load(&path, &expected("r")).unwrap();
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
            if let Ok(found) = load(&path, &expected("r")) {
                assert_eq!(bytes[index], b' ', "byte {index} of {}", bytes.len());
                assert_eq!(found.state.step, 7);
            }
        }
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(load(&path, &expected("r")).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_damaged_newest_checkpoint_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        made(folder.path(), 7);
        let (.., newest) = made(folder.path(), 12);
        assert_eq!(latest(folder.path(), &expected("r")).unwrap().unwrap().state.step, 12);
        fs::write(&newest, b"half").unwrap();
        assert_eq!(latest(folder.path(), &expected("r")).unwrap().unwrap().state.step, 7);
    }

    #[test]
    fn the_newest_are_kept_and_the_best() {
        for best in [None, Some(0), Some(3), Some(10)] {
            let folder = tempfile::tempdir().unwrap();
            for step in [0, 3, 5, 10, 15] {
                made(folder.path(), step);
            }
            let best_step = best.map(|step| (step, 0.5));
            prune(folder.path(), 2, &State { step: 10, best_step, ..State::default() }).unwrap();
            let found: Vec<_> = list(folder.path())
                .unwrap()
                .iter()
                .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
                .collect();
            let mut kept = vec![file_name(5), file_name(10)];
            kept.splice(0..0, best.filter(|step| *step < 5).map(file_name));
            assert_eq!(found, kept);
        }
    }

    #[test]
    fn the_best_is_the_first_of_the_highest() {
        let mut state = State::default();
        for (step, accuracy) in [(7, 0.3), (14, 0.5), (21, 0.5), (28, 0.4)] {
            state.step = step;
            state.count_best(accuracy);
        }
        assert_eq!(state.best_step, Some((14, 0.5)));
    }

    fn foreign(folder: &Path, recipe: &str) -> String {
        let error = latest(folder, &expected(recipe)).err().expect("it is not taken");
        format!("{error:#}")
    }

    #[test]
    fn another_format_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        made(folder.path(), 7);
        let (.., newest) = made(folder.path(), 12);
        let mut bytes = fs::read(&newest).unwrap();
        let found = br#"{\"format\":1"#;
        let at = bytes.windows(found.len()).position(|window| window == found).unwrap();
        bytes[at + found.len() - 1] = b'2';
        fs::write(&newest, bytes).unwrap();
        let message = foreign(folder.path(), "r");
        assert!(message.contains("step-000000012.safetensors: this checkpoint has"), "{message}");
        assert!(message.contains("format 2, and this version of kd reads format 1"), "{message}");
    }

    #[test]
    fn another_recipe_is_not_passed_over_and_another_path_of_the_teacher_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (mut state, parameters, adam, _) = made(folder.path(), 7);
        state.recipe = recipe::TUTORIAL.into();
        state.step = 8;
        state.batch = 8;
        save(folder.path(), &state, &parameters, &adam).unwrap();
        let message = foreign(folder.path(), &recipe::TUTORIAL.replace("seed = 0", "seed = 5"));
        assert!(message.contains("training.seed (0 there, 5 asked for)"), "{message}");
        let moved = recipe::TUTORIAL.replace("seed = 0  ", "");
        let found = latest(folder.path(), &expected(&moved)).map(|found| found.unwrap().state.step);
        assert_eq!(found.unwrap(), 8, "a value that is the default need not be written");
    }

    /// A file that is whole and right in form, made by somebody for this reader.
    fn forged(change: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let (.., path) = made(folder.path(), 7);
        let contents = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&contents).unwrap();
        let mut data: BTreeMap<_, _> = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        change(&mut data);
        let views: BTreeMap<&str, TensorView<'_>> = data
            .iter()
            .map(|(name, (dtype, shape, bytes))| {
                (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            })
            .collect();
        let header = Header { format: FORMAT, sha256: checksum(&views) };
        let header = HashMap::from([(KEY.to_string(), serde_json::to_string(&header).unwrap())]);
        let bytes = safetensors::serialize(views, Some(header)).unwrap();
        format!("{:#}", parse(&bytes, &expected("r")).err().expect("it is refused"))
    }

    /// The same with another state.
    fn forged_state(from: &str, to: &str) -> String {
        forged(|data| {
            let (_, shape, bytes) = data.get_mut("state").unwrap();
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            *bytes = text.replacen(from, to, 1).into_bytes();
            *shape = vec![bytes.len()];
        })
    }

    #[test]
    fn a_forged_checkpoint_is_refused_by_what_is_wrong() {
        let nan = |name: &'static str| {
            forged(|data| data.get_mut(name).unwrap().2[..4].copy_from_slice(&[0, 0, 0xc0, 0x7f]))
        };
        assert!(nan("parameter/w").contains("parameter/w is NaN at element 0"));
        assert!(nan("adam.first/w").contains("adam.first/w is NaN at element 0"));
        let message = forged(|data| data.get_mut("parameter/w").unwrap().1 = vec![4]);
        assert!(message.contains("parameter/w is F32 [4]; the run's is F32 [2, 2]"), "{message}");
        let message = forged(|data| data.get_mut("parameter/w").unwrap().0 = Dtype::I32);
        assert!(message.contains("parameter/w is I32 [2, 2]"), "{message}");
        let message = forged(|data| _ = data.remove("parameter/w"));
        assert!(message.contains("parameter w is missing"), "{message}");
        let message = forged(|data| _ = data.remove("state"));
        assert!(message.contains("it has no state"), "{message}");
        let message = forged(|data| {
            let entry = data["parameter/w"].clone();
            data.insert("parameter/other".into(), entry);
        });
        assert!(message.contains("parameter/other is not the run's"), "{message}");
        let message = forged(|data| {
            let entry = data["adam.first/w"].clone();
            data.insert("adam.third/w".into(), entry);
        });
        assert!(message.contains("adam.third/w is nothing that a checkpoint holds"), "{message}");

        let message = forged_state("\"batch\":7", "\"batch\":70");
        assert!(message.contains("batch 70 of epoch 0; the run has 3 epochs of 10"), "{message}");
        let message = forged_state("\"epoch\":0", "\"epoch\":9");
        assert!(message.contains("batch 7 of epoch 9"), "{message}");
        let message = forged_state("\"step\":7", "\"step\":18446744073709551615");
        assert!(message.contains("it is at step 18446744073709551615; expected 7"), "{message}");
        let message = forged_state("\"images\":7", "\"images\":0");
        assert!(message.contains("of 0 images"), "{message}");
        let message = forged_state("\"epoch\":0", "\"era\":0");
        assert!(message.contains("its state can't be read: unknown field `era`"), "{message}");
    }

    #[test]
    fn a_header_that_announces_more_than_there_is_is_refused() {
        let contents = |header: &str| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes());
            bytes
        };
        let huge = r#"{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#;
        let far = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1099511627776]}}"#;
        let back = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#;
        let own = r#"{"__metadata__":{"kd-checkpoint":"{\"format\":1,\"sha256\":\"\"}"}}"#;
        let long = [0xff; 16];
        for bytes in [contents(huge), contents(far), contents(back), contents(own), long.to_vec()] {
            assert!(parse(&bytes, &expected("r")).is_err());
        }
    }

    #[test]
    fn weights_that_are_not_finite_are_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let weight = Var::from_slice(&[1.0, f32::NAN], 2, &Device::Cpu).unwrap();
        let parameters = Parameters::from([("w".to_string(), weight)]);
        let optimizer = Optimizer::Adam(Adam::default());
        let error = save(folder.path(), &State::default(), &parameters, &optimizer);
        let message = format!("{:#}", error.unwrap_err());
        assert!(message.contains("w is NaN at element 1"), "{message}");
        assert!(list(folder.path()).unwrap().is_empty());
    }
}
