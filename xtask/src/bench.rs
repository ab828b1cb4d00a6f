//! `cargo xtask bench`: training steps of ours beside candle's as it comes and PyTorch's, taken in turns on the
//! same machine with the same number of threads.
//!
//! Each contestant is a process of its own that takes steps when asked (`crates/kd-bench`, `parity/bench.py`);
//! while one works the others wait. What is compared are medians of one run: times of different
//! runs say little on a machine that others share.

mod work;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use kd_record::own::{Kind, Output};
use kd_record::{DeviceChoice, Precision};
use serde::Serialize;

use crate::reproduce;
use crate::{process, workspace};
use work::{IMAGES_OF_A_STEP, LOSSES, Measure, WORKS, Work, is_tutorials, timed, work};

/// Images of CIFAR-10's training set, and epochs of the tutorial.
const IMAGES: u64 = 50_000;
const EPOCHS: f64 = 10.0;
/// A turn takes steps for about this long, but always one.
const TURN: f64 = 1.0;
/// No turn takes more steps than this.
const STEPS_AT_MOST: f64 = 40.0;

#[derive(clap::Args)]
pub struct Args {
    /// Measure this one too
    #[arg(long, value_enum)]
    against: Option<Other>,
    /// A Python that has PyTorch [default: python3 if it has, else a virtual environment in target/, made with
    /// pip: some gigabytes]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Threads of every contestant [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    threads: Option<u64>,
    /// Measure these alone, such as teacher_step,resnet20_eval [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = work)]
    work: Vec<Work>,
    /// Images in a step [default: each work's own]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: Option<u64>,
    /// Turns of each contestant at each work
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// What to compute on; cuda also measures losses alone
    #[arg(long, value_enum, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// With --device cuda: convolutions through cuDNN, which must be installed
    #[arg(long)]
    cudnn: bool,
    /// With --device cuda: the arithmetic of training steps, ours and PyTorch's (candle's are f32 alone, and so is our
    /// evaluation, while PyTorch's follows)
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Write the results here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Other {
    Pytorch,
}

const PYTORCH_LAYOUTS: [&str; 4] = ["default", "channels_last", "compile", "compile+channels_last"];

pub fn command(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let features = reproduce::features(Some(args.device), args.cudnn)?;
    ensure!(args.device != DeviceChoice::Auto, "--device auto: a measurement says cpu or cuda");
    ensure!(
        args.precision == Precision::F32 || args.device == DeviceChoice::Cuda,
        "--precision {} is for a GPU: add --device cuda",
        args.precision.name()
    );
    if let Some(path) = &args.json {
        let kind = Kind::Json(&["threads", "batch_size", "processor", "results"]);
        Output { path, kind, others: &[], force: None }.check()?;
    }
    let worker = workspace::build("kd-bench", "kd-bench", features)?;
    let python = args.against.map(|_| python(args.python.as_deref(), &worker)).transpose()?;
    let setup = Setup {
        worker,
        python,
        threads: args.threads.unwrap_or(cores),
        on_gpu: args.device == DeviceChoice::Cuda,
        precision: args.precision,
    };
    let mut contestants = vec![setup.start(Side::Ours)?];
    if args.precision == Precision::F32 {
        contestants.push(setup.start(Side::Candle)?);
    }
    let mut versions = BTreeMap::from([
        ("kd", env!("CARGO_PKG_VERSION").to_owned()),
        ("candle", candle_version()?),
    ]);
    if setup.python.is_some() {
        let mut pytorch = setup.start(Side::Pytorch)?;
        let version = pytorch.ask("version")?;
        versions.insert("pytorch", version.as_str().context("no version")?.to_owned());
        contestants.push(pytorch);
    }
    let works = if args.work.is_empty() { WORKS.to_vec() } else { args.work.clone() };
    let images = args.batch_size.unwrap_or(IMAGES_OF_A_STEP);
    let mut timed = timed(&works, args.batch_size);
    if setup.on_gpu && args.work.is_empty() {
        timed.extend(LOSSES.map(|loss| (loss, images)));
    }
    let times = measure(&mut contestants, &timed, args.rounds)?;
    drop(contestants);
    // What a process has of the machine's memory says nothing about a GPU's.
    let memory = match setup.on_gpu {
        true => Memory::new(),
        false => peak_memory(&setup, &works, args.batch_size)?,
    };

    let results = results(&works, &times, &memory, IMAGES.div_ceil(images) as f64);
    let report = Report {
        threads: setup.threads,
        batch_size: images,
        precision: args.precision.name(),
        processor: if setup.on_gpu { gpu()? } else { processor() },
        versions,
        results,
    };
    print_table(&report, &times, start.elapsed());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        kd_record::write::write_whole(path, text.as_bytes())?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Side {
    Ours,
    Candle,
    Pytorch,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Ours => "ours",
            Side::Candle => "candle",
            Side::Pytorch => "pytorch",
        }
    }
}

struct Setup {
    worker: PathBuf,
    python: Option<PathBuf>,
    threads: u64,
    on_gpu: bool,
    precision: Precision,
}

impl Setup {
    fn start(&self, side: Side) -> anyhow::Result<Contestant> {
        let threads = self.threads.to_string();
        let mut command = match (side, &self.python) {
            (Side::Pytorch, Some(python)) => {
                let mut command = Command::new(python);
                let script = workspace::root().join("parity/bench.py");
                command.arg(script).args(["--threads", &threads]);
                command
            }
            (Side::Pytorch, None) => bail!("PyTorch was not asked for"),
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
struct Contestant {
    side: Side,
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
    fn ask(&mut self, question: &str) -> anyhow::Result<serde_json::Value> {
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
    fn steps(
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

    fn layouts(&self, work: &str) -> Vec<&'static str> {
        let is_loss = LOSSES.contains(&work);
        let mut layouts = match self.side {
            Side::Pytorch if !is_loss => PYTORCH_LAYOUTS.to_vec(),
            Side::Pytorch => vec!["default", "compile"],
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

/// Seconds of every measured step.
type Times = BTreeMap<(&'static str, Side, &'static str), Vec<f64>>;

/// All contestants in turns, so that a slower minute of the machine strikes all of them.
fn measure(
    contestants: &mut [Contestant],
    works: &[(&'static str, u64)],
    rounds: u64,
) -> anyhow::Result<Times> {
    let mut times = Times::new();
    let mut dead: Vec<&str> = Vec::new();
    for &(work, images) in works {
        eprintln!("{work}: warming up");
        let mut entries = Vec::new();
        for (index, contestant) in contestants.iter_mut().enumerate() {
            for layout in contestant.layouts(work) {
                if dead.contains(&layout) {
                    continue;
                }
                // The second step tells the time; the first one also compiles.
                match contestant.steps((work, images), layout, 2) {
                    Ok(seconds) => {
                        let steps = (TURN / seconds[1]).clamp(1.0, STEPS_AT_MOST) as u64;
                        entries.push((index, layout, steps));
                    }
                    Err(error) if layout != "default" => {
                        eprintln!("{} {layout} left out: {error:#}", contestant.side.name());
                        dead.push(layout);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for round in 0..rounds {
            eprintln!("{work}: round {} of {rounds}", round + 1);
            for &(index, layout, steps) in &entries {
                let contestant = &mut contestants[index];
                let seconds = contestant.steps((work, images), layout, steps)?;
                times.entry((work, contestant.side, layout)).or_default().extend(seconds);
            }
        }
    }
    Ok(times)
}

/// The most memory that a process had which did nothing but a work: bytes, by that work's name.
type Memory = BTreeMap<(&'static str, Side, &'static str), u64>;

/// The memory of the works that ask for it, four steps each; none where a system does not count it.
fn peak_memory(setup: &Setup, works: &[Work], images: Option<u64>) -> anyhow::Result<Memory> {
    let mut peaks = Memory::new();
    for work in works {
        let Measure::Memory { of, images: own } = work.kind else { continue };
        let mut sides = vec![(Side::Ours, "default")];
        if is_tutorials(of) && setup.precision == Precision::F32 {
            sides.push((Side::Candle, "default"));
        }
        if setup.python.is_some() {
            sides.extend([(Side::Pytorch, "default"), (Side::Pytorch, "channels_last")]);
        }
        for (side, layout) in sides {
            eprintln!("{}: {} {layout}", work.name, side.name());
            let mut contestant = setup.start(side)?;
            contestant.steps((of, images.unwrap_or(own)), layout, 4)?;
            match contestant.ask("peak_memory") {
                Ok(bytes) => {
                    let bytes = bytes.as_u64().context("no number of bytes")?;
                    peaks.insert((work.name, side, layout), bytes);
                }
                Err(error) => eprintln!("{} left out: {error:#}", side.name()),
            }
        }
    }
    Ok(peaks)
}

#[derive(Serialize)]
struct Report {
    threads: u64,
    batch_size: u64,
    precision: &'static str,
    processor: String,
    versions: BTreeMap<&'static str, String>,
    results: Vec<Row>,
}

/// One line of the results: seconds or bytes, lower is better.
#[derive(Serialize, Debug, PartialEq)]
struct Row {
    work: &'static str,
    /// The best of our layouts; elsewhere than on a GPU there is one.
    ours: Option<f64>,
    candle: Option<f64>,
    /// The best of PyTorch's layouts, and which that is.
    pytorch: Option<f64>,
    pytorch_layout: Option<&'static str>,
    unit: &'static str,
    /// `pytorch / ours`.
    ratio: Option<f64>,
}

impl Row {
    fn new(
        work: &'static str,
        unit: &'static str,
        ours: Option<f64>,
        candle: Option<f64>,
        pytorch: Option<(&'static str, f64)>,
    ) -> Self {
        let ratio = pytorch.zip(ours).map(|((_, pytorch), ours)| pytorch / ours);
        let (pytorch_layout, pytorch) = pytorch.unzip();
        Self { work, ours, candle, pytorch, pytorch_layout, unit, ratio }
    }
}

/// The layout with the least, and that.
type Best = Option<(&'static str, f64)>;

/// The rows of `works` and of the losses that were measured; `batches`: steps in an epoch.
fn results(works: &[Work], times: &Times, memory: &Memory, batches: f64) -> Vec<Row> {
    let least = |a: &(&str, f64), b: &(&str, f64)| a.1.total_cmp(&b.1);
    let best = |work: &'static str, side: Side| -> Best {
        let of_both = times.iter().filter(|((name, of, _), _)| *name == work && *of == side);
        of_both.map(|((_, _, layout), times)| (*layout, quantile(times, 0.5))).min_by(least)
    };
    let row = |name, unit, of: &dyn Fn(Side) -> Best| {
        let seconds = |side| of(side).map(|(_, value)| value);
        Row::new(name, unit, seconds(Side::Ours), seconds(Side::Candle), of(Side::Pytorch))
    };
    let step = |name| row(name, "seconds", &|side| best(name, side));
    let mut rows: Vec<Row> = works
        .iter()
        .map(|work| match work.kind {
            Measure::Time { .. } => step(work.name),
            Measure::Distill => row(work.name, "seconds", &|side| {
                let whole = |step: f64| EPOCHS * batches * step;
                // Ours asks the teacher once for each image and keeps the answers; the tutorial asks it in every step.
                if side == Side::Ours {
                    let (_, eval) = best("teacher_eval", side)?;
                    let (layout, step) = best("kd_step", side)?;
                    return Some((layout, batches * eval + whole(step)));
                }
                let (layout, step) = best("kd_step_with_teacher", side)?;
                Some((layout, whole(step)))
            }),
            Measure::Memory { .. } => row(work.name, "bytes", &|side| {
                let of_both =
                    memory.iter().filter(|((name, of, _), _)| *name == work.name && *of == side);
                of_both.map(|((_, _, layout), &bytes)| (*layout, bytes as f64)).min_by(least)
            }),
        })
        .collect();
    let measured = |work: &&&'static str| times.keys().any(|(name, ..)| name == *work);
    rows.extend(LOSSES.iter().filter(measured).map(|work| step(work)));
    rows
}

/// The value below which this share of the values lies, between neighbours in proportion.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}

/// On the terminal, in Markdown: what docs/performance.md shows is this.
fn print_table(report: &Report, times: &Times, took: Duration) {
    let versions = report.versions.iter().map(|(name, version)| format!("{name} {version}"));
    println!(
        "\n{}, {} threads, batch {}, {}; {}; measured in {} s\n",
        report.processor,
        report.threads,
        report.batch_size,
        report.precision,
        versions.collect::<Vec<_>>().join(", "),
        took.as_secs()
    );
    println!("| work | ours | candle | PyTorch's best | its layout | PyTorch / ours |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in &report.results {
        let show = |value: Option<f64>| {
            value.map_or("-".into(), |value| match row.unit {
                "bytes" => format!("{:.0} MiB", value / f64::from(1 << 20)),
                _ => seconds(value),
            })
        };
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            row.work,
            show(row.ours),
            show(row.candle),
            show(row.pytorch),
            row.pytorch_layout.unwrap_or("-"),
            row.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"))
        );
    }
    println!("\n| work | contestant | median of a step | quartiles | steps | an epoch |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let batches = IMAGES.div_ceil(report.batch_size) as f64;
    for ((work, side, layout), values) in times {
        let median = quantile(values, 0.5);
        println!(
            "| {work} | {} {layout} | {} | {} to {} | {} | {} |",
            side.name(),
            seconds(median),
            seconds(quantile(values, 0.25)),
            seconds(quantile(values, 0.75)),
            values.len(),
            seconds(median * batches)
        );
    }
}

fn seconds(value: f64) -> String {
    match value {
        ..1.0 => format!("{:.1} ms", value * 1e3),
        1.0..100.0 => format!("{value:.2} s"),
        _ => format!("{value:.0} s"),
    }
}

/// A Python that can import torch; the virtual environment lies in cargo's target folder, where the worker is.
fn python(given: Option<&Path>, worker: &Path) -> anyhow::Result<PathBuf> {
    if let Some(python) = given {
        ensure!(
            has_torch(python),
            "{}: `import torch` fails there; install PyTorch for it, or leave out --python",
            python.display()
        );
        return Ok(python.to_owned());
    }
    let system = PathBuf::from("python3");
    if has_torch(&system) {
        return Ok(system);
    }
    let target = worker.ancestors().nth(2).context("a worker outside a target folder")?;
    let folder = target.join("pytorch");
    let python = folder.join("bin").join("python");
    if !has_torch(&python) {
        println!(
            "PyTorch is fetched into {}: a download of up to 3 GB, some 6 GB on disk",
            workspace::short(&folder)
        );
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let requirements = workspace::root().join("parity/requirements.txt");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements);
        process::run(&mut pip)?;
    }
    Ok(python)
}

fn has_torch(python: &Path) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The version that the lock file has.
fn candle_version() -> anyhow::Result<String> {
    let path = workspace::root().join("Cargo.lock");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let after = text.split_once("name = \"candle-core\"\nversion = \"").map(|(_, rest)| rest);
    let version = after.and_then(|rest| rest.split('"').next());
    Ok(version.context("Cargo.lock has no candle-core")?.to_owned())
}

fn gpu() -> anyhow::Result<String> {
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"];
    let said = Command::new("nvidia-smi").args(query).output();
    let said = said.context("cannot start nvidia-smi, which names the GPU")?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.map(|rest| rest.trim_start_matches([' ', '\t', ':']).trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), 2.5);
        assert_eq!(quantile(&values, 0.25), 1.75);
        assert_eq!(quantile(&[7.0], 0.75), 7.0);
    }

    #[test]
    fn ten_epochs_are_put_together_and_the_best_layout_counts() {
        let times = Times::from([
            (("teacher_eval", Side::Ours, "default"), vec![0.1]),
            (("kd_step", Side::Ours, "default"), vec![0.02]),
            (("kd_step", Side::Ours, "graph"), vec![0.01]),
            (("kd_step_with_teacher", Side::Candle, "default"), vec![2.0]),
            (("kd_step_with_teacher", Side::Pytorch, "default"), vec![0.5]),
            (("kd_step_with_teacher", Side::Pytorch, "channels_last"), vec![0.4]),
        ]);
        let rows = results(&WORKS, &times, &Memory::new(), 391.0);
        let row = rows.iter().find(|row| row.work == "distill_10_epochs").expect("the row");
        assert!((row.ours.expect("ours") - (39.1 + 39.1)).abs() < 1e-9);
        assert!((row.candle.expect("candle") - 7820.0).abs() < 1e-9);
        assert_eq!(row.pytorch_layout, Some("channels_last"));
        assert!((row.ratio.expect("ratio") - 0.4 * 3910.0 / 78.2).abs() < 1e-9);
        let step = rows.iter().find(|row| row.work == "teacher_step").expect("the row");
        assert_eq!((step.ours, step.pytorch, step.ratio), (None, None, None));
    }
}
