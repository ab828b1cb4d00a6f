//! Charts as inline SVG. Colours come from the page's style sheet by class (`s0`, `s1`, ...: one
//! per run) and follow light and dark; marks differ in shape too, so colour is never alone.

use std::fmt::Write;

use minijinja::HtmlEscape;

/// One line of a line chart.
pub(super) struct Series {
    pub(super) label: String,
    /// Colour and mark.
    pub(super) slot: usize,
    pub(super) points: Vec<Point>,
}

pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Half the height of the band around the line.
    pub(super) spread: Option<f64>,
}

/// One row of a dot plot.
pub(super) struct DotRow {
    pub(super) label: String,
    pub(super) dots: Vec<Dot>,
}

pub(super) struct Dot {
    pub(super) slot: usize,
    pub(super) value: f64,
    /// Half the length of the whisker.
    pub(super) spread: Option<f64>,
    /// What a pointer held over it says.
    pub(super) title: String,
    /// A small pale dot: one seed of several.
    pub(super) faint: bool,
}

/// Number of colours in the style sheet.
const COLOURS: usize = 8;

/// The class that carries the colour of a slot.
pub(super) fn colour(slot: usize) -> String {
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
pub(super) fn legend_key(slot: usize) -> String {
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

/// Values over epochs; `unit` follows each value that a pointer shows.
pub(super) fn line_chart(description: &str, unit: &str, series: &[Series]) -> String {
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
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{left} {at:.1}L{right} {at:.1}\"/><text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 7.0,
            at + 4.0,
            y.label(tick)
        );
    }
    for tick in x.ticks() {
        let _ = write!(
            svg,
            "<text class=\"tick mid\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x.at(tick),
            bottom + 17.0,
            x.label(tick)
        );
    }
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

/// Differences around a zero line, a row per label; with `lanes` the dots of a row lie below one
/// another.
pub(super) fn dot_plot(
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

/// One interval of a reliability diagram.
pub(super) struct Reliability {
    /// Confidences, from 0 to 1.
    pub(super) from: f64,
    pub(super) to: f64,
    /// Share of right answers.
    pub(super) right: f64,
    /// Share of all images.
    pub(super) share: f64,
    pub(super) title: String,
}

/// Share right over confidence, the line where both are equal, and a strip with the images' shares.
pub(super) fn reliability_diagram(description: &str, slot: usize, bins: &[Reliability]) -> String {
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
        "<path class=\"ideal\" d=\"M{left} {bottom}L{right} {top}\"/><path class=\"zero\" d=\"M{left} {strip_bottom}L{right} {strip_bottom}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">right, %</text><text class=\"tick end\" x=\"{right}\" y=\"{:.1}\">confidence, %</text></svg>",
        left + 5.0,
        top + 14.0,
        height - 5.0
    );
    svg
}

/// A row of parts that together are a whole.
pub(super) struct StackedRow {
    pub(super) label: String,
    /// Class of the colour, share of the whole, and what a pointer held over it says.
    pub(super) parts: Vec<(&'static str, f64, String)>,
}

/// A square in a colour, for a legend.
pub(super) fn swatch(class: &str) -> String {
    format!(
        "<svg class=\"key\" viewBox=\"0 0 14 14\" width=\"14\" height=\"14\" aria-hidden=\"true\"><rect class=\"part {class}\" width=\"14\" height=\"14\" rx=\"2\"/></svg>"
    )
}

/// A bar per row, as long as all others, cut into its parts.
pub(super) fn stacked_bars(description: &str, rows: &[StackedRow]) -> String {
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

/// Rows are true classes, columns predicted ones; shade is the share of the row, right answers in
/// one hue and mistakes in another.
pub(super) fn confusion_matrix(
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
            let title = if row == column {
                format!("{truth}: {count} right ({:.1} %)", share * 100.0)
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

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most - 1).collect();
    short.push('…');
    short
}
