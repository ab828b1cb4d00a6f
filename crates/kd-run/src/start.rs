//! A run's first event: what is trained on what, and what it learns from.

use kd_data::Skipped;
use kd_record::event::SkippedPicture;
use kd_record::roles::{MethodRole, WeightsSource};
use kd_record::{DatasetRecord, OutFolder, Roles, Start};

use crate::recipe::needs_teacher;
use crate::run::ResolvedRun;
use crate::{Result, device};

/// The start event of a run.
pub(crate) fn start(run: &ResolvedRun) -> Result<Start> {
    let config = run.model_config();
    let graph = config.graph()?;
    Ok(Start {
        run: run.recipe.run.name.clone(),
        model: config.architecture.name().into(),
        method: run.recipe.run.method_name(),
        parameters: graph.parameter_count(),
        multiply_adds: Some(graph.multiply_adds()),
        device: device::name(&run.device).into(),
        threads: Some(rayon::current_num_threads()),
        machine: Some(device::machine()),
        version: Some(env!("CARGO_PKG_VERSION").into()),
        seed: run.recipe.training.seed,
        dataset: DatasetRecord {
            name: run.data.name.clone(),
            train: run.data.train.len(),
            test: run.data.test.len(),
            sha256: run.data.sha256.clone(),
            warning: run.data.warning.clone(),
            skipped: run.data.skipped.iter().map(skipped).collect(),
        },
        roles: Some(roles(run)),
    })
}

fn skipped(picture: &Skipped) -> SkippedPicture {
    SkippedPicture { path: picture.path.display().to_string(), reason: picture.reason.clone() }
}

fn roles(run: &ResolvedRun) -> Roles {
    let (recipe, out) = (&run.recipe.run, OutFolder::new(&run.out));
    let methods = recipe.methods.iter().map(|term| MethodRole {
        name: term.method.name().into(),
        weight: Some(term.weight),
        asks_teacher: needs_teacher(&term.method),
    });
    let mut teachers = Vec::new();
    for (place, one) in run.teacher.iter().flat_map(|teacher| teacher.answering()).enumerate() {
        // The recipe of a resolved run names the file as seen from the run's folder.
        let named = recipe.teachers().get(place).cloned();
        let file = named.unwrap_or_else(|| one.path.display().to_string());
        teachers.push(WeightsSource::new(&out, file, &one.sha256, recipe.cross_fit));
    }
    if let Some(stored) = &run.teacher_logits {
        let named = recipe.teacher_logits.clone();
        let file = named.unwrap_or_else(|| stored.path.display().to_string());
        teachers.push(WeightsSource::new(&out, file, &stored.sha256, None));
    }
    let mut teachers = teachers.into_iter();
    let (teacher, further_teachers) = (teachers.next(), teachers.collect());
    let init = run.initial.as_ref().map(|initial| {
        let file = recipe.init.clone().unwrap_or_default();
        WeightsSource::new(&out, file, &initial.sha256, None)
    });
    Roles {
        labels: Some(recipe.labels),
        methods: methods.collect(),
        teacher,
        further_teachers,
        init,
    }
}
