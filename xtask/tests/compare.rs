//! `cargo xtask compare` as a process, with stand-ins for cargo and `kd`.
#![cfg(unix)]

mod common;

use std::path::Path;

use assert_cmd::Command;
use common::program;
use predicates::str::contains;

/// Makes `kd`, which does this, and a `cargo` that says that it has built it.
fn xtask(folder: &Path, kd: &str) -> Command {
    let script = |name: &str, text: &str| {
        program::write(&folder.join(name), &format!("#!/bin/sh\n{text}\n"));
    };
    script("kd", kd);
    let built = format!(
        r#"{{"reason":"compiler-artifact","target":{{"name":"kd"}},"executable":"{}"}}"#,
        folder.join("kd").display()
    );
    script("cargo", &format!("echo '{built}'"));
    let mut command = Command::cargo_bin("xtask").unwrap();
    command.env("CARGO", folder.join("cargo")).current_dir(folder).arg("compare");
    command
}

#[test]
fn kd_is_built_and_started_with_the_arguments_and_the_checkouts_folders() {
    let folder = tempfile::tempdir().unwrap();
    let started = "compare a.toml --seeds 2 --kd dkd --out o --data ";
    let mut command = xtask(folder.path(), "echo \"$@\"");
    command.args(["a.toml", "--seeds", "2", "--kd", "dkd", "--out", "o"]);
    command.assert().success().stdout(contains(started));
    let mut command = xtask(folder.path(), "echo \"$@\"");
    command.arg("--help").assert().success().stdout(contains("compare --help"));
}

#[test]
fn its_exit_code_is_that_of_a_stopped_comparison() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = xtask(folder.path(), "exit 130");
    command.arg("a.toml").assert().code(130).stderr(contains("the same command goes on"));
    let mut command = xtask(folder.path(), "exit 3");
    command.arg("a.toml").assert().code(1).stderr(contains("`kd compare a.toml"));
}
