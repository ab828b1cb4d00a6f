//! `cargo xtask doctor` as a process, on machines made of small programs in a folder.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use common::archive::{FOLDER, cifar10};
use common::program::write;
use serde_json::Value;
use tempfile::TempDir;

/// A program that prints `text`.
fn program(folder: &Path, name: &str, text: &str) {
    write(&folder.join(name), &format!("#!/bin/sh\ncat <<'END'\n{text}\nEND\n"));
}

/// A machine with cc and cargo, and `sh` and `cat` for the programs.
fn machine() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "cc", "cc 12.2.0");
    program(dir.path(), "cargo", "cargo 1.95.0 (f2d3ce0bd 2026-03-21)");
    dir
}

/// The exit code, and what `--json` prints.
fn look(machine: &Path, data: &Path) -> (Option<i32>, Value) {
    let mut command = Command::cargo_bin("xtask").unwrap();
    for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CC"] {
        command.env_remove(name);
    }
    let path = format!("{}:/bin", machine.display());
    command.env("PATH", path).env("CARGO", machine.join("cargo"));
    let output = command.args(["doctor", "--json", "--data"]).arg(data).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_machine_without_cuda_and_data_can_run_the_experiment() {
    let (machine, data) = (machine(), tempfile::tempdir().unwrap());
    let (code, found) = look(machine.path(), data.path());
    // This machine's own memory and disk are real.
    let problems = found["problems"].as_array().unwrap();
    let of_machine = |text: &&Value| !text.as_str().unwrap().contains(" are left, ");
    assert_eq!(problems.iter().filter(of_machine).count(), 0, "{found}");
    assert_eq!(code, Some(if problems.is_empty() { 0 } else { 1 }));
    assert_eq!(found["cc"], "cc 12.2.0");
    assert!(found["processor"]["threads"].as_u64().unwrap() >= 1);
    let codes = ["avx512", "avx2", "portable"];
    assert!(codes.contains(&found["processor"]["kd_ops"].as_str().unwrap()), "{found}");
    assert!(found["disk"]["free_bytes"].as_u64().unwrap() > 0, "{found}");
    assert_eq!(found["data"]["cifar10"], Value::Null);
}

#[test]
fn what_is_missing_or_too_old_is_named() {
    let (machine, data) = (machine(), tempfile::tempdir().unwrap());
    write(&machine.path().join("cc"), "#!/bin/sh\nexit 1\n");
    program(machine.path(), "cargo", "cargo 1.70.0");
    let (code, found) = look(machine.path(), data.path());
    assert_eq!(code, Some(1));
    let problems = found["problems"].to_string();
    for expected in ["no C compiler", "cargo 1.70.0 is too old, 1.95 is needed"] {
        assert!(problems.contains(expected), "{problems}");
    }
}

#[test]
fn toolkit_and_driver_are_compared() {
    let (machine, data) = (machine(), tempfile::tempdir().unwrap());
    let nvcc =
        "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88";
    program(machine.path(), "nvcc", nvcc);
    // Called plainly, and with --query-gpu.
    let smi = |cuda: &str| {
        let header = format!("| NVIDIA-SMI 570.1  Driver Version: 570.1  CUDA Version: {cuda} |");
        let script = format!(
            "#!/bin/sh\nif [ $# = 0 ]; then echo '{header}'; else echo 'NVIDIA H200, 570.1'; fi\n"
        );
        write(&machine.path().join("nvidia-smi"), &script);
    };
    for (cuda, fits) in [("12.8", false), ("13.0", true)] {
        smi(cuda);
        let (_, found) = look(machine.path(), data.path());
        let cuda_found = &found["cuda"];
        assert_eq!(cuda_found["gpus"][0], "NVIDIA H200");
        assert_eq!(
            (&cuda_found["toolkit"], &cuda_found["driver"]),
            (&"13.0".into(), &"570.1".into())
        );
        assert_eq!((&cuda_found["driver_cuda"], &cuda_found["fits"]), (&cuda.into(), &fits.into()));
    }
}

#[test]
fn cifar_10_is_found_and_its_records_are_checked() {
    let (machine, data) = (machine(), tempfile::tempdir().unwrap());
    let folder = data.path().join(FOLDER);
    fs::create_dir(&folder).unwrap();
    for entry in cifar10() {
        let content = entry.content.unwrap_or_else(|| vec![0; entry.size as usize]);
        fs::write(data.path().join(entry.path), content).unwrap();
    }
    let (_, found) = look(machine.path(), data.path());
    assert!(found["data"]["cifar10"].as_str().unwrap().ends_with(FOLDER), "{found}");
    assert_eq!(found["data"]["damage"], Value::Null);
    let batch = folder.join("data_batch_3.bin");
    let mut bytes = fs::read(&batch).unwrap();
    bytes[3073 * 5] = 77;
    fs::write(&batch, bytes).unwrap();
    let (code, found) = look(machine.path(), data.path());
    assert_eq!(code, Some(1));
    let damage = found["data"]["damage"].as_str().unwrap();
    assert!(damage.contains("data_batch_3.bin: record 5 has the label 77"), "{damage}");
}
