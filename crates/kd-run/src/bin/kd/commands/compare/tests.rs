//! A comparison with a stand-in for `kd` that keeps a log of its arguments and leaves what a run leaves.
#![cfg(unix)]

use std::fs;
use std::path::PathBuf;

use clap::Parser;
use tempfile::TempDir;

use super::*;
use crate::cli::{Cli, Command};

const RECIPE: &str = r#"format = 1
name = "r"
data = { dataset = "synthetic" }
training = { epochs = 1 }
[[run]]
name = "teacher"
model = "teacher"
[[run]]
name = "student"
model = "student"
[[run]]
name = "kd"
model = "student"
teacher = "teacher"
[[run.method]]
name = "kd"
weight = 0.25
[[run]]
name = "cross"
model = "student"
teacher = "teacher"
cross_fit = 2
[[run.method]]
name = "kd"
weight = 0.25
"#;

/// Leaves what a run leaves; the accuracy is 0.5, of `kd` 0.6.
const KD: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> log
while [ $# -gt 0 ]; do
  case "$1" in --name) name=$2;; --out) out=$2;; --seed) seed=$2;; esac; shift
done
if [ -e "stop-$name-$seed" ]; then exit 130; fi
mkdir -p "$out/$name" "$out/cache"; touch "$out/$name.safetensors"; cp methods.toml "$out/$name/recipe.toml"
case $name in kd) accuracy=0.6; confusion='[[12,8],[8,12]]';; *) accuracy=0.5; confusion='[[10,10],[10,10]]';; esac
echo "{\"format\":1,\"accuracy\":$accuracy,\"loss\":1.0,\"classes\":[\"a\",\"b\"],\"confusion\":$confusion,\"per_class_accuracy\":[0.5,0.5]}" \
  > "$out/$name/evaluation.json"
{ echo "{\"event\":\"start\",\"run\":\"$name\",\"model\":\"student\",\"parameters\":1,\"device\":\"cpu\",\"seed\":$seed,\"dataset\":{\"name\":\"synthetic\",\"sha256\":\"ab\",\"train\":100,\"test\":40}}"
  echo '{"event":"teacher","images":100,"accuracy":0.973,"entropy":0.08}'
  echo "{\"event\":\"epoch\",\"epoch\":1,\"test_accuracy\":$accuracy,\"test_loss\":1.0,\"train_loss\":1.2345678,\"train_accuracy\":0.4,\"seconds\":2.5,\"images_per_second\":40.0}"
  echo '{"event":"end","steps":1}'; } > "$out/$name/events.jsonl"
"#;

struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { folder: TempDir::new().unwrap() };
        // A process of its own writes it: a child that another thread is just starting would have this process's file open for
        // writing, and a file that is being written can't be started.
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""]);
        assert!(shell.arg(stage.path("kd")).arg(KD).status().unwrap().success());
        fs::write(stage.path("methods.toml"), RECIPE).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `kd compare` with these flags, in which `@` is the stage's folder.
    fn run(&self, flags: &str) -> Result<(), Failure> {
        let flags = flags.replace('@', &format!("{}/", self.folder.path().display()));
        let words = ["kd", "compare"].into_iter().chain(flags.split_whitespace());
        match Cli::parse_from(words).command {
            Command::Compare(flags) if flags.from.is_some() => run(&flags),
            Command::Compare(flags) => train_and_compare(&flags, &self.path("kd")),
            other => panic!("{other:?}"),
        }
    }

    /// The arguments of each start of `kd`, without the stage's folder.
    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let folder = format!("{}/", self.folder.path().display());
        log.lines().map(|line| line.replace(&folder, "")).collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

const LINE: &str = "@methods.toml --seeds 2 --out @out --data d";

#[test]
fn every_arm_runs_on_every_seed_with_the_seeds_own_teacher() {
    let stage = Stage::new();
    stage.run(&format!("{LINE} --epochs 3 --held-out 40")).unwrap();
    let log = stage.log();
    let run = |start: &str, teacher: &str| {
        format!("{start}{teacher} --out out/seed-0 --seed 0 --data d --epochs 3 --held-out 40")
    };
    let taught = " --teacher out/seed-0/teacher.safetensors";
    let part = |part| {
        format!(
            "train --recipe methods.toml --run teacher --name teacher-part-{part}-of-2 --part {part}/2"
        )
    };
    assert_eq!(
        log[..6],
        [
            run("train --recipe methods.toml --run teacher --name teacher", ""),
            run("train --recipe methods.toml --run student --name student", ""),
            run("distill --recipe methods.toml --run kd --name kd", taught),
            run(&part(1), ""),
            run(&part(2), ""),
            run("distill --recipe methods.toml --run cross --name cross", taught),
        ]
    );
    assert!(log.len() == 12 && log[6].contains("--out out/seed-1 --seed 1"), "{log:#?}");
    assert!(!stage.path("out/seed-0/cache").exists(), "nobody asks the teacher again");
    let markdown = stage.read("out/comparison.md");
    assert!(markdown.contains("| kd | 2 | 60.00 ± 0.00 |"), "{markdown}");
    assert!(markdown.contains("97.3 %, 0.080"), "{markdown}");
    assert!(markdown.contains("40 images held out"), "{markdown}");
    let page = stage.read("out/report.html");
    assert!(page.contains("Arms compared, seed by seed") && page.contains("97.3 %, 0.080"));
}

#[test]
fn interrupted_it_goes_on_and_what_is_recorded_is_not_run_again() {
    let stage = Stage::new();
    fs::write(stage.path("stop-kd-1"), "").unwrap();
    let stopped = stage.run(LINE).unwrap_err();
    assert_eq!(stopped.exit_code(), 130);
    assert!(stopped.to_string().contains("the same command goes on"), "{stopped}");
    let before = stage.log().len();
    fs::remove_file(stage.path("stop-kd-1")).unwrap();
    stage.run(LINE).unwrap();
    let log = stage.log();
    assert!(log[before].contains("--name kd") && log[before].contains("--seed 1"), "{log:#?}");
    assert_eq!(log.len() - before, 1 + 3, "kd, the parts, cross: {log:#?}");

    // Stopped after the last figures and before the teacher's cache was removed: it goes now.
    fs::create_dir(stage.path("out/seed-0/cache")).unwrap();
    stage.run(LINE).unwrap();
    assert!(!stage.path("out/seed-0/cache").exists());

    // The figures alone are enough, also without the folder.
    fs::rename(stage.path("out/figures.json"), stage.path("saved.json")).unwrap();
    fs::remove_dir_all(stage.path("out")).unwrap();
    let before = stage.log().len();
    stage.run(&format!("{LINE} --json @saved.json")).unwrap();
    assert_eq!(stage.log().len(), before, "nothing to run, and no runs to report on");
}

#[test]
fn runs_side_by_side_leave_the_same_figures() {
    let stage = Stage::new();
    stage.run(LINE).unwrap();
    let side = LINE.replace("@out", "@side");
    stage.run(&format!("{side} --jobs 3 --threads 1")).unwrap();
    assert_eq!(stage.read("side/figures.json"), stage.read("out/figures.json"));
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
    assert_eq!(stage.run(&format!("{LINE} --jobs 2")).unwrap_err().exit_code(), 130);
    fs::remove_file(stage.path("stop-teacher-0")).unwrap();
    stage.run(&format!("{LINE} --jobs 2")).unwrap();
    let log = stage.log();
    let count = |run: &str| log.iter().filter(|line| line.contains(run)).count();
    assert_eq!(count("--name teacher --out out/seed-0"), 2, "{log:#?}");
    assert!(count("--name student --out out/seed-0") == 1, "{log:#?}");
}

#[test]
fn the_table_can_be_made_again_from_the_figures_without_kd() {
    let stage = Stage::new();
    stage.run(LINE).unwrap();
    fs::remove_file(stage.path("kd")).unwrap();
    stage.run("--from @out/figures.json --markdown @again.md").unwrap();
    assert_eq!(stage.read("again.md"), stage.read("out/comparison.md"));
}

#[test]
fn chosen_arms_are_trained_with_their_teacher_and_the_others_shown_as_not_run() {
    let stage = Stage::new();
    let published =
        "published = { accuracy = 74.92, source = \"README\", epoch = \"last\" }\nmodel";
    let named = |name: &str| format!("name = \"{name}\"\nmodel");
    let mut recipe = RECIPE.to_owned();
    for name in ["kd", "cross"] {
        let with = named(name).replace("model", published);
        recipe = recipe.replace(&named(name), &with);
    }
    fs::write(stage.path("methods.toml"), &recipe).unwrap();
    stage.run(&format!("{LINE} --arms kd")).unwrap();
    let log = stage.log();
    assert_eq!(log.len(), 4, "teacher and kd of two seeds: {log:#?}");
    let markdown = stage.read("out/comparison.md");
    for line in [
        "| kd | 2 | 60.00 ± 0.00 | [60.00, 60.00] | 60.00 ± 0.00 | 74.92 (last epoch) |",
        "| cross | 0 | not run |  |  | 74.92 (last epoch) |",
    ] {
        assert!(markdown.contains(line), "{line}\n{markdown}");
    }
    let page = stage.read("out/report.html");
    assert!(
        page.contains("published, %") && page.contains("not run"),
        "the page has the columns, too"
    );
    // Without the figures the recipe's arms have the same settings.
    fs::write(stage.path("methods.toml"), RECIPE).unwrap();
    stage.run(&format!("{LINE} --arms kd")).unwrap();
    assert_eq!(stage.log().len(), 4);
    let error = stage.run(&format!("{LINE} --arms kdd")).unwrap_err();
    assert!(
        error.to_string().contains("no arm \"kdd\"; the recipes have teacher, student, kd, cross"),
        "{error}"
    );
}

#[test]
fn other_settings_do_not_mix_with_recorded_figures() {
    let stage = Stage::new();
    stage.run(LINE).unwrap();
    let before = stage.log().len();
    let error = stage.run(&format!("{LINE} --epochs 2")).unwrap_err().to_string();
    assert!(error.contains("training.epochs: 1 there, 2 asked for"), "{error}");
    assert_eq!(stage.log().len(), before);
    fs::write(stage.path("out/figures.json"), "{").unwrap();
    let error = stage.run(LINE).unwrap_err().to_string();
    assert!(error.contains("not the raw figures of a comparison"), "{error}");
    let error = Cli::try_parse_from(["kd", "compare", "methods.toml", "--seeds", "21"]);
    assert!(error.unwrap_err().to_string().contains("--seeds"));
}

/// The recipes of methods that have no figures yet.
const NOT_RUN: [&str; 7] =
    ["activation-boundaries", "factor-transfer", "mlkd", "ofd", "reviewkd", "ttm", "wttm"];

/// The settings that the project's own figures were recorded with are those that its recipes have today: the command in
/// docs/methods.md goes on from them. Three arms have other settings since and are to be trained; the figures of the old settings stand under names of their own.
#[test]
fn the_recorded_settings_are_those_of_the_recipes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut recipes: Vec<PathBuf> = fs::read_dir(root.join("recipes/methods"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    recipes.sort();
    recipes.push(root.join("recipes/best.toml"));
    let resolved: Vec<_> =
        recipes.into_iter().map(|path| (path.clone(), as_json(&path).unwrap())).collect();
    let plan = plan::plan(&resolved, &Overrides::default()).unwrap();
    let path = root.join("docs/results/methods-cifar10.json");
    let mut figures = Figures::read(&path).unwrap();
    let before = figures.clone();
    for planned in &plan {
        figures.add_arm(Arm::of(planned), &path).unwrap();
    }
    let new = figures.arms.split_off(before.arms.len());
    let new: Vec<&str> = new.iter().map(|arm| arm.name.as_str()).collect();
    let document = fs::read_to_string(root.join("docs/methods.md")).unwrap();
    // What has not been run, the page says.
    assert_eq!(new, NOT_RUN, "these settings are not in the figures");
    for name in NOT_RUN {
        assert!(document.contains(&format!("`{name}`")), "{name}");
    }
    assert_eq!(figures, before);
    for old in ["correlation-congruence-0.02", "dist-tau-1", "logit-standardization-dkd-1-8"] {
        assert!(figures.arms.iter().any(|arm| arm.name == old), "{old}");
        assert!(document.contains(&format!("`{old}`")), "{old}");
    }
}
