//! Draws a confusion matrix as a grid of shaded cells.

use std::fmt::Write;

use minijinja::HtmlEscape;

use super::{open, shortened};

/// Rows are true classes, columns predicted ones; shade is the share of the row, correct predictions in
/// one hue and mistakes in another.
pub(crate) fn confusion_matrix(
    description: &str,
    classes: &[String],
    counts: &[Vec<u64>],
) -> String {
    let named = classes.len() <= 20;
    let longest = classes.iter().map(|class| class.chars().count()).max();
    let names = if named { 12.0 + 6.0 * longest.unwrap_or(0).min(14) as f64 } else { 8.0 };
    let axis = 16.0;
    let start = axis + names;
    let cell = ((420.0 - start) / classes.len().max(1) as f64).min(60.0);
    let side = start + cell * classes.len() as f64 + 2.0;

    let mut svg = String::new();
    open(&mut svg, side, side, description);
    let middle = start + cell * classes.len() as f64 / 2.0;
    let _ = write!(
        svg,
        "<text class=\"tick mid\" x=\"{middle:.1}\" y=\"11\">predicted</text><text class=\"tick mid\" transform=\"translate(11 {middle:.1}) rotate(-90)\">true</text>"
    );
    for (index, class) in classes.iter().enumerate().filter(|_| named) {
        let name = shortened(class, 14);
        let name = HtmlEscape(&name);
        let at = start + cell * (index as f64 + 0.5) + 4.0;
        let _ = write!(
            svg,
            "<text class=\"label end\" x=\"{:.1}\" y=\"{at:.1}\">{name}</text><text class=\"label\" transform=\"translate({at:.1} {:.1}) rotate(-90)\">{name}</text>",
            start - 6.0,
            start - 6.0
        );
    }
    for (row, values) in counts.iter().enumerate() {
        let total = values.iter().sum::<u64>().max(1) as f64;
        for (column, count) in values.iter().enumerate() {
            let share = *count as f64 / total;
            // The root makes the rarer mistakes visible.
            let shade = share.sqrt();
            let hue = if row == column { "right" } else { "wrong" };
            let x = start + cell * column as f64;
            let y = start + cell * row as f64;
            if !named {
                // Thousands of cells: neither text nor titles, and nothing where nothing is.
                if *count > 0 {
                    let _ = write!(
                        svg,
                        "<rect class=\"{hue}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell:.1}\" height=\"{cell:.1}\" fill-opacity=\"{shade:.2}\"/>"
                    );
                }
                continue;
            }
            let truth = &classes[row];
            let title = if values.iter().all(|count| *count == 0) {
                format!("{truth}: no test image")
            } else if row == column {
                format!("{truth}: {count} correct ({:.1} %)", share * 100.0)
            } else {
                let guess = &classes[column];
                format!("{truth} taken for {guess}: {count} ({:.1} %)", share * 100.0)
            };
            let _ = write!(
                svg,
                "<g><rect class=\"{hue}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" fill-opacity=\"{shade:.2}\"/><text class=\"count\" x=\"{:.1}\" y=\"{:.1}\">{count}</text><title>{}</title></g>",
                x + cell / 2.0 - 0.75,
                y + cell / 2.0 + 3.0,
                HtmlEscape(&title),
                side = cell - 1.5,
            );
        }
    }
    svg.push_str("</svg>");
    svg
}
