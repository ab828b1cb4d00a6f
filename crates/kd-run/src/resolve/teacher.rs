//! The teacher of a run that is resolved: where its weights are, and what they are.

use std::path::{Path, PathBuf};

use kd_data::Portions;
use kd_models::classes::ClassChoice;
use kd_record::OutFolder;
use kd_record::layout::part_name;

use super::{Choices, check_input, weights_path};
use crate::recipe::{Recipe, RunConfig, RunRecipe, TeacherNames};
use crate::teacher::{Pretrained, PretrainedConfig, StoredLogits};
use crate::{Error, Result};

/// Where the weights of the run's teachers are; none for a run that needs no teacher.
pub(crate) fn paths(
    recipe: &Recipe,
    run: &RunConfig,
    choices: &Choices,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    if run.teacher_logits.is_some() {
        return Ok(Vec::new());
    }
    let paths = match choices.teacher.is_empty() {
        false => choices.teacher.clone(),
        true => {
            let of = |name: &String| weights_path(recipe, choices, out, name);
            run.teachers().iter().map(of).collect()
        }
    };
    match (&paths[..], run.needs_teacher()) {
        ([], true) => Err(Error::Choice(format!(
            "run {:?} needs a teacher; give the teacher's weights with --teacher FILE or its logits with --teacher-logits FILE, or name them in the recipe",
            run.name
        ))),
        ([path, ..], false) => Err(Error::Choice(format!(
            "--teacher {}: run {:?} needs no teacher; leave --teacher out",
            path.display(),
            run.name
        ))),
        _ => Ok(paths),
    }
}

/// What is known of the classes of the teacher's file besides what it says.
pub(crate) fn class_choice(run: &RunConfig) -> ClassChoice {
    let (map, ignore_names) = (run.class_map.clone(), run.ignore_class_names);
    ClassChoice { map, ignore_names, ..ClassChoice::default() }
}

/// Where the file of the teacher's logits is; `None` where the teacher is none.
pub(crate) fn logits_path(run: &RunConfig, choices: &Choices) -> Option<PathBuf> {
    let named = run.teacher_logits.as_ref()?;
    let folder = choices.recipe_folder.as_deref().filter(|_| choices.teacher_logits.is_none());
    Some(folder.unwrap_or(Path::new("")).join(named))
}

/// Loads the file of the teacher's logits, where the teacher is one, and records it in the recipe.
pub(super) fn load_logits(
    resolved: &mut RunRecipe,
    choices: &Choices,
    data: &Portions,
    out: &Path,
    notes: &mut Vec<String>,
) -> Result<Option<StoredLogits>> {
    let Some(path) = logits_path(&resolved.run, choices) else { return Ok(None) };
    check_input(&OutFolder::new(out).run(&resolved.run.name), "the teacher's logits", &path)?;
    let run = &mut resolved.run;
    let stored = StoredLogits::load(&path, data, &class_choice(run))
        .map_err(|error| error.context("the teacher's logits can't be used"))?;
    if let Some(expected) = &run.teacher_sha256
        && *expected != stored.sha256
    {
        return Err(Error::unfit(format!(
            "{}: the file's SHA-256 is {}; the recipe's teacher_sha256 is {expected}: these are other logits. Give those with --teacher-logits, or remove teacher_sha256 from the recipe",
            path.display(),
            stored.sha256
        )));
    }
    if !resolved.data.shows_plain_images() {
        notes.push(format!(
            "{}: each changed view of a picture is taught by the logits of the picture itself, which are the only ones that {} has",
            run.name,
            path.display()
        ));
    }
    run.teacher_logits = Some(OutFolder::new(out).from_a_run(&path)?.display().to_string());
    run.teacher_sha256 = Some(stored.sha256.clone());
    notes.extend(stored.notes.iter().cloned());
    Ok(Some(stored))
}

/// The places of the teacher that the run's methods name in their options: of an ONNX file tensors, which have to be asked for when it is
/// opened.
fn named_places(run: &RunConfig) -> Vec<String> {
    let options = run.methods.iter().filter_map(|term| toml::Value::try_from(&term.method).ok());
    let mut found: Vec<String> = options
        .filter_map(|options| options.get("teacher").cloned())
        .flat_map(|named| match named {
            toml::Value::Array(names) => names,
            name => vec![name],
        })
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Loads the run's teacher, with `cross_fit` the teacher of each part, or several teachers that answer as one, and records it in the
/// recipe.
pub(super) fn load(
    paths: &[PathBuf],
    resolved: &mut RunRecipe,
    data: &Portions,
    out: &Path,
    notes: &mut Vec<String>,
) -> Result<Pretrained> {
    let (normalization, scaling) = (resolved.data.normalization(), resolved.data.scaling());
    let folder = OutFolder::new(out).run(&resolved.run.name);
    let run = &mut resolved.run;
    let choice = class_choice(run);
    let places = named_places(run);
    let output = run.teacher_output.clone();
    let config = PretrainedConfig {
        architecture: run.teacher_model,
        classes: &data.classes,
        input: data.input(),
        choice: &choice,
        normalization,
        stated: run.teacher_normalization(),
        output: output.as_deref(),
        places: &places,
        scaling,
    };
    let load = |path: &Path| {
        check_input(&folder, "the teacher's weights", path)?;
        Pretrained::load(path, &config).map_err(|error| error.context("the teacher can't be used"))
    };
    let (teacher, files) = match (paths, run.cross_fit) {
        ([path], Some(of)) => {
            let files: Vec<_> = (1..=of).map(|part| part_path(path, part, of)).collect();
            let parts: Result<Vec<_>> = files.iter().map(|file| load(file)).collect();
            (Pretrained::cross_fitted(path, parts?, data)?, files[..1].to_vec())
        }
        ([path], None) => (load(path)?, vec![path.clone()]),
        _ => {
            let members: Result<Vec<_>> = paths.iter().map(|path| load(path)).collect();
            let combination = run
                .combination()
                .map_err(|error| Error::Choice(format!("run {:?}: {error}", run.name)))?;
            run.combine = Some(combination);
            (Pretrained::ensemble(members?, combination)?, paths.to_vec())
        }
    };
    if let Some(expected) = &run.teacher_sha256
        && *expected != teacher.sha256
    {
        let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::unfit(format!(
            "{}: the teacher's SHA-256 is {}; the recipe's teacher_sha256 is {expected}: this is another teacher. Give that one with --teacher, or remove teacher_sha256 from the recipe",
            shown.join(", "),
            teacher.sha256
        )));
    }
    let recorded = paths.iter().zip(&files).map(|(path, file)| {
        // With cross-fitted targets only the parts' files need to exist, not one of the teacher's own name.
        let recorded = OutFolder::new(out).from_a_run(file)?;
        let recorded = recorded.with_file_name(path.file_name().unwrap_or_default());
        Ok(recorded.display().to_string())
    });
    run.teacher = Some(TeacherNames::new(recorded.collect::<Result<_>>()?));
    // Several teachers are of networks of their own, which their files name.
    if teacher.members.is_empty() && teacher.foreign.is_none() {
        run.teacher_model = Some(teacher.config.architecture);
    }
    run.teacher_sha256 = Some(teacher.sha256.clone());
    notes.extend(teacher.notes.iter().cloned());
    Ok(teacher)
}

/// The weights file of the teacher that has not seen a part of the images.
fn part_path(path: &Path, part: usize, of: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    OutFolder::new(path.parent().unwrap_or(Path::new(""))).weights(&part_name(&stem, part, of))
}
