//! Ctrl-C and SIGTERM, sent to a process.
#![cfg(unix)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::workdir::WorkDir;

/// A limit for what a busy machine may take very long for.
const PATIENCE: Duration = Duration::from_secs(900);

/// Longer than any test waits for it.
const LONG: &str = "train --model student --dataset synthetic --train-limit 100 --test-limit 40 --epochs 100000 --batch-size 16 --checkpoint-every 5 --out out";

fn start(dir: &WorkDir, line: &str) -> Child {
    dir.command(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
}

/// Waits until the newest checkpoint is later than `step`; gives its step.
fn wait_for_checkpoint(dir: &WorkDir, run: &str, step: u64, child: &mut Child) -> u64 {
    let started = Instant::now();
    loop {
        let ended = child.try_wait().unwrap().is_some();
        let newest = newest_step(dir, run);
        if newest.is_some_and(|newest| newest > step) {
            return newest.unwrap();
        }
        assert!(!ended, "it ended");
        assert!(started.elapsed() < PATIENCE, "no checkpoint after {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn newest_step(dir: &WorkDir, run: &str) -> Option<u64> {
    let path = dir.checkpoints(run).pop()?;
    path.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

#[test]
fn a_signal_finishes_the_step_writes_a_checkpoint_and_ends_with_the_customary_code() {
    let dir = WorkDir::new();
    let mut from = 0;
    for (signal, name, code) in [("-INT", "Ctrl-C", 130), ("-TERM", "SIGTERM", 143)] {
        let mut child = start(&dir, LONG);
        wait_for_checkpoint(&dir, "out/student", from, &mut child);
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        let step = newest_step(&dir, "out/student").unwrap();
        let expected = format!(
            "run student: stopped by {name} after step {step}, with a checkpoint; the same command goes on from there\n"
        );
        assert!(said.ends_with(&expected), "{said}");
        assert_eq!(said.contains("going on after step"), from > 0, "{said}");
        if from > 0 {
            assert!(said.contains(&format!("going on after step {from} of")), "{said}");
        }
        assert!(!dir.path("out/student.safetensors").exists());
        from = step;
    }
}

/// The moment for the signals is looked for by sleeping, and a busy machine sleeps longer or computes more slowly than is meant. Where
/// the process was not yet, or no longer, where nobody asks whether to stop, it is tried again, at another moment.
#[test]
fn the_second_signal_ends_the_process_at_once() {
    // One step, and then ten thousand test images in which nobody asks whether to stop; on one thread, so that it takes seconds.
    let line = "train --model teacher --dataset synthetic --train-limit 20 --epochs 1 --batch-size 16 --checkpoint-every 1 --threads 1 --out out";
    for wait in [500, 300, 1000, 100, 2000, 500, 4000, 300, 1000, 500] {
        let dir = WorkDir::new();
        let mut child = start(&dir, line);
        wait_for_checkpoint(&dir, "out/teacher", 0, &mut child);
        std::thread::sleep(Duration::from_millis(wait));
        if child.try_wait().unwrap().is_none() {
            send("-INT", &child);
        }
        std::thread::sleep(Duration::from_millis(100));
        let after_one = child.try_wait().unwrap();
        if after_one.is_none() {
            send("-INT", &child);
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        // Its end by itself, in a step or behind the images: one signal or none was enough.
        if output.status.success() || said.contains("stopped by") {
            continue;
        }
        assert!(after_one.is_none(), "the first one lets it go on: {said}");
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert_eq!(newest_step(&dir, "out/teacher"), Some(1));
        return;
    }
    panic!("the second signal never ended the process at once");
}

#[test]
fn a_signal_while_the_teacher_looks_at_the_images_stops_too() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    // On one thread the teacher takes seconds for the images, however fast the machine is.
    let line = "distill --method kd --teacher teacher.safetensors --dataset synthetic --test-limit 40 --epochs 1 --threads 1 --out out";
    let mut child = start(&dir, line);
    let started = Instant::now();
    while !dir.path("out/kd/events.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        assert!(started.elapsed() < PATIENCE, "it doesn't begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    send("-TERM", &child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(143), "{said}");
    assert!(said.contains("run kd: stopped by SIGTERM before its first step"), "{said}");
    assert!(dir.cached("out").is_empty());
}
