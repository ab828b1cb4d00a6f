//! `cargo xtask ci`: every check of continuous integration; `.ci/run` makes sure of the tools and
//! starts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use kd_record::{OutFolder, Summary};

use crate::{emulated_gpu, process, reproduce, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Only these, in the order given [default: all]
    #[arg(value_enum)]
    steps: Vec<Step>,
}

/// In the order of CI: what fails in seconds first; the tests last, so that the output ends with
/// their own closing lines.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Formatting
    Fmt,
    /// `cargo xtask` links no candle: it has to be built in seconds
    Lean,
    /// Clippy, warnings being errors
    Clippy,
    /// Documentation, warnings being errors
    Doc,
    /// A whole quick experiment on the synthetic set, twice: the second time all is finished
    Reproduce,
    /// The report of `reproduce` in headless Chromium, and whether each check finds its defect
    Browser,
    /// Each published crate is packed; `cargo xtask soak package` also builds each from its package alone
    Package,
    /// kd-ops' operations once more in portable code: the tests take the best that the processor has
    Portable,
    /// The tests that need a GPU, on an emulated one, without and with cuDNN
    EmulatedGpu,
    /// All other tests: README's command
    Test,
}

/// Packs the crates that are published. A working tree with changes can be packed, too.
pub const PACKAGE: [&str; 7] =
    ["package", "--workspace", "--exclude", "kd-bench", "--exclude", "xtask", "--allow-dirty"];

pub fn command(args: &Args) -> anyhow::Result<()> {
    let steps =
        if args.steps.is_empty() { Step::value_variants().to_vec() } else { args.steps.clone() };
    let mut times: Vec<(String, Duration)> = Vec::new();
    for step in steps {
        let name = step.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        if step == Step::Test && !times.is_empty() {
            let list: Vec<_> = times
                .iter()
                .map(|(name, time)| format!("{name} {}", reproduce::clock(*time)))
                .collect();
            println!("\nTimes so far: {}", list.join(", "));
        }
        println!("\n==== ci: {name}");
        let start = Instant::now();
        step.run().with_context(|| format!("ci step `{name}`"))?;
        times.push((name, start.elapsed()));
    }
    Ok(())
}

impl Step {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Step::Fmt => cargo(&["fmt", "--all", "--check"]),
            Step::Lean => lean(),
            Step::Clippy => cargo(&[
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
            Step::Doc => {
                let mut command = workspace::cargo();
                command.args(["doc", "--locked", "--workspace", "--no-deps"]);
                process::run(command.env("RUSTDOCFLAGS", "-D warnings"))
            }
            Step::Reproduce => quick_experiment(Some(&kd_of_the_tests()?)),
            Step::Browser => browser(),
            Step::Package => cargo(&[&PACKAGE[..], &["--no-verify"]].concat()),
            Step::Portable => {
                let mut command = workspace::cargo();
                // The whole workspace's features, so that the next step builds nothing twice.
                command.args(["test", "--workspace", "--test", "conv2d", "--test", "references"]);
                process::run(command.env("KD_ISA", "portable"))
            }
            Step::EmulatedGpu => [false, true].into_iter().try_for_each(|cudnn| {
                emulated_gpu::command(&emulated_gpu::Args { cudnn, ..Default::default() })
            }),
            Step::Test => cargo(&["test", "--workspace"]),
        }
    }
}

fn lean() -> anyhow::Result<()> {
    let mut command = workspace::cargo();
    command.args([
        "tree",
        "--locked",
        "--package",
        "xtask",
        "--edges",
        "normal",
        "--prefix",
        "none",
    ]);
    let output = command.output().context("cargo tree can't be started")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let packages = String::from_utf8(output.stdout).context("cargo tree printed no text")?;
    ensure!(packages.starts_with("xtask "), "cargo tree printed {packages:?}");
    let candle = packages.lines().find(|line| line.starts_with("candle"));
    ensure!(candle.is_none(), "xtask depends on {}", candle.unwrap_or_default());
    Ok(())
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = workspace::cargo();
    println!("cargo {}", arguments.join(" "));
    process::run(command.args(arguments))
}

/// Where `quick_experiment` leaves its results, for `browser` and for looking at.
fn quick_folder() -> PathBuf {
    workspace::root().join("target/ci/quick")
}

/// The `kd` that the command line's tests start, built with the whole workspace's features: the later steps build nothing
/// of it again. `cargo xtask soak release` has the release build, which takes five minutes of both cores.
fn kd_of_the_tests() -> anyhow::Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["test", "--locked", "--workspace", "--test", "cli", "--no-run"]);
    workspace::built_by(&mut command, "kd")
}

/// `cargo xtask reproduce --quick --dataset synthetic --out DIR`, and once more.
pub fn quick_experiment(kd: Option<&Path>) -> anyhow::Result<()> {
    let out = quick_folder();
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let out_text = out.to_str().context("the path of this checkout is not valid UTF-8")?;
    let line = ["reproduce", "--quick", "--dataset", "synthetic", "--out", out_text];
    println!("cargo xtask {}", line.join(" "));
    let args =
        reproduce::Args { kd: kd.map(Path::to_path_buf), ..Line::try_parse_from(line)?.args };
    reproduce::command(&args)?;
    let first = results(&out)?;
    println!("\nThe same again: every run is finished, nothing may change.");
    reproduce::command(&args)?;
    let second = results(&out)?;
    for ((path, before), (_, after)) in first.iter().zip(&second) {
        ensure!(before == after, "{} changed in a second run", path.display());
    }
    Ok(())
}

/// `parity/report.py` on the report of the step `reproduce`.
fn browser() -> anyhow::Result<()> {
    let report = OutFolder::new(quick_folder()).report();
    ensure!(
        report.exists(),
        "there is no {}; `cargo xtask ci reproduce` makes it",
        report.display()
    );
    let mut command = workspace::command("python3".as_ref());
    command.arg(workspace::root().join("parity/report.py")).arg(report).arg("--self-test");
    println!("{}", process::shown(&command));
    process::run(&mut command)
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: reproduce::Args,
}

/// The files that a finished experiment leaves, each checked to be there, with their contents;
/// every run must be clearly better than a guess among ten classes.
fn results(out: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let out = OutFolder::new(out);
    let summary = Summary::read(&out.summary())?;
    ensure!(out.report().exists(), "no {}", out.report().display());
    reproduce::RUNS
        .iter()
        .map(|name| {
            let run = summary.run(name);
            let run = run.with_context(|| {
                format!("{}: there is no run `{name}`", out.summary().display())
            })?;
            let accuracy = run.test_accuracy;
            ensure!(
                accuracy > 0.2,
                "`{name}` has test accuracy {accuracy}, expected well above 0.1"
            );
            let path = out.weights(name);
            let contents = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
            Ok((path, contents))
        })
        .collect()
}
