//! The section with the confusion matrix of each run; `charts/confusion.rs` draws it.

use crate::charts;
use crate::page::parts::{Figure, Section, Shown, Table, safe};

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let mut figures = Vec::new();
    for shown in shown {
        let Some((classes, counts)) = shown.arm.confusion() else {
            continue;
        };
        let (mut numbers, mut csv) = (Table::default(), None);
        let rows = || {
            classes.iter().zip(&counts).map(|(class, row)| {
                let mut cells = vec![class.clone()];
                cells.extend(row.iter().map(u64::to_string));
                cells
            })
        };
        if classes.len() <= 20 {
            numbers.head.push("True ↓ predicted →".to_owned());
            numbers.head.extend(classes.iter().cloned());
            numbers.rows = rows().collect();
        } else {
            let mut text = format!("true,{}\n", classes.join(","));
            for row in rows() {
                text.push_str(&row.join(","));
                text.push('\n');
            }
            csv = Some(text);
        }
        figures.push(Figure {
            title: shown.label.clone(),
            svg: safe(charts::confusion_matrix(
                &format!("Confusion matrix of {}", shown.label),
                classes,
                &counts,
            )),
            numbers,
            csv,
            ..Figure::default()
        });
    }
    let several = shown.iter().any(|shown| shown.arm.runs.len() > 1);
    let mut intro = vec!["Test images by true and predicted class. Blue: correct; orange: wrong; the shade grows with the root of the share of the row.".to_owned()];
    if several {
        intro.push("Counts are summed over the seeds.".to_owned());
    }
    (!figures.is_empty()).then(|| Section {
        id: "confusion",
        title: "Confusion matrices",
        intro,
        figures,
        ..Section::default()
    })
}
