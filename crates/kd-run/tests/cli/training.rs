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
    assert!(
        message.contains("other images (synthetic, test limit 40, held out none)"),
        "{message}"
    );
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
    let again = dir.train_fails("train --model student --out out --lr 1e30", 1);
    let (memory, rest) = message.split_once('\n').unwrap();
    assert!(memory.contains("needs about"), "{message}");
    assert_eq!(again, format!("{memory}\nstudent: going on after step 0 of 14\n{rest}"));
}

/// The tutorial's student with so much weight on the labels, on images of so small a deviation.
fn steep(dir: &WorkDir, name: &str, labels: &str, std: &str) {
    let recipe = kd_run::recipe::TUTORIAL
        .replace("std = [0.229, 0.224, 0.225]", &format!("std = [{std}, {std}, {std}]"))
        .replace(
            "name = \"student\"\nmodel = \"student\"\n",
            &format!("name = \"student\"\nmodel = \"student\"\nlabels = {labels}\n"),
        );
    std::fs::write(dir.path(name), recipe).unwrap();
}

#[test]
fn a_gradient_that_is_not_finite_stops_the_run_in_that_very_step() {
    let dir = WorkDir::new();
    // The loss is 1e36 times some thousands, still finite; its gradient is not.
    steep(&dir, "steep.toml", "1e36", "1e-4");
    let line = "train --run student --recipe steep.toml --out out --checkpoint-every 1";
    let message = dir.train_fails(line, 1);
    let start = "run student, epoch 1, step 1: the norm of the gradient of classifier.3.weight is inf on training images [";
    assert!(message.contains(start), "{message}");
    let (_, indices) = message.split_once("images [").unwrap();
    let indices: Vec<u32> =
        indices.split(']').next().unwrap().split(", ").map(|i| i.parse().unwrap()).collect();
    assert_eq!(indices.len(), 16, "all of the batch");
    // No weight has been changed: it is the labels' weight.
    assert!(
        message.contains("look at the data's mean and std, at the weights of labels"),
        "{message}"
    );
    let [checkpoint] = &dir.checkpoints("out/student")[..] else { panic!("{message}") };
    assert!(checkpoint.ends_with("step-000000000.safetensors"));
}

#[test]
fn moments_that_are_not_finite_are_not_saved_and_clipping_keeps_them_finite() {
    let dir = WorkDir::new();
    // Gradients of 1e30: their squares are more than an f32 holds.
    steep(&dir, "steep.toml", "1e30", "0.2");
    let line = "train --run student --recipe steep.toml";
    let message = dir.train_fails(&format!("{line} --out out"), 1);
    assert!(message.contains("no checkpoint is written after step 7: adam.second/"), "{message}");
    assert_eq!(dir.checkpoints("out/student").len(), 1, "the last good one");
    dir.train(&format!("{line} --out clipped --clip-grad-norm 5"));
    let recipe = String::from_utf8(dir.read("clipped/student/recipe.toml")).unwrap();
    assert!(recipe.contains("clip_grad_norm = 5.0"), "{recipe}");
}

#[test]
fn clipping_at_a_large_norm_changes_nothing_and_at_a_small_one_does() {
    let dir = WorkDir::new();
    dir.train("train --model student --out plain");
    dir.train("train --model student --out large --clip-grad-norm 1e6");
    dir.train("train --model student --out small --clip-grad-norm 0.1");
    assert_eq!(dir.read("plain/student.safetensors"), dir.read("large/student.safetensors"));
    assert_ne!(dir.read("plain/student.safetensors"), dir.read("small/student.safetensors"));
}

#[test]
fn a_run_of_another_version_is_refused_and_says_what_to_do() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    // As if it had been killed before its end.
    std::fs::remove_file(dir.path("out/student.safetensors")).unwrap();
    let newest = dir.checkpoints("out/student").pop().unwrap();
    let whole = std::fs::read(&newest).unwrap();
    let mut bytes = whole.clone();
    let format = br#"\"format\":1"#;
    let at = bytes.windows(format.len()).position(|window| window == format).unwrap();
    bytes[at + format.len() - 1] = b'2';
    std::fs::write(&newest, &bytes).unwrap();
    let message = dir.train_fails("train --model student --out out", 1);
    assert!(
        message.contains("step-000000014.safetensors: this checkpoint has format 2"),
        "{message}"
    );
    assert!(message.contains("go on with the version that wrote it, or start anew"), "{message}");
    assert!(dir.read(newest.to_str().unwrap()) == bytes, "it is left as it was");
    std::fs::write(&newest, &whole).unwrap();

    let path = dir.path("out/student/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, recipe.replace("format = 1", "format = 0")).unwrap();
    let message = dir.train_fails("train --model student --out out", 1);
    assert!(message.contains("recipe.toml, line 1: format is 0"), "{message}");
    assert!(message.contains("use the version that wrote the recipe"), "{message}");
    std::fs::write(&path, recipe).unwrap();
    dir.train("train --model student --out out");

    let path = dir.path("out/student/evaluation.json");
    let evaluation = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, evaluation.replace("\"format\":1", "\"format\":9")).unwrap();
    let message = dir.fails("report out", 1);
    assert!(message.contains("evaluation.json: format is 9"), "{message}");
    assert!(message.contains("use the version of kd that wrote it"), "{message}");
}

#[test]
fn the_best_checkpoint_is_kept_beside_the_last() {
    let dir = WorkDir::new();
    let line = "train --model student --dataset synthetic --train-limit 60 --test-limit 40 --epochs 8 --batch-size 32 --lr 0.02 --keep-checkpoints 1 --out out";
    dir.stdout(line);
    let accuracies: Vec<f64> = dir
        .events("out/student")
        .iter()
        .filter_map(|event| event["test_accuracy"].as_f64())
        .collect();
    let best = accuracies.iter().copied().fold(0.0, f64::max);
    let epoch = 1 + accuracies.iter().position(|accuracy| *accuracy == best).unwrap();
    let mut expected = vec![2 * epoch, 16];
    expected.dedup();
    let kept: Vec<usize> = dir
        .checkpoints("out/student")
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap()[5..].parse().unwrap())
        .collect();
    assert_eq!(kept, expected, "{accuracies:?}");
}

#[test]
fn a_folder_in_use_is_refused() {
    let dir = WorkDir::new();
    std::fs::create_dir_all(dir.path("out/student")).unwrap();
    let lock = std::fs::File::create(dir.path("out/student/.lock")).unwrap();
    lock.try_lock().unwrap();
    let message = dir.train_fails("train --model student --out out", 1);
    assert!(message.contains("another kd process is using this folder"), "{message}");
    // Not by closing it: a process that another test is just starting may have a copy of the open file.
    lock.unlock().unwrap();
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
