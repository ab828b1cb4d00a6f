//! The table of all runs.

use crate::experiment::Run;
use crate::format::{duration, grouped, percent_spread, points_spread, rate};
use crate::page::parts::{Shown, Table};
use crate::published;

pub(crate) fn table(shown: &[Shown<'_>]) -> Table {
    let with_source = shown.iter().any(|shown| shown.experiment.dataset.name == "cifar10");
    let mut head = vec![
        "Run",
        "Accuracy\u{a0}%",
        "Best epoch\u{a0}%",
        "Balanced\u{a0}%",
        "Macro F1\u{a0}%",
        "Gain, points",
    ];
    if with_source {
        head.extend(["Lecture\u{a0}%", "Tutorial\u{a0}%"]);
    }
    head.extend(["Test loss", "Parameters", "Epochs", "Time", "Images/s"]);
    let dash = || "–".to_owned();
    let known =
        |values: Option<Vec<f64>>| values.map_or_else(dash, |values| percent_spread(&values));
    let row = |shown: &Shown<'_>| {
        let arm = shown.arm;
        let mut row = vec![
            shown.label.clone(),
            percent_spread(&arm.values(Run::test_accuracy)),
            percent_spread(&arm.values(Run::best_test_accuracy)),
            known(arm.known(Run::balanced_accuracy)),
            known(arm.known(Run::macro_f1)),
            shown.experiment.gain(arm).map_or_else(dash, |gain| points_spread(&gain)),
        ];
        if with_source {
            let own = shown.experiment.dataset.name == "cifar10";
            let figures = published::figures(&arm.name).filter(|_| own);
            let lecture = figures.as_ref().and_then(|figures| figures.lecture);
            row.push(lecture.map_or_else(dash, str::to_owned));
            row.push(figures.map_or_else(dash, |figures| figures.tutorial.to_owned()));
        }
        row.extend([
            format!("{:.4}", arm.mean(Run::test_loss)),
            grouped(arm.first().start.parameters as u64),
            arm.epochs(),
            duration(arm.mean(Run::seconds)),
            rate(arm.mean(Run::images_per_second)),
        ]);
        row
    };
    Table {
        caption: "All runs".to_owned(),
        head: head.into_iter().map(str::to_owned).collect(),
        rows: shown.iter().map(row).collect(),
    }
}
