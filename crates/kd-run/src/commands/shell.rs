//! `kd completions` and `kd man`: both are made of the command line's own description.

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{cli, files};

/// `kd completions`.
pub(crate) fn completions(shell: Shell, mut command: Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "kd", &mut script);
    super::say(&String::from_utf8_lossy(&script))
}

/// `kd man`.
pub(crate) fn man(flags: &cli::Man, command: Command) -> anyhow::Result<()> {
    // Building names the commands' pages kd-train, kd-distill, ...
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let Some(out) = &flags.out else {
        return super::say(&String::from_utf8_lossy(&page(&Man::new(command))?));
    };
    files::create_folder(out)?;
    let commands = command.get_subcommands().cloned();
    for man in std::iter::once(command.clone()).chain(commands).map(Man::new) {
        let path = out.join(man.get_filename());
        files::write_whole(&path, &page(&man)?)?;
        super::say(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

fn page(man: &Man) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render(&mut page).context("the manual page can't be made")?;
    Ok(page)
}
