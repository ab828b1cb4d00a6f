//! Accuracy and losses over the epochs.

use std::collections::BTreeMap;

use kd_record::EpochRecord;

use crate::charts::{self, Point, Series};
use crate::page::parts::{Figure, Section, Shown, Table, legend, safe};
use crate::statistics;

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let several = shown.iter().any(|shown| shown.arm.runs.len() > 1);
    let mut intro = vec!["Training loss is each run's own objective, so a distilled run's is not on the scale of the others; test loss is cross-entropy for all.".to_owned()];
    if several {
        intro.push("Lines are means over the seeds, bands one standard deviation.".to_owned());
    }
    Some(Section {
        id: "curves",
        title: "Learning curves",
        intro,
        legend: legend(shown.iter()),
        small: true,
        figures: vec![
            curve(shown, "Test accuracy, %", " %", 2, |epoch| Some(100.0 * epoch.test_accuracy?)),
            curve(shown, "Test loss", "", 4, |epoch| epoch.test_loss),
            curve(shown, "Training loss", "", 4, |epoch| Some(epoch.train_loss)),
        ],
        ..Section::default()
    })
}

/// One value of every run's epochs, as lines and as a table.
fn curve(
    shown: &[Shown<'_>],
    title: &str,
    unit: &str,
    decimals: usize,
    of: impl Fn(&EpochRecord) -> Option<f64>,
) -> Figure {
    let mut series = Vec::new();
    let mut cells: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (column, shown) in shown.iter().enumerate() {
        let mut by_epoch: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for epoch in shown.arm.runs.iter().flat_map(|run| &run.epochs) {
            by_epoch.entry(epoch.epoch).or_default().extend(of(epoch));
        }
        let mut points = Vec::new();
        for (epoch, values) in &by_epoch {
            let Some(mean) = statistics::mean(values) else {
                continue;
            };
            let spread = statistics::standard_deviation(values);
            let row = cells.entry(*epoch).or_default();
            row.resize(column, "–".to_owned());
            row.push(match spread {
                Some(spread) => format!("{mean:.decimals$} ± {spread:.decimals$}"),
                None => format!("{mean:.decimals$}"),
            });
            points.push(Point { x: *epoch as f64, y: mean, spread });
        }
        series.push(Series { label: shown.label.clone(), slot: shown.slot, points });
    }
    let mut head = vec!["Epoch".to_owned()];
    head.extend(shown.iter().map(|shown| shown.label.clone()));
    let rows = cells.into_iter().map(|(epoch, mut cells)| {
        cells.resize(shown.len(), "–".to_owned());
        cells.insert(0, epoch.to_string());
        cells
    });
    Figure {
        title: title.to_owned(),
        svg: safe(charts::line_chart(
            &format!("{title} after each epoch, a line per run"),
            unit,
            &series,
        )),
        numbers: Table { head, rows: rows.collect(), ..Table::default() },
        ..Figure::default()
    }
}
