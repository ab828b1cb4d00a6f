//! Where the checkout lies, and cargo as the commands start it.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::process;

/// The folder with the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    let of_package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    of_package.parent().map_or(of_package.clone(), Path::to_path_buf)
}

/// The path as a reader in the current folder would write it.
pub fn short(path: &Path) -> String {
    let relative = std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok());
    match relative {
        Some(relative) if relative.as_os_str().is_empty() => ".".to_owned(),
        Some(relative) => relative.display().to_string(),
        None => path.display().to_string(),
    }
}

/// Cargo in the workspace's folder, without what `cargo run` told this process about itself:
/// build scripts that watch these variables would run anew each time.
pub fn cargo() -> Command {
    command(&program())
}

/// The cargo that runs this process.
pub fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Another program that will start cargo, set up as [`cargo`].
pub fn command(program: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_package = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_BIN_");
        if of_package || matches!(&*text, "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH") {
            command.env_remove(&name);
        }
    }
    command
}

/// Builds a binary in release, with these features of its package, and says where cargo put it.
pub fn build(package: &str, binary: &str, features: &[&str]) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", package, "--bin", binary]);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    built_by(&mut command, binary)
}

/// Runs this command of cargo, which builds a binary among other things, and says where cargo put that binary.
pub fn built_by(command: &mut Command, binary: &str) -> anyhow::Result<PathBuf> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let executable = process::run_with(command, |child| {
        let Some(stdout) = child.stdout.take() else { bail!("cargo's output is not at hand") };
        let mut executable = None;
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read cargo's output")?;
            executable = built(&line, binary).or(executable);
        }
        Ok(executable)
    })?;
    executable.with_context(|| format!("cargo built no `{binary}`"))
}

/// The path of this binary if this line of cargo's output is about it.
fn built(line: &str, binary: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == binary;
    let path = message["executable"].as_str().filter(|_| is_it)?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_binary_is_where_cargo_says() {
        let about =
            r#"{"reason":"compiler-artifact","target":{"name":"kd"},"executable":"/t/release/kd"}"#;
        assert_eq!(built(about, "kd"), Some(PathBuf::from("/t/release/kd")));
        assert_eq!(built(about, "kd_run"), None);
        assert_eq!(built("not of cargo", "kd"), None);
    }
}
