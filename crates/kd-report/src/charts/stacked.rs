//! Bars cut into their parts.

use std::fmt::Write;

use minijinja::HtmlEscape;

use super::{open, shortened};

/// A row of parts that together are a whole.
pub(crate) struct StackedRow {
    pub(crate) label: String,
    /// Class of the colour, share of the whole, and what a pointer held over it says.
    pub(crate) parts: Vec<(&'static str, f64, String)>,
}

/// A square in a colour, for a legend.
pub(crate) fn swatch(class: &str) -> String {
    format!(
        "<svg class=\"key\" viewBox=\"0 0 14 14\" width=\"14\" height=\"14\" aria-hidden=\"true\"><rect class=\"part {class}\" width=\"14\" height=\"14\" rx=\"2\"/></svg>"
    )
}

/// A bar per row, as long as all others, cut into its parts.
pub(crate) fn stacked_bars(description: &str, rows: &[StackedRow]) -> String {
    let width = 440.0;
    let longest = rows.iter().map(|row| row.label.chars().count()).max();
    let left = 12.0 + 6.6 * longest.unwrap_or(0).min(22) as f64;
    let (pitch, thick, top) = (34.0, 24.0, 4.0);
    let bottom = top + pitch * rows.len() as f64;
    let mut svg = String::new();
    open(&mut svg, width, bottom + 2.0, description);
    for (index, row) in rows.iter().enumerate() {
        let y = top + pitch * index as f64;
        let middle = y + thick / 2.0 + 4.0;
        let _ = write!(
            svg,
            "<text class=\"label end\" x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
            left - 8.0,
            HtmlEscape(&shortened(&row.label, 22))
        );
        let mut from = left;
        for (class, share, title) in &row.parts {
            let length = share * (width - left);
            let shown = (length - 2.0).max(0.0);
            let _ = write!(
                svg,
                "<g><rect class=\"part {class}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{shown:.1}\" height=\"{thick}\"/>"
            );
            if length > 27.0 {
                let _ = write!(
                    svg,
                    "<text class=\"inside {class}\" x=\"{:.1}\" y=\"{middle:.1}\">{:.1}</text>",
                    from + shown / 2.0,
                    100.0 * share
                );
            }
            let _ = write!(svg, "<title>{}</title></g>", HtmlEscape(title));
            from += length;
        }
    }
    svg.push_str("</svg>");
    svg
}
