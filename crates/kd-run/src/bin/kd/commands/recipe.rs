//! `kd recipe`: a recipe, checked, with every default filled in.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{print, read_recipe};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd recipe > mine.toml
  kd recipe mine.toml
  kd recipe mine.toml --json | jq .training";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct ShowRecipe {
    /// The recipe [default: the built-in recipe, that of the tutorial]
    #[arg(value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(flags: &ShowRecipe) -> Result<(), Failure> {
    let recipe = read_recipe(flags.recipe.as_deref())?;
    let text = match flags.json {
        true => serde_json::to_string(&recipe).context("the recipe can't be written as JSON")?,
        false => toml::to_string(&recipe).context("the recipe can't be written as TOML")?,
    };
    Ok(print(&format!("{}\n", text.trim_end()))?)
}
