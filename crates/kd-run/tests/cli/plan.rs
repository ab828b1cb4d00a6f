//! `kd plan`, and what `kd train` does where memory is short.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::workdir::{TINY, WorkDir};

fn plan(dir: &WorkDir, line: &str) -> Value {
    serde_json::from_str(&dir.stdout(&format!("plan --json --device cpu {line}"))).unwrap()
}

const RECIPE: &str = r#"
format = 1
name = "several"
[data]
dataset = "synthetic"
train_limit = 100
test_limit = 40
[training]
epochs = 2
batch_size = 16
[optimizer]
name = "sgd"
momentum = 0.9
[[run]]
name = "big"
model = "resnet8"
[[run]]
name = "alone"
model = "student"
[[run]]
name = "kd"
model = "student"
teacher = "big"
[[run.method]]
name = "kd"
weight = 0.5
[[run]]
name = "halves"
model = "resnet8"
teacher = "alone"
cross_fit = 2
[[run.method]]
name = "kd"
weight = 0.5
[[run]]
name = "from-a-file"
model = "student"
teacher = "no/such.safetensors"
teacher_model = "resnet14"
[[run.method]]
name = "kd"
weight = 0.5
"#;

#[test]
fn a_plan_has_each_run_of_a_recipe_and_writes_nothing() {
    let dir = WorkDir::new();
    std::fs::write(dir.path("several.toml"), RECIPE).unwrap();
    let plan = plan(&dir, "several.toml");
    let runs = plan["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|run| run["run"].as_str().unwrap()).collect();
    assert_eq!(names, ["big", "alone", "kd", "halves", "from-a-file"]);
    let number = |run: usize, path: &str| runs[run].pointer(path).unwrap().as_f64().unwrap();
    // Published sizes of the two networks.
    assert_eq!(number(1, "/parameters"), 267_738.0);
    assert_eq!(number(1, "/memory/weights"), 4.0 * 267_738.0);
    // Momentum is one number for each weight, where Adam has two.
    assert_eq!(number(1, "/memory/optimizer"), 4.0 * 267_738.0);
    // The whole synthetic set is drawn before limits are applied.
    assert_eq!(number(0, "/memory/images"), 12_000.0 * 3073.0);
    // Logits of 100 images for 10 classes, of f32.
    assert_eq!(number(2, "/memory/teacher_outputs"), 4000.0);
    let resnet8 = number(0, "/memory/weights");
    assert_eq!(number(2, "/memory/teacher_weights"), resnet8);
    assert_eq!(number(3, "/memory/teacher_weights"), 2.0 * 4.0 * 267_738.0);
    assert!(number(4, "/memory/teacher_weights") > resnet8);
    let notes = runs[4]["notes"].to_string();
    assert!(notes.contains("no/such.safetensors is not there; planned with the network resnet14"));
    for (run, planned) in runs.iter().enumerate() {
        assert_eq!(number(run, "/seconds/steps"), 14.0);
        let parts = 14.0 * number(run, "/seconds/step")
            + 2.0 * number(run, "/seconds/evaluation")
            + number(run, "/seconds/teacher_pass");
        assert!((number(run, "/seconds/run") / parts - 1.0).abs() < 1e-9);
        assert!(number(run, "/memory/peak") >= number(run, "/memory/training"));
        assert!(planned["refused"].is_null());
    }
    assert_eq!(std::fs::read_dir(dir.path("")).unwrap().count(), 1, "nothing was written");
    let text = dir.stdout("plan several.toml --run kd --device cpu");
    assert!(text.contains("teacher's cached outputs 4 KiB"), "{text}");
    assert!(!text.contains("halves"));
}

#[test]
fn a_plan_needs_no_data_and_takes_the_flags_of_train() {
    let dir = WorkDir::new();
    let planned = plan(&dir, "--model student --batch-size 1 --epochs 3");
    let run = &planned["runs"][0];
    assert_eq!((&run["train_images"], &run["test_images"]), (&50_000.into(), &10_000.into()));
    assert_eq!(run["seconds"]["steps"], 150_000);
    assert!(run["notes"].to_string().contains("the files of cifar10 are not there"));
    let planned = plan(&dir, "--model resnet8 --dataset cifar100 --train-limit 1000");
    assert_eq!(planned["runs"][0]["train_images"], 1000);
    // A step in four parts has the maps of a quarter of its images.
    let in_parts =
        plan(&dir, "--model resnet8 --dataset cifar100 --train-limit 1000 --accumulate 4");
    let maps = |planned: &Value| planned["runs"][0]["memory"]["maps"].as_f64().unwrap();
    let share = maps(&in_parts) / maps(&planned);
    assert!((0.2..0.3).contains(&share), "{share}");
    let message = dir.fails("plan --dataset folder --data pictures", 1);
    assert!(message.contains("pictures"), "{message}");
    let message = dir.fails("plan --memory 8", 2);
    assert!(message.contains("with its unit, such as 8GiB"), "{message}");
}

#[test]
fn a_run_that_does_not_fit_is_refused_with_the_batch_size_that_does() {
    let dir = WorkDir::new();
    let line = "train --model resnet8 --out out --memory 80MiB --train-limit 2000 --batch-size";
    let tiny: Vec<&str> = TINY[..2].iter().chain(&TINY[4..8]).copied().collect();
    let run = |batch: &str| dir.command(line).arg(batch).args(&tiny).output().unwrap();
    let refused = run("1000");
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("run resnet8 needs about"), "{message}");
    assert!(message.contains("with batches of 1000 images, and 80 MiB can be had"), "{message}");
    let (_, fits) = message.split_once("at most ").unwrap();
    let fits: usize = fits.split(':').next().unwrap().parse().unwrap();
    assert!((1..1000).contains(&fits), "{message}");
    let one_more = run(&(fits + 1).to_string());
    assert_eq!(one_more.status.code(), Some(1));
    assert!(!dir.path("out/resnet8/recipe.toml").exists(), "a refused run leaves no recipe");

    let planned =
        plan(&dir, "--model resnet8 --dataset synthetic --memory 80MiB --batch-size 1000");
    let run_of_plan = &planned["runs"][0];
    assert!(run_of_plan["refused"].as_str().unwrap().contains("expected training.batch_size"));
    assert!(run_of_plan["seconds"].is_null(), "its step is not measured");

    let message = dir.train_fails("train --model resnet8 --out out --memory 1MiB", 1);
    assert!(message.contains("not even batches of one image fit"), "{message}");
}

#[test]
fn a_run_says_its_memory_and_takes_no_more() {
    let dir = WorkDir::new();
    let mut command = dir.command("train --model resnet20 --out out --threads 2");
    command.args(["--dataset", "synthetic", "--train-limit", "400", "--test-limit", "100"]);
    command.args(["--epochs", "1", "--batch-size", "128"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // The most that the process has had, as long as it is there to be asked.
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let of = |text: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        peak = status.ok().and_then(|text| of(&text)).unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, size) = said.split_once("resnet20: needs about ").unwrap();
    let size: f64 = size.split(" MiB").next().unwrap().parse().unwrap();
    if cfg!(target_os = "linux") {
        let ratio = size * 1024.0 / peak as f64;
        assert!((0.8..1.25).contains(&ratio), "{size} MiB said, {} MiB taken", peak / 1024);
    }
}
