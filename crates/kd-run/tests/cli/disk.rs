//! Disks that are full and folders that can't be written: one clear error, and what was there stays.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::resume::assert_same;
use crate::workdir::{TINY, WorkDir};

const LINE: &str = "train --model student --device cpu --checkpoint-every 3 --out";

/// All files below a folder, with their contents.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace().chain(TINY)
}

/// What a process says that fails with code 1 and does not panic.
fn failure(output: Output) -> String {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn a_file_that_can_not_be_written_to_its_end_is_an_error_and_the_run_goes_on_later() {
    let dir = WorkDir::new();
    dir.train(&format!("{LINE} whole"));
    // No file may grow beyond so many blocks of 512 or 1024 bytes; a checkpoint with moments has 3.2 MB.
    let limited = |blocks: usize, line: &str| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_kd")]).args(words(line));
        command.current_dir(dir.path("")).output().unwrap()
    };
    // Not even the checkpoint before the first step.
    let said = failure(limited(100, &format!("{LINE} none")));
    assert!(
        said.contains("step-000000000.safetensors: can't be written: File too large"),
        "{said}"
    );
    // That one, and not the next.
    let said = failure(limited(2500, &format!("{LINE} some")));
    assert!(
        said.contains("step-000000003.safetensors: can't be written: File too large"),
        "{said}"
    );
    let before = contents(&dir.path("some/student/checkpoints"));
    let names: Vec<_> = before.iter().map(|(name, _)| name.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["step-000000000.safetensors"]);
    failure(limited(2500, &format!("{LINE} some")));
    assert!(contents(&dir.path("some/student/checkpoints")) == before, "earlier files changed");
    for out in ["none", "some"] {
        dir.train(&format!("{LINE} {out}"));
        assert_same(&dir, "whole", out, "student");
    }
}

/// `cargo xtask soak disk`: a file system of six megabytes, mounted in a namespace of its own.
#[test]
#[ignore = "needs the right to mount"]
fn a_full_disk_is_an_error_and_the_run_goes_on_elsewhere() {
    let dir = WorkDir::new();
    dir.train(&format!("{LINE} whole"));
    std::fs::create_dir(dir.path("disk")).unwrap();
    let script = "mount -t tmpfs -o size=6m tmpfs disk || exit 77
        \"$0\" \"$@\"; code=$?; cp -r disk/out saved; exit $code";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", script, env!("CARGO_BIN_EXE_kd")]);
    let output = command
        .args(words(&format!("{LINE} disk/out")))
        .current_dir(dir.path(""))
        .output()
        .expect("unshare is there");
    assert_ne!(output.status.code(), Some(77), "this machine doesn't let us mount: not run");
    let said = failure(output);
    assert!(said.contains("can't be written: No space left on device"), "{said}");
    assert!(!dir.checkpoints("saved/student").is_empty());
    let left = contents(&dir.path("saved"));
    assert!(left.iter().all(|(name, _)| !name.ends_with(".partial")), "half a file stays");
    let said = dir.train(&format!("{LINE} saved"));
    assert!(said.contains("going on after step") && !said.contains("can't be used"), "{said}");
    assert_same(&dir, "whole", "saved", "student");
}

#[test]
fn a_folder_that_can_not_be_written_is_one_clear_error_and_is_left_alone() {
    let dir = WorkDir::new();
    dir.train(&format!("{LINE} out"));
    let before = contents(&dir.path("out"));
    let id = Command::new("id").arg("-u").output().unwrap().stdout;
    let root = id == b"0\n";
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Permissions don't stop root: then somebody else starts the program, who must be able to read it.
    let program = dir.path("kd");
    // Copied by a process of its own: a child that another test is just starting would have this process's file open for writing,
    // and a file that is being written can't be started.
    let mut copy = Command::new("cp");
    assert!(copy.arg(env!("CARGO_BIN_EXE_kd")).arg(&program).status().unwrap().success());
    set(&program, 0o755);
    set(&dir.path(""), 0o755);
    let run = |line: &str| {
        let mut command = Command::new(&program);
        command.args(words(line)).current_dir(dir.path(""));
        if root {
            command.uid(65_534).gid(65_534);
        }
        failure(command.output().unwrap())
    };
    if !root {
        set(&dir.path("out"), 0o555);
        set(&dir.path("out/student"), 0o555);
    }
    let said = run(&format!("{LINE} out --name other"));
    assert!(said.contains("the folder can't be made: Permission denied"), "{said}");
    let said = run(&format!("{LINE} out"));
    assert!(said.contains("Permission denied") && said.contains("out/student"), "{said}");
    set(&dir.path("out"), 0o755);
    set(&dir.path("out/student"), 0o755);
    assert!(contents(&dir.path("out")) == before, "something changed");

    // A file where the folder should be.
    std::fs::write(dir.path("taken"), "mine").unwrap();
    let said = dir.train_fails(&format!("{LINE} taken"), 1);
    assert!(said.contains("taken"), "{said}");
    assert_eq!(dir.read("taken"), b"mine");
}
