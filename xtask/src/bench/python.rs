//! A Python with what a contestant needs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::{process, workspace};

/// Checks that a Python can import these modules.
pub(super) fn check(python: &Path, modules: &[&str]) -> anyhow::Result<()> {
    match modules.iter().find(|module| !imports(python, module)) {
        None => Ok(()),
        Some(module) => {
            let python = python.display();
            bail!(
                "{python}: `import {module}` fails there; install it with `{python} -m pip install {module}`, or leave out --python"
            )
        }
    }
}

/// A Python that can import these modules, `python3` or that of a virtual environment in cargo's target folder, where the
/// worker is.
pub(super) fn find(worker: &Path, modules: &[&str]) -> anyhow::Result<PathBuf> {
    let has = |python: &Path| modules.iter().all(|module| imports(python, module));
    let system = PathBuf::from("python3");
    if has(&system) {
        return Ok(system);
    }
    let target = worker.ancestors().nth(2).context("a worker outside a target folder")?;
    let folder = target.join("pytorch");
    let python = folder.join("bin").join("python");
    if !has(&python) {
        println!(
            "PyTorch is fetched into {}: a download of up to 3 GB, some 6 GB on disk",
            workspace::short(&folder)
        );
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let requirements = workspace::root().join("parity/requirements.txt");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements);
        process::run(&mut pip)?;
    }
    Ok(python)
}

fn imports(python: &Path, module: &str) -> bool {
    let mut command = Command::new(python);
    command.arg("-c").arg(format!("import {module}")).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
