//! The pictures that could not be read and were left out.

use crate::experiment::Experiment;
use crate::page::parts::{Section, Table};
use crate::text::plain;

/// The most pictures that the page lists of one experiment; the run's folder has a file with all.
const LISTED: usize = 200;

/// A table for each experiment that left pictures out; `None` where none did.
pub(crate) fn section(experiments: &[Experiment]) -> Option<Section> {
    let several = experiments.len() > 1;
    let tables: Vec<Table> = experiments.iter().filter_map(|one| table(one, several)).collect();
    (!tables.is_empty()).then(|| Section {
        id: "skipped",
        title: "Pictures left out",
        intro: vec![
            "These pictures could not be read. No network was trained or tested on them."
                .to_owned(),
        ],
        tables,
        ..Section::default()
    })
}

fn table(experiment: &Experiment, several: bool) -> Option<Table> {
    let skipped = &experiment.dataset.skipped;
    let all = skipped.len();
    if all == 0 {
        return None;
    }
    let listed = match all > LISTED {
        true => format!(", the first {LISTED}; skipped-pictures.txt in a run's folder lists all"),
        false => String::new(),
    };
    let rows = skipped.iter().take(LISTED);
    Some(Table {
        caption: match several {
            true => format!("{}: {all} pictures{listed}", experiment.label),
            false => format!("{all} pictures{listed}"),
        },
        head: ["Picture", "Why"].map(str::to_owned).to_vec(),
        rows: rows.map(|picture| vec![plain(&picture.path), plain(&picture.reason)]).collect(),
    })
}
