//! `summary.json` of a folder: every run, and over several seeds the mean and spread of each name.

use serde::Serialize;

use super::experiment::{Dataset, Experiment, Run};
use super::{agreement, calibration, statistics};

#[derive(Serialize)]
struct Summary<'a> {
    format: u32,
    dataset: &'a Dataset,
    device: &'a str,
    /// The lowest, where there are several.
    seed: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seeds: Vec<u64>,
    runs: Vec<RunSummary<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    over_seeds: Vec<OverSeeds<'a>>,
}

#[derive(Serialize)]
struct RunSummary<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    model: &'a str,
    method: Option<&'a str>,
    parameters: u64,
    epochs: usize,
    test_accuracy: f64,
    best_test_accuracy: f64,
    test_loss: f64,
    train_loss: Vec<f64>,
    seconds: f64,
    images_per_second: f64,
    /// The teacher's share of right answers on the images that it teaches with.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_accuracy: Option<f64>,
    /// The mean entropy of its softmax on them, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_entropy: Option<f64>,
    /// On the test images, 15 intervals.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_calibration_error: Option<f64>,
    /// Share of the test images on which it answers as the teacher does.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_agreement: Option<f64>,
}

#[derive(Serialize)]
struct OverSeeds<'a> {
    name: &'a str,
    /// How many seeds this name was run with.
    count: usize,
    test_accuracy: Spread,
    best_test_accuracy: Spread,
    test_loss: Spread,
    seconds: Spread,
    images_per_second: Spread,
    /// Test accuracy minus that of the same network trained alone, seed by seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    gain: Option<Spread>,
}

#[derive(Serialize)]
struct Spread {
    mean: Option<f64>,
    /// Sample standard deviation (n - 1).
    standard_deviation: Option<f64>,
}

fn spread(values: &[f64]) -> Spread {
    Spread {
        mean: statistics::mean(values),
        standard_deviation: statistics::standard_deviation(values),
    }
}

fn run_summary<'a>(experiment: &'a Experiment, run: &'a Run, several: bool) -> RunSummary<'a> {
    RunSummary {
        name: &run.start.run,
        seed: several.then_some(run.start.seed),
        model: &run.start.model,
        method: run.start.method.as_deref(),
        parameters: run.start.parameters,
        epochs: run.epochs.len(),
        test_accuracy: run.test_accuracy(),
        best_test_accuracy: run.best_test_accuracy(),
        test_loss: run.test_loss(),
        train_loss: run.epochs.iter().map(|epoch| epoch.train_loss).collect(),
        seconds: run.seconds(),
        images_per_second: run.images_per_second(),
        teacher_accuracy: run.teacher.map(|teacher| teacher.accuracy),
        teacher_entropy: run.teacher.map(|teacher| teacher.entropy),
        expected_calibration_error: calibration::error_of(run),
        teacher_agreement: agreement::of(experiment, run),
    }
}

pub(super) fn to_json(experiment: &Experiment) -> String {
    let several = experiment.seeds.len() > 1;
    let mut runs = Vec::new();
    for seed in &experiment.seeds {
        let all = experiment.arms.iter().flat_map(|arm| &arm.runs);
        let of_seed = all.filter(|run| run.start.seed == *seed);
        runs.extend(of_seed.map(|run| run_summary(experiment, run, several)));
    }
    let over_seeds = experiment.arms.iter().map(|arm| OverSeeds {
        name: &arm.name,
        count: arm.runs.len(),
        test_accuracy: spread(&arm.values(Run::test_accuracy)),
        best_test_accuracy: spread(&arm.values(Run::best_test_accuracy)),
        test_loss: spread(&arm.values(Run::test_loss)),
        seconds: spread(&arm.values(Run::seconds)),
        images_per_second: spread(&arm.values(Run::images_per_second)),
        gain: experiment
            .alone(arm)
            .map(|alone| spread(&arm.paired(alone, |run| Some(run.test_accuracy())))),
    });
    let summary = Summary {
        format: 1,
        dataset: &experiment.dataset,
        device: &experiment.device,
        seed: experiment.seeds.first().copied().unwrap_or(0),
        seeds: if several { experiment.seeds.clone() } else { Vec::new() },
        runs,
        over_seeds: if several { over_seeds.collect() } else { Vec::new() },
    };
    let mut json = serde_json::to_string_pretty(&summary).unwrap_or_default();
    json.push('\n');
    json
}
