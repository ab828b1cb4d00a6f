//! What a run will take, before it begins: [`RunMemory`] says how much memory, [`Timing`] measures its steps, and an [`outline`]
//! is a run that can be asked both although its teacher is not trained and its data may not be there.

mod outline;
mod timing;

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Tensor;
use kd_data::{Portions, SyntheticConfig};
use kd_models::graph::TensorSpec;
use kd_models::memory::{self, Pass, PassMemory};
use kd_models::{Graph, Parameters};
use serde::Serialize;

pub use outline::{Outline, outline};
pub use timing::{Timing, time};

use crate::layers::Layers;
use crate::recipe::OptimizerConfig;
use crate::run::ResolvedRun;
use crate::task::Task;
use crate::teacher::{Division, bytes_of_output, division};
use crate::train::cache_config;
use crate::{Error, Result, evaluate};

/// The program and its libraries themselves and what a run does besides its steps, such as its report (Linux, glibc, x86-64).
const PROGRAM: u64 = 16 << 20;

/// The bytes that a run takes on a CPU, by what they are for; the last four are sums of them at the run's heaviest moments.
///
/// They are found from the network's graph and the recipe, without computing anything. Measured peaks of the process (VmHWM) differ
/// by up to 15 %, those of runs below 100 MiB by up to 15 MiB: docs/performance.md has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunMemory {
    /// The program itself.
    pub program: u64,
    /// Images and labels of all portions of the data set.
    pub images: u64,
    /// Batches that are prepared ahead, and the one that is learned from.
    pub batches: u64,
    /// The network's weights and running statistics, and what methods learn besides them.
    pub weights: u64,
    /// The average of the weights that is evaluated in their place.
    pub average: u64,
    /// What the optimiser remembers.
    pub optimizer: u64,
    /// The gradients of the weights.
    pub gradients: u64,
    /// Values of the layers and their gradients, for all images of a batch.
    pub maps: u64,
    /// What threads need for the image that they are at, and weights in another order.
    pub workspace: u64,
    /// Logits and feature maps that the loss is given, and their gradients.
    pub outputs: u64,
    /// The teacher's weights.
    pub teacher_weights: u64,
    /// The teacher's outputs that are cached.
    pub teacher_outputs: u64,
    /// The teacher's outputs that are kept in files, these or those of counted views: bytes on the disk, not in memory.
    pub kept_on_disk: u64,
    /// A pass of a teacher that computes in each step.
    pub teacher_pass: u64,
    /// All of a step of training.
    pub training: u64,
    /// All of an evaluation between epochs, during which the memory of the training steps stays.
    pub evaluation: u64,
    /// All while a checkpoint is written.
    pub checkpoint: u64,
    /// The largest of these, and of what is there while the data set is read.
    pub peak: u64,
}

/// The memory of a run on a CPU; `None` on a GPU, whose memory is not estimated.
///
/// # Errors
/// When frozen layers or feature places don't fit the network.
pub fn memory(run: &ResolvedRun, task: &dyn Task) -> Result<Option<RunMemory>> {
    match run.device.is_cpu() {
        true => of_batch(run, task, run.recipe.training.batch_size).map(Some),
        false => Ok(None),
    }
}

/// The memory of a run that fits; `None` where it is not known.
///
/// # Errors
/// [`Error::Memory`] for a run that needs more than [`limit`] allows.
pub fn check(run: &ResolvedRun, task: &dyn Task) -> Result<Option<RunMemory>> {
    let Some(found) = memory(run, task)? else { return Ok(None) };
    let Some(limit) = limit(run).filter(|limit| found.peak > *limit) else {
        return Ok(Some(found));
    };
    let batch_size = run.recipe.training.batch_size;
    let (mut fits, mut too_large) = (0, batch_size);
    while fits + 1 < too_large {
        let between = fits + (too_large - fits) / 2;
        match of_batch(run, task, between)?.peak <= limit {
            true => fits = between,
            false => too_large = between,
        }
    }
    Err(Error::Memory {
        run: run.recipe.run.name.clone(),
        batch_size,
        needed: found.peak,
        limit,
        batch_that_fits: (fits > 0).then_some(fits),
    })
}

/// The bytes that the process of a run may take: what [the settings](crate::run::Settings::memory) say, else what the system
/// tells; `None` where it does not.
pub fn limit(run: &ResolvedRun) -> Option<u64> {
    run.settings.memory.or_else(kd_ops::memory_limit)
}

fn of_batch(run: &ResolvedRun, task: &dyn Task, batch: usize) -> Result<RunMemory> {
    let config = run.model_config();
    let graph = config.graph()?;
    // Layers that are trained at some time count from the start.
    let frozen = Layers::of(&config, &run.recipe.run, run.initial.as_ref())?.never_trained();
    let needs = task.needs();
    let (data, threads) = (&run.data, rayon::current_num_threads());
    let parameters = || task.learners().iter().map(|learner| &learner.parameters);
    let weights = parameters().map(bytes).sum();
    let averages = task.learners().iter().filter_map(|learner| learner.average.as_ref());
    let average = averages.map(|average| bytes(&average.values)).sum();
    let trained = parameters().flatten().filter(|(name, _)| !frozen.contains(*name));
    let helpers: u64 = trained
        .filter(|(name, _)| name.starts_with("method."))
        .map(|(_, var)| 4 * var.elem_count() as u64)
        .sum();
    let places: Vec<&str> = needs.student.iter().map(String::as_str).collect();
    let pass = training(run, &graph, batch, &places, &frozen)?;
    let gradients = pass.gradients + helpers;
    let of_weights: u64 =
        graph.parameters().filter(|spec| !frozen.contains(&spec.name)).map(size).sum();
    let optimizer = (of_weights + helpers) * remembered(&run.recipe.optimizer);
    let mut found = RunMemory {
        program: PROGRAM,
        images: images(data),
        batches: batches(&graph, batch.min(data.train.len())),
        weights,
        average,
        optimizer,
        gradients,
        maps: pass.maps,
        workspace: pass.workspace,
        outputs: pass.outputs,
        ..RunMemory::default()
    };
    let of_evaluation = |graph: &Graph, places: &[&str], batch: usize| {
        Ok::<_, Error>(memory::evaluation(graph, &Pass { batch, threads, places })?.total())
    };
    let mut teacher_pass_before = 0;
    if let Some(teacher) = run.teacher.as_ref().filter(|_| needs.any_teacher()) {
        // What a network in an ONNX file takes besides its weights is not known.
        let (foreign, own): (Vec<_>, Vec<_>) =
            teacher.answering().iter().partition(|one| one.foreign.is_some());
        let files = foreign.iter().filter_map(|one| std::fs::metadata(&one.path).ok());
        let of_files: u64 = files.map(|about| about.len()).sum();
        let graphs = own.iter().map(|one| one.config.graph());
        let graphs = graphs.collect::<kd_models::Result<Vec<Graph>>>()?;
        let networks = teacher.parts.len().max(1) as u64;
        found.teacher_weights =
            of_files + networks * graphs.iter().map(memory::weights).sum::<u64>();
        let config = cache_config(run, Path::new(""));
        let Division { cached, computed } = division(teacher, needs, data.train.len(), &config)?;
        let cached = cached.iter().map(|(_, shape)| bytes_of_output(shape, data.train.len()));
        found.teacher_outputs = cached.sum();
        found.kept_on_disk = match config.keep {
            Some(keep) => {
                let row = keep.row_bytes(teacher.config.classes) as u64;
                row * data.train.len() as u64 * config.views as u64
            }
            None => found.teacher_outputs,
        };
        let places: Vec<&str> = needs.teacher.iter().map(String::as_str).collect();
        // Each network of an ensemble keeps its maps for the next batch.
        let of_all = |batch: usize| {
            graphs.iter().map(|graph| of_evaluation(graph, &places, batch)).sum::<Result<u64>>()
        };
        if !computed.is_empty() {
            found.teacher_pass = of_all(batch.min(data.train.len()))?;
        }
        if found.teacher_outputs > 0 {
            teacher_pass_before =
                of_all(evaluate::BATCH)? + batches(&graph, evaluate::BATCH.min(data.train.len()));
        }
    }
    if let Some(stored) = &run.teacher_logits {
        let tests = stored.test_logits.as_ref().map_or(0, Tensor::elem_count);
        found.teacher_outputs = 4 * (stored.logits.elem_count() + tests) as u64;
    }
    let held = found.program
        + found.images
        + found.weights
        + found.average
        + found.teacher_weights
        + found.teacher_outputs;
    // A network keeps the maps of an evaluation for the next one, and those of its last, smaller batch.
    let at_once = evaluate::BATCH.min(data.test.len());
    let rest = data.test.len().checked_rem(at_once).unwrap_or(0);
    let evaluated =
        |batch: usize| memory::evaluation(&graph, &Pass { batch, threads, places: &[] });
    let (whole, rest) = (evaluated(at_once)?, evaluated(rest)?);
    let kept = held + found.optimizer + found.maps + whole.maps + rest.maps;
    found.training = kept
        + found.batches
        + found.gradients
        + found.workspace
        + found.outputs
        + found.teacher_pass;
    found.evaluation = kept + batches(&graph, at_once) + whole.total() - whole.maps;
    // The optimiser's memory once more, everything as bytes, and the file of these.
    let written = found.weights + found.average + found.optimizer;
    found.checkpoint = kept + found.optimizer + 2 * written;
    let reading = found.program + while_read(data);
    found.peak =
        [found.training, found.evaluation, found.checkpoint, held + teacher_pass_before, reading]
            .into_iter()
            .fold(0, u64::max);
    Ok(found)
}

/// The memory of training passes over batches of this size, and over an epoch's last one where that is smaller: a network keeps the
/// maps of each size of the parts that they are computed in.
fn training(
    run: &ResolvedRun,
    graph: &Graph,
    batch: usize,
    places: &[&str],
    frozen: &BTreeSet<String>,
) -> Result<PassMemory> {
    let training = &run.recipe.training;
    let images = run.data.train.len();
    let threads = rayon::current_num_threads();
    let parts = training.accumulate.unwrap_or(1).max(1);
    let last = if training.drop_last || images < batch { 0 } else { images % batch };
    let sizes = [batch.min(images), last];
    let sizes: BTreeSet<usize> =
        sizes.into_iter().flat_map(|size| [size / parts, size.div_ceil(parts)]).collect();
    let of = |batch: usize| memory::training(graph, &Pass { batch, threads, places }, frozen);
    let largest = sizes.last().copied().unwrap_or(0);
    let mut whole = of(largest)?;
    for size in sizes.into_iter().filter(|size| *size != largest && *size != 0) {
        whole.maps += of(size)?.maps;
    }
    if parts > 1 {
        // Those of the parts so far, and those of the part that is computed.
        whole.gradients *= 2;
    }
    Ok(whole)
}

fn size(spec: &TensorSpec) -> u64 {
    4 * spec.shape.iter().product::<usize>() as u64
}

fn bytes(parameters: &Parameters) -> u64 {
    parameters.values().map(|var| 4 * var.elem_count() as u64).sum()
}

/// How many numbers an optimiser remembers of each that it changes.
fn remembered(optimizer: &OptimizerConfig) -> u64 {
    match optimizer {
        OptimizerConfig::Adam(_) => 2,
        OptimizerConfig::Sgd(config) if config.momentum > 0.0 => 1,
        OptimizerConfig::Sgd(_) => 0,
    }
}

/// The bytes of all portions of the data. What limits leave out of the synthetic set has been in memory, too, and what a process
/// gives back in so many pieces is of little use to it.
fn images(data: &Portions) -> u64 {
    let selection = data.selection.as_ref().map_or(0, |images| images.memory());
    let all = data.train.memory() + data.test.memory() + selection;
    match data.name.as_str() {
        "synthetic" => all.max(synthetic()),
        _ => all,
    }
}

/// The bytes while the data is read, before any limit: the files of CIFAR lie in memory beside the images that are made of them.
fn while_read(data: &Portions) -> u64 {
    const CIFAR: u64 = 60_000 * 3073;
    match data.name.as_str() {
        "cifar10" | "cifar100" => 2 * CIFAR,
        "synthetic" => synthetic(),
        _ => images(data),
    }
}

/// The bytes of the whole synthetic set.
fn synthetic() -> u64 {
    let SyntheticConfig { train, test, .. } = SyntheticConfig::default();
    (train + test) as u64 * 3073
}

/// The bytes of batches of this size: one in use, those that wait, and the one that is being prepared.
fn batches(graph: &Graph, batch: usize) -> u64 {
    let values = graph.input().iter().product::<usize>() * batch;
    (evaluate::PREFETCH as u64 + 2) * 4 * values as u64
}
