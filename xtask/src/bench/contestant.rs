//! The processes that are measured: each takes steps when asked.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use kd_record::Precision;

use super::work::{LOSSES, is_tutorials};
use crate::{process, workspace};

const PYTORCH_LAYOUTS: [&str; 4] = ["default", "channels_last", "compile", "compile+channels_last"];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Side {
    Ours,
    Candle,
    Pytorch,
    Onnxruntime,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Side::Ours => "ours",
            Side::Candle => "candle",
            Side::Pytorch => "pytorch",
            Side::Onnxruntime => "onnxruntime",
        }
    }
}

pub(super) struct Setup {
    pub(super) worker: PathBuf,
    pub(super) python: Option<PathBuf>,
    pub(super) threads: u64,
    pub(super) on_gpu: bool,
    pub(super) precision: Precision,
}

impl Setup {
    pub(super) fn start(&self, side: Side) -> anyhow::Result<Contestant> {
        let threads = self.threads.to_string();
        let mut command = match (side, &self.python) {
            (Side::Pytorch | Side::Onnxruntime, Some(python)) => {
                let mut command = Command::new(python);
                let script = workspace::root().join("parity/bench.py");
                command.arg(script).args(["--threads", &threads]);
                command
            }
            (Side::Pytorch | Side::Onnxruntime, None) => bail!("no Python was looked for"),
            (Side::Ours | Side::Candle, _) => {
                let mut command = Command::new(&self.worker);
                command.args(["--side", side.name()]);
                command
            }
        };
        command.args(["--device", if self.on_gpu { "cuda" } else { "cpu" }]);
        command.args(["--precision", self.precision.name()]);
        // Read by rayon, candle and PyTorch's OpenMP.
        command.env("RAYON_NUM_THREADS", &threads).env("OMP_NUM_THREADS", &threads);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let name = process::shown(&command);
        let mut child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
        let input = child.stdin.take().context("a piped input")?;
        let output = BufReader::new(child.stdout.take().context("a piped output")?);
        Ok(Contestant { side, on_gpu: self.on_gpu, child, input, output, name })
    }
}

/// A worker process. It is ended when this is dropped.
pub(super) struct Contestant {
    pub(super) side: Side,
    on_gpu: bool,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    name: String,
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Contestant {
    pub(super) fn ask(&mut self, question: &str) -> anyhow::Result<serde_json::Value> {
        let ask = |this: &mut Self| -> std::io::Result<String> {
            writeln!(this.input, "{question}")?;
            this.input.flush()?;
            let mut line = String::new();
            this.output.read_line(&mut line)?;
            Ok(line)
        };
        let line = ask(self).with_context(|| format!("`{}` ended early", self.name))?;
        let answer: serde_json::Value = serde_json::from_str(&line)
            .with_context(|| format!("`{}` ended early, or wrote {line:?}", self.name))?;
        match answer.get("error").and_then(|error| error.as_str()) {
            Some(error) => bail!("{question}: {error}"),
            None => Ok(answer),
        }
    }

    /// Seconds of each of so many steps of so many images.
    pub(super) fn steps(
        &mut self,
        (work, images): (&str, u64),
        layout: &str,
        count: u64,
    ) -> anyhow::Result<Vec<f64>> {
        let answer = self.ask(&format!("{work} {images} {layout} {count}"))?;
        let seconds: Option<Vec<f64>> =
            answer.as_array().and_then(|list| list.iter().map(serde_json::Value::as_f64).collect());
        let seconds = seconds.filter(|seconds| seconds.len() as u64 == count);
        seconds.with_context(|| format!("`{}` answered {answer}, no list of times", self.name))
    }

    pub(super) fn layouts(&self, work: &str) -> Vec<&'static str> {
        let is_loss = LOSSES.contains(&work);
        let mut layouts = match self.side {
            Side::Pytorch if !is_loss => PYTORCH_LAYOUTS.to_vec(),
            Side::Pytorch => vec!["default", "compile"],
            // It evaluates, on the CPU.
            Side::Onnxruntime if work.ends_with("_eval") && !self.on_gpu => vec!["onnxruntime"],
            Side::Onnxruntime => vec![],
            // candle's side has the tutorial's networks alone.
            Side::Candle if !is_loss && !is_tutorials(work) => vec![],
            Side::Ours | Side::Candle => vec!["default"],
        };
        if self.on_gpu {
            match self.side {
                // What is captured is a step of training.
                Side::Ours if !is_loss && !work.ends_with("_eval") => layouts.push("graph"),
                Side::Pytorch => layouts.push("compile+graphs"),
                _ => {}
            }
        }
        layouts
    }
}
