//! Which run of a recipe the flags mean.

use std::path::{Path, PathBuf};

use kd_loss::{METHODS, MethodConfig, Schedule, Term};
use kd_models::Architecture;

use crate::cli::{Distill, RunFlags, Train, Usage};
use crate::recipe::{Recipe, RunConfig, nearest};

/// The run that `kd train` is about.
pub(super) fn on_labels(recipe: &Recipe, flags: &Train) -> anyhow::Result<RunConfig> {
    if let Some(name) = &flags.run.run {
        let mut run = named(recipe, name)?;
        if run.needs_teacher() {
            let message =
                format!("run {name:?} learns from a teacher; use `kd distill --run {name}`");
            return Err(Usage(message).into());
        }
        run.set_model(flags.model.unwrap_or(run.model));
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

/// The run that `kd distill` is about; a method that no run of the recipe has gets its customary weights.
pub(super) fn distilled(recipe: &Recipe, flags: &Distill) -> anyhow::Result<RunConfig> {
    let method = flags.method.as_deref().map(MethodConfig::from_name).transpose();
    let method = method.map_err(|error| {
        let known = METHODS.iter().map(|method| method.name);
        let meant = did_you_mean(flags.method.as_deref().unwrap_or_default(), known);
        Usage(format!("--method: {error}{meant}"))
    })?;
    if let Some(name) = &flags.run.run {
        let run = named(recipe, name)?;
        let names: Vec<_> = run.methods.iter().map(|term| term.method.name()).collect();
        return match &method {
            Some(method) if names != [method.name()] => Err(Usage(format!(
                "--run {name} has the methods [{}]; leave --method out, or choose another run",
                names.join(", ")
            ))
            .into()),
            None if names.is_empty() => Err(Usage(format!(
                "run {name:?} learns from the labels alone; use `kd train --run {name}`"
            ))
            .into()),
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
    let mut run = RunConfig::on_labels(method.name(), Architecture::Student);
    let about = METHODS.iter().find(|info| info.name == method.name());
    let (labels, weight) = about.map_or((1.0, 1.0), |info| (info.about.labels, info.about.weight));
    run.labels = labels;
    run.methods = vec![Term { weight, schedule: Schedule::default(), method }];
    Ok(run)
}

fn named(recipe: &Recipe, name: &str) -> anyhow::Result<RunConfig> {
    let run = recipe.runs.iter().find(|run| run.name == name);
    let missing = || {
        let names: Vec<_> = recipe.runs.iter().map(|run| run.name.as_str()).collect();
        let meant = did_you_mean(name, names.iter().copied());
        Usage(format!("--run {name}: the recipe has the runs {}{meant}", names.join(", ")))
    };
    Ok(run.cloned().ok_or_else(missing)?)
}

/// The end of a message about a name that there isn't.
fn did_you_mean<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> String {
    nearest(found, names).map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// The one run that can be meant.
fn only<'a>(runs: impl Iterator<Item = &'a RunConfig>, flags: &str) -> anyhow::Result<RunConfig> {
    let runs: Vec<_> = runs.collect();
    match runs[..] {
        [run] => Ok(run.clone()),
        [] => Err(Usage(format!("the recipe has no such run; give {flags}")).into()),
        _ => {
            let names: Vec<_> = runs.iter().map(|run| run.name.as_str()).collect();
            Err(Usage(format!("which of the runs {}? Give {flags}", names.join(", "))).into())
        }
    }
}

/// Where weights that a recipe names are: another run's, or a file beside the recipe.
pub(super) fn weights_path(recipe: &Recipe, flags: &RunFlags, out: &Path, name: &str) -> PathBuf {
    if recipe.runs.iter().any(|run| run.name == name) {
        return out.join(format!("{name}.safetensors"));
    }
    let folder = flags.recipe.as_deref().and_then(Path::parent);
    folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
}
