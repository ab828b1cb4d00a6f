//! The table of the project's own comparison.

use std::path::Path;

use kd_report::compare::{Baselines, Figure, Figures, table};

#[test]
fn the_documents_table_is_that_of_the_raw_figures() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let figures = Figures::read(&docs.join("results/methods-cifar10.json")).unwrap();
    let table = table::table(&figures, &Baselines::default(), Figure::Accuracy).unwrap();
    let text = table::markdown(&table);
    let document = std::fs::read_to_string(docs.join("methods.md")).unwrap();
    assert!(document.contains(&text), "docs/methods.md is to hold this:\n{text}");
}
