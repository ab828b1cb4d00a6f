//! A run to plan by: as [`resolve`](crate::resolve::resolve) makes one, but nothing has to be there besides the recipe.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use kd_data::Portions;
use kd_loss::Combination;
use kd_models::{Architecture, ModelConfig, weights};

use crate::data;
use crate::recipe::{Recipe, RunConfig, RunRecipe};
use crate::resolve::{
    Choices, class_choice, fill_in_places, logits_path, teacher_paths, with_choices,
};
use crate::run::{ResolvedRun, network_for};
use crate::teacher::{Pretrained, StoredLogits, classes_of, is_onnx};
use crate::{Error, Result, device, unlabelled};

/// A run whose weights are fresh ones, its teacher's, too: it is as large and takes as long as the run itself.
pub struct Outline {
    /// The run. It is not to be trained: its teacher knows nothing.
    pub run: ResolvedRun,
    /// Sentences about what is not there and was assumed.
    pub notes: Vec<String>,
}

/// Outlines a run of `recipe` with the choices laid over it. Of CIFAR's files and of weights files that are not there, sizes are
/// assumed, and said. Nothing is written.
///
/// # Errors
/// When a choice makes no sense for the run, when the data is damaged, or when one's own pictures are not there.
pub fn outline(recipe: &Recipe, run: &RunConfig, choices: &Choices) -> Result<Outline> {
    let mut resolved = with_choices(recipe, run.clone(), choices)?;
    device::check(&choices.device, resolved.training.precision, choices.settings.compile)?;
    let RunConfig { part, select_on, .. } = resolved.run;
    let (data, note) = data::load_or_blank(&resolved.data, &choices.data, choices.data_memory)?;
    let mut data = data;
    let mut notes: Vec<String> = note.into_iter().collect();
    if !data.train.is_labelled() {
        unlabelled::check(&resolved, &data)?;
    }
    if data.classes.is_empty() {
        let logits = logits_path(&resolved.run, choices);
        let out = choices.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
        let teachers = teacher_paths(recipe, &resolved.run, choices, &out)?;
        data.classes = unlabelled::classes(&resolved, &data, logits.as_deref(), &teachers)?;
    }
    let data = data.for_run(&resolved.run.name, part, select_on)?;
    let stored = teacher_logits(&mut resolved, choices, &data, &mut notes)?;
    let teacher = match resolved.run.needs_teacher() && stored.is_none() {
        true => Some(teacher(recipe, &resolved, choices, &data, &mut notes)?),
        false => None,
    };
    fill_in_places(&mut resolved.run, teacher.as_ref(), &data)?;
    let out = choices.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let run = ResolvedRun {
        recipe: resolved,
        out,
        data,
        teacher,
        teacher_logits: stored,
        initial: None,
        device: choices.device.clone(),
        settings: choices.settings.clone(),
    };
    Ok(Outline { run, notes })
}

/// The file of the teacher's logits, or as many zeros where it is not there.
fn teacher_logits(
    resolved: &mut RunRecipe,
    choices: &Choices,
    data: &Portions,
    notes: &mut Vec<String>,
) -> Result<Option<StoredLogits>> {
    let Some(path) = logits_path(&resolved.run, choices) else { return Ok(None) };
    if path.exists() {
        return StoredLogits::load(&path, data, &class_choice(&resolved.run)).map(Some);
    }
    notes.push(format!(
        "{}: the teacher's logits: {} is not there; planned with as many",
        resolved.run.name,
        path.display()
    ));
    StoredLogits::blank(&path, data).map(Some)
}

/// A fresh teacher of the networks that the run's teachers have.
fn teacher(
    recipe: &Recipe,
    resolved: &RunRecipe,
    choices: &Choices,
    data: &Portions,
    notes: &mut Vec<String>,
) -> Result<Pretrained> {
    let run = &resolved.run;
    let named = |name: &str| recipe.runs.iter().find(|other| other.name == name);
    let mut fresh_of = |path: Option<PathBuf>, run_of: Option<&RunConfig>| {
        let network = match (&path, run_of) {
            (Some(path), _) if path.exists() && is_onnx(path) => {
                let classes =
                    classes_of(path, None, run.teacher_output.as_deref(), data.input())?.len();
                return Err(Error::Choice(format!(
                    "{}: what a teacher in an ONNX file ({classes} classes) takes is not known beforehand; plan with --teacher of a weights file, or with --teacher-logits",
                    path.display()
                )));
            }
            (Some(path), _) if path.exists() => {
                let count = Some(data.classes.len());
                let found = weights::peek(path)?.config(run.teacher_model, count)?;
                network_for(found.architecture, data)
            }
            (None, Some(teacher)) => network_for(teacher.model, data),
            (path, _) => {
                let model = run.teacher_model.unwrap_or(Architecture::TUTORIAL_TEACHER);
                let what = path.as_ref().map_or("no file is named".into(), |path| {
                    format!("{} is not there", path.display())
                });
                notes.push(format!(
                    "{}: the teacher's weights: {what}; planned with the network {model}",
                    run.name
                ));
                network_for(model, data)
            }
        };
        let parameters = kd_models::init(&network, 0, &candle_core::Device::Cpu)?;
        let tensors: BTreeMap<String, Tensor> =
            parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        Ok::<_, Error>(fresh(network, tensors, run.cross_fit, resolved))
    };
    let mut members = Vec::new();
    for path in &choices.teacher {
        members.push(fresh_of(Some(path.clone()), None)?);
    }
    for name in run.teachers().iter().filter(|_| choices.teacher.is_empty()) {
        let folder = choices.recipe_folder.as_deref().unwrap_or(Path::new(""));
        let file = named(name).is_none().then(|| folder.join(name));
        members.push(fresh_of(file, named(name))?);
    }
    match members.len() {
        0 => fresh_of(None, None),
        1 => Ok(members.remove(0)),
        _ => {
            let combination = run.combination();
            let combination = combination
                .map_err(|error| Error::Choice(format!("run {:?}: {error}", run.name)))?;
            let first = members[0].config;
            let whole = fresh(first, members[0].tensors.clone(), None, resolved);
            Ok(Pretrained { members, combination, ..whole })
        }
    }
}

fn fresh(
    config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
    parts: Option<usize>,
    resolved: &RunRecipe,
) -> Pretrained {
    Pretrained {
        path: Path::new("").to_owned(),
        sha256: String::new(),
        config,
        foreign: None,
        parts: vec![tensors.clone(); parts.unwrap_or(0)],
        members: Vec::new(),
        combination: Combination::default(),
        tensors,
        left_out: None,
        normalization: resolved.data.normalization(),
        renormalize: None,
        identity: String::new(),
        notes: Vec::new(),
    }
}
