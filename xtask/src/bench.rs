//! `cargo xtask bench`: training steps of ours beside candle's as it comes and PyTorch's, taken in turns on the
//! same machine with the same number of threads.
//!
//! Each contestant is a process of its own that takes steps when asked (`crates/kd-bench`, `parity/bench.py`);
//! while one works the others wait. What is compared are medians of one run: times of different
//! runs say little on a machine that others share.

mod contestant;
mod first_step;
mod python;
mod report;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use kd_record::own::{Kind, Output};
use kd_record::{DeviceChoice, Precision};

use crate::reproduce;
use crate::workspace;
use contestant::{Contestant, Setup, Side};
use report::{Cost, IMAGES, Measured, Memory, Peaks, Report, Times, print_table, results};
use work::{IMAGES_OF_A_STEP, LOSSES, Measure, WORKS, Work, is_tutorials, timed, work};

/// A turn takes steps for about this long, but always one.
const TURN: f64 = 1.0;
/// No turn takes more steps than this.
const STEPS_AT_MOST: f64 = 40.0;

#[derive(clap::Args)]
pub struct Args {
    /// Measure these too, such as pytorch,onnxruntime; ONNX Runtime evaluates PyTorch's module, exported
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    against: Vec<Other>,
    /// A Python that has PyTorch, and for onnxruntime also onnx and onnxruntime [default: python3 if it has, else a virtual
    /// environment in target/, made with pip: some gigabytes]
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
    Onnxruntime,
}

impl Other {
    /// The side, the Python modules that it needs, and the question that its version answers.
    fn side(self) -> (Side, &'static [&'static str], &'static str) {
        match self {
            Other::Pytorch => (Side::Pytorch, &["torch"], "version"),
            Other::Onnxruntime => {
                (Side::Onnxruntime, &["torch", "onnx", "onnxruntime"], "onnxruntime_version")
            }
        }
    }
}

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
    let modules: Vec<&str> =
        args.against.iter().flat_map(|other| other.side().1).copied().collect();
    // Before the build, which takes minutes.
    if let Some(python) = &args.python {
        python::check(python, &modules)?;
    }
    let worker = workspace::build("kd-bench", "kd-bench", features)?;
    let python = match (&args.python, modules.is_empty()) {
        (_, true) => None,
        (Some(python), false) => Some(python.clone()),
        (None, false) => Some(python::find(&worker, &modules)?),
    };
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
    for other in &args.against {
        let (side, _, question) = other.side();
        let mut contestant = setup.start(side)?;
        let version = contestant.ask(question)?;
        versions.insert(side.name(), version.as_str().context("no version")?.to_owned());
        contestants.push(contestant);
    }
    let works = if args.work.is_empty() { WORKS.to_vec() } else { args.work.clone() };
    let images = args.batch_size.unwrap_or(IMAGES_OF_A_STEP);
    let mut timed = timed(&works, args.batch_size);
    if setup.on_gpu && args.work.is_empty() {
        timed.extend(LOSSES.map(|loss| (loss, images)));
    }
    // Before and after: the machine may be busier at one of the two.
    let before = peaks(&mut contestants[0], &setup)?;
    let mut measured = Measured {
        times: measure(&mut contestants, &timed, args.rounds)?,
        costs: costs(&mut contestants[0], &setup, &timed)?,
        images: timed.iter().copied().collect(),
        ..Measured::default()
    };
    let after = peaks(&mut contestants[0], &setup)?;
    let peaks = before.zip(after).map(|(before, after)| before.or_higher(after));
    drop(contestants);
    // What a process has of the machine's memory says nothing about a GPU's.
    if !setup.on_gpu {
        let pytorch = args.against.contains(&Other::Pytorch);
        measured.memory = peak_memory(&setup, &works, args.batch_size, pytorch)?;
    }
    measured.times.extend(first_step::first_steps(&setup, &works, args.rounds)?);

    let results = results(&works, &measured, peaks, IMAGES.div_ceil(images) as f64);
    let report = Report {
        threads: setup.threads,
        batch_size: images,
        precision: args.precision.name(),
        processor: if setup.on_gpu { gpu()? } else { processor() },
        versions,
        peaks,
        results,
    };
    print_table(&report, &measured, start.elapsed());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        kd_record::write::write_whole(path, text.as_bytes())?;
    }
    Ok(())
}

/// What the cores reach; of a GPU it is not measured.
fn peaks(ours: &mut Contestant, setup: &Setup) -> anyhow::Result<Option<Peaks>> {
    if setup.on_gpu {
        return Ok(None);
    }
    let answer = ours.ask("peaks")?;
    let number = |name: &str| answer[name].as_f64().with_context(|| format!("no {name}"));
    Ok(Some(Peaks { multiply_adds: number("multiply_adds")?, bytes: number("bytes")? }))
}

/// The least that each work has to do, where that is known.
fn costs(
    ours: &mut Contestant,
    setup: &Setup,
    works: &[(&'static str, u64)],
) -> anyhow::Result<BTreeMap<&'static str, Cost>> {
    let mut costs = BTreeMap::new();
    for &(work, images) in works.iter().filter(|_| !setup.on_gpu) {
        let answer = ours.ask(&format!("cost {work} {images}"))?;
        if let Some(multiply_adds) = answer["multiply_adds"].as_f64() {
            costs.insert(work, Cost { multiply_adds, bytes: answer["bytes"].as_f64() });
        }
    }
    Ok(costs)
}

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

/// The memory of the works that ask for it, four steps each; none where a system does not count it.
fn peak_memory(
    setup: &Setup,
    works: &[Work],
    images: Option<u64>,
    pytorch: bool,
) -> anyhow::Result<Memory> {
    let mut peaks = Memory::new();
    for work in works {
        let Measure::Memory { of, images: own } = work.kind else { continue };
        let mut sides = vec![(Side::Ours, "default")];
        if is_tutorials(of) && setup.precision == Precision::F32 {
            sides.push((Side::Candle, "default"));
        }
        if pytorch {
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
