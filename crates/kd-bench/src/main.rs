//! A worker that `cargo xtask bench` starts and asks, line by line, to take steps and tell how long
//! each took. `parity/bench.py` is the same for PyTorch.
//!
//! A line is `WORK IMAGES LAYOUT STEPS`, the images of a step and the layout `default` or, for our training steps on a GPU, `graph`; the answer is a
//! JSON array of seconds, one a step. An end of input ends the worker. Other questions:
//!
//! - `peak_memory`: the bytes that this process has had in memory at most.
//! - `peaks`: the multiply-adds and the copied bytes that all threads reach in a second.
//! - `cost WORK IMAGES`: the multiply-adds and the bytes of a step; null where they are not known.
//! - `first_step DATASET FOLDER`: seconds from the start of this process to a student's first step on that data.

mod candle;
mod cost;
mod first_step;
mod ours;
mod work;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use candle_core::Device;
use clap::{Parser, ValueEnum};
use kd_ops::peaks::{Peaks, peaks};
use kd_record::{Compile, DeviceChoice, Precision};
use kd_run::recipe::DatasetName;

use cost::cost;
use work::{Batch, Work};

#[derive(Parser)]
struct Args {
    /// Whose steps to take
    #[arg(long, value_enum)]
    side: Side,
    /// What to compute on: `cpu`, or `cuda`, the first NVIDIA GPU, which needs the feature `cuda`
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// The arithmetic of training steps on a GPU
    #[arg(long, default_value = "f32")]
    precision: Precision,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    /// kd's operations, as `kd train` uses them
    Ours,
    /// candle-nn's layers and AdamW
    Candle,
}

fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let args = Args::parse();
    if matches!(args.side, Side::Ours) {
        // SAFETY: no other thread has been started.
        unsafe { kd_ops::keep_candle_single_threaded() };
        kd_ops::keep_freed_memory();
    }
    let device = match args.side {
        // As `kd` sets it up.
        Side::Ours => kd_run::device::choose(args.device)?,
        Side::Candle if args.device == DeviceChoice::Cuda => Device::new_cuda(0)?,
        Side::Candle => Device::Cpu,
    };
    kd_run::device::check(&device, args.precision, Compile::Off)?;
    let mut steps = Steps::new();
    for line in std::io::stdin().lock().lines() {
        let answer = match answer((&args, start), &device, &mut steps, &line?) {
            Ok(value) => value,
            Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// What has been prepared, by work, images of a step and layout.
type Steps = HashMap<(Work, usize, Compile), work::Step>;

/// The answer to a line; `start` is when this process began.
fn answer(
    (args, start): (&Args, Instant),
    device: &Device,
    steps: &mut Steps,
    line: &str,
) -> anyhow::Result<serde_json::Value> {
    if let Some((dataset, folder)) =
        line.strip_prefix("first_step ").and_then(|rest| rest.split_once(' '))
    {
        let dataset = match dataset {
            "cifar10" => DatasetName::Cifar10,
            "synthetic" => DatasetName::Synthetic,
            _ => bail!("{dataset:?}: expected cifar10 or synthetic"),
        };
        return Ok(first_step::seconds((args.device, start), dataset, Path::new(folder))?.into());
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let (work, images, compile, count) = match words[..] {
        ["peak_memory"] => return Ok(peak_memory()?.into()),
        ["peaks"] => {
            let Peaks { multiply_adds, bytes } = peaks(Duration::from_secs(2));
            return Ok(serde_json::json!({ "multiply_adds": multiply_adds, "bytes": bytes }));
        }
        ["cost", work, images] => {
            let cost = cost(Work::from_name(work)?, images.parse()?)?;
            let bytes = cost.and_then(|cost| cost.bytes);
            let multiply_adds = cost.map(|cost| cost.multiply_adds);
            return Ok(serde_json::json!({ "multiply_adds": multiply_adds, "bytes": bytes }));
        }
        [work, images, "default", count] => (work, images, Compile::Off, count),
        [work, images, "graph", count] => (work, images, Compile::Graph, count),
        _ => bail!(
            "{line:?}: expected WORK IMAGES LAYOUT STEPS, peak_memory, peaks, cost WORK IMAGES, or first_step DATASET FOLDER"
        ),
    };
    let work = Work::from_name(work)?;
    let (images, count) = (images.parse::<usize>()?, count.parse::<usize>()?);
    let step = match steps.entry((work, images, compile)) {
        Entry::Occupied(step) => step.into_mut(),
        Entry::Vacant(place) => {
            let batch = Batch::new(images, work.input(), device)?;
            place.insert(match args.side {
                Side::Ours => ours::prepare(work, batch, args.precision, compile)?,
                Side::Candle if args.precision == Precision::F32 && compile == Compile::Off => {
                    candle::prepare(work, batch)?
                }
                Side::Candle => bail!("candle's side takes f32 steps alone, piece by piece"),
            })
        }
    };
    let mut seconds = Vec::with_capacity(count);
    device.synchronize()?;
    for _ in 0..count {
        let start = Instant::now();
        step()?;
        // A GPU may still be at it.
        device.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds.into())
}

/// Linux counts it for each process; elsewhere this is an error, and the row is left empty.
fn peak_memory() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("peak memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmHWM")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
