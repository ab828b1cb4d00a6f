//! `kd report`: table and page of the runs below output folders.

use std::path::PathBuf;

use clap::Args;
use kd_record::OutFolder;
use kd_record::read::read_json;

use super::print;
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd report runs/mine
  kd report runs/seed-0 runs/seed-1 runs/seed-2
  kd report runs/mine --json | jq '.[0].runs[] | [.name, .test_accuracy]'";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Report {
    /// Output folders of training runs; with several, each gets its report and the first one a comparison
    #[arg(required = true)]
    out: Vec<PathBuf>,
    /// Print JSON: an array with each folder's summary.json
    #[arg(long)]
    json: bool,
    /// Replace a report.html, summary.json or comparison.html that kd did not write
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(flags: &Report) -> Result<(), Failure> {
    let table = kd_report::write_over(&flags.out, Some(flags.force))?;
    if flags.json {
        let summary = |out: &PathBuf| -> kd_record::Result<serde_json::Value> {
            read_json(&OutFolder::new(out).summary(), 256 << 20, "a summary")
        };
        let summaries = flags.out.iter().map(summary).collect::<kd_record::Result<_>>()?;
        return Ok(print(&format!("{}\n", serde_json::Value::Array(summaries)))?);
    }
    print(&table)?;
    for out in &flags.out {
        print(&format!("{}\n", OutFolder::new(out).report().display()))?;
    }
    Ok(())
}
