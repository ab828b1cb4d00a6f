//! `cargo xtask emulated-gpu`: the tests that need a GPU, on one that is emulated on the host (`parity/emulated-gpu`).
//!
//! candle, cudarc and our launches run as they are; below them are libraries of ours instead of NVIDIA's. So it finds wrong
//! arguments, sizes and orders, and says nothing about a GPU's speed or rounding.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::{process, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Convolutions through cuDNN, emulated too
    #[arg(long)]
    cudnn: bool,
    /// Only tests whose name contains this
    test: Option<String>,
}

/// The crates with a tests/cuda.rs.
const CRATES: [&str; 4] = ["kd-data", "kd-loss", "kd-ops", "kd-run"];

pub fn command(args: &Args) -> anyhow::Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the emulated GPU changes from thread to thread by instructions of x86-64, and this is another processor"
    );
    let folder = workspace::root().join("target/emulated-gpu");
    let script = workspace::root().join("parity/emulated-gpu/build.sh");
    let mut build = Command::new("bash");
    build.arg(script).arg(&folder);
    println!("{}", process::shown(&build));
    // What it prints is for a shell.
    build.stdout(Stdio::null());
    process::run(&mut build)
        .context("the emulated GPU could not be built; it needs g++ 12 or newer")?;

    let mut test = workspace::cargo();
    // Without optimisation candle is built in a third of the time, and little is computed in Rust here.
    test.args(["test", "--profile", "light"]);
    for name in CRATES {
        test.args(["--package", name]);
    }
    let features = if args.cudnn { "kd-run/cudnn" } else { "kd-run/cuda" };
    test.args(["--features", features, "--test", "cuda"]);
    println!("{}", process::shown(&test));
    // A folder of its own: what is built for a GPU elsewhere stays as it is.
    test.arg("--target-dir").arg(folder.join("cargo"));
    test.arg("--").args(&args.test);
    for name in ["CUDA_HOME", "CUDA_ROOT", "CUDA_PATH", "CUDA_TOOLKIT_ROOT_DIR"] {
        test.env(name, &folder);
    }
    let libraries = folder.join("lib64");
    test.env("NVCC", folder.join("bin/nvcc")).env_remove("NVCC_CCBIN");
    test.env("CUDARC_CUDA_VERSION", "13000").env("CUDA_COMPUTE_CAP", "90");
    test.env("LIBRARY_PATH", &libraries).env("LD_LIBRARY_PATH", &libraries);
    // One test asks the driver for its counts.
    test.env("KD_EMULATED_GPU", "1");
    process::run(&mut test)
}
