//! `kd profile`: networks side by side, as they would run where they are used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use kd_models::latency::{Latency, latency};
use kd_models::memory::{self, Pass};
use kd_models::preprocessing::Stated;
use kd_models::{Architecture, Graph, GraphNetwork};
use kd_record::hash::sha256;
use kd_record::own::{self, Output};
use kd_record::profile::{self, Accuracy, NetworkProfile, PassProfile};
use kd_record::write::{create_folder, write_whole};
use kd_record::{Evaluation, Events, OutFolder, Profile as Record, RunFolder, TestOutputs};
use kd_report::format::memory as in_words;
use kd_report::profile::table;
use kd_run::device::machine;

use super::{print, weights};
use crate::args::{architecture, at_least_one, percent, positive};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd profile runs/mine/teacher.safetensors runs/mine/kd.safetensors
  kd profile runs/mine/*.safetensors --out runs/mine       the report then shows accuracy over latency
  kd profile teacher.pth student.safetensors --model resnet18 --accuracy 92.1,88.4 --json

Times are of the forward pass alone, from normalised images in memory to logits, by kd's own engine on this machine's CPU;
each network is timed for about --seconds with each batch size and number of threads. Accuracy is that of the run which left
the weights, where its folder lies beside the file, or what --accuracy says.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Profile {
    /// The weights files, side by side
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The network of files that don't name it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// Images of a batch
    #[arg(long, value_name = "IMAGES", value_delimiter = ',', default_values_t = [1, 32], value_parser = up_to_a_million)]
    batch: Vec<usize>,
    /// Threads that compute [default: 1, and one for each core]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = at_least_one)]
    threads: Vec<usize>,
    /// About how long each pass is timed
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = up_to_an_hour)]
    seconds: f64,
    /// Accuracies in percent, one for each file, where no run's folder says it; the images are not known then
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', value_parser = percent)]
    accuracy: Vec<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write profile.json into this folder, which its report then shows
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn up_to_a_million(text: &str) -> Result<usize, String> {
    at_least_one(text)
        .ok()
        .filter(|images| *images <= 1_000_000)
        .ok_or_else(|| "expected a whole number of images from 1 to 1000000".to_owned())
}

fn up_to_an_hour(text: &str) -> Result<f64, String> {
    positive(text)
        .ok()
        .filter(|seconds| *seconds <= 3600.0)
        .ok_or_else(|| "expected a number of seconds above 0, at most 3600".to_owned())
}

pub(crate) fn run(flags: &Profile) -> Result<(), Failure> {
    if !flags.accuracy.is_empty() && flags.accuracy.len() != flags.files.len() {
        return Err(Failure::Usage(format!(
            "--accuracy has {} numbers for {} files; expected one for each",
            flags.accuracy.len(),
            flags.files.len()
        )));
    }
    let written = flags.out.as_ref().map(|out| OutFolder::new(out).profile());
    if let Some(path) = &written {
        let others: Vec<(&str, &Path)> =
            flags.files.iter().map(|file| ("FILE", file.as_path())).collect();
        Output { path, kind: own::PROFILE, others: &others, force: None }.check()?;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = if flags.threads.is_empty() { vec![1, cores] } else { flags.threads.clone() };
    threads.dedup();
    let mut networks = Vec::new();
    for (index, file) in flags.files.iter().enumerate() {
        let given = flags.accuracy.get(index).copied();
        networks.push(of_file(flags, file, &threads, given)?);
    }
    let record = Record {
        format: profile::FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: Some(machine()),
        networks,
    };
    if let (Some(out), Some(path)) = (&flags.out, &written) {
        create_folder(out)?;
        write_whole(path, record.to_json().as_bytes())?;
    }
    Ok(print(&if flags.json { record.to_json() } else { table(&record) })?)
}

fn of_file(
    flags: &Profile,
    file: &Path,
    threads: &[usize],
    given: Option<f64>,
) -> anyhow::Result<NetworkProfile> {
    let loaded = weights::load(file, flags.model, None, &Stated::default())?;
    let graph = loaded.config.graph()?;
    let network = GraphNetwork::new(graph.clone(), kd_models::frozen(&loaded.tensors))?.prepared();
    let mut passes = Vec::new();
    for batch in &flags.batch {
        for threads in threads {
            passes.push(pass(&network, &graph, *batch, *threads, flags.seconds)?);
        }
    }
    let size = file.metadata().with_context(|| format!("{}: can't be read", file.display()))?.len();
    Ok(NetworkProfile {
        file: file.display().to_string(),
        network: loaded.config.architecture.name().to_owned(),
        input: graph.input(),
        classes: graph.classes(),
        parameters: graph.parameter_count() as u64,
        multiply_adds: graph.multiply_adds(),
        file_bytes: size,
        passes,
        accuracy: match given {
            Some(percent) => Some(Accuracy { share: percent / 100.0, images: None, dataset: None }),
            None => accuracy_of_run(file)?,
        },
    })
}

fn pass(
    network: &GraphNetwork,
    graph: &Graph,
    batch: usize,
    threads: usize,
    seconds: f64,
) -> anyhow::Result<PassProfile> {
    let pass = memory::evaluation(graph, &Pass { batch, threads, places: &[] })?.total();
    let images = 4 * (batch * graph.input().iter().product::<usize>()) as u64;
    let peak_bytes = memory::weights(graph) + images + pass;
    if let Some(limit) = kd_ops::memory_limit().filter(|limit| peak_bytes > *limit) {
        bail!(
            "a pass of {batch} images takes {} and {} are free; give a smaller --batch",
            in_words(peak_bytes),
            in_words(limit)
        );
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.with_context(|| format!("{threads} threads can't be started"))?;
    let budget = Duration::from_secs_f64(seconds);
    let Latency { timed, median, p90 } = pool.install(|| latency(network, batch, budget))?;
    let milliseconds = |time: Duration| 1e3 * time.as_secs_f64();
    Ok(PassProfile {
        batch,
        threads,
        timed,
        median_ms: milliseconds(median),
        p90_ms: milliseconds(p90),
        peak_bytes,
    })
}

/// The accuracy of the run that left these weights; `None` where no finished run's folder lies beside them, or it evaluated others.
fn accuracy_of_run(file: &Path) -> anyhow::Result<Option<Accuracy>> {
    let folder = RunFolder::of_weights(file);
    let of_these = match TestOutputs::read(&folder.test_outputs())? {
        Some(outputs) => outputs.weights_sha256 == sha256(file)?,
        None => false,
    };
    if !(of_these && folder.has_begun() && folder.evaluation().exists()) {
        return Ok(None);
    }
    let evaluation = Evaluation::read(&folder.evaluation())?;
    let images = evaluation.confusion.iter().flatten().map(|count| u64::from(*count)).sum();
    let dataset = Events::read(&folder.events())?.start.map(|start| start.dataset.name);
    Ok(Some(Accuracy { share: evaluation.accuracy, images: Some(images), dataset }))
}
