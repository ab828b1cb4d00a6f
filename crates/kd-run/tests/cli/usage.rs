//! Command lines and recipes that can't be right.

use crate::workdir::WorkDir;

#[test]
fn wrong_flags_are_usage_errors_that_name_the_flag() {
    let dir = WorkDir::new();
    let wrong = [
        ("", "Usage"),
        ("fly", "unrecognized subcommand"),
        ("train --model student --epochs 0", "--epochs"),
        ("train --model student --batch-size many", "--batch-size"),
        ("train --model student --lr -1", "-1"),
        ("train --model student --lr nan", "expected a number above 0"),
        ("train --model student --threads 0", "--threads"),
        ("train --model student --threads 100000", "expected a whole number from 1 to 1024"),
        ("train --model student --seed 9223372036854775808", "from 0 to 9223372036854775807"),
        ("train --model student --clip-grad-norm 0", "expected a number above 0"),
        ("train --model student --epoch 3", "--epochs"),
        ("train --model student --dataset sinthetic", "similar value exists: 'synthetic'"),
        ("train --run studnet", "did you mean student?"),
        ("distill --method cosin --teacher t", "did you mean cosine?"),
        ("train --model student --seed x", "--seed"),
        ("train --model student --device tpu", "possible values: auto, cpu, cuda"),
        (
            "train --model student --dataset mnist",
            "possible values: cifar10, cifar100, synthetic, folder",
        ),
        ("train --model student --checkpoint-every 3weeks", "--checkpoint-every"),
        ("train --model student --name ../up", "--name"),
        ("train --model resnet", "teacher, student"),
        ("train --model student --alpha 0.5", "--alpha"),
        ("train", "which of the runs teacher, student?"),
        ("train --run kd", "use `kd distill --run kd`"),
        ("train --run nobody", "the recipe has the runs teacher, student, kd"),
        ("distill", "which of the runs kd, cosine, regressor?"),
        ("distill --run student", "use `kd train --run student`"),
        ("distill --method magic --teacher t", "there is no method \"magic\"; the methods are kd"),
        ("distill --method kd --alpha 1.5", "expected a number from 0 to 1"),
        ("distill --method kd --temperature 0", "expected a number above 0"),
        (
            "distill --method cosine --temperature 3",
            "--temperature is for the methods kd, dkd and dist",
        ),
        ("distill --method label-smoothing --teacher t", "needs no teacher"),
        ("eval", "--weights"),
        ("report", "<OUT>"),
        ("predict --weights w.safetensors", "<PICTURE>"),
        ("completions tcsh", "possible values: bash"),
    ];
    for (line, expected) in wrong {
        let message = dir.fails(line, 2);
        assert!(message.contains(expected), "kd {line}: {message}");
    }
    assert_eq!(std::fs::read_dir(dir.path("")).unwrap().count(), 0, "nothing was written");
}

#[test]
fn what_is_missing_is_named() {
    let dir = WorkDir::new();
    let message = dir.fails("train --model student --data nowhere --out out", 1);
    assert!(message.contains("nowhere"), "{message}");
    let message = dir.fails("train --model student --recipe none.toml", 1);
    assert!(message.contains("none.toml: the recipe can't be read"), "{message}");
    if cfg!(not(feature = "cuda")) {
        let message = dir.train_fails("train --model student --device cuda --out out", 1);
        assert!(message.contains("built without CUDA"), "{message}");
    }
    assert!(!dir.path("out").exists());
}

#[test]
fn graphs_are_for_a_gpu() {
    let dir = WorkDir::new();
    let message =
        dir.train_fails("train --model student --device cpu --compile graph --out out", 1);
    let expected = "CUDA graphs are for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or leave --compile out";
    assert!(message.contains(expected), "{message}");
    assert!(!dir.path("out").exists());
}

#[test]
fn a_precision_that_only_a_gpu_has_is_refused_on_the_cpu() {
    let dir = WorkDir::new();
    let line = "train --model student --device cpu --out out";
    for precision in ["tf32", "bf16"] {
        let message = dir.train_fails(&format!("{line} --precision {precision}"), 1);
        let expected = format!(
            "precision {precision} is for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or precision f32"
        );
        assert!(message.contains(&expected), "{message}");
    }
    let recipe =
        kd_run::recipe::TUTORIAL.replacen("epochs = 10", "epochs = 10\nprecision = \"bf16\"", 1);
    std::fs::write(dir.path("mine.toml"), recipe).unwrap();
    let message =
        dir.train_fails("train --run student --recipe mine.toml --device cpu --out out", 1);
    assert!(message.contains("precision bf16 is for NVIDIA GPUs"), "{message}");
    assert!(!dir.path("out").exists());
    // A flag goes over the recipe, and what is f32 is recorded as it always was.
    dir.train("train --run student --recipe mine.toml --device cpu --precision f32 --out out");
    let recorded = String::from_utf8(dir.read("out/student/recipe.toml")).unwrap();
    assert!(!recorded.contains("precision"), "{recorded}");
}

#[test]
fn a_wrong_recipe_is_an_error_with_file_and_line() {
    let dir = WorkDir::new();
    let wrong = [
        ("epochs = 10", "epoch = 10", "did you mean `epochs`?"),
        ("epochs = 10", "epochs = \"ten\"", "ten"),
        ("epochs = 10", "epochs = 0", "training.epochs: is 0; expected at least 1"),
        ("epochs = 10", "epochs = ", "mine.toml, line"),
        ("format = 1", "format = 2", "this version of kd reads format 1"),
    ];
    for (from, to, expected) in wrong {
        let recipe = kd_run::recipe::TUTORIAL.replacen(from, to, 1);
        std::fs::write(dir.path("mine.toml"), &recipe).unwrap();
        let line = 1 + recipe.lines().position(|line| line.starts_with(to)).unwrap();
        let message = dir.fails("train --model student --recipe mine.toml", 1);
        assert!(message.contains(&format!("mine.toml, line {line}: ")), "{line}: {message}");
        assert!(message.contains(expected), "{message}");
    }
    std::fs::write(dir.path("mine.toml"), [0xff, 0xfe]).unwrap();
    let message = dir.fails("train --model student --recipe mine.toml", 1);
    assert!(message.contains("mine.toml"), "{message}");
}

#[test]
fn data_other_than_the_recipes_is_refused() {
    let dir = WorkDir::new();
    let recipe = kd_run::recipe::TUTORIAL
        .replace("dataset = \"cifar10\"", "dataset = \"synthetic\"\nsha256 = \"00\"");
    std::fs::write(dir.path("mine.toml"), recipe).unwrap();
    let message = dir.fails("train --model student --recipe mine.toml --out out", 1);
    assert!(message.contains("the recipe was made for other data"), "{message}");
}

#[test]
fn the_built_in_recipe_is_the_repositorys() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match std::fs::read_to_string(root.join("recipes/tutorial.toml")) {
        Ok(recipe) => assert_eq!(
            recipe,
            kd_run::recipe::TUTORIAL,
            "`cp recipes/tutorial.toml crates/kd-run/src/` makes them the same"
        ),
        Err(_) => eprintln!("skipped: this is not the repository"),
    }
}
