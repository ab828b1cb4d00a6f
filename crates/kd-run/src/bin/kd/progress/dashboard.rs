//! What the dashboard shows: a header, a progress bar, curves of loss and accuracy with the teacher's beside the run's own, and
//! the latest figures. It is drawn into a buffer, which [`Screen`](super::screen::Screen) puts on the terminal.

use kd_record::EpochRecord;
use kd_report::format::duration;
use kd_run::figures::Sums;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, LegendPosition, Widget};

/// Columns and rows that the dashboard needs; a smaller terminal gets plain lines.
pub(super) const SMALLEST: (u16, u16) = (64, 14);
/// Columns and rows that the dashboard takes of a larger terminal.
const LARGEST: (u16, u16) = (132, 22);
/// Number of points of the loss curve over the whole run.
const POINTS: u64 = 300;

const OWN: Color = Color::Cyan;
const TEACHER: Color = Color::Yellow;

/// A curve's name, its colour, whether it is a line or dots, and its points (epoch, value).
type Curve<'a> = (&'a str, Color, GraphType, Vec<(f64, f64)>);

/// What is known of a run that is in progress.
#[derive(Default)]
pub(super) struct Dashboard {
    pub(super) run: String,
    pub(super) epochs: usize,
    /// Number of steps in each epoch.
    pub(super) batches: usize,
    /// Number of steps done since the run began.
    pub(super) step: u64,
    /// What the progress bar stands for: an epoch, or the teacher's pass over the images.
    pub(super) stage: String,
    /// The share of it that is done, from 0 to 1.
    pub(super) done: f64,
    /// The figures beside the progress bar.
    pub(super) figures: String,
    /// The run's epochs that are done.
    pub(super) own: Vec<EpochRecord>,
    /// The teacher's epochs; empty where they are not known.
    pub(super) teacher: Vec<EpochRecord>,
    /// The loss curve: epochs done, and the mean loss of the steps since the point before.
    pub(super) loss: Vec<(f64, f64)>,
    /// Steps and images of this epoch, and the sum of their losses over the images, when the last point of the loss curve was made.
    pub(super) counted: (usize, usize, f64),
}

impl Dashboard {
    /// The part of a terminal of this size that is drawn on; `None` if the terminal is too small.
    pub(super) fn area(columns: u16, rows: u16) -> Option<Rect> {
        // One row is left for the cursor, which stands below; a full last column would make some terminals wrap.
        let (width, height) = (columns.saturating_sub(1), rows.saturating_sub(1));
        let fits = width >= SMALLEST.0 && height >= SMALLEST.1;
        fits.then(|| Rect::new(0, 0, width.min(LARGEST.0), height.min(LARGEST.1)))
    }

    /// Takes note of a step: `batch` steps of the epoch are done, and `sums` is over them.
    pub(super) fn count(&mut self, batch: usize, sums: &Sums) {
        if batch < self.counted.0 {
            self.counted = (0, 0, 0.0);
        }
        let (steps, images, before) = self.counted;
        let all = self.epochs as u64 * self.batches as u64;
        if ((batch - steps) as u64) < all.div_ceil(POINTS) && batch < self.batches {
            return;
        }
        if batch > steps {
            let mean = (sums.loss - before) / (sums.images - images) as f64;
            self.loss.push((self.step as f64 / self.batches.max(1) as f64, mean));
        }
        self.counted = (batch, sums.images, sums.loss);
    }

    pub(super) fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let [header, bar, charts, latest] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(area);
        let all = self.epochs as u64 * self.batches as u64;
        Line::from(vec![
            Span::from(format!(" {}", self.run)).bold().fg(OWN),
            Span::from(format!(" · {} · step {} of {all}", self.stage, self.step)),
        ])
        .render(header, buffer);
        self.bar().render(bar, buffer);
        let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(charts);
        self.losses(left, buffer);
        self.accuracies(right, buffer);
        self.latest().render(latest, buffer);
    }

    fn bar(&self) -> Line<'_> {
        const WIDTH: usize = 24;
        let full = ((self.done.clamp(0.0, 1.0) * WIDTH as f64) as usize).min(WIDTH);
        Line::from(vec![
            Span::from(" "),
            Span::from("━".repeat(full)).fg(OWN),
            Span::from("─".repeat(WIDTH - full)).dim(),
            Span::from(format!(" {:3.0} %  {}", 100.0 * self.done, self.figures)),
        ])
    }

    fn losses(&self, area: Rect, buffer: &mut Buffer) {
        let points = |records: &[EpochRecord], of: fn(&EpochRecord) -> Option<f64>| {
            let point = |record: &EpochRecord| Some((record.epoch as f64, of(record)?));
            records.iter().filter_map(point).collect::<Vec<_>>()
        };
        // After a resume only the epochs' means are known of the steps before it.
        let mut own = points(&self.own, |record| Some(record.train_loss));
        if let Some(first) = self.loss.first() {
            own.retain(|point| point.0 < first.0);
        }
        own.extend(&self.loss);
        let teacher = points(&self.teacher, |record| Some(record.train_loss));
        let test = points(&self.own, |record| record.test_loss);
        let lines = [
            ("training", OWN, GraphType::Line, own),
            ("test", OWN, GraphType::Scatter, test),
            ("teacher's training", TEACHER, GraphType::Line, teacher),
        ];
        // The legend stands in the corner where no curve of its kind ends: losses fall, accuracies rise.
        self.chart(" Loss ", 2, LegendPosition::TopRight, lines, area, buffer);
    }

    fn accuracies(&self, area: Rect, buffer: &mut Buffer) {
        let points = |records: &[EpochRecord], of: fn(&EpochRecord) -> Option<f64>| {
            let point = |record: &EpochRecord| Some((record.epoch as f64, 100.0 * of(record)?));
            records.iter().filter_map(point).collect::<Vec<_>>()
        };
        let lines = [
            ("test", OWN, GraphType::Line, points(&self.own, |record| record.test_accuracy)),
            ("training", OWN, GraphType::Scatter, points(&self.own, |r| r.train_accuracy)),
            ("teacher", TEACHER, GraphType::Line, points(&self.teacher, |r| r.test_accuracy)),
        ];
        self.chart(" Accuracy, % ", 0, LegendPosition::BottomRight, lines, area, buffer);
    }

    fn chart(
        &self,
        title: &str,
        decimals: usize,
        legend: LegendPosition,
        lines: [Curve<'_>; 3],
        area: Rect,
        buffer: &mut Buffer,
    ) {
        let values = || lines.iter().flat_map(|(.., points)| points).map(|point| point.1);
        let (low, high) = match values().next() {
            None => (0.0, 1.0),
            Some(_) => {
                let low = values().fold(f64::INFINITY, f64::min);
                let high = values().fold(f64::NEG_INFINITY, f64::max);
                let room = ((high - low) * 0.05).max(10f64.powi(-(decimals as i32)) / 2.0);
                ((low - room).max(0.0), high + room)
            }
        };
        let last = self.epochs.max(1) as f64;
        let sets = lines.iter().filter(|(.., points)| !points.is_empty()).map(
            |(name, colour, kind, points)| {
                let single = points.len() == 1 || *kind == GraphType::Scatter;
                Dataset::default()
                    .name(*name)
                    .marker(if single { Marker::Dot } else { Marker::Braille })
                    .graph_type(if single { GraphType::Scatter } else { *kind })
                    .style(Style::new().fg(*colour))
                    .data(points)
            },
        );
        let label = |value: f64| format!("{value:.decimals$}");
        let middle = match self.epochs.is_multiple_of(2) {
            true => (self.epochs / 2).to_string(),
            false => String::new(),
        };
        Chart::new(sets.collect())
            .block(Block::bordered().title(title.to_owned()).border_style(Style::new().dim()))
            .x_axis(
                Axis::default()
                    .bounds([0.0, last])
                    .labels(["0".to_owned(), middle, format!("epoch {}", self.epochs)])
                    .style(Style::new().dim()),
            )
            .y_axis(
                Axis::default()
                    .bounds([low, high])
                    .labels([label(low), label((low + high) / 2.0), label(high)])
                    .style(Style::new().dim()),
            )
            .legend_position(Some(legend))
            .hidden_legend_constraints((Constraint::Percentage(70), Constraint::Percentage(60)))
            .render(area, buffer);
    }

    fn latest(&self) -> Line<'_> {
        let percent = |record: &EpochRecord| match record.test_accuracy {
            Some(accuracy) => format!("{:.2} %", 100.0 * accuracy),
            None => "not measured".into(),
        };
        let mut spans = vec![Span::from(" ")];
        match self.own.last() {
            Some(last) => {
                let took = duration(last.seconds + last.test_seconds.unwrap_or_default());
                spans.push(Span::from(format!("test accuracy {}", percent(last))).bold().fg(OWN));
                let loss = last.test_loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
                spans.push(Span::from(format!("{loss}, {took} an epoch")));
            }
            None => {
                spans.push(Span::from("the first test comes at the end of the first epoch").dim())
            }
        }
        if let Some(end) = self.teacher.last() {
            let now = self
                .own
                .last()
                .and_then(|own| self.teacher.iter().find(|teacher| teacher.epoch == own.epoch));
            let then = now
                .filter(|now| now.epoch != end.epoch)
                .map_or(String::new(), |now| format!("{} at epoch {}, ", percent(now), now.epoch));
            let text = format!("  teacher {then}finally {}", percent(end));
            spans.push(Span::from(text).fg(TEACHER));
        }
        Line::from(spans)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn record(epoch: usize, loss: f64, accuracy: f64) -> EpochRecord {
        EpochRecord {
            epoch,
            train_loss: loss,
            train_accuracy: Some(accuracy - 0.02),
            test_loss: Some(loss + 0.1),
            test_accuracy: Some(accuracy),
            seconds: 12.0,
            test_seconds: Some(1.0),
            images_per_second: 4000.0,
            selection_accuracy: None,
            learning_rate: None,
            parts: BTreeMap::new(),
        }
    }

    fn dashboard() -> Dashboard {
        Dashboard {
            run: "kd".to_owned(),
            epochs: 10,
            batches: 100,
            step: 250,
            stage: "epoch 3/10".to_owned(),
            done: 0.25,
            figures: "4000 images/s, 2 min 0 s left".to_owned(),
            own: vec![record(1, 2.0, 0.4), record(2, 1.6, 0.5)],
            teacher: (1..=10)
                .map(|e| record(e, 1.8 - 0.1 * e as f64, 0.45 + 0.03 * e as f64))
                .collect(),
            ..Dashboard::default()
        }
    }

    fn drawn(dashboard: &Dashboard, columns: u16, rows: u16) -> Vec<String> {
        let area = Dashboard::area(columns, rows).unwrap();
        let backend = TestBackend::new(area.width, area.height);
        let mut terminal = Terminal::new(backend).unwrap();
        terminal.draw(|frame| dashboard.draw(frame.area(), frame.buffer_mut())).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(area.width));
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    #[test]
    fn it_shows_run_bar_curves_and_the_teacher() {
        let rows = drawn(&dashboard(), 100, 24);
        assert_eq!(rows.len(), 22);
        assert!(rows[0].starts_with(" kd · epoch 3/10 · step 250 of 1000"), "{}", rows[0]);
        assert!(
            rows[1].starts_with(" ━━━━━━──────────────────  25 %  4000 images/s"),
            "{}",
            rows[1]
        );
        assert!(rows[2].contains("Loss") && rows[2].contains("Accuracy, %"));
        let latest = &rows[21];
        assert!(latest.contains("test accuracy 50.00 %, loss 1.7000, 13 s an epoch"), "{latest}");
        assert!(latest.contains("teacher 51.00 % at epoch 2, finally 75.00 %"), "{latest}");
        let all = rows.join("\n");
        assert!(all.contains("epoch 10") && all.contains("teacher's training"), "{all}");
        let braille = |c: char| ('\u{2801}'..='\u{28ff}').contains(&c);
        assert!(all.chars().filter(|c| braille(*c)).count() > 40, "no curves:\n{all}");
    }

    #[test]
    fn it_draws_before_anything_is_known_and_in_every_size() {
        let mut empty = Dashboard { run: "student".to_owned(), ..Dashboard::default() };
        let all = drawn(&empty, 80, 24).join("\n");
        assert!(all.contains("the first test comes at the end of the first epoch"), "{all}");
        empty.loss = vec![(0.1, 2.3)];
        for (columns, rows) in [(65, 15), (80, 24), (200, 70), (133, 16)] {
            drawn(&empty, columns, rows);
            drawn(&dashboard(), columns, rows);
        }
    }

    #[test]
    fn a_small_terminal_has_no_room() {
        assert!(Dashboard::area(64, 30).is_none());
        assert!(Dashboard::area(100, 14).is_none());
        assert_eq!(Dashboard::area(65, 15), Some(Rect::new(0, 0, 64, 14)));
        assert_eq!(Dashboard::area(300, 100), Some(Rect::new(0, 0, 132, 22)));
    }

    #[test]
    fn the_loss_curve_has_a_point_for_some_steps_and_one_at_each_epochs_end() {
        let mut dashboard = Dashboard { epochs: 10, batches: 100, ..Dashboard::default() };
        for epoch in 0..2 {
            let mut sums = Sums::default();
            for batch in 1..=100 {
                dashboard.step += 1;
                // 1 in the first epoch's steps, 2 in the second's.
                sums.loss += f64::from(epoch + 1) * 8.0;
                sums.images += 8;
                dashboard.count(batch, &sums);
            }
        }
        // 1000 steps in 300 points: one for four steps.
        assert_eq!(dashboard.loss.len(), 50);
        assert_eq!(dashboard.loss[0], (0.04, 1.0));
        assert_eq!(dashboard.loss[24], (1.0, 1.0));
        assert_eq!(dashboard.loss[49], (2.0, 2.0));
    }
}
