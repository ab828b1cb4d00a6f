//! `kd completions`: what a shell offers behind `kd`, made from the command line's own description.

use clap::{Args, Command};
use clap_complete::Shell;

use super::print;
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

/// `kd` is the description of the whole command line.
pub(crate) fn run(flags: &Completions, mut kd: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut kd, "kd", &mut script);
    Ok(print(&String::from_utf8_lossy(&script))?)
}
