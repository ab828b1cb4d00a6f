//! Run folders as they lie on disk -> runs grouped by name over seeds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kd_record::{Comparison, DatasetRecord, OutFolder, Profile, RunFolder};

use super::{Arm, Experiment, Run};
use crate::{Error, Result};

/// Reads each folder; labels are the folders' names, or their paths where names repeat.
pub(crate) fn read_all(outs: &[PathBuf]) -> Result<Vec<Experiment>> {
    let mut experiments = Vec::with_capacity(outs.len());
    for out in outs {
        let mut experiment = read(out)?;
        let same_name = |other: &&PathBuf| folder_name(other) == folder_name(out);
        experiment.label = match outs.iter().filter(same_name).count() {
            0 | 1 => folder_name(out),
            _ => out.display().to_string(),
        };
        experiments.push(experiment);
    }
    Ok(experiments)
}

fn folder_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = whole.file_name().map(|name| name.to_string_lossy().into());
    name.unwrap_or_else(|| path.display().to_string())
}

fn read(out: &Path) -> Result<Experiment> {
    if RunFolder::new(out).has_begun() {
        return Err(Error::RunFolder(out.to_owned()));
    }
    let out = OutFolder::new(out);
    let mut folders = out.seeds()?;
    if folders.is_empty() {
        folders.push(out.clone());
    }
    let mut runs = Vec::new();
    for above in &folders {
        for folder in above.runs()? {
            runs.extend(Run::read(&folder)?);
        }
    }
    let Some(first) = runs.first() else { return Err(Error::NoRuns(out.path)) };
    let expected = &first.start.dataset;
    if let Some(run) = runs.iter().find(|run| !same_data(&run.start.dataset, expected)) {
        return Err(Error::DifferentData {
            path: run.folder.clone(),
            found: describe(&run.start.dataset),
            other: first.folder.clone(),
            expected: describe(expected),
        });
    }
    let dataset = DatasetRecord { warning: warnings(&runs), ..expected.clone() };
    let device = first.start.device.clone();
    let mut seeds: Vec<u64> = runs.iter().map(|run| run.start.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let comparison = Comparison::read(&out.comparison())?;
    let profile = Profile::read(&out.profile())?;
    let (label, arms) = (String::new(), arms(runs)?);
    Ok(Experiment { label, dataset, device, seeds, arms, comparison, profile })
}

/// What the runs say about their images, each sentence once.
fn warnings(runs: &[Run]) -> Option<String> {
    let mut sentences: Vec<&str> = Vec::new();
    for warning in runs.iter().filter_map(|run| run.start.dataset.warning.as_deref()) {
        for sentence in warning.split("; ") {
            if !sentences.contains(&sentence) {
                sentences.push(sentence);
            }
        }
    }
    (!sentences.is_empty()).then(|| sentences.join("; "))
}

/// Groups runs by their names.
fn arms(runs: Vec<Run>) -> Result<Vec<Arm>> {
    let mut by_name: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for run in runs {
        by_name.entry(run.start.run.clone()).or_default().push(run);
    }
    let mut arms = Vec::new();
    for (name, mut runs) in by_name {
        runs.sort_by_key(|run| run.start.seed);
        if let Some(pair) = runs.windows(2).find(|w| w[0].start.seed == w[1].start.seed) {
            let found = format!(
                "run {name:?} with seed {} is also in {}; keep one of them",
                pair[1].start.seed,
                pair[0].folder.display()
            );
            return Err(kd_record::Error::corrupt(&pair[1].folder, None, found).into());
        }
        arms.push(Arm { name, runs });
    }
    arms.sort_by_key(|arm| {
        let size = std::cmp::Reverse(arm.first().start.parameters);
        let known = ["kd", "cosine", "regressor"];
        let place = known.iter().position(|name| *name == arm.name);
        (arm.has_methods(), size, place.unwrap_or(known.len()))
    });
    Ok(arms)
}

fn same_data(one: &DatasetRecord, other: &DatasetRecord) -> bool {
    (&one.name, &one.sha256, one.test) == (&other.name, &other.sha256, other.test)
}

fn describe(dataset: &DatasetRecord) -> String {
    let start: String = dataset.sha256.chars().take(12).collect();
    format!("{} ({} test images, sha256 {start}...)", dataset.name, dataset.test)
}
