//! Lines over epochs.

use std::fmt::Write;

use minijinja::HtmlEscape;

use super::{Axis, axes, colour, mark, open, path, round_step};

/// One line of a line chart.
pub(crate) struct Series {
    pub(crate) label: String,
    /// Colour and mark.
    pub(crate) slot: usize,
    pub(crate) points: Vec<Point>,
}

pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Half the height of the band around the line.
    pub(crate) spread: Option<f64>,
}

/// Values over epochs; `unit` follows each value that a pointer shows.
pub(crate) fn line_chart(description: &str, unit: &str, series: &[Series]) -> String {
    let (width, height) = (340.0, 232.0);
    let (left, right, top, bottom) = (36.0, width - 4.0, 8.0, height - 34.0);
    let points = || series.iter().flat_map(|line| &line.points);
    let low = points().map(|p| p.y - p.spread.unwrap_or(0.0));
    let high = points().map(|p| p.y + p.spread.unwrap_or(0.0));
    let y = Axis::rounded(
        low.fold(f64::INFINITY, f64::min),
        high.fold(f64::NEG_INFINITY, f64::max),
        bottom,
        top,
        5.0,
    );
    let first = points().map(|p| p.x).fold(f64::INFINITY, f64::min);
    let last = points().map(|p| p.x).fold(f64::NEG_INFINITY, f64::max);
    // A single epoch stands in the middle.
    let room = if last > first { 0.0 } else { 0.5 };
    let x = Axis {
        low: first - room,
        high: last + room,
        from: left + 8.0,
        to: right - 6.0,
        step: round_step((last - first).max(1.0), 10.0).max(1.0),
    };

    let mut svg = String::new();
    open(&mut svg, width, height, description);
    axes(&mut svg, &x, &y, [left, right, bottom]);
    let _ = write!(
        svg,
        "<text class=\"tick end\" x=\"{right}\" y=\"{:.1}\">epoch</text>",
        height - 4.0
    );
    for line in series {
        let band: Vec<(&Point, f64)> =
            line.points.iter().filter_map(|point| Some((point, point.spread?))).collect();
        if band.len() > 1 {
            let upper = band.iter().map(|(p, sd)| (x.at(p.x), y.at(p.y + sd)));
            let lower = band.iter().rev().map(|(p, sd)| (x.at(p.x), y.at(p.y - sd)));
            let _ = write!(
                svg,
                "<path class=\"band {}\" d=\"{}Z\"/>",
                colour(line.slot),
                path(upper.chain(lower))
            );
        }
    }
    for line in series {
        let at = |p: &Point| (x.at(p.x), y.at(p.y));
        let _ = write!(
            svg,
            "<path class=\"line {}\" d=\"{}\"/>",
            colour(line.slot),
            path(line.points.iter().map(at))
        );
        let every = line.points.len().div_ceil(12).max(1);
        for (index, point) in line.points.iter().enumerate() {
            let (px, py) = at(point);
            let from_end = line.points.len() - 1 - index;
            let shape = if from_end.is_multiple_of(every) {
                mark(line.slot, px, py, 3.2, "")
            } else {
                String::new()
            };
            let _ = write!(
                svg,
                "<g>{shape}<circle class=\"hit\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"7\"/><title>{}, epoch {}: {:.4}{unit}</title></g>",
                HtmlEscape(&line.label),
                point.x,
                Short(point.y)
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// Four decimals at most, without trailing zeros.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.4}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}
