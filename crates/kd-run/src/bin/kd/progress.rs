//! Progress of a run on standard error: a dashboard on a terminal, plain lines elsewhere.

mod dashboard;
mod screen;

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dashboard::Dashboard;
use kd_record::EpochRecord;
use kd_record::event::epochs_of;
use kd_report::format::duration;
use kd_run::figures::Sums;
use kd_run::train::Progress;
pub(crate) use screen::Messages;
use screen::Screen;

/// The shortest time between two plain lines within an epoch.
const PLAIN_EVERY: Duration = Duration::from_secs(30);
/// The shortest time between two drawings of the dashboard.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// How a run's progress is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct DisplayConfig {
    /// Show plain lines even on a terminal.
    pub(crate) plain: bool,
    /// The run's own `events.jsonl`, which has the earlier epochs of a run that goes on.
    pub(crate) events: Option<PathBuf>,
    /// The teacher's `events.jsonl`, whose curves are drawn beside the run's. The file need not exist.
    pub(crate) teacher_events: Option<PathBuf>,
}

/// Shows the progress of one run.
pub(crate) struct Display {
    config: DisplayConfig,
    run: String,
    epochs: usize,
    batches: usize,
    /// Whether the training images have labels.
    labelled: bool,
    /// When the first step of this process began, and how many steps were done before it.
    begun: (Instant, u64),
    last_line: Option<Instant>,
    last_picture: Option<Instant>,
    dashboard: Dashboard,
    screen: Screen,
}

impl Display {
    /// Shows nothing before the first [`observe`](Self::observe).
    pub(crate) fn new(mut config: DisplayConfig) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        config.plain |= dumb || !std::io::stderr().is_terminal();
        Self {
            config,
            run: String::new(),
            epochs: 0,
            batches: 0,
            labelled: true,
            begun: (Instant::now(), 0),
            last_line: None,
            last_picture: None,
            dashboard: Dashboard::default(),
            screen: Screen::default(),
        }
    }

    /// An observer for [`train`](kd_run::train::train), which never stops the run.
    pub(crate) fn observe(&mut self, progress: Progress<'_>) -> ControlFlow<()> {
        match progress {
            Progress::Started {
                run,
                epochs,
                batches,
                step,
                resumed,
                extended_from,
                memory,
                labelled,
            } => {
                (self.run, self.epochs, self.batches) = (run.to_string(), epochs, batches);
                self.labelled = labelled;
                self.begun = (Instant::now(), step);
                self.last_line = Some(Instant::now());
                if let Some(memory) = memory {
                    let peak = kd_report::format::memory(memory.peak);
                    show(&format!("{run}: needs about {peak} of memory"));
                }
                if let Some(from) = extended_from {
                    show(&format!("{run}: trained on from a run of {from} epochs to {epochs}"));
                }
                if resumed {
                    let all = epochs * batches;
                    show(&format!("{run}: going on after step {step} of {all}"));
                }
                if !self.config.plain {
                    self.start_dashboard(step);
                }
            }
            Progress::TeacherPass { done, images } => {
                self.dashboard.stage = "teacher's outputs".to_owned();
                self.dashboard.done = done as f64 / images.max(1) as f64;
                self.dashboard.figures = format!("{done} of {images} images");
                let text = format!("{}: teacher's outputs", self.run);
                self.moved(&text, done, images, "images done");
                // The student's steps begin after the teacher's pass, so their mean time counts from here.
                self.begun.0 = Instant::now();
            }
            Progress::Step { epoch, batch, step, sums } => {
                self.dashboard.step = step;
                self.dashboard.count(batch, sums);
                self.dashboard.stage = format!("epoch {epoch}/{}", self.epochs);
                self.dashboard.done = step as f64 / (self.epochs * self.batches).max(1) as f64;
                let figures =
                    format!("{}, {} left", figures(sums, self.labelled), self.time_left(step));
                let text = format!("{}: epoch {epoch}/{}", self.run, self.epochs);
                self.moved(&text, batch, self.batches, &figures);
                self.dashboard.figures = figures;
            }
            Progress::Note(sentence) => show(&format!("{}: {sentence}", self.run)),
            Progress::Epoch(record) => {
                self.dashboard.own.push(record.clone());
                if !self.draw() {
                    show(&self.epoch_line(record));
                    self.last_line = Some(Instant::now());
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Draws the dashboard once more, as it stays on the terminal.
    pub(crate) fn finish(&mut self) {
        if self.last_picture.is_some() {
            self.draw();
        }
    }

    fn start_dashboard(&mut self, step: u64) {
        let read = |path: &Option<PathBuf>| {
            let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
            epochs_of(&text.unwrap_or_default())
        };
        self.dashboard = Dashboard {
            run: self.run.clone(),
            epochs: self.epochs,
            batches: self.batches,
            step,
            stage: "starting".to_owned(),
            own: read(&self.config.events),
            teacher: read(&self.config.teacher_events),
            ..Dashboard::default()
        };
    }

    fn moved(&mut self, text: &str, done: usize, of: usize, message: &str) {
        if !self.config.plain {
            if self.last_picture.is_some_and(|last| last.elapsed() < DRAW_EVERY) || self.draw() {
                return;
            }
            // Cleared, so that the next call tries to draw again: the terminal may have grown.
            self.last_picture = None;
        }
        if self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_EVERY) {
            show(&format!("{text}, {done} of {of}: {message}"));
            self.last_line = Some(Instant::now());
        }
    }

    /// Draws the dashboard if the terminal has room for it; whether it did.
    fn draw(&mut self) -> bool {
        if self.config.plain {
            return false;
        }
        let Some((rows, columns)) = console::Term::stderr().size_checked() else {
            return false;
        };
        let Some(area) = Dashboard::area(columns, rows) else {
            return false;
        };
        let how = (console::colors_enabled_stderr(), screen::was_disturbed());
        let draw = |area, buffer: &mut _| self.dashboard.draw(area, buffer);
        let frame = self.screen.frame((columns, rows), area, how, draw);
        let mut stderr = std::io::stderr().lock();
        // If the terminal is gone, the run goes on all the same.
        let _ = stderr.write_all(frame.as_bytes()).and_then(|()| stderr.flush());
        self.last_picture = Some(Instant::now());
        true
    }

    fn epoch_line(&self, record: &EpochRecord) -> String {
        let EpochRecord { epoch, train_loss, train_accuracy, test_loss, test_accuracy, .. } =
            record;
        let percent = |accuracy: &f64| format!("{:.2} %", 100.0 * accuracy);
        let accuracy = train_accuracy
            .as_ref()
            .map_or_else(String::new, |accuracy| format!(", accuracy {}", percent(accuracy)));
        let tested = match (test_loss, test_accuracy) {
            (Some(loss), Some(accuracy)) => {
                format!("; test loss {loss:.4}, test accuracy {}", percent(accuracy))
            }
            _ => String::new(),
        };
        format!(
            "{}: epoch {epoch}/{}: loss {train_loss:.4}{accuracy}{tested}; {:.0} images/s, {}",
            self.run,
            self.epochs,
            record.images_per_second,
            duration(record.seconds),
        )
    }

    fn time_left(&self, step: u64) -> String {
        let (begun, before) = self.begun;
        let left = (self.epochs * self.batches) as u64 - step;
        let mean = begun.elapsed().as_secs_f64() / (step - before).max(1) as f64;
        duration(mean * left as f64)
    }
}

/// Prints a line. If nobody reads it any more (`kd train 2>&1 | head`), the run goes on all the same.
fn show(text: &str) {
    let _ = writeln!(Messages, "{text}");
}

fn figures(sums: &Sums, labelled: bool) -> String {
    let accuracy = match labelled {
        true => format!(" accuracy {:.1} %,", 100.0 * sums.correct as f64 / sums.images as f64),
        false => String::new(),
    };
    format!(
        "loss {:.3},{accuracy} {:.0} images/s",
        sums.mean_loss(),
        sums.images as f64 / sums.seconds.max(1e-9)
    )
}
