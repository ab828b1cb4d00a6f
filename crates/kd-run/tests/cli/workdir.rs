//! Running `kd` as a process in a folder of its own, on small synthetic data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use kd_models::weights::Metadata;
use kd_models::{Architecture, ModelConfig};
use serde_json::Value;

/// Enough images for several steps, few enough for a debug build.
pub(crate) const TINY: [&str; 10] = [
    "--dataset",
    "synthetic",
    "--train-limit",
    "100",
    "--test-limit",
    "40",
    "--epochs",
    "2",
    "--batch-size",
    "16",
];
/// Steps of an epoch of [`TINY`].
pub(crate) const BATCHES: usize = 7;

/// A folder that goes when the test ends.
pub(crate) struct WorkDir {
    folder: tempfile::TempDir,
}

impl WorkDir {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// `kd` with the words of `line`, in this folder; on the CPU unless `line` says otherwise, whatever the machine has: what is
    /// compared here to the last bit is computed there.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kd"));
        let mut words = line.split_whitespace();
        command.args(words.next()).current_dir(self.folder.path());
        let computes = ["train ", "distill ", "eval ", "predict "];
        if computes.iter().any(|word| line.starts_with(word)) && !line.contains("--device") {
            command.args(["--device", "cpu"]);
        }
        command.args(words);
        command.env_remove("RUST_LOG");
        command
    }

    /// [`TINY`] added: what a training run that must succeed prints to standard error.
    pub(crate) fn train(&self, line: &str) -> String {
        let output = self.command(line).args(TINY).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kd {line}: {errors}");
        errors
    }

    /// What a failing run says; it must end with this code.
    pub(crate) fn fails(&self, line: &str, code: i32) -> String {
        self.fails_with(self.command(line), code)
    }

    /// The same with [`TINY`] added.
    pub(crate) fn train_fails(&self, line: &str, code: i32) -> String {
        let mut command = self.command(line);
        command.args(TINY);
        self.fails_with(command, code)
    }

    fn fails_with(&self, mut command: Command, code: i32) -> String {
        let Output { status, stderr, .. } = command.output().unwrap();
        let errors = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(status.code(), Some(code), "{command:?}: {errors}");
        assert!(!errors.contains("panicked"), "{command:?}: {errors}");
        errors
    }

    pub(crate) fn stdout(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kd {line}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn read(&self, below: &str) -> Vec<u8> {
        std::fs::read(self.path(below)).unwrap_or_else(|error| panic!("{below}: {error}"))
    }

    pub(crate) fn json(&self, below: &str) -> Value {
        serde_json::from_slice(&self.read(below)).unwrap()
    }

    /// The lines of `events.jsonl`, with times and speeds taken out.
    pub(crate) fn events(&self, run: &str) -> Vec<Value> {
        let text = String::from_utf8(self.read(&format!("{run}/events.jsonl"))).unwrap();
        assert!(text.ends_with('\n'));
        let timeless = |line: &str| {
            let mut event: Value = serde_json::from_str(line).unwrap();
            for time in ["time", "seconds", "test_seconds", "images_per_second"] {
                event.as_object_mut().unwrap().remove(time);
            }
            event
        };
        text.lines().map(timeless).collect()
    }

    /// The parameters and moments of the newest checkpoint.
    pub(crate) fn last_checkpoint(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let newest = self.checkpoints(run).pop().unwrap();
        let bytes = std::fs::read(newest).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let without_state = tensors.tensors().into_iter().filter(|(name, _)| name != "state");
        without_state.map(|(name, view)| (name, view.data().to_vec())).collect()
    }

    /// Oldest first.
    pub(crate) fn checkpoints(&self, run: &str) -> Vec<PathBuf> {
        let folder = self.path(&format!("{run}/checkpoints"));
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        paths
    }

    /// Fresh weights of a teacher, as good as any where only the mechanics count.
    pub(crate) fn teacher(&self, below: &str, classes: usize, seed: u64) {
        weights(&self.path(below), Architecture::TUTORIAL_TEACHER, classes, seed, true);
    }

    /// The files in the folder of the teacher's cached outputs.
    pub(crate) fn cached(&self, out: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path(out).join("cache")) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        paths
    }
}

/// Fresh weights of a network, with or without kd's description of them.
pub(crate) fn weights(
    path: &Path,
    architecture: Architecture,
    classes: usize,
    seed: u64,
    described: bool,
) {
    let config = ModelConfig::new(architecture, classes);
    let parameters = kd_models::init(&config, seed, &Device::Cpu).unwrap();
    let tensors: BTreeMap<String, Tensor> =
        parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
    if described {
        let normalization = kd_data::Normalization::default();
        let metadata = Metadata::new(&config, normalization.mean, normalization.std, "synthetic");
        kd_models::weights::save(path, &tensors, &metadata).unwrap();
    } else {
        // As PyTorch's users write it: no metadata.
        candle_core::safetensors::save(&tensors.into_iter().collect(), path).unwrap();
    }
}

/// Changes one byte in the middle of a file.
pub(crate) fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
