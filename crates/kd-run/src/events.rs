//! A run's `events.jsonl` while it is written, and on demand TensorBoard's file beside it.

use kd_record::{Event, EventLog, RunFolder};

use kd_report::tensorboard::{self, TensorBoard};

/// Both files.
pub(crate) struct RunLog {
    events: EventLog,
    tensorboard: Option<TensorBoard>,
}

impl RunLog {
    /// Starts `events.jsonl` with `text`, in place of what is there; on demand TensorBoard's file too.
    pub(crate) fn restore(
        folder: &RunFolder,
        text: String,
        tensorboard: bool,
    ) -> anyhow::Result<Self> {
        let events = EventLog::restore(folder.events(), text)?;
        // A file that an earlier process began for TensorBoard is carried on, or it would hold steps that are done again.
        let tensorboard = match tensorboard || !tensorboard::earlier(folder)?.is_empty() {
            true => Some(TensorBoard::rewrite(folder, events.text())?),
            false => None,
        };
        Ok(Self { events, tensorboard })
    }

    pub(crate) fn write(&mut self, event: Event) -> anyhow::Result<()> {
        let line = self.events.write(event)?;
        match &mut self.tensorboard {
            Some(tensorboard) => Ok(tensorboard.add(line)?),
            None => Ok(()),
        }
    }

    /// Every line so far, for a checkpoint.
    pub(crate) fn text(&self) -> &str {
        self.events.text()
    }

    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        Ok(self.events.flush()?)
    }
}
