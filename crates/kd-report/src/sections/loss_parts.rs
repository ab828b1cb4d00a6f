//! The parts of the training loss over the epochs.

use crate::charts::{self, Point, Series};
use crate::page::parts::{Figure, Section, Shown, Table, key, safe};
use crate::statistics;

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let mut figures = Vec::new();
    for shown in shown {
        let mut names: Vec<&String> = Vec::new();
        for name in shown.arm.first().epochs.iter().flat_map(|e| e.parts.keys()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.len() < 2 {
            continue;
        }
        // The labels' part first, in one colour on all charts.
        names.sort_by_key(|name| name.as_str() != "labels");
        let mut numbers = Table::default();
        numbers.head.push("Epoch".to_owned());
        numbers.head.extend(names.iter().map(|name| (*name).clone()));
        let part = |epoch: usize, name: &String| {
            let runs = shown.arm.runs.iter();
            let found = runs.filter_map(|run| run.epochs.iter().find(|e| e.epoch == epoch));
            let values: Vec<f64> = found.filter_map(|e| e.parts.get(name).copied()).collect();
            statistics::mean(&values)
        };
        let epochs: Vec<usize> = shown.arm.first().epochs.iter().map(|e| e.epoch).collect();
        for epoch in &epochs {
            let mut row = vec![epoch.to_string()];
            row.extend(names.iter().map(|name| {
                part(*epoch, name).map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"))
            }));
            numbers.rows.push(row);
        }
        let series: Vec<Series> = names
            .iter()
            .enumerate()
            .map(|(place, name)| Series {
                label: (*name).clone(),
                slot: if place == 0 { 0 } else { shown.slot + place - 1 },
                points: epochs
                    .iter()
                    .filter_map(|epoch| {
                        Some(Point { x: *epoch as f64, y: part(*epoch, name)?, spread: None })
                    })
                    .collect(),
            })
            .collect();
        figures.push(Figure {
            title: shown.label.clone(),
            legend: series.iter().map(|line| key(line.slot, &line.label)).collect(),
            svg: safe(charts::line_chart(
                &format!("Parts of the training loss of {} after each epoch", shown.label),
                "",
                &series,
            )),
            numbers,
            ..Figure::default()
        });
    }
    (!figures.is_empty()).then(|| Section {
        id: "loss",
        title: "Parts of the loss",
        intro: vec!["Each part as it is before its weight, mean over the epoch's batches. The recipe below gives the weights.".to_owned()],
        small: true,
        figures,
        ..Section::default()
    })
}
