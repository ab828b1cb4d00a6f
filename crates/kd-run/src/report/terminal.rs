//! The table that the terminal shows.

use std::fmt::Write;

use super::experiment::{Arm, Experiment, Run};
use super::format::{duration, grouped, percent_spread, points_spread, seeds};
use super::{source, statistics};
use crate::text::plain;

/// One block per experiment: the data, a row per run name, then what the figures can't carry.
pub(super) fn table(experiments: &[Experiment]) -> String {
    let mut text = String::new();
    for experiment in experiments {
        if experiments.len() > 1 {
            let _ = writeln!(text, "== {} ==", plain(&experiment.label));
        }
        block(&mut text, experiment);
        text.push('\n');
    }
    text
}

fn block(text: &mut String, experiment: &Experiment) {
    let dataset = &experiment.dataset;
    let synthetic = match dataset.name.as_str() {
        "synthetic" => " (drawn by program, not CIFAR-10)",
        _ => "",
    };
    let _ = writeln!(
        text,
        "{}{synthetic}: {} training and {} test images; {}; {}",
        plain(dataset.title()),
        grouped(dataset.train),
        grouped(dataset.test),
        plain(&experiment.device),
        seeds(&experiment.seeds),
    );
    if let Some(warning) = &dataset.warning {
        let _ = writeln!(text, "Warning: {}", plain(warning));
    }
    text.push('\n');

    let with_source = dataset.name == "cifar10";
    let mut header = vec!["run", "accuracy %", "gain"];
    if with_source {
        header.extend(["lecture", "tutorial"]);
    }
    header.extend(["parameters", "epochs", "time"]);
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    for arm in &experiment.arms {
        rows.push(row(experiment, arm, with_source));
    }
    align(text, &rows);

    text.push('\n');
    for note in notes(experiment) {
        let _ = writeln!(text, "{note}");
    }
}

fn row(experiment: &Experiment, arm: &Arm, with_source: bool) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut row = vec![
        plain(&arm.name),
        percent_spread(&arm.values(Run::test_accuracy)),
        gain(experiment, arm).map_or_else(dash, |gain| points_spread(&gain)),
    ];
    if with_source {
        let figures = source::figures(&arm.name);
        let lecture = figures.as_ref().and_then(|figures| figures.lecture);
        row.push(lecture.map_or_else(dash, str::to_owned));
        row.push(figures.map_or_else(dash, |figures| figures.tutorial.to_owned()));
    }
    let mark = if arm.unfinished() { " (running)" } else { "" };
    row.push(grouped(arm.first().start.parameters));
    row.push(format!("{}{mark}", epochs(arm)));
    row.push(duration(arm.mean(Run::seconds)));
    row
}

/// Sentences below the table: what the columns mean and how far chance goes.
pub(super) fn notes(experiment: &Experiment) -> Vec<String> {
    let mut notes = Vec::new();
    let chosen = experiment.arms.iter().flat_map(|arm| &arm.runs).any(Run::chose_its_epoch);
    let accuracy = match chosen {
        false => "accuracy is the last epoch's",
        true => {
            "accuracy is the last epoch's, or that of the epoch which a run chose on held-out training images"
        }
    };
    let gains = experiment.arms.iter().any(|arm| gain(experiment, arm).is_some());
    if experiment.seeds.len() > 1 {
        notes.push(format!(
            "Mean ± standard deviation over {} seeds; {accuracy}; time is one seed's, of the training steps alone.",
            experiment.seeds.len()
        ));
        if gains {
            notes.push("Gain: percentage points over the same student trained alone, paired seed by seed (same initial weights, batch order and dropout).".to_owned());
        }
    } else {
        notes.push(format!("One seed; {accuracy}; time is of the training steps alone."));
        if gains {
            notes.push(
                "Gain: percentage points over the same student trained alone, from the same seed."
                    .to_owned(),
            );
        }
        if let Some(points) = noise(experiment) {
            notes.push(format!(
                "The choice of {} test images alone can move a difference by {points:.1} points (95 %); initial weights and batch order add to that. To tell methods apart, run several seeds (--seeds N).",
                grouped(experiment.dataset.test)
            ));
        }
    }
    if experiment.dataset.name == "cifar10" {
        notes.push("Lecture and tutorial: accuracies in % that the source printed; the tutorial's from two releases, one seed each.".to_owned());
    }
    if experiment.dataset.name == "synthetic" {
        notes.push("Synthetic pictures are drawn by program so that everything runs without a download; these figures say nothing about CIFAR-10.".to_owned());
    }
    notes
}

/// In points, for the student and its distilled twin.
fn noise(experiment: &Experiment) -> Option<f64> {
    let (distilled, student) = (experiment.distilled()?, experiment.student()?);
    let a = distilled.first().test_accuracy();
    let b = student.first().test_accuracy();
    Some(100.0 * statistics::difference_noise(a, b, experiment.dataset.test))
}

/// Differences in test accuracy to the same network trained alone, one per common seed.
pub(super) fn gain(experiment: &Experiment, arm: &Arm) -> Option<Vec<f64>> {
    let alone = experiment.alone(arm)?;
    let gains = arm.paired(alone, |run| Some(run.test_accuracy()));
    (!gains.is_empty()).then_some(gains)
}

/// "10", or "4 to 10" where seeds differ.
pub(super) fn epochs(arm: &Arm) -> String {
    let counts = arm.runs.iter().map(|run| run.epochs.len());
    let (low, high) = (counts.clone().min(), counts.max());
    let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
    if low == high { high.to_string() } else { format!("{low} to {high}") }
}

/// First column to the left, the others to the right.
fn align(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}
