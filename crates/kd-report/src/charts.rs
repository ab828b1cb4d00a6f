//! Charts as inline SVG, a file a kind. Colours come from the page's style sheet by class (`s0`, `s1`, ...: one per run) and follow
//! light and dark; marks differ in shape too, so that colour is never alone.

mod confusion;
mod dots;
mod lines;
mod reliability;
mod scatter;
mod stacked;

use std::fmt::Write;

use minijinja::HtmlEscape;

pub(crate) use confusion::confusion_matrix;
pub(crate) use dots::{Dot, DotRow, dot_plot};
pub(crate) use lines::{Point, Series, line_chart};
pub(crate) use reliability::{Reliability, reliability_diagram};
pub(crate) use scatter::{Marked, scatter};
pub(crate) use stacked::{StackedRow, stacked_bars, swatch};

/// Number of colours in the style sheet.
const COLOURS: usize = 8;

/// The class that carries the colour of a slot.
pub(crate) fn colour(slot: usize) -> String {
    format!("s{}", slot % COLOURS)
}

/// The mark of a slot, `r` about its radius.
fn mark(slot: usize, x: f64, y: f64, r: f64, class: &str) -> String {
    let colour = colour(slot);
    let open = format!("class=\"mark {class} {colour}\"");
    match slot % 6 {
        0 => format!("<circle {open} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"/>"),
        1 => {
            let s = r * 0.9;
            let (left, top) = (x - s, y - s);
            let side = 2.0 * s;
            format!(
                "<rect {open} x=\"{left:.1}\" y=\"{top:.1}\" width=\"{side:.1}\" height=\"{side:.1}\"/>"
            )
        }
        shape => {
            let corners: &[(f64, f64)] = match shape {
                2 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
                3 => &[(0.0, -1.25), (1.2, 0.95), (-1.2, 0.95)],
                4 => &[(0.0, 1.25), (1.2, -0.95), (-1.2, -0.95)],
                _ => &[
                    (-0.4, -1.2),
                    (0.4, -1.2),
                    (0.4, -0.4),
                    (1.2, -0.4),
                    (1.2, 0.4),
                    (0.4, 0.4),
                    (0.4, 1.2),
                    (-0.4, 1.2),
                    (-0.4, 0.4),
                    (-1.2, 0.4),
                    (-1.2, -0.4),
                    (-0.4, -0.4),
                ],
            };
            let points = path(corners.iter().map(|(dx, dy)| (x + dx * r, y + dy * r)));
            format!("<path {open} d=\"{points}Z\"/>")
        }
    }
}

/// A mark on a short line, for a legend.
pub(crate) fn legend_key(slot: usize) -> String {
    format!(
        "<svg class=\"key\" viewBox=\"0 0 26 14\" width=\"26\" height=\"14\" aria-hidden=\"true\"><path class=\"line {}\" d=\"M1 7L25 7\"/>{}</svg>",
        colour(slot),
        mark(slot, 13.0, 7.0, 4.0, "")
    )
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (index, (x, y)) in points.enumerate() {
        let step = if index == 0 { 'M' } else { 'L' };
        let _ = write!(text, "{step}{x:.1} {y:.1}");
    }
    text
}

/// A round step that divides `range` into about `parts`.
fn round_step(range: f64, parts: f64) -> f64 {
    let raw = range / parts;
    let magnitude = 10f64.powf(raw.log10().floor());
    let factors = [1.0, 2.0, 5.0];
    let fits = factors.iter().find(|factor| *factor * magnitude >= raw);
    fits.unwrap_or(&10.0) * magnitude
}

/// A scale from data to pixels with its ticks.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// From the first tick at or below `low` to the first at or above `high`.
    fn rounded(low: f64, high: f64, from: f64, to: f64, parts: f64) -> Axis {
        let range = if high > low { high - low } else { 1.0 };
        let step = round_step(range, parts);
        Axis {
            low: (low / step).floor() * step,
            high: ((high / step).ceil() * step).max((low / step).floor() * step + step),
            from,
            to,
            step,
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = (self.low / self.step).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        (first..=last).map(|tick| tick as f64 * self.step)
    }

    fn label(&self, tick: f64) -> String {
        let decimals = (-self.step.log10().floor()).clamp(0.0, 6.0) as usize;
        let text = format!("{tick:.decimals$}");
        text.replace('-', "−")
    }
}

fn open(text: &mut String, width: f64, height: f64, description: &str) {
    let description = HtmlEscape(description);
    let _ = write!(
        text,
        "<svg class=\"chart\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{description}\">"
    );
}

/// The ticks of both axes, and a line across for each of the vertical one's, in a frame from `left` to `right` that ends at `bottom`.
fn axes(text: &mut String, x: &Axis, y: &Axis, [left, right, bottom]: [f64; 3]) {
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = write!(
            text,
            "<path class=\"grid\" d=\"M{left} {at:.1}L{right} {at:.1}\"/><text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 7.0,
            at + 4.0,
            y.label(tick)
        );
    }
    for tick in x.ticks() {
        let _ = write!(
            text,
            "<text class=\"tick mid\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x.at(tick),
            bottom + 17.0,
            x.label(tick)
        );
    }
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most - 1).collect();
    short.push('…');
    short
}
