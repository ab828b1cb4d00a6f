//! `cargo xtask reproduce` as a process, with stand-ins for cargo and `kd` that keep a log.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use assert_cmd::Command;
use assert_cmd::cargo::CommandCargoExt;
use common::program;
use predicates::prelude::*;
use predicates::str::contains;
use tempfile::TempDir;

struct Stage {
    folder: TempDir,
}

impl Stage {
    /// `kd` logs its arguments, then does `body`.
    fn new(body: &str) -> Self {
        let stage = Self { folder: TempDir::new().unwrap() };
        let log = stage.path("log");
        stage.script("kd", &format!("echo \"$@\" >> '{}'\n{body}", log.display()));
        let built = format!(
            r#"{{"reason":"compiler-artifact","target":{{"name":"kd"}},"executable":"{}"}}"#,
            stage.path("kd").display()
        );
        stage.script("cargo", &format!("echo \"$@\" > '{0}.cargo'\necho '{built}'", log.display()));
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        program::write(&self.path(name), &format!("#!/bin/sh\n{text}\n"));
    }

    fn command(&self, flags: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::cargo_bin("xtask").unwrap();
        for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        command.env("CARGO", self.path("cargo")).current_dir(self.folder.path());
        command.args(["reproduce", "--data", "data", "--out", "out"]).args(flags);
        command
    }

    fn run(&self, flags: &[&str]) -> assert_cmd::assert::Assert {
        Command::from_std(self.command(flags)).assert()
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_kd_that_is_there_is_started_and_none_built() {
    let stage = Stage::new("");
    stage.run(&["--dataset", "synthetic", "--kd", "kd"]).success();
    assert_eq!(stage.log().last().map(String::as_str), Some("report out"));
    assert!(!stage.path("log.cargo").exists());
    let missing = stage.run(&["--dataset", "synthetic", "--kd", "nowhere"]).failure();
    missing.stderr(contains("--kd: cannot find nowhere"));
}

#[test]
fn the_stages_come_in_order_and_their_times_are_told() {
    let stage = Stage::new("");
    let times = contains("build ").and(contains("regressor ")).and(contains("total "));
    stage.run(&["--dataset", "synthetic", "--quick", "--threads", "2"]).success().stdout(times);
    let log = stage.log();
    let starts = [
        "train --model teacher --out out --dataset synthetic --seed 0",
        "train --model student --out out",
        "distill --method kd --teacher out/teacher.safetensors --out out",
        "distill --method cosine --teacher out/teacher.safetensors --out out",
        "distill --method regressor --teacher out/teacher.safetensors --out out",
        "train --recipe ",
        "distill --method dist --name best --teacher out/resnet8.safetensors --out out",
        "report out",
    ];
    assert_eq!(log.len(), starts.len(), "{log:#?}");
    for (line, start) in log.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    let teacher = "recipes/teachers/resnet8.toml --run resnet8 --out out";
    assert!(log[5].contains(teacher), "{}", log[5]);
    assert!(log[..7].iter().all(|line| line.contains("--threads 2")), "{log:#?}");
    let built = fs::read_to_string(stage.path("log.cargo")).unwrap();
    assert!(built.starts_with("build --release --package kd-run --bin kd"), "{built}");
}

#[test]
fn several_seeds_have_a_folder_each_and_one_report() {
    let stage = Stage::new("");
    stage.run(&["--dataset", "synthetic", "--seeds", "2"]).success();
    let log = stage.log();
    assert_eq!(log.len(), 15);
    assert!(
        log[9].contains("--teacher out/seed-1/teacher.safetensors --out out/seed-1"),
        "{log:#?}"
    );
    assert!(log[9].contains("--seed 1"));
    assert_eq!(log[14], "report out");
}

#[test]
fn seeds_of_another_experiment_are_not_mixed_in() {
    let stage = Stage::new("");
    fs::create_dir_all(stage.path("out/seed-2")).unwrap();
    let other = "out: holds seed-2, of an experiment with other seeds; choose another --out";
    for flags in [&["--seed", "5"][..], &["--seeds", "1"], &["--seeds", "2"]] {
        let line = [&["--dataset", "synthetic"], flags].concat();
        stage.run(&line).failure().stderr(contains(other));
    }
    assert!(stage.log().is_empty());
    stage.run(&["--dataset", "synthetic", "--seeds", "3"]).success();
    fs::create_dir(stage.path("out/teacher")).unwrap();
    let line = ["--dataset", "synthetic", "--seeds", "3"];
    stage.run(&line).failure().stderr(contains("out: holds teacher, of an experiment"));
}

#[test]
fn without_a_network_auto_says_so_and_goes_on_with_the_synthetic_set() {
    let stage = Stage::new("");
    let plainly = contains("No CIFAR-10 in data and none to be had").and(contains("SYNTHETIC"));
    stage.run(&["--url", "http://127.0.0.1:1/x"]).success().stdout(plainly);
    assert!(stage.log()[0].contains("--dataset synthetic"));
}

#[test]
fn without_a_network_cifar10_fails() {
    let stage = Stage::new("");
    let flags = ["--dataset", "cifar10", "--url", "http://127.0.0.1:1/x"];
    stage.run(&flags).failure().stderr(contains("stage data: cannot reach"));
    assert!(stage.log().is_empty());
}

#[test]
fn images_that_are_there_need_no_network() {
    let stage = Stage::new("");
    let folder = stage.path("data/cifar-10-batches-bin");
    fs::create_dir_all(&folder).unwrap();
    for name in [
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ] {
        let file = fs::File::create(folder.join(format!("{name}.bin"))).unwrap();
        file.set_len(30_730_000).unwrap();
    }
    fs::write(folder.join("batches.meta.txt"), "airplane\n").unwrap();
    stage.run(&["--url", "http://127.0.0.1:1/x"]).success();
    let log = stage.log();
    assert_eq!(log[0], "train --model teacher --out out --dataset cifar10 --seed 0 --data data");
}

#[test]
fn a_failed_stage_stops_the_rest() {
    let stage = Stage::new(r#"case "$*" in *"--method kd"*) echo "no good" >&2; exit 3;; esac"#);
    let error = contains("no good").and(contains("stage kd: `kd distill --method kd"));
    stage.run(&["--dataset", "synthetic"]).failure().code(1).stderr(error);
    assert_eq!(stage.log().len(), 3);
}

#[test]
fn ctrl_c_reaches_kd_once_and_waits_for_its_end() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let body = format!(
            "trap 'echo told >> told; sleep 0.2; echo saved > saved; exit {code}' {signal}\n\
             touch started\nwhile :; do sleep 0.02; done"
        );
        let stage = Stage::new(&body);
        let mut command = stage.command(&["--dataset", "synthetic"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&stage.path("started"));
        let kill = std::process::Command::new("kill")
            .args([&format!("-{signal}"), &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(fs::read_to_string(stage.path("told")).unwrap(), "told\n");
        assert!(stage.path("saved").exists(), "it did not wait");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("the same command goes on"), "{stderr}");
        assert_eq!(stage.log().len(), 1);
    }
}

#[test]
fn a_run_that_is_killed_for_memory_is_a_failure_and_no_stop() {
    let stage = Stage::new("kill -KILL $$");
    let killed = contains("stage teacher").and(contains("failed (signal: 9 (SIGKILL))"));
    stage.run(&["--dataset", "synthetic"]).code(1).stderr(killed);
}

fn wait_for(path: &Path) {
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bad_flags_are_one_clear_error() {
    let stage = Stage::new("");
    stage.run(&["--seed", "1", "--seeds", "2"]).failure().stderr(contains("cannot be used with"));
    stage.run(&["--epochs", "0"]).failure().stderr(contains("--epochs"));
    stage.run(&["--dataset", "mnist"]).failure().stderr(contains("synthetic"));
    assert!(stage.log().is_empty());
}
