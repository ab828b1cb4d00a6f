//! Pictures without labels: what can't be asked of them, and whose classes the network then has.

use std::path::{Path, PathBuf};

use kd_data::{Portions, Sampler};
use kd_models::classes::shortened;
use kd_record::PictureLogits;
use kd_record::hash::sha256;

use crate::recipe::{RunConfig, RunRecipe};
use crate::teacher::classes_of;
use crate::{Error, Result};

/// Refuses what goes by labels in a run whose training pictures have none.
///
/// # Errors
/// [`Error::Choice`] for the first such setting, with what to do.
pub(crate) fn check(recipe: &RunRecipe, data: &Portions) -> Result<()> {
    let run = &recipe.run;
    let refuse = |what: String| {
        Err(Error::Choice(format!(
            "run {:?}: the training pictures have no labels, and {what}; learn from a teacher alone (`kd distill --method kd --alpha 0 --teacher FILE`, labels = 0.0 in a recipe), or give pictures in folders of their classes (in shards KEY.cls or KEY.json beside each)",
            run.name
        )))
    };
    if run.labels > 0.0 {
        return refuse(format!("labels have the weight {} in the loss", run.labels));
    }
    if let Some(term) = run.methods.iter().find(|term| term.method.needs_labels()) {
        return refuse(format!("method {} goes by them", term.method.name()));
    }
    let combines = run.teachers().len() > 1
        && run.combination().is_ok_and(|combination| combination.uses_labels());
    let settings = [
        ("class_weights (--class-weights)", run.class_weights.is_some()),
        ("sampler = \"balanced\"", recipe.training.sampler == Sampler::Balanced),
        ("select_on", run.select_on.is_some()),
        ("part (--part)", run.part.is_some()),
        ("cross_fit", run.cross_fit.is_some()),
        ("combine (--combine) as it is", combines),
        ("class_map (--class-map)", run.class_map.is_some() && data.classes.is_empty()),
    ];
    match settings.into_iter().find(|(_, set)| *set) {
        Some((setting, _)) => refuse(format!("{setting} goes by them")),
        None => Ok(()),
    }
}

/// The classes of a run whose pictures have none: the teacher's, by the names that the file of its logits or the first weights file has,
/// or else by their numbers.
///
/// # Errors
/// When a file can't be read, or there is none.
pub(crate) fn classes(
    recipe: &RunRecipe,
    data: &Portions,
    logits: Option<&Path>,
    teachers: &[PathBuf],
) -> Result<Vec<String>> {
    let unusable = |error: Error| error.context("the teacher can't be used");
    if let Some(path) = logits {
        return Ok(PictureLogits::read(path)?.classes);
    }
    let Some(first) = teachers.first() else {
        return Err(Error::Choice(format!(
            "run {:?}: the pictures have no labels and the run no teacher, so nothing says how many classes there are; give one with --teacher FILE or --teacher-logits FILE",
            recipe.run.name
        )));
    };
    // A file that is not there is named as it is for labelled pictures.
    sha256(first).map_err(|error| unusable(error.into()))?;
    let RunConfig { teacher_model, teacher_output, .. } = &recipe.run;
    classes_of(first, *teacher_model, teacher_output.as_deref(), data.input()).map_err(unusable)
}

/// What is said of a run without labels: from whom it learns what, and whether anything is measured.
pub(crate) fn notes(run: &str, data: &Portions) -> Vec<String> {
    let mut notes = vec![format!(
        "{run}: the {} training pictures have no labels: the network learns from its teacher alone, and has the {} classes {}",
        data.train.len(),
        data.classes.len(),
        shortened(&data.classes)
    )];
    if data.test.is_empty() {
        notes.push(format!(
            "{run}: there are no test pictures with labels: accuracy and test loss are not measured, and no report is made"
        ));
    }
    notes
}
