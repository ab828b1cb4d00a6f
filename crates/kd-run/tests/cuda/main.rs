//! `kd` on a GPU. Where there is none every test is reported as ignored.
//!
//! ```text
//! cargo test -p kd-run --features cuda --test cuda          # or --features cudnn
//! ```

#[path = "../cli/workdir.rs"]
#[expect(dead_code, reason = "shared with the tests of `kd` on the CPU")]
mod workdir;

use std::collections::BTreeMap;
use std::process::Stdio;

use kd_models::Architecture;
use libtest_mimic::{Arguments, Trial};
use workdir::{TINY, WorkDir, weights};

/// What runs on the emulated GPU with cuDNN, too: training against the CPU's in each precision, graphs, which hold cuDNN's workspaces,
/// and the methods that compute convolutions of their own, beside one that does not.
const WITH_CUDNN: [&str; 8] = [
    "training_is_that_of_the_cpu",
    "graphs_change_no_bit",
    "a_teacher_answers_in_f32",
    "a_killed_process_goes_on_and_ends_the_same",
    "kd_by_itself_and_in_a_graph",
    "fitnet_by_itself_and_in_a_graph",
    "regressor_by_itself_and_in_a_graph",
    "vid_by_itself_and_in_a_graph",
];

fn main() {
    let tests: [(&str, fn()); 9] = [
        ("training_is_that_of_the_cpu", training_is_that_of_the_cpu),
        ("graphs_change_no_bit", graphs_change_no_bit),
        ("a_graph_follows_a_schedule", a_graph_follows_a_schedule),
        ("an_average_follows_captured_steps", an_average_follows_captured_steps),
        ("mixed_kept_views_in_parts_are_those_of_the_cpu", mixed_kept_views_in_parts),
        ("a_second_run_reads_the_cache", a_second_run_reads_the_cache),
        ("a_teacher_answers_in_f32", a_teacher_answers_in_f32),
        ("what_cannot_be_captured_is_submitted", what_cannot_be_captured_is_submitted),
        ("a_killed_process_goes_on_and_ends_the_same", a_killed_process_goes_on),
    ];
    let device = candle_core::Device::new_cuda(0);
    if let Err(error) = &device {
        // The first line: a backtrace may follow.
        println!("skipped: no GPU ({})", error.to_string().lines().next().unwrap_or_default());
    }
    let ignored = device.is_err();
    // What counts the driver's calls is the emulated one.
    let counts = std::env::var_os("KD_EMULATED_GPU").is_some();
    let cudnn = goes_through_cudnn();
    // cuDNN only computes convolutions. The emulated one has the tests of what they are part of: the others ask what the
    // host does, and take minutes.
    let needed = |name: &str| !(counts && cudnn) || WITH_CUDNN.contains(&name);
    let tests = tests.into_iter().filter(|(name, _)| needed(name));
    let tests = tests.map(|(name, test)| trial(name.into(), test, ignored));
    let counted = trial("a_step_waits_for_nothing".into(), a_step_waits_for_nothing, !counts);
    // A test for each method, so that they run beside each other.
    let methods = kd_loss::METHODS.iter().map(|method| method.name);
    let methods = methods.filter(|method| needed(&format!("{method}_by_itself_and_in_a_graph")));
    let methods = methods.map(|method| {
        let name = format!("{method}_by_itself_and_in_a_graph");
        trial(name, move || method_by_itself_and_in_a_graph(method), ignored)
    });
    let trials = tests.chain([counted]).chain(methods).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn goes_through_cudnn() -> bool {
    let chosen = std::env::var("KD_CONVOLUTIONS");
    cfg!(feature = "cudnn") && chosen.as_deref() != Ok("cublas")
}

fn trial(name: String, test: impl FnOnce() + Send + 'static, ignored: bool) -> Trial {
    let run = move || {
        test();
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(ignored)
}

/// A file that is small and quick as a teacher.
fn small_teacher(dir: &WorkDir) {
    weights(&dir.path("teacher.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 5, true);
}

/// Both kinds of submitting steps end with the same bytes; one step is captured, unless it can't be.
fn same_with_graphs(dir: &WorkDir, line: &str, run: &str, captured: bool) {
    dir.train(&format!("{line} --device cuda --out off"));
    let mut command = dir.command(&format!("{line} --device cuda --compile graph --out graph"));
    let output = command.args(TINY).env("RUST_LOG", "kd_run=debug").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    let times = said.matches("captured as a CUDA graph").count();
    let refused = said.contains("steps are submitted piece by piece");
    assert_eq!((times, refused), (1, !captured), "{line}: {said}");
    let (off, graph) = (format!("off/{run}.safetensors"), format!("graph/{run}.safetensors"));
    assert!(dir.read(&off) == dir.read(&graph), "{line}: the weights differ");
    assert_eq!(dir.events(&format!("off/{run}")), dir.events(&format!("graph/{run}")), "{line}");
}

/// The mean losses of the epochs, and the accuracies.
fn figures(dir: &WorkDir, run: &str) -> Vec<f64> {
    let epochs = dir.events(run).into_iter().filter(|event| event["event"] == "epoch");
    let keys = ["train_loss", "test_loss", "train_accuracy", "test_accuracy"];
    epochs.flat_map(|epoch| keys.map(|key| epoch[key].as_f64().unwrap())).collect()
}

fn training_is_that_of_the_cpu() {
    let dir = WorkDir::new();
    for (line, tolerance) in [
        ("train --model student", 1e-3),
        ("train --model resnet8 --name student", 1e-2),
        ("train --model student --precision tf32", 3e-2),
        ("train --model student --precision bf16", 1e-1),
    ] {
        let cpu = line.replace(" --precision tf32", "").replace(" --precision bf16", "");
        let [cpu_out, gpu_out] = [&cpu, line].map(|line| line.replace(' ', "-"));
        dir.train(&format!("{cpu} --device cpu --out cpu{cpu_out}"));
        dir.train(&format!("{line} --device cuda --out gpu{gpu_out}"));
        let cpu = figures(&dir, &format!("cpu{cpu_out}/student"));
        let gpu = figures(&dir, &format!("gpu{gpu_out}/student"));
        assert_eq!((cpu.len(), gpu.len()), (8, 8));
        for (gpu, cpu) in gpu.iter().zip(&cpu) {
            // One correct prediction more or less is 1 % of the training images and 2.5 % of the others.
            let allowed = tolerance * cpu.abs() + if *cpu < 1.0 { 0.026 } else { 0.0 };
            assert!((gpu - cpu).abs() <= allowed, "{line}: {gpu}, on the CPU {cpu}");
        }
    }
}

fn graphs_change_no_bit() {
    for (line, run) in [
        ("train --model student", "student"),
        ("train --model student --clip-grad-norm 0.5 --precision bf16", "student"),
        ("train --model student --class-weights balanced --sampler balanced", "student"),
        // Batch normalisation, whose running statistics a graph changes, and no dropout.
        ("train --model resnet8 --name resnet", "resnet"),
    ] {
        same_with_graphs(&WorkDir::new(), line, run, true);
    }
}

/// SGD at a rate that changes with each step, and a method's weight that warms up: the graph is captured after it.
fn a_graph_follows_a_schedule() {
    let dir = WorkDir::new();
    small_teacher(&dir);
    let recipe = r#"
        format = 1
        name = "schedules"
        [data]
        dataset = "synthetic"
        [training]
        schedule = { name = "cosine" }
        [optimizer]
        name = "sgd"
        lr = 0.01
        momentum = 0.9
        nesterov = true
        [[run]]
        name = "kd"
        model = "student"
        teacher = "teacher.safetensors"
        labels = 0.5
        [[run.method]]
        name = "kd"
        weight = 0.5
        warmup = 0.25
    "#;
    std::fs::write(dir.path("recipe.toml"), recipe).unwrap();
    let line = "distill --recipe recipe.toml --run kd --teacher teacher.safetensors";
    same_with_graphs(&dir, line, "kd", true);
}

/// AdamW, whose decay a graph is launched with, and an average of the weights, whose share changes with each step.
fn an_average_follows_captured_steps() {
    let dir = WorkDir::new();
    let recipe = r#"
        format = 1
        name = "average"
        training = { average = { name = "ema", decay = 0.9, warmup = true }, schedule = { name = "cosine" } }
        optimizer = { name = "adamw", lr = 0.01, weight_decay = 0.1 }
        [[run]]
        name = "student"
        model = "student"
    "#;
    std::fs::write(dir.path("recipe.toml"), recipe).unwrap();
    same_with_graphs(&dir, "train --recipe recipe.toml --run student", "student", true);
}

/// Pictures that are mixed on the host, logits that are kept there, and steps in parts: none is captured.
fn mixed_kept_views_in_parts() {
    let dir = WorkDir::new();
    small_teacher(&dir);
    let recipe = r#"
        format = 1
        name = "mixed"
        data = { augment = { flip = true, mixup = 1.0, cutmix = 1.0, views = 1 } }
        training = { accumulate = 2 }
        [[run]]
        name = "student"
        model = "student"
        dropout = 0.0
        teacher = "teacher.safetensors"
        labels = 0.5
        keep = { type = "f32" }
        [[run.method]]
        name = "kd"
        weight = 0.5
    "#;
    std::fs::write(dir.path("recipe.toml"), recipe).unwrap();
    let line = "distill --recipe recipe.toml --run student";
    dir.train(&format!("{line} --device cpu --out cpu"));
    let said = dir.train(&format!("{line} --device cuda --compile graph --out gpu"));
    assert!(
        said.contains(
            "piece by piece, none is captured as a CUDA graph: a step is computed in 2 parts"
        ),
        "{said}"
    );
    let (cpu, gpu) = (figures(&dir, "cpu/student"), figures(&dir, "gpu/student"));
    for (gpu, cpu) in gpu.iter().zip(&cpu) {
        let allowed = 1e-3 * cpu.abs() + if *cpu < 1.0 { 0.026 } else { 0.0 };
        assert!((gpu - cpu).abs() <= allowed, "{gpu}, on the CPU {cpu}");
    }
}

fn method_by_itself_and_in_a_graph(method: &str) {
    let dir = WorkDir::new();
    small_teacher(&dir);
    if method == "label-smoothing" {
        same_with_graphs(&dir, "distill --method label-smoothing", method, true);
        return;
    }
    let line = format!("distill --method {method} --teacher teacher.safetensors");
    same_with_graphs(&dir, &line, method, method != "crd");
}

/// The cached outputs lie on the GPU in the second run, too, whose steps select from them there.
fn a_second_run_reads_the_cache() {
    let dir = WorkDir::new();
    small_teacher(&dir);
    for name in ["first", "second"] {
        dir.train(&format!(
            "distill --method kd --teacher teacher.safetensors --device cuda --out out --name {name}"
        ));
    }
    assert_eq!(dir.cached("out").len(), 1);
    let [first, second] =
        ["first", "second"].map(|name| weights_alone(&dir, &format!("out/{name}.safetensors")));
    assert!(first == second);
}

/// Its answers are f32, whatever the precision of training is: those that each step computes are those that were cached.
fn a_teacher_answers_in_f32() {
    let dir = WorkDir::new();
    small_teacher(&dir);
    let line = "distill --method kd --alpha 0 --teacher teacher.safetensors --device cuda --precision tf32";
    dir.train(&format!("{line} --out cached"));
    dir.train(&format!("{line} --out computed --cache-memory 0"));
    assert!(dir.cached("computed").is_empty());
    let cached = figures(&dir, "cached/kd");
    for (computed, cached) in figures(&dir, "computed/kd").iter().zip(&cached) {
        assert!(
            (computed - cached).abs() <= 1e-6 * cached.abs(),
            "{computed}, from cached answers {cached}"
        );
    }
}

/// Without the metadata, in which the run's name is.
fn weights_alone(dir: &WorkDir, file: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = dir.read(file);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        tensors.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    tensors.sort();
    tensors
}

fn what_cannot_be_captured_is_submitted() {
    let dir = WorkDir::new();
    small_teacher(&dir);
    let line =
        "distill --method crd --teacher teacher.safetensors --device cuda --compile graph --out o";
    let said = dir.train(line);
    assert!(said.contains("method crd needs what only the host knows"), "{said}");
}

fn a_killed_process_goes_on() {
    let dir = WorkDir::new();
    let line = "train --model student --device cuda --compile graph --checkpoint-every 3 --out";
    dir.train(&format!("{line} whole"));
    let mut child = dir
        .command(&format!("{line} killed"))
        .args(TINY)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Wherever it is by then, even at its end: what follows holds for any moment.
    while dir.checkpoints("killed/student").len() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    dir.train(&format!("{line} killed"));
    for file in ["student.safetensors", "student/evaluation.json"] {
        let [whole, killed] = ["whole", "killed"].map(|out| dir.read(&format!("{out}/{file}")));
        assert!(whole == killed, "{file} differs");
    }
    assert_eq!(dir.events("whole/student"), dir.events("killed/student"));
    assert!(dir.last_checkpoint("whole/student") == dir.last_checkpoint("killed/student"));
}

/// What ten more steps of a batch of 16 cost in calls of the driver.
fn ten_steps(dir: &WorkDir, line: &str) -> BTreeMap<String, i64> {
    let mut counts = [160, 320].map(|images| {
        let file = dir.path("counts");
        let limits = format!("--train-limit {images} --test-limit 20 --epochs 1 --batch-size 16");
        let line = format!("{line} --dataset synthetic {limits} --device cuda --out {images}");
        let output = dir.command(&line).env("KD_EMULATED_GPU_COUNTS", &file).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(file).unwrap();
        let count = |line: &str| {
            let (times, what) = line.split_once(' ').unwrap();
            (what.to_owned(), times.parse::<i64>().unwrap())
        };
        text.lines().map(count).collect::<BTreeMap<_, _>>()
    });
    let before = std::mem::take(&mut counts[0]);
    for (what, times) in &mut counts[1] {
        *times -= before.get(what).unwrap_or(&0);
    }
    std::mem::take(&mut counts[1])
}

/// Figures are read every 50 steps: none of these reads one, waits, or copies a batch from the host.
fn a_step_waits_for_nothing() {
    for (compile, from_host, launches) in [("off", 1, 0), ("graph", 0, 10)] {
        let dir = WorkDir::new();
        let counts = ten_steps(&dir, &format!("train --model student --compile {compile}"));
        let of = |what: &str| counts.get(what).copied().unwrap_or(0);
        assert_eq!((of("waits of the host"), of("copies to the host")), (0, 0), "{compile}");
        assert_eq!(of("events made"), 0, "{compile}");
        assert_eq!(of("copies from the host"), 10 * from_host, "{compile}");
        assert_eq!(of("graph launches"), launches, "{compile}");
        assert_eq!((of("adam"), of("gather"), of("set_step")), (10, 10, launches), "{compile}");
        // The batch into the graph's tensors, the student's step as a graph, the figures out of it. cuBLAS convolves on columns
        // of windows, which are five pieces of work more.
        let pieces = if goes_through_cudnn() { 390 } else { 440 };
        let work = if compile == "graph" { (pieces, 150, 30, 10) } else { (0, 0, 180, 0) };
        let found = (
            of("pieces of work in graphs"),
            of("allocations in graphs"),
            of("allocations"),
            of("copies on the device"),
        );
        assert_eq!(found, work, "{compile}");
        // Only the loss's gradient is candle's, which adds it to zeros.
        assert_eq!((of("memsets"), of("badd_f32")), (10, 10), "{compile}");
    }
}
