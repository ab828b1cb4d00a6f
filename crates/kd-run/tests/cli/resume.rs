//! A run that was interrupted ends as one that was not, bit for bit.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Stdio;

use kd_run::recipe::Recipe;
use kd_run::resolve::{Choices, resolve};
use kd_run::run::ResolvedRun;
use kd_run::train::{Outcome, Progress, train};
use serde_json::Value;

use crate::workdir::{BATCHES, TINY, WorkDir, damage};

/// The run that `out/<name>/recipe.toml` records, to be done below another folder by the library.
pub(crate) fn resolved(dir: &WorkDir, done: &str, out: &str) -> ResolvedRun {
    let folder = dir.path(done);
    let recipe = Recipe::read(&folder.join("recipe.toml")).unwrap();
    let (recipe_folder, out) = (Some(folder), Some(dir.path(out)));
    let choices = Choices { recipe_folder, out, ..Choices::default() };
    resolve(&recipe, &recipe.runs[0], &choices).unwrap().run
}

/// Two folders hold the same finished run.
pub(crate) fn assert_same(dir: &WorkDir, whole: &str, resumed: &str, run: &str) {
    for file in [format!("{run}.safetensors"), format!("{run}/evaluation.json")] {
        let (a, b) = (dir.read(&format!("{whole}/{file}")), dir.read(&format!("{resumed}/{file}")));
        assert!(a == b, "{file} differs");
    }
    let (whole, resumed) = (format!("{whole}/{run}"), format!("{resumed}/{run}"));
    let timeless = |of: &str| {
        let mut events = dir.events(of);
        // The library's caller here has other threads than the process.
        events[0]["threads"].take();
        // From a folder elsewhere the same weights have another path, and are no run's of that folder.
        for weights in ["/roles/teacher", "/roles/init"] {
            if let Some(weights) = events[0].pointer_mut(weights).and_then(Value::as_object_mut) {
                weights.retain(|key, _| key == "sha256");
            }
        }
        events
    };
    assert_eq!(timeless(&whole), timeless(&resumed));
    assert!(
        dir.last_checkpoint(&whole) == dir.last_checkpoint(&resumed),
        "the last checkpoint differs"
    );
}

#[test]
fn a_run_stopped_after_any_step_ends_the_same() {
    let dir = WorkDir::new();
    dir.train("train --model student --out whole");
    // Inside the first epoch, at its end, at the start of the second, before the last step.
    for step in [1, BATCHES, BATCHES + 1, 2 * BATCHES - 1] {
        let out = format!("stopped-{step}");
        let run = resolved(&dir, "whole/student", &out);
        let outcome = train(&run, &mut |progress| match progress {
            Progress::Step { step: done, .. } if done == step as u64 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        let Outcome::Stopped { step: stopped } = outcome.unwrap() else { panic!("not stopped") };
        assert_eq!(stopped, step as u64);
        let said = dir.train(&format!("train --model student --out {out}"));
        assert!(said.contains(&format!("going on after step {step} of 14")), "{said}");
        assert_same(&dir, "whole", &out, "student");
    }
}

#[test]
fn a_run_that_breaks_off_without_a_checkpoint_goes_on_from_the_one_before() {
    let dir = WorkDir::new();
    dir.train("train --model student --out whole");
    for (step, from) in [(3, 0), (BATCHES + 3, BATCHES)] {
        let out = format!("broken-{step}");
        let run = resolved(&dir, "whole/student", &out);
        let broken = catch_unwind(AssertUnwindSafe(|| {
            train(&run, &mut |progress| match progress {
                Progress::Step { step: done, .. } if done == step as u64 => panic!("as if killed"),
                _ => ControlFlow::Continue(()),
            })
        }));
        assert!(broken.is_err());
        // What a death inside a checkpoint's writing leaves.
        std::fs::write(dir.path(&format!("{out}/student/checkpoints/step-9.1.partial")), "h")
            .unwrap();
        let said = dir.train(&format!("train --model student --out {out}"));
        let expected = format!("going on after step {from} of 14");
        assert!(said.contains(&expected), "{said}");
        assert_same(&dir, "whole", &out, "student");
        assert!(!dir.path(&format!("{out}/student/checkpoints/step-9.1.partial")).exists());
    }
}

#[test]
fn a_killed_process_goes_on_and_ends_the_same() {
    let dir = WorkDir::new();
    dir.train("train --model student --out whole");
    let line = "train --model student --out killed --checkpoint-every 2";
    let mut child =
        dir.command(line).args(TINY).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Wherever it is by then, even at its end: what follows holds for any moment.
    while dir.checkpoints("killed/student").len() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    dir.train(line);
    assert_same(&dir, "whole", "killed", "student");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let dir = WorkDir::new();
    dir.train("train --model student --out whole");
    dir.train("train --model student --out damaged --checkpoint-every 5 --keep-checkpoints 3");
    // As if it had been killed before its end.
    std::fs::remove_file(dir.path("damaged/student.safetensors")).unwrap();
    damage(dir.checkpoints("damaged/student").last().unwrap());
    let said = dir.train("train --model student --out damaged");
    assert!(said.contains("step-000000014.safetensors: this checkpoint can't be used"), "{said}");
    assert!(said.contains("going on after step 10 of 14"), "{said}");
    assert_same(&dir, "whole", "damaged", "student");
}

#[test]
fn a_student_with_a_teacher_and_helper_weights_ends_the_same() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let line = "distill --teacher teacher.safetensors --method regressor --out";
    dir.train(&format!("{line} whole"));
    assert!(
        dir.last_checkpoint("whole/regressor")
            .keys()
            .any(|name| name.contains("regressor.0.weight"))
    );
    let run = resolved(&dir, "whole/regressor", "stopped");
    let outcome = train(&run, &mut |progress| match progress {
        Progress::Step { step: 4, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Ok(Outcome::Stopped { step: 4 })));
    let said = dir.train(&format!("{line} stopped"));
    assert!(said.contains("going on after step 4 of 14"), "{said}");
    assert_same(&dir, "whole", "stopped", "regressor");
}
