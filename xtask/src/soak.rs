//! `cargo xtask soak`: the checks of reliability that take minutes. docs/reliability.md says what each one shows.

mod pairs;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::{ci, emulated_gpu, process, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Only these, in the order given [default: all]
    #[arg(value_enum)]
    steps: Vec<Step>,
    /// Seconds that each fuzz target runs
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    fuzz_seconds: u64,
    /// The program kd that `pairs` starts [default: the release build, which it makes]
    #[arg(long, value_name = "FILE")]
    kd: Option<PathBuf>,
    /// Only these of the pairs, by their recipes' names: "resnet56-to-resnet20,vgg13-to-vgg8" [default: all]
    #[arg(long, value_name = "PAIRS", value_delimiter = ',')]
    pairs: Vec<String>,
    /// A Python with PyTorch, which writes checkpoints for `pairs`
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Runs killed at 50 random moments, brought to their end and compared bit for bit
    Kills,
    /// A run on a disk that is full (Linux; mounts one of six megabytes in a namespace of its own)
    Disk,
    /// kd-ops' tests and the engine's under AddressSanitizer
    Asan,
    /// Fuzz targets under AddressSanitizer, one after the other
    Fuzz,
    /// The tests that need candle-datasets, which takes minutes to build
    Hub,
    /// Teachers in ONNX files and pictures in Parquet files (ORT_DYLIB_PATH has to name ONNX Runtime's library)
    Formats,
    /// Each published crate built from its package alone
    Package,
    /// A quick experiment by the release build; CI has that of the tests' build
    Release,
    /// The tests that need a GPU in a build without the feature `cudnn`, on the emulated one
    WithoutCudnn,
    /// A training step of every run of the published CIFAR-100 pairs, on drawn pixels in CIFAR-100's format
    Pairs,
}

/// In `fuzz/fuzz_targets`, each with the longest input that makes sense and where more seeds lie.
const TARGETS: [(&str, u32, Option<&str>); 4] = [
    ("archive", 16_384, None),
    ("checkpoint", 4096, None),
    ("cifar", 9216, None),
    ("recipe", 8192, Some("recipes")),
];

/// What libFuzzer needs of LLVM, as cargo-fuzz sets it.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    --cfg fuzzing";
const ADDRESS: &str = "-Zsanitizer=address";

/// The tests that run under AddressSanitizer: the kernels by themselves, and as the engine calls them, with its offsets into
/// memory that values share.
const WATCHED: [&[&str]; 2] = [
    &["--package", "kd-ops", "--tests"],
    &["--package", "kd-models", "--test", "engine", "--test", "random_graphs"],
];

pub fn command(args: &Args) -> anyhow::Result<()> {
    let steps =
        if args.steps.is_empty() { Step::value_variants().to_vec() } else { args.steps.clone() };
    for step in steps {
        let name = step.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        println!("\n==== soak: {name}");
        let start = Instant::now();
        step.run(args).with_context(|| format!("soak step `{name}`"))?;
        println!("{name}: {:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}

impl Step {
    fn run(self, args: &Args) -> anyhow::Result<()> {
        match self {
            Self::Kills => ignored_test("fifty_kills"),
            Self::Disk => ignored_test("a_full_disk"),
            Self::Asan => {
                // kd-ops takes the best that the processor has and this lets it.
                for isa in ["avx512", "avx2", "portable"] {
                    println!("KD_ISA={isa}");
                    for tests in WATCHED {
                        let mut command = with_sanitizer("asan", ADDRESS)?;
                        // Candle without optimisation is built in a fifth of the time; kd-ops and kd-models keep their own.
                        command.args(["test", "--profile", "light"]).args(tests);
                        process::run(command.args(["--target", &host()?]).env("KD_ISA", isa))?;
                    }
                }
                Ok(())
            }
            Self::Hub => {
                // Its dependencies' features differ from the other tests', so that next to nothing would be shared; without
                // optimisation it is built in less than half the time.
                let mut command = workspace::cargo();
                command.args(["test", "--locked", "--profile", "light"]);
                process::run(command.args(["--package", "kd-data", "--features", "hub"]))?;
                let mut command = workspace::cargo();
                command.args(["test", "--locked", "--package", "kd-run", "--features", "hub"]);
                process::run(command.args(["--test", "cli", "fetch::"]))
            }
            Self::Formats => {
                let mut command = workspace::cargo();
                command.args(["test", "--locked", "--package", "kd-data", "--features", "parquet"]);
                process::run(command.args(["--test", "picture_files"]))?;
                let mut command = workspace::cargo();
                command.args(["test", "--locked", "--package", "kd-run", "--features", "onnx"]);
                process::run(command.args(["--test", "cli", "onnx::"]))
            }
            Self::Release => ci::quick_experiment(None),
            Self::WithoutCudnn => emulated_gpu::command(&emulated_gpu::Args {
                without_cudnn: true,
                ..Default::default()
            }),
            Self::Pairs => pairs::run(args.kd.as_deref(), &args.pairs, args.python.as_deref()),
            Self::Package => process::run(workspace::cargo().args(ci::PACKAGE)),
            Self::Fuzz => TARGETS.iter().try_for_each(|target| fuzz(*target, args.fuzz_seconds)),
        }
    }
}

/// Tests of kd-run that CI has no time for.
fn ignored_test(name: &str) -> anyhow::Result<()> {
    let mut command = workspace::cargo();
    command.args(["test", "--package", "kd-run", "--test", "cli", name]);
    process::run(command.args(["--", "--ignored", "--nocapture"]))
}

fn fuzz((target, longest, seeds): (&str, u32, Option<&str>), seconds: u64) -> anyhow::Result<()> {
    let folder = workspace::root().join("fuzz");
    let (corpus, artifacts) =
        (folder.join("corpus").join(target), folder.join("artifacts").join(target));
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let mut command = with_sanitizer("fuzz", &format!("{COVERAGE} {ADDRESS}"))?;
    command.current_dir(&folder);
    command.args(["run", "--release", "--target", &host()?, "--bin", target, "--"]);
    command.arg(&corpus).arg(folder.join("seeds").join(target));
    command.args(seeds.map(|seeds| workspace::root().join(seeds)));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={longest}"));
    // A reader that asks for much more memory than its input has is a finding.
    command.args(["-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=64"]);
    command.args(["-print_final_stats=1", "-print_funcs=0", "-verbosity=0"]);
    println!("fuzz target {target}");
    process::run(&mut command)
}

/// Cargo for a build of its own with unstable flags, which the stable compiler takes from those who ask for them.
fn with_sanitizer(folder: &str, flags: &str) -> anyhow::Result<Command> {
    ensure!(cfg!(target_os = "linux"), "the sanitizer's runtime comes with Linux toolchains");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace::root().join("target"), std::path::PathBuf::from);
    let mut command = workspace::cargo();
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags).env("CARGO_INCREMENTAL", "0");
    command.env("CARGO_TARGET_DIR", target.join(folder));
    // Threads of pools live until the process ends: no leak.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    Ok(command)
}

/// The compiler's own target: named, so that build scripts and macros are built without the flags.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).context("rustc doesn't tell its host")
}
