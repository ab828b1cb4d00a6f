//! The table of `kd compare`, where it lies in the folder.

use kd_record::Comparison;

use crate::experiment::Experiment;
use crate::page::parts::{Section, Table, unique};

pub(crate) fn section(experiments: &[Experiment]) -> Option<Section> {
    let found: Vec<_> = experiments.iter().filter_map(|e| e.comparison.as_ref()).collect();
    let table = |comparison: &&Comparison| Table {
        caption: comparison.title.clone(),
        head: comparison.head.clone(),
        rows: comparison.rows.clone(),
    };
    (!found.is_empty()).then(|| Section {
        id: "comparison",
        title: "Arms compared, seed by seed",
        numeric: true,
        intro: unique(found.iter().flat_map(|comparison| comparison.notes.clone())),
        tables: found.iter().map(table).collect(),
        ..Section::default()
    })
}
