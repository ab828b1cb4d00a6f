//! What a run shows while it goes: a bar on a terminal, plain lines elsewhere. To standard error.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::checkpoint::Sums;
use crate::events::EpochRecord;
use crate::run::Progress;

/// Plain lines come at most this often within an epoch.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// Shows a run's progress.
pub struct Display {
    /// On a terminal.
    bar: Option<ProgressBar>,
    run: String,
    epochs: usize,
    batches: usize,
    /// When this process's first step began, and the steps done before.
    begun: (Instant, u64),
    last_line: Instant,
}

impl Default for Display {
    fn default() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            // Drawn a few times a second, however quick the steps.
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5))
        });
        if let Some(bar) = &bar
            && let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {pos}/{len} {msg}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        let now = Instant::now();
        Self { bar, run: String::new(), epochs: 0, batches: 0, begun: (now, 0), last_line: now }
    }
}

impl Display {
    /// An observer for [`train`](crate::run::train); it never stops the run.
    pub fn observe(&mut self, progress: Progress<'_>) -> ControlFlow<()> {
        match progress {
            Progress::Started { run, epochs, batches, step, resumed } => {
                (self.run, self.epochs, self.batches) = (run.to_string(), epochs, batches);
                self.begun = (Instant::now(), step);
                if resumed {
                    self.line(&format!(
                        "{run}: going on after step {step} of {}",
                        epochs * batches
                    ));
                }
            }
            Progress::TeacherPass { done, images } => {
                let text = format!("{}: teacher's outputs", self.run);
                self.moved(&text, done, images, "images done");
                // The students' steps begin after it.
                self.begun.0 = Instant::now();
            }
            Progress::Step { epoch, batch, step, sums } => {
                let text = format!("{}: epoch {epoch}/{}", self.run, self.epochs);
                let figures = format!("{}, {} left", figures(sums, batch), self.time_left(step));
                self.moved(&text, batch, self.batches, &figures);
            }
            Progress::Epoch(record) => self.line(&self.epoch_line(record)),
        }
        ControlFlow::Continue(())
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn moved(&mut self, text: &str, done: usize, of: usize, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(of as u64);
            bar.set_prefix(text.to_string());
            bar.set_message(message.to_string());
            bar.set_position(done as u64);
        } else if self.last_line.elapsed() >= PLAIN_EVERY {
            self.line(&format!("{text}, {done} of {of}: {message}"));
        }
    }

    fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| show(text)),
            None => show(text),
        }
        self.last_line = Instant::now();
    }

    fn epoch_line(&self, record: &EpochRecord) -> String {
        let EpochRecord { epoch, train_loss, train_accuracy, test_loss, test_accuracy, .. } =
            record;
        format!(
            "{}: epoch {epoch}/{}: loss {train_loss:.4}, accuracy {:.2} %; test loss {test_loss:.4}, test accuracy {:.2} %; {:.0} images/s, {}",
            self.run,
            self.epochs,
            100.0 * train_accuracy,
            100.0 * test_accuracy,
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

/// Nobody may be listening any more (`kd train 2>&1 | head`); the run goes on all the same.
fn show(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn figures(sums: &Sums, batches: usize) -> String {
    format!(
        "loss {:.3}, accuracy {:.1} %, {:.0} images/s",
        sums.loss / batches as f64,
        100.0 * sums.right as f64 / sums.images as f64,
        sums.images as f64 / sums.seconds.max(1e-9)
    )
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
