//! `cargo xtask compare` as a process, with stand-ins for cargo and `kd`.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use tempfile::TempDir;

/// A recipe as `kd recipe --json` prints it; the stand-in only passes it on.
const RECIPE: &str = r#"{"format":1,"name":"r","data":{"dataset":"synthetic"},
"training":{"epochs":1,"seed":0},"optimizer":{"name":"adam"},"run":[
{"name":"teacher","model":"teacher"},{"name":"student","model":"student"},
{"name":"kd","model":"student","teacher":"teacher","method":[{"name":"kd"}]},
{"name":"cross","model":"student","teacher":"teacher","cross_fit":2,"method":[{"name":"kd"}]}]}"#;

/// Logs its arguments and leaves what a run leaves; the accuracy is 0.5, of `kd` 0.6.
const KD: &str = r#"
if [ "$1" = recipe ]; then cat "$3"; exit; fi
echo "$@" >> log
if [ "$1" = report ]; then exit; fi
while [ $# -gt 0 ]; do
  case "$1" in --name) name=$2;; --out) out=$2;; --seed) seed=$2;; esac; shift
done
if [ -e "stop-$name-$seed" ]; then exit 130; fi
mkdir -p "$out/$name" "$out/cache"; touch "$out/$name.safetensors"
case $name in kd) accuracy=0.6;; *) accuracy=0.5;; esac
echo "{\"accuracy\":$accuracy,\"loss\":1.0}" > "$out/$name/evaluation.json"
{ echo '{"event":"start","dataset":{"name":"synthetic","sha256":"ab","train":100,"test":40}}'
  echo '{"event":"teacher","accuracy":0.973,"entropy":0.08}'
  echo "{\"event\":\"epoch\",\"test_accuracy\":$accuracy,\"train_loss\":1.2345678,\"train_accuracy\":0.4,\"seconds\":2.5}"
  echo '{"event":"end"}'; } > "$out/$name/events.jsonl"
"#;

struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { folder: TempDir::new().unwrap() };
        stage.script("kd", KD);
        let built = format!(
            r#"{{"reason":"compiler-artifact","target":{{"name":"kd"}},"executable":"{}"}}"#,
            stage.path("kd").display()
        );
        stage.script("cargo", &format!("echo '{built}'"));
        fs::write(stage.path("methods.toml"), RECIPE).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, flags: &str) -> assert_cmd::assert::Assert {
        let mut command = Command::cargo_bin("xtask").unwrap();
        command.env("CARGO", self.path("cargo")).current_dir(self.folder.path());
        command.arg("compare").args(flags.split_whitespace()).assert()
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

const LINE: &str = "methods.toml --seeds 2 --out out --data d";

#[test]
fn every_arm_runs_on_every_seed_with_the_seeds_own_teacher() {
    let stage = Stage::new();
    let row = contains("kd           2  60.00 ± 0.00").and(contains("97.3 %, 0.080"));
    stage.run(&format!("{LINE} --epochs 3 --held-out 40")).success().stdout(row);
    let log = stage.log();
    let common = "--data d --epochs 3 --held-out 40";
    assert_eq!(
        log[..6],
        [
            format!(
                "train --recipe methods.toml --run teacher --name teacher --out out/seed-0 --seed 0 {common}"
            ),
            format!(
                "train --recipe methods.toml --run student --name student --out out/seed-0 --seed 0 {common}"
            ),
            format!(
                "distill --recipe methods.toml --run kd --name kd --teacher out/seed-0/teacher.safetensors --out out/seed-0 --seed 0 {common}"
            ),
            format!(
                "train --recipe methods.toml --run teacher --name teacher-part-1-of-2 --part 1/2 --out out/seed-0 --seed 0 {common}"
            ),
            format!(
                "train --recipe methods.toml --run teacher --name teacher-part-2-of-2 --part 2/2 --out out/seed-0 --seed 0 {common}"
            ),
            format!(
                "distill --recipe methods.toml --run cross --name cross --teacher out/seed-0/teacher.safetensors --out out/seed-0 --seed 0 {common}"
            ),
        ]
    );
    assert!(log[6].contains("--out out/seed-1 --seed 1") && log[12] == "report out", "{log:#?}");
    assert!(!stage.path("out/seed-0/cache").exists(), "the teacher's outputs are not needed more");
    let markdown = fs::read_to_string(stage.path("out/comparison.md")).unwrap();
    assert!(markdown.contains("| kd | 2 | 60.00 ± 0.00 |"), "{markdown}");
    assert!(markdown.contains("40 images held out"), "{markdown}");
    assert!(stage.path("out/comparison.json").exists());
}

#[test]
fn interrupted_it_goes_on_and_what_is_recorded_is_not_run_again() {
    let stage = Stage::new();
    fs::write(stage.path("stop-kd-1"), "").unwrap();
    stage.run(LINE).failure().code(130).stderr(contains("the same command goes on"));
    let before = stage.log().len();
    fs::remove_file(stage.path("stop-kd-1")).unwrap();
    stage.run(LINE).success();
    let log = stage.log();
    assert!(log[before].contains("--name kd") && log[before].contains("--seed 1"), "{log:#?}");
    assert_eq!(log.len() - before, 1 + 3 + 1, "kd, the parts, cross, report: {log:#?}");

    // Stopped after the last figures and before the teacher's outputs were removed: they go now.
    fs::create_dir(stage.path("out/seed-0/cache")).unwrap();
    stage.run(LINE).success();
    assert!(!stage.path("out/seed-0/cache").exists());

    // The figures alone are enough, also without the folder, and for a third seed.
    fs::rename(stage.path("out/figures.json"), stage.path("kept.json")).unwrap();
    fs::remove_dir_all(stage.path("out")).unwrap();
    let before = stage.log().len();
    stage.run(&format!("{LINE} --json kept.json")).success();
    assert_eq!(stage.log().len(), before, "nothing to run, and no runs to report on");
}

#[test]
fn runs_side_by_side_leave_the_same_figures() {
    let stage = Stage::new();
    stage.run(LINE).success();
    let alone = fs::read_to_string(stage.path("out/figures.json")).unwrap();
    let side = LINE.replace("--out out", "--out side");
    stage.run(&format!("{side} --jobs 3 --threads 1")).success();
    assert_eq!(fs::read_to_string(stage.path("side/figures.json")).unwrap(), alone);
    let log = stage.log();
    let side: Vec<_> = log.iter().filter(|line| line.contains("--out side/")).collect();
    assert_eq!(side.len(), 12);
    assert!(side.iter().all(|line| line.ends_with("--threads 1 --plain")), "{side:#?}");
    assert!(!stage.path("side/seed-0/cache").exists() && !stage.path("side/seed-1/cache").exists());
}

#[test]
fn one_that_fails_ends_the_comparison_with_what_was_done_beside_it() {
    let stage = Stage::new();
    fs::write(stage.path("stop-teacher-0"), "").unwrap();
    stage.run(&format!("{LINE} --jobs 2")).failure().code(130);
    fs::remove_file(stage.path("stop-teacher-0")).unwrap();
    stage.run(&format!("{LINE} --jobs 2")).success();
    let log = stage.log();
    let count = |run: &str| log.iter().filter(|line| line.contains(run)).count();
    assert_eq!(count("--name teacher --out out/seed-0"), 2, "{log:#?}");
    assert!(count("--name student --out out/seed-0") == 1, "{log:#?}");
}

#[test]
fn the_table_can_be_made_again_from_the_figures_without_kd() {
    let stage = Stage::new();
    stage.run(LINE).success();
    let whole = fs::read_to_string(stage.path("out/comparison.md")).unwrap();
    fs::remove_file(stage.path("kd")).unwrap();
    fs::remove_file(stage.path("cargo")).unwrap();
    stage.run("--from out/figures.json --markdown again.md").success().stdout(contains("kd "));
    assert_eq!(fs::read_to_string(stage.path("again.md")).unwrap(), whole);
}

#[test]
fn other_settings_do_not_mix_with_recorded_figures() {
    let stage = Stage::new();
    stage.run(LINE).success();
    let before = stage.log().len();
    let error = contains("training.epochs: 1 there, 2 asked for");
    stage.run(&format!("{LINE} --epochs 2")).failure().stderr(error);
    assert_eq!(stage.log().len(), before);
    fs::write(stage.path("out/figures.json"), "{").unwrap();
    stage.run(LINE).failure().stderr(contains("not the raw figures of a comparison"));
    stage.run("--seeds 21 methods.toml").failure().stderr(contains("--seeds"));
}

#[test]
fn the_documents_table_is_that_of_the_raw_figures() {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let stage = Stage::new();
    let figures = docs.join("results/methods-cifar10.json");
    stage.run(&format!("--from {} --markdown table.md", figures.display())).success();
    let table = fs::read_to_string(stage.path("table.md")).unwrap();
    let document = fs::read_to_string(docs.join("methods.md")).unwrap();
    assert!(document.contains(&table), "docs/methods.md is to hold this:\n{table}");
}
