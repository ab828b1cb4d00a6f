//! What a run leaves behind, and that it is the same each time.

use crate::workdir::{BATCHES, TINY, WorkDir};

#[test]
fn a_run_leaves_weights_measurements_and_a_summary() {
    let dir = WorkDir::new();
    let said = dir.train("train --model student --out out");
    // Not on a terminal: a plain line an epoch.
    let line = said.lines().find(|line| line.starts_with("student: epoch 2/2: loss ")).unwrap();
    for part in [", accuracy ", "; test loss ", ", test accuracy ", " images/s"] {
        assert!(line.contains(part), "{line}");
    }
    let summary = dir.json("out/summary.json");
    assert_eq!(summary["format"], 1);
    assert_eq!(summary["dataset"]["name"], "synthetic");
    assert_eq!(
        (&summary["dataset"]["train"], &summary["dataset"]["test"]),
        (&100.into(), &40.into())
    );
    let [run] = &summary["runs"].as_array().unwrap()[..] else { panic!("{summary}") };
    assert_eq!((&run["name"], &run["model"]), (&"student".into(), &"student".into()));
    assert!(run["method"].is_null());
    assert_eq!((&run["parameters"], &run["epochs"]), (&267_738.into(), &2.into()));
    let losses = run["train_loss"].as_array().unwrap();
    assert_eq!(losses.len(), 2);
    assert!(losses[1].as_f64() < losses[0].as_f64(), "it learns: {losses:?}");

    let evaluation = dir.json("out/student/evaluation.json");
    assert_eq!(evaluation["accuracy"], run["test_accuracy"]);
    assert_eq!(evaluation["loss"], run["test_loss"]);
    let rows = evaluation["confusion"].as_array().unwrap();
    // 40 test images, balanced over ten classes.
    for row in rows {
        let row = row.as_array().unwrap();
        assert_eq!(row.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), 4);
    }
    let kinds: Vec<_> = dir.events("out/student").iter().map(|e| e["event"].clone()).collect();
    assert_eq!(kinds, ["start", "epoch", "epoch", "end"]);
    assert!(dir.path("out/report.html").exists());
    assert_eq!(dir.checkpoints("out/student").len(), 2);
}

#[test]
fn runs_of_one_folder_stand_in_one_summary() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    dir.train("train --model student --name again --lr 0.003 --out out");
    let summary = dir.json("out/summary.json");
    let names: Vec<_> =
        summary["runs"].as_array().unwrap().iter().map(|run| run["name"].clone()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"student".into()) && names.contains(&"again".into()), "{names:?}");
}

#[test]
fn the_same_run_gives_the_same_bytes_whatever_the_threads() {
    let dir = WorkDir::new();
    dir.train("train --model student --out a --threads 1");
    dir.train("train --model student --out b --threads 3");
    assert_eq!(dir.read("a/student.safetensors"), dir.read("b/student.safetensors"));
    let mut command = dir.command("train --model student --out by-environment");
    let output = command.args(TINY).env("RAYON_NUM_THREADS", "2").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(dir.events("by-environment/student")[0]["threads"], 2);
    assert_eq!(dir.read("a/student.safetensors"), dir.read("by-environment/student.safetensors"));
    assert_eq!(dir.read("a/student/recipe.toml"), dir.read("b/student/recipe.toml"));
    let without_start = |out: &str| dir.events(&format!("{out}/student"))[1..].to_vec();
    assert_eq!(without_start("a"), without_start("b"));
    dir.train("train --model student --out c --seed 1");
    assert_ne!(dir.read("a/student.safetensors"), dir.read("c/student.safetensors"));
}

#[test]
fn a_resolved_recipe_alone_repeats_its_run() {
    let dir = WorkDir::new();
    dir.train("train --model student --out a --seed 3");
    dir.stdout("train --recipe a/student/recipe.toml --out b");
    assert_eq!(dir.read("a/student.safetensors"), dir.read("b/student.safetensors"));
}

#[test]
fn a_finished_run_says_so_and_is_left_alone() {
    let dir = WorkDir::new();
    let line = "train --model student --out out --epochs 1 --dataset synthetic --train-limit 50 --test-limit 20";
    dir.stdout(line);
    let (weights, events) =
        (dir.read("out/student.safetensors"), dir.read("out/student/events.jsonl"));
    let again = dir.stdout(line);
    assert!(again.contains("student: finished before"), "{again}");
    assert_eq!(dir.read("out/student.safetensors"), weights);
    assert_eq!(dir.read("out/student/events.jsonl"), events);
}

#[test]
fn another_recipe_in_the_same_folder_is_refused_by_its_keys() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    let weights = dir.read("out/student.safetensors");
    let message = dir.train_fails("train --model student --out out --lr 0.01 --seed 4", 1);
    assert!(message.contains("optimizer.lr (0.001 there, 0.01 asked for)"), "{message}");
    assert!(message.contains("training.seed (0 there, 4 asked for)"), "{message}");
    assert_eq!(dir.read("out/student.safetensors"), weights);
}

#[test]
fn runs_on_other_images_do_not_share_a_folder() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    let message = dir.fails(
        "train --model student --name other --out out --dataset synthetic --train-limit 50 --test-limit 30 --epochs 1",
        1,
    );
    assert!(message.contains("other images (synthetic, test limit 40)"), "{message}");
    assert!(!dir.path("out/other").exists());
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_at_its_step() {
    let dir = WorkDir::new();
    let message = dir.train_fails("train --model student --out out --lr 1e30", 1);
    assert!(message.contains("run student, epoch 1, step 2: the loss is"), "{message}");
    assert!(message.contains("a lower learning rate"), "{message}");
    let checkpoints = dir.checkpoints("out/student");
    assert!(checkpoints[0].ends_with("step-000000000.safetensors"), "{checkpoints:?}");
    assert!(!dir.path("out/student.safetensors").exists());
    assert!(!dir.path("out/summary.json").exists());
    // The checkpoint is good: the same command goes on from it, to the same end.
    assert_eq!(dir.train_fails("train --model student --out out --lr 1e30", 1), message);
}

#[test]
fn a_folder_in_use_is_refused() {
    let dir = WorkDir::new();
    std::fs::create_dir_all(dir.path("out/student")).unwrap();
    let lock = std::fs::File::create(dir.path("out/student/.lock")).unwrap();
    lock.try_lock().unwrap();
    let message = dir.train_fails("train --model student --out out", 1);
    assert!(message.contains("another kd process is using this folder"), "{message}");
    drop(lock);
    dir.train("train --model student --out out");
}

#[test]
fn checkpoints_come_as_often_as_asked_and_the_last_are_kept() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out --checkpoint-every 3 --keep-checkpoints 3");
    let names: Vec<_> = dir
        .checkpoints("out/student")
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(2 * BATCHES, 14);
    assert_eq!(names, ["step-000000009", "step-000000012", "step-000000014"]);
}
