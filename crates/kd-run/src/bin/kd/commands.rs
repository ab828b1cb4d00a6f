//! What each command does: a file for each, and here what several of them need.

pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod distill;
pub(crate) mod eval;
pub(crate) mod export;
#[cfg(feature = "hub")]
pub(crate) mod fetch;
pub(crate) mod keep;
pub(crate) mod man;
pub(crate) mod methods;
pub(crate) mod networks;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod prepare;
pub(crate) mod profile;
pub(crate) mod quantize;
pub(crate) mod recipe;
pub(crate) mod report;
pub(crate) mod train;
mod training;
mod weights;

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use kd_run::recipe::{Recipe, TUTORIAL, nearest};

/// Prints to standard output. That nobody reads it any more (`kd report | head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output can't be written")
        }
        _ => Ok(()),
    }
}

/// The recipe of `--recipe`, or the built-in one.
fn read_recipe(path: Option<&Path>) -> anyhow::Result<Recipe> {
    match path {
        Some(path) => Ok(Recipe::read(path)?),
        None => Ok(Recipe::parse(TUTORIAL, "the built-in recipe")?),
    }
}

/// The end of a message about a name that nothing has.
fn did_you_mean<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> String {
    nearest(found, names).map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}
