//! Points by two values.

use std::fmt::Write;

use minijinja::HtmlEscape;

use super::{Axis, axes, mark, open};

/// A point with its name.
pub(crate) struct Marked {
    pub(crate) label: String,
    /// Colour and mark.
    pub(crate) slot: usize,
    pub(crate) x: f64,
    pub(crate) y: f64,
}

/// Points by two values: the horizontal axis begins at 0, the vertical one below the lowest point; `across` and `up` are their titles.
pub(crate) fn scatter(description: &str, across: &str, up: &str, points: &[Marked]) -> String {
    let (width, height) = (340.0, 252.0);
    let (left, right, top, bottom) = (42.0, width - 10.0, 24.0, height - 40.0);
    let of = |value: fn(&Marked) -> f64| points.iter().map(value);
    let x = Axis::rounded(0.0, of(|p| p.x).fold(0.0, f64::max), left, right, 5.0);
    let (low, high) =
        (of(|p| p.y).fold(f64::INFINITY, f64::min), of(|p| p.y).fold(f64::NEG_INFINITY, f64::max));
    let y = Axis::rounded(low, high, bottom, top, 5.0);

    let mut svg = String::new();
    open(&mut svg, width, height, description);
    axes(&mut svg, &x, &y, [left, right, bottom]);
    let _ = write!(
        svg,
        "<text class=\"tick\" x=\"2\" y=\"12\">{}</text><text class=\"tick end\" x=\"{right}\" y=\"{:.1}\">{}</text>",
        HtmlEscape(up),
        height - 6.0,
        HtmlEscape(across)
    );
    for point in points {
        let (px, py) = (x.at(point.x), y.at(point.y));
        let _ = write!(
            svg,
            "<g>{}<circle class=\"hit\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"9\"/><title>{}: {:.2} {}, {:.2} {}</title></g>",
            mark(point.slot, px, py, 4.5, ""),
            HtmlEscape(&point.label),
            point.y,
            HtmlEscape(up),
            point.x,
            HtmlEscape(across)
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_faster_and_more_accurate_network_stands_further_left_and_higher() {
        let point = |label: &str, slot, x, y| Marked { label: label.into(), slot, x, y };
        let points = [point("slow & weak", 0, 8.0, 60.0), point("quick", 0, 2.0, 70.0)];
        let svg = scatter("Accuracy over latency", "ms", "%", &points);
        let number = |text: &str| text.split('"').next().unwrap().parse::<f64>().unwrap();
        let hits: Vec<(f64, f64)> = svg
            .split("class=\"hit\" cx=\"")
            .skip(1)
            .map(|hit| (number(hit), number(hit.split("cy=\"").nth(1).unwrap())))
            .collect();
        // The axes go from 0 to 8 and from 60 to 70: pixels 42 to 330 and 212 to 24.
        assert_eq!(hits, [(330.0, 212.0), (114.0, 24.0)]);
        assert!(svg.contains("<title>slow &amp; weak: 60.00 %, 8.00 ms</title>"), "{svg}");
    }
}
