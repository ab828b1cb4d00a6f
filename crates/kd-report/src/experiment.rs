//! What lies below one output folder: runs, grouped by name over the seeds.

mod read;
mod roles;
mod run;

use kd_record::{Comparison, DatasetRecord, Evaluation, Profile};

use crate::statistics;
pub(crate) use read::read_all;
pub(crate) use run::Run;

/// Everything read below one output folder.
pub(crate) struct Experiment {
    /// The folder's name, short enough for a heading.
    pub(crate) label: String,
    /// The images of all runs.
    pub(crate) dataset: DatasetRecord,
    /// What the first run computed on.
    pub(crate) device: String,
    /// From the lowest to the highest; one without seed folders.
    pub(crate) seeds: Vec<u64>,
    /// Trained alone first (the largest before the smaller), then distilled.
    pub(crate) arms: Vec<Arm>,
    /// The table of `kd compare`, where it lies in the folder.
    pub(crate) comparison: Option<Comparison>,
    /// What `kd profile` measured, where it lies in the folder.
    pub(crate) profile: Option<Profile>,
}

impl Experiment {
    /// The test figures of the runs that have ended.
    pub(crate) fn evaluations(&self) -> impl Iterator<Item = &Evaluation> {
        let runs = self.arms.iter().flat_map(|arm| &arm.runs);
        runs.filter_map(|run| run.evaluation.as_ref())
    }
}

/// The runs of one name, over the seeds.
pub(crate) struct Arm {
    /// The runs' name.
    pub(crate) name: String,
    /// One for each seed that has it, in the seeds' order; at least one.
    pub(crate) runs: Vec<Run>,
}

impl Arm {
    pub(crate) fn first(&self) -> &Run {
        &self.runs[0]
    }

    pub(crate) fn model(&self) -> &str {
        &self.first().start.model
    }

    /// One value of each run.
    pub(crate) fn values(&self, of: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(of).collect()
    }

    /// One value of each run; `None` where a run has none.
    pub(crate) fn known(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<Vec<f64>> {
        self.runs.iter().map(of).collect()
    }

    /// The mean of one value of each run.
    pub(crate) fn mean(&self, of: impl Fn(&Run) -> f64) -> f64 {
        statistics::mean(&self.values(of)).unwrap_or(f64::NAN)
    }

    /// The run with that seed.
    pub(crate) fn of_seed(&self, seed: u64) -> Option<&Run> {
        self.runs.iter().find(|run| run.start.seed == seed)
    }

    pub(crate) fn unfinished(&self) -> bool {
        self.runs.iter().any(|run| !run.finished)
    }

    /// How many epochs the runs have: "10", or "4 to 10" where seeds differ.
    pub(crate) fn epochs(&self) -> String {
        let counts = self.runs.iter().map(|run| run.epochs.len());
        let (low, high) = (counts.clone().min(), counts.max());
        let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
        if low == high { high.to_string() } else { format!("{low} to {high}") }
    }

    /// This arm's value minus the other's, seed by seed, over the seeds that both have.
    pub(crate) fn paired(&self, other: &Arm, of: impl Fn(&Run) -> Option<f64>) -> Vec<f64> {
        let difference = |run: &Run| Some(of(run)? - of(other.of_seed(run.start.seed)?)?);
        self.runs.iter().filter_map(difference).collect()
    }

    /// Confusion counts summed over the seeds, with the class names; `None` before a run ends.
    pub(crate) fn confusion(&self) -> Option<(&[String], Vec<Vec<u64>>)> {
        let found = self.runs.iter().filter_map(|run| run.evaluation.as_ref());
        let classes = &found.clone().next()?.classes;
        let mut sum = vec![vec![0; classes.len()]; classes.len()];
        for evaluation in found.filter(|other| other.classes == *classes) {
            for (row, other) in sum.iter_mut().zip(&evaluation.confusion) {
                for (cell, count) in row.iter_mut().zip(other) {
                    *cell += u64::from(*count);
                }
            }
        }
        Some((classes, sum))
    }
}
