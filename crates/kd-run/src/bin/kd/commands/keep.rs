//! `kd keep`: a teacher's logits of augmented views, made ahead of training, and checked.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use kd_report::format::duration;
use kd_run::Error;
use kd_run::keep::{Checked, check, make, open};
use kd_run::resolve::resolve;

use super::{distill, print};
use crate::args::at_least_one;
use crate::failure::Failure;
use crate::progress::Messages;

const HELP: &str = "\
The flags are those of `kd distill`, so that the same line with keep in the place of distill makes what that run will read; flags that concern training alone change nothing here. Stopped anywhere, the same command goes on.

Examples:
  kd keep --recipe recipes/best-student.toml --run best-student --out runs/best-student
  kd keep --recipe recipes/best-student.toml --run best-student --out runs/best-student --check 1000";

#[derive(Debug, Args)]
pub(crate) struct Keep {
    #[command(flatten)]
    distill: distill::Distill,
    /// Make nothing: compute this many of the rows that are there again, and compare
    #[arg(long, value_name = "ROWS", value_parser = at_least_one)]
    check: Option<usize>,
}

impl Keep {
    /// What stands below the flags in `kd keep --help`.
    pub(crate) const HELP: &'static str = HELP;
}

/// The shortest time between two lines about how far it is.
const EVERY: Duration = Duration::from_secs(30);

pub(crate) fn run(flags: &Keep) -> Result<(), Failure> {
    let run_flags = &flags.distill.run;
    let (recipe, run, mut choices) = distill::meant(&flags.distill)?;
    choices.device = run_flags.compute.device()?;
    let usage = |error| match error {
        Error::Choice(message) => Failure::Usage(message),
        error => error.into(),
    };
    let resolved = resolve(&recipe, &run, &choices).map_err(usage)?;
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    let run = resolved.run;
    let kept = open(&run).map_err(usage)?;
    print(&format!("{}\n", kept.used().before()?))?;
    if let Some(rows) = flags.check {
        let Checked { rows: compared, equal, largest, differs } = check(&run, &kept, rows)?;
        print(&format!(
            "checked: {compared} rows computed again, {equal} of them the same to the last bit, largest difference of a logit {largest:.2e}\n"
        ))?;
        return match (compared, differs) {
            (0, _) => Err(Failure::Failed(anyhow!(
                "no row is there to be checked: make them first, with the same command without --check"
            ))),
            (_, true) => Err(Failure::Failed(anyhow!(
                "{}: the kept logits are not those that the teacher gives now: delete the file, and they are computed anew",
                kept.used().file.path.display()
            ))),
            (_, false) => Ok(()),
        };
    }
    let (started, mut last) = (Instant::now(), Instant::now());
    let mut first = None;
    let made = make(&run, &kept, &mut |done, rows| {
        let (before, _) = *first.get_or_insert((done, started));
        if last.elapsed() >= EVERY {
            last = Instant::now();
            let a_row = started.elapsed().as_secs_f64() / (done - before).max(1) as f64;
            let left = duration(a_row * (rows - done) as f64);
            let _ = writeln!(Messages, "kept views: {done} of {rows} rows, {left} left");
        }
        ControlFlow::Continue(())
    })?;
    Ok(print(&format!(
        "kept views: {} rows are there for this run, {} of them computed now in {}\n",
        made.rows,
        made.computed,
        duration(made.seconds)
    ))?)
}
