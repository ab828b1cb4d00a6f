//! `kd man`: manual pages, made from the command line's own description.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use kd_record::own::{self, Output};
use kd_record::write;

use super::print;
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd man | man -l -
  kd man --out ~/.local/share/man/man1";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Man {
    /// Write a page for `kd` and for each of its commands into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace pages of these names even if kd did not write them
    #[arg(long, requires = "out")]
    force: bool,
}

/// `kd` is the description of the whole command line.
pub(crate) fn run(flags: &Man, kd: Command) -> Result<(), Failure> {
    // `build` gives the commands the names that their pages have: kd-train, kd-distill, ...
    let mut kd = kd.disable_help_subcommand(true);
    kd.build();
    let Some(out) = &flags.out else {
        return Ok(print(&String::from_utf8_lossy(&page(&clap_mangen::Man::new(kd))?))?);
    };
    write::create_folder(out)?;
    let commands = kd.get_subcommands().cloned();
    let pages = std::iter::once(kd.clone()).chain(commands).map(clap_mangen::Man::new);
    let pages: Vec<_> = pages.map(|man| (out.join(man.get_filename()), man)).collect();
    for (path, _) in &pages {
        let force = Some(flags.force);
        Output { path, kind: own::MANUAL_PAGE, others: &[], force }.check()?;
    }
    for (path, man) in pages {
        write::write_whole(&path, &page(&man)?)?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

fn page(man: &clap_mangen::Man) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render(&mut page).context("the manual page can't be made")?;
    Ok(page)
}
