//! Ctrl-C and SIGTERM: the first asks a run to stop after its step, the second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether a signal asked the process to end, and which.
#[derive(Clone, Debug)]
pub(crate) struct StopRequest {
    signal: Arc<AtomicUsize>,
}

impl StopRequest {
    /// Listens to Ctrl-C and SIGTERM from now on.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM] {
            // The order matters: the first signal finds `asked` false and then sets it, so that the second ends the process.
            flag::register_conditional_shutdown(number, exit_code(number), Arc::clone(&asked))
                .and_then(|_| flag::register(number, Arc::clone(&asked)))
                .and_then(|_| flag::register_usize(number, Arc::clone(&signal), number as usize))
                .context("no handler for Ctrl-C and SIGTERM can be installed")?;
        }
        Ok(Self { signal })
    }

    /// The signal's number, if one came.
    pub(crate) fn signal(&self) -> Option<i32> {
        i32::try_from(self.signal.load(Ordering::SeqCst)).ok().filter(|signal| *signal != 0)
    }
}

/// The exit code that shells report for a process that a signal ended.
fn exit_code(signal: i32) -> i32 {
    128 + signal
}

/// A run that a signal stopped, and that can go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "run {run}: stopped by {} {}; the same command goes on from there",
    name(*signal),
    position(*step)
)]
pub(crate) struct Interrupted {
    pub(crate) run: String,
    /// Number of steps done.
    pub(crate) step: u64,
    pub(crate) signal: i32,
}

impl Interrupted {
    pub(crate) fn exit_code(&self) -> u8 {
        u8::try_from(exit_code(self.signal)).unwrap_or(1)
    }
}

/// Where the run stopped. Before the first step there is no checkpoint: nothing is lost but outputs of the teacher, which are in no
/// checkpoint.
fn position(step: u64) -> String {
    match step {
        0 => "before its first step".into(),
        _ => format!("after step {step}, with a checkpoint"),
    }
}

fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "Ctrl-C",
        SIGTERM => "SIGTERM",
        _ => "a signal",
    }
}
