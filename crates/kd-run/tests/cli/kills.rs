//! SIGKILL at random moments: the run goes on and ends as one that nobody killed, bit for bit.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::resume::assert_same;
use crate::workdir::{TINY, WorkDir};

/// Runs that together hold all that a checkpoint holds: helper weights and a memory that steps write to,
/// augmented images, clipped gradients, a best epoch, cached and computed outputs of the teacher.
const RUNS: [(&str, &str); 4] = [
    ("student", "train --model student --clip-grad-norm 1 --checkpoint-every 1"),
    (
        "crd",
        "distill --method crd --teacher teacher.safetensors --recipe crd.toml --checkpoint-every 2",
    ),
    ("regressor", "distill --method regressor --teacher teacher.safetensors --checkpoint-every 3"),
    ("best", "train --model student --name best --recipe best.toml --checkpoint-every 1epoch"),
];

/// How many kills struck, and where.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    kills: usize,
    /// That left a half-written file behind.
    in_writing: usize,
    /// Before there was a checkpoint.
    before_the_first_checkpoint: usize,
    /// Runs brought to their end and compared.
    runs: usize,
}

#[test]
fn runs_killed_at_random_moments_end_the_same() {
    let count = kill(6, 1, 1);
    assert!(count.kills >= 6 && count.in_writing >= 1, "{count:?}");
}

/// `cargo xtask soak kills`.
#[test]
#[ignore = "takes minutes"]
fn fifty_kills_at_random_moments_change_nothing() {
    let count = kill(50, 5, 2);
    println!("{count:?}");
    assert!(count.kills >= 50 && count.in_writing >= 5, "{count:?}");
}

/// Kills runs until so many kills struck, so many of them while a file was written; each run is then brought to its end and compared.
///
/// Whether a kill that is aimed at a file that is being written comes in time depends on the machine and what else it does: there are
/// as many kills as it takes, up to twenty times those that are asked for.
fn kill(kills: usize, in_writing: usize, seed: u64) -> Count {
    let enough = |count: &Count| {
        count.kills >= kills && (count.in_writing >= in_writing || count.kills >= 20 * kills)
    };
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let tutorial = kd_run::recipe::TUTORIAL;
    let crd = "[[run]]\nname = \"crd\"\nmodel = \"student\"\n[[run.method]]\nname = \"crd\"\nweight = 0.8\nnegatives = 20\n";
    let flipped = tutorial.replace("flip = false", "flip = true");
    std::fs::write(dir.path("crd.toml"), format!("{flipped}\n{crd}")).unwrap();
    let best = tutorial.replace(
        "name = \"student\"\nmodel = \"student\"\n",
        "name = \"student\"\nmodel = \"student\"\nselect_on = 20\n",
    );
    assert_ne!(best, tutorial);
    std::fs::write(dir.path("best.toml"), best).unwrap();

    // From the first checkpoint to the end: before it, images are made and nothing can be lost.
    let mut times = Vec::new();
    for (name, line) in RUNS {
        let mut child = start(&dir, &format!("{line} --out whole"));
        let begun = || !dir.checkpoints(&format!("whole/{name}")).is_empty();
        assert!(!wait(&mut child, begun));
        let started = Instant::now();
        assert!(child.wait().unwrap().success(), "{}", printed(&dir));
        times.push(started.elapsed());
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut count = Count::default();
    while !enough(&count) {
        let index = count.runs % RUNS.len();
        let (name, line) = RUNS[index];
        let out = format!("killed-{}", count.runs);
        let line = format!("{line} --out {out}");
        let said = loop {
            let before = dir.checkpoints(&format!("{out}/{name}")).len();
            let mut child = start(&dir, &line);
            // Half of the kills then wait for a file that is being written, and a moment longer.
            let aimed = random.next_u32() % 2 == 0;
            let share = f64::from(random.next_u32()) / f64::from(u32::MAX);
            // One in eight comes while the run begins, the others while it trains, writes and reports.
            let early = random.next_u32() % 8 == 0;
            let begun = || match before {
                0 => !dir.checkpoints(&format!("{out}/{name}")).is_empty(),
                _ => printed(&dir).contains("going on after step"),
            };
            let mut ended = !early && wait(&mut child, begun);
            let until = Instant::now() + times[index].mul_f64(share);
            ended = ended || wait(&mut child, || Instant::now() >= until);
            if aimed && !ended {
                let writing = || !half_written(&dir.path(&out)).is_empty();
                ended = wait(&mut child, writing);
                std::thread::sleep(Duration::from_micros((3000.0 * share) as u64));
            }
            let ended = ended || child.try_wait().unwrap().is_some();
            if !ended {
                child.kill().unwrap();
            }
            let status = child.wait().unwrap();
            let said = printed(&dir);
            if ended {
                assert!(status.success(), "{line}: {said}");
                let goes_on = said.contains("going on after step");
                // Killed while the report was made, the run itself had ended.
                assert!(goes_on || before == 0 || said.contains("finished before"), "{said}");
                break said;
            }
            assert!(!said.contains("can't be used"), "a checkpoint was damaged: {said}");
            count.kills += 1;
            count.in_writing += usize::from(!half_written(&dir.path(&out)).is_empty());
            let none = dir.checkpoints(&format!("{out}/{name}")).is_empty();
            count.before_the_first_checkpoint += usize::from(none);
            // Enough: the rest of this run is left in peace.
            if enough(&count) {
                break dir.train(&line);
            }
        };
        assert_same(&dir, "whole", &out, name);
        assert!(half_written(&dir.path(&out)).is_empty(), "{said}");
        count.runs += 1;
    }
    count
}

fn start(dir: &WorkDir, line: &str) -> Child {
    let file = std::fs::File::create(dir.path("printed")).unwrap();
    let mut command = dir.command(line);
    command.args(TINY).stdout(file.try_clone().unwrap()).stderr(file);
    command.spawn().unwrap()
}

/// What the last started process said.
fn printed(dir: &WorkDir) -> String {
    std::fs::read_to_string(dir.path("printed")).unwrap()
}

/// Waits for `moment`, and says whether the child ended before it.
fn wait(child: &mut Child, moment: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while !moment() {
        if child.try_wait().unwrap().is_some() {
            // The moment may have come since it was looked for.
            return !moment();
        }
        assert!(started.elapsed() < Duration::from_secs(900), "it neither ends nor writes");
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

/// Files below `folder` that are not whole yet.
fn half_written(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            found.extend(half_written(&path));
        } else if path.extension().is_some_and(|extension| extension == "partial") {
            found.push(path);
        }
    }
    found
}
