//! `summary.json` of a folder: every run, and over several seeds the mean and spread of each name.

use kd_record::Summary;
use kd_record::summary::{FORMAT, OverSeeds, RunSummary, Spread};

use crate::experiment::{Arm, Experiment, Run};
use crate::sections::{agreement, calibration};
use crate::statistics;

/// What the file of this experiment says.
pub(crate) fn of(experiment: &Experiment) -> Summary {
    let several = experiment.seeds.len() > 1;
    let mut runs = Vec::new();
    for seed in &experiment.seeds {
        let all = experiment.arms.iter().flat_map(|arm| &arm.runs);
        let of_seed = all.filter(|run| run.start.seed == *seed);
        runs.extend(of_seed.map(|run| run_summary(experiment, run, several)));
    }
    let over_seeds = experiment.arms.iter().map(|arm| of_arm(experiment, arm));
    Summary {
        format: FORMAT,
        dataset: experiment.dataset.clone(),
        device: experiment.device.clone(),
        seed: experiment.seeds.first().copied().unwrap_or(0),
        seeds: if several { experiment.seeds.clone() } else { Vec::new() },
        runs,
        over_seeds: if several { over_seeds.collect() } else { Vec::new() },
    }
}

fn run_summary(experiment: &Experiment, run: &Run, several: bool) -> RunSummary {
    RunSummary {
        name: run.start.run.clone(),
        seed: several.then_some(run.start.seed),
        model: run.start.model.clone(),
        method: run.start.method.clone(),
        parameters: run.start.parameters,
        epochs: run.epochs.len(),
        epochs_before: run.extensions.iter().map(|extension| extension.from).collect(),
        test_accuracy: run.test_accuracy(),
        best_test_accuracy: run.best_test_accuracy(),
        test_balanced_accuracy: run.balanced_accuracy(),
        test_macro_f1: run.macro_f1(),
        test_flip_accuracy: run.test_flip_accuracy(),
        test_loss: run.test_loss(),
        train_loss: run.epochs.iter().map(|epoch| epoch.train_loss).collect(),
        seconds: run.seconds(),
        images_per_second: run.images_per_second(),
        teachers: run.start.roles().several_teachers(),
        teacher_accuracy: run.teacher.map(|teacher| teacher.accuracy),
        teacher_entropy: run.teacher.map(|teacher| teacher.entropy),
        expected_calibration_error: calibration::error_of(run),
        teacher_agreement: agreement::of(experiment, run),
    }
}

fn of_arm(experiment: &Experiment, arm: &Arm) -> OverSeeds {
    let over_runs = |of: fn(&Run) -> f64| spread(&arm.values(of));
    OverSeeds {
        name: arm.name.clone(),
        count: arm.runs.len(),
        test_accuracy: over_runs(Run::test_accuracy),
        best_test_accuracy: over_runs(Run::best_test_accuracy),
        test_balanced_accuracy: arm.known(Run::balanced_accuracy).as_deref().map(spread),
        test_macro_f1: arm.known(Run::macro_f1).as_deref().map(spread),
        test_loss: over_runs(Run::test_loss),
        seconds: over_runs(Run::seconds),
        images_per_second: over_runs(Run::images_per_second),
        gain: experiment
            .alone(arm)
            .map(|alone| spread(&arm.paired(alone, |run| Some(run.test_accuracy())))),
    }
}

fn spread(values: &[f64]) -> Spread {
    Spread {
        mean: statistics::mean(values),
        standard_deviation: statistics::standard_deviation(values),
    }
}
