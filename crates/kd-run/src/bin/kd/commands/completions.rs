//! `kd completions`: what a shell offers behind `kd`, made from the command line's own description.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::print;
use crate::args::Cli;
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd completions bash > ~/.local/share/bash-completion/completions/kd
  kd completions zsh > ~/.zfunc/_kd
  kd completions fish > ~/.config/fish/completions/kd.fish";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(flags: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut Cli::command(), "kd", &mut script);
    Ok(print(&String::from_utf8_lossy(&script))?)
}
