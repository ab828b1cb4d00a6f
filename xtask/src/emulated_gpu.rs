//! `cargo xtask emulated-gpu`: the tests that need a GPU, on one that is emulated on the host (`parity/emulated-gpu`).
//!
//! candle, cudarc and our launches run as they are; below them are libraries of ours instead of NVIDIA's. So it finds wrong
//! arguments, sizes and orders, and says nothing about a GPU's speed or rounding.

use anyhow::ensure;

use crate::{process, workspace};

#[derive(clap::Args, Default)]
pub struct Args {
    /// Convolutions through cuDNN, emulated too; without it through cuBLAS, on columns of windows
    #[arg(long)]
    pub cudnn: bool,
    /// In a build without the feature `cudnn`; by default one build has both ways
    #[arg(long, conflicts_with = "cudnn")]
    pub without_cudnn: bool,
    /// Only tests whose name contains this
    pub test: Option<String>,
}

/// The crates with tests on a GPU. All are named in each case, so that the same build runs both ways: cargo unites the features
/// of what is named.
const CRATES: [&str; 6] = ["kd-data", "kd-loss", "kd-ops", "kd-models", "kd-run", "kd-bench"];

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
    for name in CRATES {
        command.args(["--package", name]);
    }
    let features = match args.without_cudnn {
        true => "kd-run/cuda,kd-bench/cuda",
        false => "kd-run/cudnn,kd-bench/cudnn",
    };
    command.args(["--features", features, "--test", "cuda"]);
    // A folder of its own: what is built for a GPU elsewhere stays as it is.
    command.arg("--target-dir").arg(folder.join("cargo"));
    command.arg("--").args(&args.test);
    command.env("KD_CONVOLUTIONS", if args.cudnn { "cudnn" } else { "cublas" });
    println!("{}", process::shown(&command));
    process::run(&mut command)
}
