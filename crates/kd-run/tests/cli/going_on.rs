//! A run that is trained on for more epochs ends as one that had them from the start, bit for bit, or it is refused with the way out.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::Output;

use kd_record::hash::hex;
use kd_run::train::{Outcome, Progress, train};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::resume::resolved;
use crate::workdir::{BATCHES, WorkDir};

/// [`TINY`](crate::workdir::TINY) without its number of epochs.
const FEW: &str = "--dataset synthetic --train-limit 100 --test-limit 40 --batch-size 16";

/// What `kd` with the words of `line` and [`FEW`] prints to standard error; it must end with this code.
fn kd(dir: &WorkDir, line: &str, code: i32) -> String {
    let Output { status, stderr, .. } = dir.command(line).args(FEW.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(code), "kd {line}: {errors}");
    assert!(!errors.contains("panicked"), "kd {line}: {errors}");
    errors
}

/// Both folders hold the same finished run, except that the second was extended from these numbers of epochs.
fn assert_same_but_extended(dir: &WorkDir, whole: &str, extended: &str, run: &str, from: &[usize]) {
    for file in [format!("{run}.safetensors"), format!("{run}/evaluation.json")] {
        let (a, b) =
            (dir.read(&format!("{whole}/{file}")), dir.read(&format!("{extended}/{file}")));
        assert!(a == b, "{file} differs");
    }
    let (whole, extended) = (format!("{whole}/{run}"), format!("{extended}/{run}"));
    assert!(
        dir.read(&format!("{whole}/recipe.toml")) == dir.read(&format!("{extended}/recipe.toml"))
    );
    assert!(dir.last_checkpoint(&whole) == dir.last_checkpoint(&extended));
    let mut events = dir.events(&extended);
    let found: Vec<_> =
        events.iter().filter(|event| event["event"] == "extended").cloned().collect();
    let found: Vec<_> =
        found.iter().map(|event| event["from"].as_u64().unwrap() as usize).collect();
    assert_eq!(found, from);
    events.retain(|event| event["event"] != "extended");
    let mut expected = dir.events(&whole);
    for events in [&mut events, &mut expected] {
        // The library's caller here has other threads than the process.
        events[0]["threads"].take();
    }
    assert_eq!(events, expected);
}

#[test]
fn a_finished_run_is_trained_on_to_the_same_bits() {
    let dir = WorkDir::new();
    let line = "train --model student --out";
    kd(&dir, &format!("{line} whole --epochs 4"), 0);
    kd(&dir, &format!("{line} more --epochs 2"), 0);
    let said = kd(&dir, &format!("{line} more --epochs 3"), 0);
    assert!(said.contains("student: trained on from a run of 2 epochs to 3"), "{said}");
    assert!(said.contains("going on after step 14 of 21"), "{said}");
    kd(&dir, &format!("{line} more --epochs 4"), 0);
    assert_same_but_extended(&dir, "whole", "more", "student", &[2, 3]);
    let run = &dir.json("more/summary.json")["runs"][0];
    assert_eq!((&run["epochs"], &run["epochs_before"]), (&json!(4), &json!([2, 3])));
    assert_eq!(dir.json("whole/summary.json")["runs"][0]["epochs_before"], Value::Null);
    let report = String::from_utf8(dir.read("more/report.html")).unwrap();
    assert!(report.contains("student was started for 2 epochs and trained on to 3, then to 4"));
    // The same command again finds it finished.
    let output = dir.stdout(&format!("{line} more --epochs 4 {FEW}"));
    assert!(output.contains("finished before"), "{output}");
}

#[test]
fn a_run_that_is_trained_on_may_be_interrupted() {
    let dir = WorkDir::new();
    let training =
        "training = { schedule = { name = 'step', milestones = [1, 3], warmup_epochs = 0.5 } }";
    let recipe = format!(
        "format = 1\nname = 'r'\n{training}\noptimizer = {{ name = 'sgd', lr = 0.05, momentum = 0.9 }}\n[[run]]\nname = 's'\nmodel = 'resnet8'\nselect_on = 20\n"
    );
    std::fs::write(dir.path("r.toml"), recipe).unwrap();
    let line = "train --recipe r.toml --out";
    kd(&dir, &format!("{line} whole --epochs 4"), 0);
    let batches = 80 / 16;
    // While it is trained on, in its first new epoch and at that epoch's end; and before, in the middle of an epoch.
    for (first, stop) in [(2, 2 * batches + 1), (2, 3 * batches), (3, 2 * batches + 3)] {
        let out = format!("more-{first}-{stop}");
        if stop >= first * batches {
            kd(&dir, &format!("{line} {out} --epochs {first}"), 0);
        }
        let epochs = if stop >= first * batches { 4 } else { first };
        let mut run = resolved(&dir, "whole/s", &out);
        run.recipe.training.epochs = epochs;
        let outcome = train(&run, &mut |progress| match progress {
            Progress::Step { step, .. } if step == stop as u64 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(outcome, Ok(Outcome::Stopped { step }) if step == stop as u64));
        kd(&dir, &format!("{line} {out} --epochs 4"), 0);
        assert_same_but_extended(&dir, "whole", &out, "s", &[first]);
    }
}

#[test]
fn a_distilled_student_is_trained_on_with_its_helpers_and_its_teacher() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let line = "distill --teacher teacher.safetensors --method regressor --out";
    kd(&dir, &format!("{line} whole --epochs 2"), 0);
    kd(&dir, &format!("{line} more --epochs 1"), 0);
    kd(&dir, &format!("{line} more --epochs 2"), 0);
    assert_same_but_extended(&dir, "whole", "more", "regressor", &[1]);
}

#[test]
fn what_depends_on_the_number_of_epochs_is_refused_with_the_line_that_trains_on() {
    let dir = WorkDir::new();
    dir.teacher("teacher.safetensors", 10, 5);
    let recipe = "format = 1\nname = 'r'\n[training]\nschedule = { name = 'cosine' }\n[[run]]\nname = 's'\nmodel = 'student'\n";
    std::fs::write(dir.path("r.toml"), recipe).unwrap();
    let method = "format = 1\nname = 'r'\n[[run]]\nname = 'd'\nmodel = 'student'\nteacher = 'teacher.safetensors'\n[[run.method]]\nname = 'kd'\nweight = 1\nwarmup = 0.5\n";
    std::fs::write(dir.path("d.toml"), method).unwrap();
    for (line, name, reason) in [
        ("train --recipe r.toml", "s", "the learning rate (training.schedule, `cosine`) depends"),
        ("distill --recipe d.toml", "d", "the weight of method `kd` (its warmup or decay) depends"),
    ] {
        let line = format!("{line} --out o --epochs");
        kd(&dir, &format!("{line} 1"), 0);
        let before = (dir.read(&format!("o/{name}.safetensors")), dir.events(&format!("o/{name}")));
        let said = kd(&dir, &format!("{line} 3"), 1);
        assert!(
            said.contains(reason) && said.contains("has 1 epochs and 3 are asked for"),
            "{said}"
        );
        let after = (dir.read(&format!("o/{name}.safetensors")), dir.events(&format!("o/{name}")));
        assert!(before == after, "the run is as it was");
        // The line that it names does what it says.
        let shown = said.rsplit('`').nth(1).unwrap();
        let expected = format!("--init o/{name}.safetensors --epochs 2 --name {name}-on --out o");
        assert!(shown.ends_with(&expected), "{shown}");
        let on = dir.command(shown.strip_prefix("kd ").unwrap()).output().unwrap();
        assert!(on.status.success(), "{shown}: {}", String::from_utf8_lossy(&on.stderr));
        let events = dir.events(&format!("o/{name}-on"));
        assert_eq!(events[0]["roles"]["init"]["run"], name);
        assert_eq!(events.iter().filter(|event| event["event"] == "epoch").count(), 2);
    }
    // And once more from there, although its recipe names the weights that it started from.
    let said =
        kd(&dir, "train --recipe o/s-on/recipe.toml --init o/s.safetensors --out o --epochs 4", 1);
    let shown = said.rsplit('`').nth(1).unwrap().to_owned();
    let on = dir.command(shown.strip_prefix("kd ").unwrap()).output().unwrap();
    assert!(on.status.success(), "{shown}: {}", String::from_utf8_lossy(&on.stderr));
    assert_eq!(dir.events("o/s-on-on")[0]["roles"]["init"]["run"], "s-on");
}

#[test]
fn fewer_epochs_other_settings_and_lost_checkpoints_are_errors() {
    let dir = WorkDir::new();
    let line = "train --model student --out o --epochs";
    kd(&dir, &format!("{line} 2"), 0);
    let said = kd(&dir, &format!("{line} 1"), 1);
    assert!(said.contains("this run has 2 epochs and 1 are asked for"), "{said}");
    let said = kd(&dir, &format!("{line} 3 --lr 0.5"), 1);
    assert!(said.contains("optimizer.lr (0.001 there, 0.5 asked for)"), "{said}");
    assert!(said.contains("training.epochs (2 there, 3 asked for)"), "{said}");
    // Only the newest is damaged: it goes on from the one before.
    let newest = dir.checkpoints("o/student").pop().unwrap();
    crate::workdir::damage(&newest);
    let said = kd(&dir, &format!("{line} 3"), 0);
    assert!(said.contains(&format!("going on after step {BATCHES} of 21")), "{said}");
    let weights = dir.read("o/student.safetensors");
    std::fs::remove_dir_all(dir.path("o/student/checkpoints")).unwrap();
    let said = kd(&dir, &format!("{line} 4"), 1);
    assert!(
        said.contains("holds no checkpoint") && said.contains("--init o/student.safetensors"),
        "{said}"
    );
    assert!(dir.read("o/student.safetensors") == weights);
    // A run that was stopped and whose settings depend on its length has no weights to start from.
    let recipe = "format = 1\nname = 'r'\n[training]\nschedule = { name = 'one-cycle' }\n[[run]]\nname = 'student'\nmodel = 'student'\n";
    std::fs::write(dir.path("r.toml"), recipe).unwrap();
    kd(&dir, "train --recipe r.toml --out whole --epochs 2", 0);
    let run = resolved(&dir, "whole/student", "stopped");
    let outcome = train(&run, &mut |progress| match progress {
        Progress::Step { step: 3, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Ok(Outcome::Stopped { step: 3 })));
    let said = kd(&dir, "train --recipe r.toml --out stopped --epochs 3", 1);
    assert!(
        said.contains("`one-cycle`") && said.contains("finish it with 2 epochs first"),
        "{said}"
    );
}

/// Rewrites a run's checkpoints and its evaluation with the fields that kd 0.1.0 writes, read off a run of it, and no others.
fn as_written_by_0_1(dir: &WorkDir, run: &str) {
    fn keep(value: &mut Value, keys: &[&str]) {
        let fields = value.as_object_mut().unwrap();
        fields.retain(|key, _| keys.contains(&key.as_str()));
        assert_eq!(fields.len(), keys.len(), "{fields:?}");
    }
    let evaluation = ["format", "accuracy", "loss", "classes", "confusion", "per_class_accuracy"];
    for path in dir.checkpoints(run) {
        let contents = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&contents).unwrap();
        let mut tensors: BTreeMap<_, _> = file.tensors().into_iter().collect();
        let mut state: Value = serde_json::from_slice(tensors["state"].data()).unwrap();
        keep(
            &mut state,
            &[
                "recipe",
                "epoch",
                "batch",
                "step",
                "sums",
                "evaluation",
                "best",
                "best_step",
                "events",
            ],
        );
        keep(&mut state["sums"], &["loss", "parts", "images", "right", "seconds"]);
        if !state["evaluation"].is_null() {
            keep(&mut state["evaluation"], &evaluation);
        }
        let as_old = |line: &str| {
            let mut event: Value = serde_json::from_str(line).unwrap();
            event.as_object_mut().unwrap().remove("roles");
            format!("{event}\n")
        };
        let events: String = state["events"].as_str().unwrap().lines().map(as_old).collect();
        state["events"] = events.into();
        let text = serde_json::to_vec(&state).unwrap();
        let view = TensorView::new(Dtype::U8, vec![text.len()], &text).unwrap();
        tensors.insert("state".into(), view);
        let mut hash = Sha256::new();
        for (name, view) in &tensors {
            hash.update(format!("{name} {} {:?}\n", view.dtype(), view.shape()));
            hash.update(view.data());
        }
        let header = json!({ "format": 1, "sha256": hex(hash) }).to_string();
        let header = [("kd-checkpoint".to_owned(), header)].into();
        std::fs::write(&path, safetensors::serialize(tensors, Some(header)).unwrap()).unwrap();
    }
    let mut found = dir.json(&format!("{run}/evaluation.json"));
    keep(&mut found, &evaluation);
    std::fs::write(dir.path(&format!("{run}/evaluation.json")), found.to_string()).unwrap();
}

#[test]
fn a_run_of_version_0_1_is_trained_on() {
    let dir = WorkDir::new();
    let line = "train --model student --out";
    kd(&dir, &format!("{line} whole --epochs 3"), 0);
    kd(&dir, &format!("{line} more --epochs 2"), 0);
    as_written_by_0_1(&dir, "more/student");
    let output = dir.stdout(&format!("{line} more --epochs 2 {FEW}"));
    assert!(output.contains("finished before"), "{output}");
    let said = kd(&dir, &format!("{line} more --epochs 3"), 0);
    assert!(said.contains("student: trained on from a run of 2 epochs to 3"), "{said}");
    for file in ["student.safetensors", "student/evaluation.json"] {
        let (whole, more) = (format!("whole/{file}"), format!("more/{file}"));
        assert!(dir.read(&whole) == dir.read(&more), "{file} differs");
    }
}
