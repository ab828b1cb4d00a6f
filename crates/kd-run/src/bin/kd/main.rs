//! The command line `kd`: what only a terminal needs. All that a run does is in the library, `kd_run`, which never prints.
//!
//! - [`cli`] is the list of commands.
//! - [`commands`] has a file for each command: its flags, the examples of its help, and what it does.
//! - [`args`] has the flags that several commands share, and reads the values of flags.
//! - [`progress`] shows a run while it goes: a dashboard on a terminal, plain lines elsewhere.
//! - [`signals`] listens to Ctrl-C and SIGTERM.
//! - [`failure`] says how a command can fail, and with which exit code.
//!
//! # To add a command
//!
//! 1. A file in `commands/`, named in `commands.rs`: a struct of its flags that derives [`clap::Args`], and a function `run` that
//!    takes it. Examples of its help are a constant `HELP`, given to clap by `#[command(after_help = HELP)]`.
//! 2. In `cli.rs`, a variant of [`cli::Command`], whose doc comment is the command's line in `kd --help`, and its line in
//!    [`cli::Command::run`].
//!
//! Nothing else: help, completions, manual pages and the test that parses each example of the help are made of these.

mod args;
mod cli;
mod commands;
mod failure;
mod progress;
mod signals;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use kd_report::text::plain_lines;
use tracing_subscriber::EnvFilter;

use cli::Cli;

/// Exit codes: 0 done, 1 failed, 2 wrong command line, 3 done in part, 130 and 143 stopped by Ctrl-C and by SIGTERM, with a
/// checkpoint from which the same command goes on.
fn main() -> ExitCode {
    // SAFETY: no other thread has been started.
    unsafe { kd_ops::keep_candle_single_threaded() };
    kd_ops::keep_freed_memory();
    let cli = Cli::parse();
    log_to_standard_error();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where not even standard error can be written, the exit code still says it.
            let _ = writeln!(std::io::stderr(), "{}", plain_lines(&failure.to_string()));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Logs warnings, or what RUST_LOG asks for.
fn log_to_standard_error() {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).map_err(|error| {
            let _ = writeln!(std::io::stderr(), "warning: RUST_LOG is {directives:?}: {error}");
        }),
        Err(_) => Err(()),
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|()| EnvFilter::new("warn")))
        .with_writer(|| progress::Messages)
        .with_ansi(std::io::stderr().is_terminal() && !no_color)
        .without_time()
        .with_target(false)
        .init();
}
