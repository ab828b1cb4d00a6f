//! Whether a run can go on in a folder: from where it stopped, or for more epochs than it was started for.

use anyhow::Context;
use kd_record::event::ended_after;
use kd_record::read::read_text;
use kd_record::{Evaluation, Extension, RunFolder};
use kd_report::tensorboard::TensorBoard;

use crate::checkpoint::State;
use crate::progress::Outcome;
use crate::recipe::{self, Relation, RunRecipe};
use crate::run::ResolvedRun;
use crate::{Error, Result};

/// Checks that what lies in the run's folder is a run of its recipe, or of the same with fewer epochs that can be trained on.
///
/// A folder belongs to one recipe. One in which no run has begun may hold only a recipe that kd wrote there: one's own with comments
/// in it would be lost.
pub(crate) fn check_recipe(run: &ResolvedRun, recipe: &str) -> Result<()> {
    let folder = run.folder();
    let path = folder.recipe();
    let there = match read_text(&path, recipe::MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.is_absent() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match recipe::relation(&there, &path.display().to_string(), recipe)? {
        Relation::Differs(differences) => {
            return Err(Error::AnotherRecipe { path, what: "folder", differences });
        }
        Relation::Epochs { from, to } if to < from => {
            return Err(Error::FewerEpochs { path, from, to });
        }
        Relation::Epochs { from, to } => {
            if let Some(setting) = tied_to_length(&run.recipe) {
                let reason = format!(
                    "{setting} depends on the number of epochs, so that a run of {to} epochs differs from the first step on"
                );
                return Err(not_extended(&folder, from, to, reason));
            }
        }
        Relation::Same => {}
    }
    match folder.has_begun() || there == recipe {
        true => Ok(()),
        false => Err(kd_record::Error::NotOurs {
            path,
            found: "exists and is not of this run, which has not begun".into(),
            cure: "move it away, or choose another --out or --name",
        }
        .into()),
    }
}

/// The setting of a run by which its first epochs depend on how many there are in all, as a phrase; `None` where none does.
pub(crate) fn tied_to_length(recipe: &RunRecipe) -> Option<String> {
    if let Some(name) = recipe.training.schedule.tied_to_length() {
        return Some(format!("the learning rate (training.schedule, `{name}`)"));
    }
    if recipe.training.average.is_some_and(|average| average.is_tied_to_length()) {
        return Some("the average of the weights (training.average, `last-epochs`)".into());
    }
    let term = recipe.run.methods.iter().find(|term| term.schedule.is_tied_to_length())?;
    Some(format!("the weight of method `{}` (its warmup or decay)", term.method.name()))
}

/// How a run ended that an earlier process finished; `None` for one that is not finished.
pub(crate) fn finished_before(run: &ResolvedRun) -> Result<Option<Outcome>> {
    let folder = run.folder();
    let (events, evaluation) = (folder.events(), folder.evaluation());
    let steps = run.recipe.training.epochs as u64 * run.steps_per_epoch() as u64;
    // The end of a run of fewer epochs is none of this one.
    let ended = ended_after(&events) == Some(steps);
    let is_measured = match run.is_tested() {
        true => evaluation.exists(),
        false => folder.not_tested().exists(),
    };
    if !(ended && folder.weights().exists() && is_measured) {
        return Ok(None);
    }
    if run.settings.tensorboard {
        let events = std::fs::read_to_string(&events)
            .with_context(|| format!("{}: can't be read", events.display()))?;
        TensorBoard::rewrite(&folder, &events)?;
    }
    let evaluation = run.is_tested().then(|| Evaluation::read(&evaluation)).transpose()?;
    Ok(Some(Outcome::AlreadyFinished(evaluation)))
}

/// What is recorded where a run goes on from the checkpoint `state` for more epochs than it had there.
pub(crate) fn extension(state: &State, recipe: &str) -> Result<Option<Extension>> {
    Ok(match recipe::relation(&state.recipe, "the checkpoint's recipe", recipe)? {
        Relation::Epochs { from, to } => Some(Extension {
            done: state.epoch,
            from,
            to,
            version: env!("CARGO_PKG_VERSION").into(),
        }),
        Relation::Same | Relation::Differs(_) => None,
    })
}

/// Refuses to begin anew where a run has written its weights and is to be trained on, but no checkpoint is left.
pub(crate) fn check_not_lost(run: &ResolvedRun, recipe: &str) -> Result<()> {
    let folder = run.folder();
    let path = folder.recipe();
    let Ok(there) = read_text(&path, recipe::MAX_BYTES) else { return Ok(()) };
    match recipe::relation(&there, &path.display().to_string(), recipe)? {
        Relation::Epochs { from, to } if folder.weights().exists() => {
            let reason = format!("{} holds no checkpoint", folder.checkpoints().display());
            Err(not_extended(&folder, from, to, reason))
        }
        _ => Ok(()),
    }
}

fn not_extended(folder: &RunFolder, from: usize, to: usize, reason: String) -> Error {
    let weights = Some(folder.weights()).filter(|weights| weights.exists());
    Error::NotExtended { path: folder.recipe(), from, to, reason, weights }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Recipe, TUTORIAL};

    #[test]
    fn what_depends_on_the_number_of_epochs_is_named() {
        let tied = |training: &str, method: &str| {
            let text = TUTORIAL
                .replacen("epochs = 10", &format!("epochs = 10\n{training}"), 1)
                .replacen("name = \"kd\"\nweight", &format!("name = \"kd\"\n{method}\nweight"), 1);
            let recipe = Recipe::parse(&text, "r").unwrap();
            let Recipe { name, data, training, optimizer, .. } = recipe.clone();
            let run = recipe.run("kd").unwrap().clone();
            tied_to_length(&RunRecipe { name, data, training, optimizer, run })
        };
        assert_eq!(tied("", ""), None);
        assert_eq!(tied("schedule = { name = 'constant', warmup_epochs = 1 }", ""), None);
        assert_eq!(tied("schedule = { name = 'step', milestones = [3] }", ""), None);
        assert_eq!(tied("average = { name = 'ema', decay = 0.9 }", ""), None);
        let found = tied("average = { name = 'last-epochs', epochs = 2 }", "").unwrap();
        assert!(found.contains("`last-epochs`"), "{found}");
        let found = tied("schedule = { name = 'one-cycle' }", "").unwrap();
        assert!(found.contains("`one-cycle`"), "{found}");
        for schedule in ["warmup = 0.2", "decay = 'linear'"] {
            let found = tied("", schedule).unwrap();
            assert!(found.contains("method `kd`"), "{found}");
        }
    }
}
