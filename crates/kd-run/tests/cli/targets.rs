//! Where a teacher's targets come from: its best epoch, or teachers that have not seen the image.

use std::fs;

use kd_models::weights::{load, peek, save};

use crate::workdir::{TINY, WorkDir};

fn recipe(dir: &WorkDir, runs: &str) {
    let data = "format = 1\nname = \"r\"\n[data]\ndataset = \"synthetic\"\n";
    fs::write(dir.path("r.toml"), format!("{data}{runs}")).unwrap();
}

const STUDENT: &str = "[[run]]\nname = \"kd\"\nmodel = \"student\"\nteacher = \"teacher\"\n\
                       [[run.method]]\nname = \"kd\"\nweight = 0.9\n";

#[test]
fn the_best_epoch_on_held_out_images_is_what_a_run_ends_with() {
    let dir = WorkDir::new();
    // Steps so long that the accuracy jumps about.
    recipe(&dir, "[[run]]\nname = \"student\"\nmodel = \"student\"\nselect_on = 30\n");
    let train = |out: &str, epochs: usize| {
        dir.stdout(&format!(
            "train --recipe r.toml --lr 0.03 --train-limit 100 --test-limit 40 --batch-size 16 --out {out} --epochs {epochs}"
        ))
    };
    train("out", 6);
    let events = dir.events("out/student");
    assert_eq!(events[0]["dataset"]["train"], 70);
    let epochs: Vec<_> = events.iter().filter(|event| event["event"] == "epoch").collect();
    let selection = |index: usize| epochs[index]["selection_accuracy"].as_f64().unwrap();
    let better = |best, index| if selection(index) > selection(best) { index } else { best };
    let best = (0..epochs.len()).reduce(better).unwrap();
    let evaluation = dir.json("out/student/evaluation.json");
    assert_eq!(evaluation["accuracy"], epochs[best]["test_accuracy"]);
    // What the report and the summary say is said of these weights.
    let run = &dir.json("out/summary.json")["runs"][0];
    assert_eq!(run["test_accuracy"], evaluation["accuracy"]);
    assert_eq!(run["test_loss"], evaluation["loss"]);
    let result = dir.read("out/student.safetensors");
    // The weights are that epoch's: a run of so many epochs ends with the same.
    train("short", best + 1);
    assert!(dir.read("short/student.safetensors") == result);

    // Killed at its end, it still ends with the best epoch.
    fs::remove_file(dir.path("out/student.safetensors")).unwrap();
    train("out", 6);
    assert!(dir.read("out/student.safetensors") == result);
}

#[test]
fn a_run_can_have_epochs_of_its_own() {
    let dir = WorkDir::new();
    let early = "[[run]]\nname = \"teacher\"\nmodel = \"student\"\nepochs = 2\n";
    recipe(&dir, &format!("[training]\nepochs = 3\n{early}{STUDENT}"));
    let small = "--train-limit 100 --test-limit 40 --batch-size 50 --out out";
    let epochs = |run: &str| {
        let events = dir.events(&format!("out/{run}"));
        events.iter().filter(|event| event["event"] == "epoch").count()
    };
    dir.stdout(&format!("train --recipe r.toml {small}"));
    dir.stdout(&format!("distill --recipe r.toml {small}"));
    assert_eq!((epochs("teacher"), epochs("kd")), (2, 3));
    let recorded = String::from_utf8(dir.read("out/teacher/recipe.toml")).unwrap();
    assert!(recorded.contains("[training]\nepochs = 2\n"), "{recorded}");
    // A flag is over both.
    dir.stdout(&format!("train --recipe r.toml --name once --epochs 1 {small}"));
    assert_eq!(epochs("once"), 1);
}

#[test]
fn cross_fitted_targets_come_from_the_teacher_that_has_not_seen_the_image() {
    let dir = WorkDir::new();
    recipe(
        &dir,
        &format!("[[run]]\nname = \"teacher\"\nmodel = \"student\"\n{STUDENT}")
            .replace("teacher = \"teacher\"\n", "teacher = \"teacher\"\ncross_fit = 2\n"),
    );
    let student = "distill --recipe r.toml --run kd --out out";
    let message = dir.train_fails(student, 1);
    assert!(message.contains("teacher-part-1-of-2.safetensors: can't be read"), "{message}");
    for part in ["1/2", "2/2"] {
        dir.train(&format!(
            "train --recipe r.toml --run teacher --part {part} --lr 0.01 --out out"
        ));
    }
    assert_eq!(dir.events("out/teacher-part-1-of-2")[0]["dataset"]["train"], 50);
    dir.train(student);
    let says = &dir.events("out/kd")[1];
    assert_eq!(says["images"], 100);
    assert!(says["entropy"].as_f64().unwrap() > 0.0, "{says}");

    // Each network alone answers for all images, otherwise: the mixture is neither of them.
    let mut alone = Vec::new();
    for part in [1, 2] {
        let teacher = format!("out/teacher-part-{part}-of-2.safetensors");
        let name = format!("alone-{part}");
        dir.train(&format!("distill --method kd --teacher {teacher} --name {name} --out alone"));
        alone.push(dir.events(&format!("alone/{name}"))[1]["entropy"].as_f64().unwrap());
    }
    let (mixed, mean) = (says["entropy"].as_f64().unwrap(), (alone[0] + alone[1]) / 2.0);
    assert!(alone.iter().all(|alone| *alone != mixed), "{alone:?} and {mixed}");
    assert!((mixed - mean).abs() < 0.2, "{alone:?} and {mixed}");

    // Computed in each step instead of cached, it is the same.
    dir.train(&format!("{student} --name live --cache-memory 0"));
    let loss = |run: &str| dir.json(&format!("out/{run}/evaluation.json"))["loss"].as_f64();
    assert!((loss("kd").unwrap() - loss("live").unwrap()).abs() < 1e-4);
    let page = String::from_utf8(dir.read("out/report.html")).unwrap();
    assert!(page.contains("How good the teachers are"));
}

#[test]
fn a_part_of_as_many_other_images_is_refused_for_cross_fitting() {
    let dir = WorkDir::new();
    recipe(
        &dir,
        &format!("[[run]]\nname = \"teacher\"\nmodel = \"student\"\n{STUDENT}")
            .replace("teacher = \"teacher\"\n", "teacher = \"teacher\"\ncross_fit = 2\n"),
    );
    for part in ["1/2", "2/2"] {
        dir.train(&format!("train --recipe r.toml --run teacher --part {part} --out out"));
    }
    // Where images are held out, the hundred to train on are others.
    let student = "distill --recipe r.toml --run kd --teacher out/teacher.safetensors";
    let said = dir.train_fails(&format!("{student} --held-out 200 --out held"), 1);
    assert!(
        said.contains("teacher-part-1-of-2.safetensors: this teacher was trained without part 1 of 2 of other images"),
        "{said}"
    );
    // A file of an earlier version has no hash.
    for part in [1, 2] {
        let path = dir.path(&format!("out/teacher-part-{part}-of-2.safetensors"));
        let config = peek(&path).unwrap().config(None, None).unwrap();
        let loaded = load(&path, &config).unwrap();
        let mut metadata = loaded.metadata.unwrap();
        assert!(metadata.left_out.as_mut().unwrap().sha256.take().is_some());
        save(&path, &loaded.tensors, &metadata).unwrap();
    }
    let output = dir.command(&format!("{student} --out old")).args(TINY).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("does not say which images it was trained without"), "{said}");
}

#[test]
fn a_teacher_that_has_seen_the_images_is_refused_for_cross_fitting() {
    let dir = WorkDir::new();
    recipe(&dir, &STUDENT.replace("\n[[run.method]]", "\ncross_fit = 2\n[[run.method]]"));
    for part in [1, 2] {
        dir.teacher(&format!("whole-part-{part}-of-2.safetensors"), 10, part);
    }
    let line = "distill --recipe r.toml --run kd --teacher whole.safetensors --out out";
    let message = dir.train_fails(line, 1);
    assert!(
        message.contains("without any part left out; cross-fitted targets here need"),
        "{message}"
    );
    assert!(message.contains("--part 1/2"), "{message}");
    let message = dir.train_fails("train --model teacher --part 3/2 --out out", 2);
    assert!(message.contains("expected I/K"), "{message}");
    recipe(&dir, &STUDENT.replace("\n[[run.method]]", "\npart = [1, 2]\n[[run.method]]"));
    let message = dir.train_fails("distill --recipe r.toml --out out", 1);
    assert!(
        message.contains("run[1].part: is set; expected none in a run with a teacher"),
        "{message}"
    );
}
