//! What `kd train` and `kd distill` share: which run of a recipe is meant, and training it with its progress on standard error.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use kd_record::lock::wait_for_lock;
use kd_record::write::remove_partial_of;
use kd_record::{OutFolder, RunFolder};
use kd_run::Error;
use kd_run::recipe::{Recipe, RunConfig};
use kd_run::resolve::{Choices, resolve};
use kd_run::run::ResolvedRun;
use kd_run::train::Outcome;

use super::{did_you_mean, eval, print};
use crate::args::RunFlags;
use crate::failure::Failure;
use crate::progress::{Display, DisplayConfig};
use crate::signals::{Interrupted, StopRequest};

/// The recipe's run of this name.
pub(super) fn named(recipe: &Recipe, name: &str) -> Result<RunConfig, Failure> {
    recipe.run(name).cloned().map_err(|unknown| {
        let meant = did_you_mean(name, unknown.known.iter().map(String::as_str));
        Failure::Usage(format!("--run {name}: {unknown}{meant}"))
    })
}

/// The one of these runs that can be meant; `flags` are those that would name one.
pub(super) fn only<'a>(
    runs: impl Iterator<Item = &'a RunConfig>,
    flags: &str,
) -> Result<RunConfig, Failure> {
    let runs: Vec<_> = runs.collect();
    match runs[..] {
        [run] => Ok(run.clone()),
        [] => Err(Failure::Usage(format!("the recipe has no such run; give {flags}"))),
        _ => {
            let names: Vec<_> = runs.iter().map(|run| run.name.as_str()).collect();
            let names = names.join(", ");
            Err(Failure::Usage(format!("which of the runs {names}? Give {flags}")))
        }
    }
}

/// What is said in the place of figures where there are no test pictures.
const NOT_TESTED: &str = "not tested, since there are no test pictures with labels";

/// Resolves the run, trains it, and writes the report of its folder.
pub(super) fn train(
    flags: &RunFlags,
    recipe: &Recipe,
    run: &RunConfig,
    mut choices: Choices,
) -> Result<(), Failure> {
    let stop = StopRequest::listen()?;
    choices.device = flags.compute.device()?;
    let resolved = resolve(recipe, run, &choices).map_err(|error| match error {
        Error::Choice(message) => Failure::Usage(message),
        error => error.into(),
    })?;
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    for note in &resolved.notes {
        print(&format!("{note}\n"))?;
    }
    let run = resolved.run;
    let name = &run.recipe.run.name;
    kd_report::check_places(std::slice::from_ref(&run.out), None)
        .context("the report of this output folder could not be written")?;
    let teacher = run.teacher.as_ref().map(|teacher| teacher.path.as_path());
    let mut display = Display::new(DisplayConfig {
        plain: flags.plain,
        events: Some(run.folder().events()),
        teacher_events: teacher_events(&run.out, teacher, name),
    });
    let outcome = kd_run::train::train(&run, &mut |progress| {
        let shown = display.observe(progress);
        if stop.signal().is_some() { ControlFlow::Break(()) } else { shown }
    });
    display.finish();
    match outcome.map_err(|error| with_command(error, flags, &run))? {
        Outcome::Finished(evaluation) => {
            let figures = evaluation.as_ref().map_or_else(|| NOT_TESTED.into(), eval::one_line);
            print(&format!("{name}: {figures}\n"))?;
            print(&format!("weights: {}\n", run.folder().weights().display()))?;
        }
        Outcome::AlreadyFinished(evaluation) => {
            let figures = evaluation.as_ref().map_or_else(|| NOT_TESTED.into(), eval::one_line);
            print(&format!("{name}: finished before, {figures}\n"))?;
        }
        Outcome::Stopped { step } => {
            let signal = stop.signal().unwrap_or_default();
            return Err(Failure::Interrupted(Interrupted { run: name.clone(), step, signal }));
        }
    }
    if !run.is_tested() {
        return Ok(());
    }
    let out = OutFolder::new(&run.out);
    let _lock = wait_for_lock(&out.path)?;
    for path in [out.report(), out.summary()] {
        remove_partial_of(&path)?;
    }
    kd_report::write(std::slice::from_ref(&run.out))
        .with_context(|| format!("run {name} is finished, but its report can't be made"))?;
    print(&format!("report: {}\n", out.report().display()))?;
    Ok(())
}

/// The failure of a run that can't be trained on for more epochs, with the command that trains on from its weights.
fn with_command(error: Error, flags: &RunFlags, run: &ResolvedRun) -> Failure {
    let Error::NotExtended { path, from, to, weights: Some(weights), .. } = &error else {
        return error.into();
    };
    let command = if run.recipe.run.needs_teacher() { "distill" } else { "train" };
    let mut line = format!(
        "kd {command} --recipe {} --init {} --epochs {} --name {}-on --out {}",
        quoted(path),
        quoted(weights),
        to - from,
        run.recipe.run.name,
        quoted(&run.out)
    );
    // The weights have the data's classes; a map of the recipe was for the file that the run itself started from.
    if run.recipe.run.class_map.is_some() && !run.recipe.run.needs_teacher() {
        line += " --ignore-class-names";
    }
    if flags.data.data != Path::new("data") {
        line += &format!(" --data {}", quoted(&flags.data.data));
    }
    Failure::Failed(anyhow!("{error}: `{line}`"))
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./+,:@".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Where the teacher's measurements are if kd trained it; for a run on labels, those of a teacher in the
/// same folder.
fn teacher_events(out: &Path, teacher: Option<&Path>, run: &str) -> Option<PathBuf> {
    let folder = match teacher {
        Some(weights) => RunFolder::of_weights(weights),
        None => OutFolder::new(out).run("teacher"),
    };
    (folder.path != out.join(run)).then(|| folder.events())
}
