//! `cargo xtask emulated-gpu`: the tests that need a GPU, on one that is emulated on the host (`parity/emulated-gpu`).
//!
//! candle, cudarc and our launches run as they are; below them are libraries of ours instead of NVIDIA's. So it finds wrong
//! arguments, sizes and orders, and says nothing about a GPU's speed or rounding.

use anyhow::ensure;

use crate::{process, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Convolutions through cuDNN, emulated too
    #[arg(long)]
    cudnn: bool,
    /// Only tests whose name contains this
    test: Option<String>,
}

/// The crates whose tests on a GPU compute convolutions.
const CONVOLVE: [&str; 3] = ["kd-ops", "kd-run", "kd-bench"];
/// Those whose tests compute none, which is all that cuDNN does: they are run without it.
const OTHERS: [&str; 2] = ["kd-data", "kd-loss"];

pub fn command(args: &Args) -> anyhow::Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the emulated GPU changes from thread to thread by instructions of x86-64, and this is another processor"
    );
    let folder = workspace::root().join("target/emulated-gpu");
    let script = workspace::root().join("parity/emulated-gpu/build.sh");
    let mut command = workspace::command("bash".as_ref());
    command.arg(script).arg(&folder).arg(workspace::program());
    // Without optimisation candle is built in a third of the time, and little is computed in Rust here.
    command.args(["test", "--profile", "light"]);
    let others = if args.cudnn { &[][..] } else { &OTHERS };
    for name in others.iter().chain(&CONVOLVE) {
        command.args(["--package", name]);
    }
    let features = if args.cudnn {
        ["kd-run/cudnn", "kd-bench/cudnn"]
    } else {
        ["kd-run/cuda", "kd-bench/cuda"]
    };
    command.args(["--features", &features.join(","), "--test", "cuda"]);
    // A folder of its own: what is built for a GPU elsewhere stays as it is.
    command.arg("--target-dir").arg(folder.join("cargo"));
    command.arg("--").args(&args.test);
    println!("{}", process::shown(&command));
    process::run(&mut command)
}
