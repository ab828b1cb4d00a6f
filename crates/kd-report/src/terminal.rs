//! The table that the terminal shows.

use std::fmt::Write;

use kd_record::Evaluation;

use crate::experiment::{Arm, Experiment, Run};
use crate::findings::{best, findings};
use crate::format::{dataset_title, duration, grouped, percent_spread, points_spread, seeds};
use crate::notes::notes;
use crate::published;
use crate::text::plain;

/// One block per experiment: the data, a row per run name, then what the figures can't carry.
pub(crate) fn table(experiments: &[Experiment]) -> String {
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
        plain(dataset_title(&dataset.name)),
        grouped(dataset.train as u64),
        grouped(dataset.test as u64),
        plain(&experiment.device),
        seeds(&experiment.seeds),
    );
    if let Some(warning) = &dataset.warning {
        let _ = writeln!(text, "Warning: {}", plain(warning));
    }
    text.push('\n');
    if !best(experiment).is_empty() {
        for sentence in findings(experiment) {
            let _ = writeln!(text, "{}", plain(&sentence));
        }
        text.push('\n');
    }

    let with_source = dataset.name == "cifar10";
    // Of evenly many test images the balanced accuracy is the accuracy.
    let uneven = experiment.evaluations().any(Evaluation::is_uneven);
    let mut header = vec!["run", "accuracy %"];
    if uneven {
        header.extend(["balanced %", "macro F1 %"]);
    }
    header.push("gain");
    if with_source {
        header.extend(["lecture", "tutorial"]);
    }
    header.extend(["parameters", "epochs", "time"]);
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    for arm in &experiment.arms {
        rows.push(row(experiment, arm, uneven, with_source));
    }
    align(text, &rows);

    text.push('\n');
    for note in notes(experiment) {
        let _ = writeln!(text, "{note}");
    }
}

fn row(experiment: &Experiment, arm: &Arm, uneven: bool, with_source: bool) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut row = vec![plain(&arm.name), percent_spread(&arm.values(Run::test_accuracy))];
    if uneven {
        for values in [arm.known(Run::balanced_accuracy), arm.known(Run::macro_f1)] {
            row.push(values.map_or_else(dash, |values| percent_spread(&values)));
        }
    }
    row.push(experiment.gain(arm).map_or_else(dash, |gain| points_spread(&gain)));
    if with_source {
        let figures = published::figures(&arm.name);
        let lecture = figures.as_ref().and_then(|figures| figures.lecture);
        row.push(lecture.map_or_else(dash, str::to_owned));
        row.push(figures.map_or_else(dash, |figures| figures.tutorial.to_owned()));
    }
    let mark = if arm.unfinished() { " (running)" } else { "" };
    row.push(grouped(arm.first().start.parameters as u64));
    row.push(format!("{}{mark}", arm.epochs()));
    row.push(duration(arm.mean(Run::seconds)));
    row
}

/// First column to the left, the others to the right.
/// Columns in line: the first to the left, figures to the right.
pub(crate) fn align(text: &mut String, rows: &[Vec<String>]) {
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
