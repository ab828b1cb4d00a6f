//! A bar on a terminal, a line every tenth of the way elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// How much of a file has arrived.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    total: Option<u64>,
    tenths_told: u64,
}

impl Progress {
    /// `total` bytes if that is known.
    pub fn new(name: &str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total {
                Some(total) => (
                    ProgressBar::new(total),
                    "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
                ),
                None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes} {bytes_per_sec}"),
            };
            let style = ProgressStyle::with_template(template);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style.progress_chars("=> ")).with_message(name.to_owned())
        });
        Self { bar, name: name.to_owned(), total, tenths_told: 0 }
    }

    /// `done` bytes are there.
    pub fn set(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let Some(total) = self.total.filter(|&total| total > 0) else { return };
        let tenths = done.min(total) * 10 / total;
        if tenths > self.tenths_told {
            self.tenths_told = tenths;
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            eprintln!(
                "{}: {} % ({:.1} of {:.1} MB)",
                self.name,
                tenths * 10,
                megabytes(done),
                megabytes(total)
            );
        }
    }

    /// A line that doesn't tear the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
