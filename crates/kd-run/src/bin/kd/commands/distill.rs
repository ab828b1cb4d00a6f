//! `kd distill`: a student with a teacher's help, or with a control such as label smoothing.

use std::path::PathBuf;

use clap::Args;
use kd_loss::{Combination, METHODS, MethodConfig, Schedule, Term};
use kd_models::Architecture;
use kd_run::recipe::{Recipe, RunConfig};
use kd_run::resolve::Choices;
use kd_run::run::Settings;

use super::training::{named, only};
use super::{did_you_mean, read_recipe, training};
use crate::args::{RunFlags, architecture, channels, positive, share};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd distill --method kd --out runs/mine                   the teacher is runs/mine/teacher.safetensors
  kd distill --method kd --teacher a.safetensors --teacher b.safetensors      both teach
  kd distill --method kd --temperature 4 --alpha 0.5 --teacher teacher.safetensors
  kd distill --method kd --teacher teacher.onnx --size 224 --dataset folder --data pictures
  kd distill --method kd --teacher-logits answers.safetensors --dataset folder --data pictures
  kd distill --recipe recipes/methods/dkd.toml --run dkd --out runs/dkd

A run that was stopped goes on when the same command is given again; with more --epochs a finished run is trained on.
A teacher in an ONNX file needs kd with the feature onnx, and ONNX Runtime: ORT_DYLIB_PATH names its library.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Distill {
    /// The teacher's weights file; given several times, several teachers, whose logits are combined [default: that of the recipe, in the output folder]
    #[arg(long, value_name = "FILE")]
    teacher: Vec<PathBuf>,
    /// In place of a teacher a file of its logits by picture, as `kd eval --on train --logits FILE` writes it: each picture is taught by its row
    #[arg(long, value_name = "FILE", conflicts_with_all = ["teacher", "combine", "teacher_model", "teacher_output", "teacher_mean"])]
    teacher_logits: Option<PathBuf>,
    /// How several teachers' logits become those of one: "logits" (their mean), "probabilities" (the mean of these, softened), "confidence" (weighted by how well each knows an image's label) or "choice" (of each image the best one's) [default: logits]
    #[arg(long, value_name = "HOW", value_parser = Combination::from_name)]
    combine: Option<Combination>,
    /// The teacher's network, if its weights file doesn't name it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    teacher_model: Option<Architecture>,
    /// The output of a teacher in an ONNX file that holds the logits, by its name or its number from 0 [default: the only one of two dimensions]
    #[arg(long, value_name = "OUTPUT")]
    teacher_output: Option<String>,
    /// The mean of the images that the teacher was trained on, where its weights file doesn't say, for red, green and blue: "0.5,0.5,0.5" [default: the data's]
    #[arg(long, value_name = "MEAN", value_parser = channels, requires = "teacher_std", allow_hyphen_values = true)]
    teacher_mean: Option<[f32; 3]>,
    /// Their standard deviation
    #[arg(long, value_name = "STD", value_parser = channels, requires = "teacher_mean", allow_hyphen_values = true)]
    teacher_std: Option<[f32; 3]>,
    /// The distillation method; `kd methods` lists them
    #[arg(long)]
    method: Option<String>,
    /// The student's network [default: student]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// Temperature by which logits are divided (methods kd, dkd and dist)
    #[arg(long, value_name = "T", value_parser = positive)]
    temperature: Option<f64>,
    /// Temperature by which the teacher's logits are divided, where it is not the same (method kd)
    #[arg(long, value_name = "T", value_parser = positive)]
    teacher_temperature: Option<f64>,
    /// Weight of the labels in the loss, from 0 to 1; the method has the rest
    #[arg(long, value_name = "A", value_parser = share)]
    alpha: Option<f64>,
    /// Memory for the cache of the teacher's outputs; outputs that don't fit are computed in each step
    #[arg(long, value_name = "MIB", default_value_t = Settings::default().cache_memory >> 20)]
    cache_memory: u64,
    #[command(flatten)]
    pub(super) run: RunFlags,
}

pub(crate) fn run(flags: &Distill) -> Result<(), Failure> {
    let (recipe, run, choices) = meant(flags)?;
    training::train(&flags.run, &recipe, &run, choices)
}

/// The recipe and its run that the flags mean, with all choices but the device.
pub(super) fn meant(flags: &Distill) -> Result<(Recipe, RunConfig, Choices), Failure> {
    let recipe = read_recipe(flags.run.recipe.as_deref())?;
    let run = chosen_run(&recipe, flags)?;
    let mut choices = Choices {
        teacher: flags.teacher.clone(),
        teacher_logits: flags.teacher_logits.clone(),
        combine: flags.combine,
        teacher_model: flags.teacher_model,
        teacher_output: flags.teacher_output.clone(),
        teacher_mean: flags.teacher_mean,
        teacher_std: flags.teacher_std,
        model: flags.model,
        temperature: flags.temperature,
        teacher_temperature: flags.teacher_temperature,
        alpha: flags.alpha,
        ..flags.run.choices()?
    };
    choices.settings.cache_memory = flags.cache_memory.saturating_mul(1 << 20);
    Ok((recipe, run, choices))
}

/// The run that the flags mean; a method that no run of the recipe has gets the weights of the list.
fn chosen_run(recipe: &Recipe, flags: &Distill) -> Result<RunConfig, Failure> {
    let method = flags.method.as_deref().map(MethodConfig::from_name).transpose();
    let method = method.map_err(|error| {
        let known = METHODS.iter().map(|method| method.name);
        let meant = did_you_mean(flags.method.as_deref().unwrap_or_default(), known);
        Failure::Usage(format!("--method: {error}{meant}"))
    })?;
    if let Some(name) = &flags.run.run {
        let run = named(recipe, name)?;
        let names: Vec<_> = run.methods.iter().map(|term| term.method.name()).collect();
        return match &method {
            Some(method) if names != [method.name()] => Err(Failure::Usage(format!(
                "--run {name} has the methods [{}]; leave --method out, or choose another run",
                names.join(", ")
            ))),
            None if names.is_empty() => Err(Failure::Usage(format!(
                "run {name:?} learns from the labels alone; use `kd train --run {name}`"
            ))),
            _ => Ok(run),
        };
    }
    let Some(method) = method else {
        let runs = recipe.runs.iter().filter(|run| !run.methods.is_empty());
        return only(runs, "--method METHOD or --run NAME");
    };
    let with_method = |run: &&RunConfig| matches!(&run.methods[..], [term] if term.method.name() == method.name());
    if let Some(run) = recipe.runs.iter().find(with_method) {
        return Ok(run.clone());
    }
    let mut run = RunConfig::on_labels(method.name(), Architecture::TUTORIAL_STUDENT);
    let about = METHODS.iter().find(|info| info.name == method.name());
    let (labels, weight) = about.map_or((1.0, 1.0), |info| (info.about.labels, info.about.weight));
    run.labels = labels;
    run.methods = vec![Term { weight, schedule: Schedule::default(), method }];
    Ok(run)
}
