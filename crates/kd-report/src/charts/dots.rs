//! Differences around a zero line.

use std::fmt::Write;

use minijinja::HtmlEscape;

use super::{Axis, colour, mark, open, shortened};

/// One row of a dot plot.
pub(crate) struct DotRow {
    pub(crate) label: String,
    pub(crate) dots: Vec<Dot>,
}

pub(crate) struct Dot {
    pub(crate) slot: usize,
    pub(crate) value: f64,
    /// Half the length of the whisker.
    pub(crate) spread: Option<f64>,
    /// What a pointer held over it says.
    pub(crate) title: String,
    /// A small pale dot: one seed of several.
    pub(crate) faint: bool,
}

/// Differences around a zero line, a row per label; with `lanes` the dots of a row lie below one
/// another.
pub(crate) fn dot_plot(
    description: &str,
    axis_label: &str,
    rows: &[DotRow],
    lanes: bool,
) -> String {
    let width = 400.0;
    let longest = rows.iter().map(|row| row.label.chars().count()).max();
    let left = 18.0 + 6.6 * longest.unwrap_or(0).min(22) as f64;
    let right = width - 14.0;
    let most = rows.iter().map(|row| row.dots.len()).max().unwrap_or(1);
    let lane = 9.0;
    let pitch = if lanes { 12.0 + lane * most as f64 } else { 36.0 };
    let (top, bottom) = (6.0, 9.0 + pitch * rows.len() as f64);
    let height = bottom + 40.0;
    let dots = || rows.iter().flat_map(|row| &row.dots);
    let low = dots().map(|dot| dot.value - dot.spread.unwrap_or(0.0));
    let high = dots().map(|dot| dot.value + dot.spread.unwrap_or(0.0));
    let x = Axis::rounded(low.fold(0.0, f64::min), high.fold(0.0, f64::max), left, right, 6.0);

    let mut svg = String::new();
    open(&mut svg, width, height, description);
    for tick in x.ticks() {
        let at = x.at(tick);
        let class = if tick == 0.0 { "zero" } else { "grid" };
        let sign = if tick > 0.0 { "+" } else { "" };
        let _ = write!(
            svg,
            "<path class=\"{class}\" d=\"M{at:.1} {top}L{at:.1} {bottom:.1}\"/><text class=\"tick mid\" x=\"{at:.1}\" y=\"{:.1}\">{sign}{}</text>",
            bottom + 16.0,
            x.label(tick)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"tick end\" x=\"{right}\" y=\"{:.1}\">{}</text>",
        height - 5.0,
        HtmlEscape(axis_label)
    );
    for (index, row) in rows.iter().enumerate() {
        let middle = top + pitch * (index as f64 + 0.5);
        let _ = write!(
            svg,
            "<text class=\"label end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 10.0,
            middle + 4.0,
            HtmlEscape(&shortened(&row.label, 22))
        );
        if index > 0 && lanes {
            let at = top + pitch * index as f64;
            let _ = write!(svg, "<path class=\"rule\" d=\"M{left} {at:.1}L{right} {at:.1}\"/>");
        }
        let middle_lane = (row.dots.len() as f64 - 1.0) / 2.0;
        for (place, dot) in row.dots.iter().enumerate() {
            let offset = (place as f64 - middle_lane) * lane;
            let y = match (lanes, dot.faint) {
                (true, _) => middle + offset,
                (false, true) => middle + 11.0,
                (false, false) => middle,
            };
            let at = x.at(dot.value);
            svg.push_str("<g>");
            let colour = colour(dot.slot);
            if let Some(spread) = dot.spread {
                let (from, to) = (x.at(dot.value - spread), x.at(dot.value + spread));
                let _ = write!(
                    svg,
                    "<path class=\"whisker {colour}\" d=\"M{from:.1} {y:.1}L{to:.1} {y:.1}M{from:.1} {:.1}L{from:.1} {:.1}M{to:.1} {:.1}L{to:.1} {:.1}\"/>",
                    y - 4.0,
                    y + 4.0,
                    y - 4.0,
                    y + 4.0
                );
            }
            if lanes {
                let zero = x.at(0.0);
                let _ = write!(
                    svg,
                    "<path class=\"stem {colour}\" d=\"M{zero:.1} {y:.1}L{at:.1} {y:.1}\"/>"
                );
            }
            let (r, class) = match (dot.faint, lanes) {
                (true, _) => (2.6, "faint"),
                (false, true) => (3.6, ""),
                (false, false) => (5.5, ""),
            };
            svg.push_str(&mark(dot.slot, at, y, r, class));
            let _ = write!(svg, "<title>{}</title></g>", HtmlEscape(&dot.title));
        }
    }
    svg.push_str("</svg>");
    svg
}
