//! Accuracy over confidence.

use std::fmt::Write;

use minijinja::HtmlEscape;

use super::{Axis, colour, open};

/// One interval of a reliability diagram.
pub(crate) struct Reliability {
    /// Confidences, from 0 to 1.
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Share of right answers.
    pub(crate) right: f64,
    /// Share of all images.
    pub(crate) share: f64,
    pub(crate) title: String,
}

/// Share right over confidence, the line where both are equal, and a strip with the images' shares.
pub(crate) fn reliability_diagram(description: &str, slot: usize, bins: &[Reliability]) -> String {
    let (width, height) = (270.0, 276.0);
    let (left, right, top, bottom) = (32.0, width - 10.0, 8.0, 188.0);
    let (strip_top, strip_bottom) = (bottom + 10.0, bottom + 44.0);
    let axis = |from, to| Axis { low: 0.0, high: 100.0, from, to, step: 20.0 };
    let (x, y) = (axis(left, right), axis(bottom, top));
    let mut svg = String::new();
    open(&mut svg, width, height, description);
    for tick in y.ticks() {
        let (down, across) = (y.at(tick), x.at(tick));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{left} {down:.1}L{right} {down:.1}\"/><text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{tick}</text><text class=\"tick mid\" x=\"{across:.1}\" y=\"{:.1}\">{tick}</text>",
            left - 7.0,
            down + 4.0,
            strip_bottom + 17.0,
        );
    }
    let most = bins.iter().map(|bin| bin.share).fold(f64::MIN_POSITIVE, f64::max);
    let colour = colour(slot);
    for bin in bins {
        let (from, to) = (x.at(100.0 * bin.from) + 1.0, x.at(100.0 * bin.to) - 1.0);
        let at = y.at(100.0 * bin.right);
        let strip = (strip_bottom - strip_top) * bin.share / most;
        let _ = write!(
            svg,
            "<g><rect class=\"bar {colour}\" x=\"{from:.1}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"{:.1}\"/><rect class=\"strip\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{strip:.1}\"/><rect class=\"hit\" x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"/><title>{}</title></g>",
            to - from,
            bottom - at,
            strip_bottom - strip,
            to - from,
            to - from,
            strip_bottom - top,
            HtmlEscape(&bin.title)
        );
    }
    let _ = write!(
        svg,
        "<path class=\"ideal\" d=\"M{left} {bottom}L{right} {top}\"/><path class=\"zero\" d=\"M{left} {strip_bottom}L{right} {strip_bottom}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">accuracy, %</text><text class=\"tick end\" x=\"{right}\" y=\"{:.1}\">confidence, %</text></svg>",
        left + 5.0,
        top + 14.0,
        height - 5.0
    );
    svg
}
