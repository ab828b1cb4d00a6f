//! `kd train`: a network on the labels, or with a method that needs no teacher.

use clap::Args;
use kd_models::Architecture;
use kd_run::recipe::{Recipe, RunConfig};
use kd_run::resolve::Choices;

use super::training::{named, only};
use super::{read_recipe, training};
use crate::args::{Part, RunFlags, architecture, part};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd train --model teacher --data data --out runs/mine
  kd train --model student --dataset synthetic --epochs 3 --out runs/quick
  kd train --model student --dataset folder --data pictures --out runs/pictures
  kd train --recipe mine.toml --run student --seed 1

Your own pictures lie in DIR/train/CLASS/* and DIR/test/CLASS/* (PNG, JPEG, WebP, BMP or GIF of any size).
A run that was stopped goes on when the same command is given again; with more --epochs a finished run is trained on.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Train {
    /// The network to train
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// Train without part I of K of the training images, as a teacher for a run with cross_fit = K
    #[arg(long, value_name = "I/K", value_parser = part)]
    part: Option<Part>,
    #[command(flatten)]
    run: RunFlags,
}

pub(crate) fn run(flags: &Train) -> Result<(), Failure> {
    let recipe = read_recipe(flags.run.recipe.as_deref())?;
    let run = chosen_run(&recipe, flags)?;
    let choices = Choices {
        model: flags.model,
        part: flags.part.map(|Part(part, of)| [part, of]),
        ..flags.run.choices()?
    };
    training::train(&flags.run, &recipe, &run, choices)
}

/// The run that the flags mean; a network that the recipe trains in no run of its own is trained on the labels alone.
fn chosen_run(recipe: &Recipe, flags: &Train) -> Result<RunConfig, Failure> {
    if let Some(name) = &flags.run.run {
        let run = named(recipe, name)?;
        if run.needs_teacher() {
            return Err(Failure::Usage(format!(
                "run {name:?} learns from a teacher; use `kd distill --run {name}`"
            )));
        }
        return Ok(run);
    }
    let alone = || recipe.runs.iter().filter(|run| !run.needs_teacher());
    match flags.model {
        Some(model) => {
            let found = alone().find(|run| run.model == model && run.methods.is_empty());
            Ok(found.cloned().unwrap_or_else(|| RunConfig::on_labels(model.name(), model)))
        }
        None => only(alone(), "--model MODEL or --run NAME"),
    }
}
