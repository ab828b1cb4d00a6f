//! `kd plan`: what each run of a recipe takes, before any is trained.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use kd_models::Architecture;
use kd_report::format::{duration, grouped, memory as size, millions};
use kd_run::Error;
use kd_run::plan::{Outline, RunMemory, Timing, check, limit, outline, time};
use kd_run::recipe::{Recipe, RunConfig};
use kd_run::resolve::Choices;
use kd_run::task::Supervised;
use serde_json::{Value, json};

use super::training::named;
use super::{print, read_recipe};
use crate::args::{Part, RunFlags, architecture, part};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd plan
  kd plan recipes/resnet.toml --threads 2
  kd plan --model resnet20 --batch-size 256
  kd plan mine.toml --json | jq .runs

The time is that of a few steps, evaluations and teacher's answers that are really computed, on this machine and with the batch size
of the run, times their number. Nothing is written. Data and weights files need not be there: sizes are assumed then, and said.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Plan {
    /// The recipe [default: the built-in recipe, that of the tutorial]
    #[arg(value_name = "RECIPE", conflicts_with = "recipe")]
    file: Option<PathBuf>,
    /// Plan one run that trains this network on the labels, as `kd train --model`
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// Without part I of K of the training images
    #[arg(long, value_name = "I/K", value_parser = part)]
    part: Option<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunFlags,
}

pub(crate) fn run(flags: &Plan) -> Result<(), Failure> {
    let file = flags.file.as_deref().or(flags.run.recipe.as_deref());
    let recipe = read_recipe(file)?;
    let mut choices = Choices {
        model: flags.model,
        part: flags.part.map(|Part(part, of)| [part, of]),
        recipe_folder: file.and_then(Path::parent).map(PathBuf::from),
        ..flags.run.choices()?
    };
    choices.device = flags.run.compute.device()?;
    let mut planned = Vec::new();
    for run in chosen_runs(&recipe, flags)? {
        planned.push(plan(&recipe, &run, &choices)?);
    }
    let text = match flags.json {
        true => as_json(&planned),
        false => as_text(&planned)?,
    };
    Ok(print(&text)?)
}

/// The runs that the flags mean: all of the recipe, the one that is named, or one that trains the network on the labels.
fn chosen_runs(recipe: &Recipe, flags: &Plan) -> Result<Vec<RunConfig>, Failure> {
    match (&flags.run.run, flags.model) {
        (Some(name), _) => Ok(vec![named(recipe, name)?]),
        (None, Some(model)) => Ok(vec![RunConfig::on_labels(model.name(), model)]),
        (None, None) => Ok(recipe.runs.clone()),
    }
}

/// What is known of a run beforehand.
struct Planned {
    run: String,
    model: Architecture,
    parameters: usize,
    multiply_adds: u64,
    batch_size: usize,
    epochs: usize,
    train: usize,
    test: usize,
    threads: usize,
    /// `None` on a GPU.
    memory: Option<RunMemory>,
    limit: Option<u64>,
    /// Why the run can't be trained here; its steps were not measured then.
    refused: Option<String>,
    timing: Option<Timing>,
    notes: Vec<String>,
}

fn plan(recipe: &Recipe, run: &RunConfig, choices: &Choices) -> Result<Planned, Failure> {
    let Outline { run, notes } = outline(recipe, run, choices).map_err(|error| match error {
        Error::Choice(message) => Failure::Usage(message),
        error => error.into(),
    })?;
    let task = Supervised::of_run(&run)?;
    let (memory, refused) = match check(&run, &task) {
        Ok(memory) => (memory, None),
        Err(error @ Error::Memory { .. }) => {
            (kd_run::plan::memory(&run, &task)?, Some(error.to_string()))
        }
        Err(error) => return Err(error.into()),
    };
    let timing = match refused {
        None => Some(time(&run, task)?),
        Some(_) => None,
    };
    let graph = run.graph()?;
    let training = &run.recipe.training;
    Ok(Planned {
        run: run.recipe.run.name.clone(),
        model: run.recipe.run.model,
        parameters: graph.parameter_count(),
        multiply_adds: graph.multiply_adds(),
        batch_size: training.batch_size,
        epochs: training.epochs,
        train: run.data.train.len(),
        test: run.data.test.len(),
        threads: rayon::current_num_threads(),
        memory,
        limit: limit(&run),
        refused,
        timing,
        notes,
    })
}

fn as_json(planned: &[Planned]) -> String {
    let run = |planned: &Planned| {
        json!({
            "run": planned.run,
            "model": planned.model.name(),
            "parameters": planned.parameters,
            "multiply_adds": planned.multiply_adds,
            "batch_size": planned.batch_size,
            "epochs": planned.epochs,
            "train_images": planned.train,
            "test_images": planned.test,
            "threads": planned.threads,
            "memory": planned.memory,
            "memory_limit": planned.limit,
            "seconds": planned.timing,
            "refused": planned.refused,
            "notes": planned.notes,
        })
    };
    let runs: Vec<Value> = planned.iter().map(run).collect();
    let seconds: f64 = planned.iter().filter_map(|planned| planned.timing).map(|t| t.run).sum();
    format!("{:#}\n", json!({ "runs": runs, "seconds": seconds }))
}

fn as_text(planned: &[Planned]) -> anyhow::Result<String> {
    const TITLES: [&str; 11] = [
        "run",
        "network",
        "parameters",
        "multiply-adds",
        "batch",
        "memory",
        "training",
        "evaluation",
        "kept outputs",
        "step",
        "run's time",
    ];
    let mut rows = vec![TITLES.map(str::to_owned)];
    for planned in planned {
        let memory = |of: fn(&RunMemory) -> u64| {
            planned.memory.as_ref().map_or("-".into(), |memory| size(of(memory)))
        };
        let seconds = |of: fn(&Timing) -> String| planned.timing.as_ref().map_or("-".into(), of);
        rows.push([
            planned.run.clone(),
            planned.model.name().into(),
            grouped(planned.parameters as u64),
            millions(planned.multiply_adds),
            grouped(planned.batch_size as u64),
            memory(|memory| memory.peak),
            memory(|memory| memory.training),
            memory(|memory| memory.evaluation),
            memory(|memory| memory.kept_on_disk),
            seconds(|timing| format!("{:.1} ms", 1e3 * timing.step)),
            seconds(|timing| duration(timing.run)),
        ]);
    }
    let mut text = String::new();
    let widths: Vec<usize> = (0..TITLES.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 | 1 => write!(line, "{cell:<width$}  ")?,
                _ => write!(line, "{cell:>width$}  ")?,
            }
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    text.push('\n');
    for planned in planned {
        if let Some(memory) = &planned.memory {
            writeln!(text, "{}: {}", planned.run, parts(memory))?;
        }
    }
    text.push('\n');
    let mut said: Vec<&str> = Vec::new();
    for note in planned.iter().flat_map(|planned| planned.notes.iter().chain(&planned.refused)) {
        if !said.contains(&note.as_str()) {
            writeln!(text, "{note}")?;
            said.push(note);
        }
    }
    let seconds: f64 = planned.iter().filter_map(|planned| planned.timing).map(|t| t.run).sum();
    writeln!(
        text,
        "All runs together: {}, from a few measured steps on this machine. Memory is estimated from the networks, to some 15 %.",
        duration(seconds)
    )?;
    if let Some(limit) = planned.first().and_then(|planned| planned.limit) {
        writeln!(text, "A run may take {} of memory.", size(limit))?;
    }
    Ok(text)
}

/// What a run's memory is for, the largest first.
fn parts(memory: &RunMemory) -> String {
    let mut parts = [
        ("program", memory.program),
        ("images", memory.images),
        ("batches", memory.batches),
        ("weights", memory.weights),
        ("average of the weights", memory.average),
        ("optimiser", memory.optimizer),
        ("gradients", memory.gradients),
        ("layers' values", memory.maps),
        ("workspace", memory.workspace),
        ("outputs for the loss", memory.outputs),
        ("teacher's weights", memory.teacher_weights),
        ("teacher's cached outputs", memory.teacher_outputs),
        ("teacher's pass", memory.teacher_pass),
    ];
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let shown = parts.iter().filter(|(_, bytes)| *bytes > 0);
    shown.map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect::<Vec<_>>().join(", ")
}
