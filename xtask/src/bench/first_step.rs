//! The time from the start of a process to its first step.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::contestant::{Setup, Side};
use super::report::Times;
use super::work::{Measure, Work};

/// Measures the works that ask for it, a process each time.
pub(super) fn first_steps(setup: &Setup, works: &[Work], rounds: u64) -> anyhow::Result<Times> {
    let mut times = Times::new();
    let folder = setup.worker.with_file_name("bench-first-step");
    for work in works {
        let Measure::FirstStep { dataset } = work.kind else { continue };
        for round in 0..rounds {
            eprintln!("{}: round {} of {rounds}", work.name, round + 1);
            made_up(&folder, dataset == "cifar10")
                .with_context(|| format!("cannot write {}", folder.display()))?;
            let mut contestant = setup.start(Side::Ours)?;
            let answer = contestant.ask(&format!("first_step {dataset} {}", folder.display()))?;
            let seconds = answer.as_f64().context("no number of seconds")?;
            times.entry((work.name, Side::Ours, "default")).or_default().push(seconds);
        }
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(times)
}

/// A folder with nothing in it but, where `files` are asked for, CIFAR-10's, of made-up images.
fn made_up(folder: &Path, files: bool) -> std::io::Result<()> {
    let run = folder.join("run");
    if run.exists() {
        fs::remove_dir_all(run)?;
    }
    fs::create_dir_all(folder)?;
    let names = (1..=5).map(|number| format!("data_batch_{number}.bin"));
    for (seed, name) in names.chain(["test_batch.bin".to_owned()]).enumerate() {
        let path = folder.join(name);
        if files && !path.exists() {
            fs::write(path, records(10_000, seed as u32))?;
        }
    }
    Ok(())
}

/// CIFAR-10's records: a label and 3,072 bytes of noise each.
fn records(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let record = |image: usize| {
        std::iter::once((image % 10) as u8)
            .chain(std::iter::repeat_with(&mut noise).take(3072))
            .collect::<Vec<u8>>()
    };
    (0..count).flat_map(record).collect()
}
