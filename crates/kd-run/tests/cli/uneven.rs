//! Classes of different sizes: class weights, the balanced sampler, and folders with broken pictures.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use kd_run::train::{Outcome, Progress, train};

use crate::pictures::save;
use crate::resume::{assert_same, resolved};
use crate::workdir::{BATCHES, WorkDir, damage};

/// Data and length of the runs.
const SHORT: &str = "--dataset folder --data pictures --epochs 1 --batch-size 8";

/// Pictures of three classes, 24, 6 and 3 to train on and 6, 2 and 1 to test on.
fn uneven() -> WorkDir {
    let dir = WorkDir::new();
    let data = kd_data::synthetic(&kd_data::SyntheticConfig { train: 240, test: 60, seed: 0 });
    for (name, split, counts) in
        [("train", &data.train, [24, 6, 3]), ("test", &data.test, [6, 2, 1])]
    {
        for (class, (name_of_class, count)) in ["ant", "bee", "cow"].iter().zip(counts).enumerate()
        {
            let of_class = (0..split.labels.len()).filter(|&i| split.labels[i] as usize == class);
            for i in of_class.take(count) {
                save(split, i, &dir.path(&format!("pictures/{name}/{name_of_class}/{i:03}.png")));
            }
        }
    }
    dir
}

/// The picture files of a class, in the order of their names.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn class_weights_are_a_rule_a_list_or_a_table_and_reach_every_cross_entropy() {
    let dir = uneven();
    let run = |name: &str, line: &str| {
        let said = dir.stdout(&format!("{line} --name {name} --out out {SHORT}"));
        (said, dir.read(&format!("out/{name}.safetensors")))
    };
    // 33 / (3 * 24), 33 / (3 * 6), 33 / (3 * 3), the first two rounded to f32 in any case.
    let list = "0.4583333333333333,1.8333333333333333,3.6666666666666665";
    let table = "cow=3.6666666666666665,ant=0.4583333333333333,bee=1.8333333333333333";
    for (method, line) in [
        ("labels", "train --model student"),
        ("smoothed", "distill --method label-smoothing --model student"),
    ] {
        let (said, plain) = run(method, line);
        assert!(!said.contains("weighs"), "{said}");
        let (said, rule) =
            run(&format!("{method}-rule"), &format!("{line} --class-weights balanced"));
        assert!(
            said.contains("cross-entropy weighs the classes: ant 0.4583, bee 1.8333, cow 3.6667"),
            "{said}"
        );
        assert!(rule != plain, "{method}");
        for (name, weights) in [("list", list), ("table", table)] {
            let line = format!("{line} --class-weights {weights}");
            assert!(run(&format!("{method}-{name}"), &line).1 == rule, "{method} {name}");
        }
        // The run's own recipe says it.
        let recipe = format!("out/{method}-table/recipe.toml");
        dir.stdout(&format!(
            "{} --recipe {recipe} --data pictures --out again",
            &line[..line.find(' ').unwrap()]
        ));
        assert!(rule == dir.read(&format!("again/{method}-table.safetensors")), "{method}");
    }
}

#[test]
fn wrong_class_weights_are_one_error_before_anything_is_begun() {
    let dir = uneven();
    let train = format!("train --model student --out out {SHORT} --class-weights");
    for (weights, code, expected) in [
        (
            "ant=1,bee=2,cat=3",
            1,
            "run student: class_weights is a table with `cat`, which is no class",
        ),
        (
            "ant=1,bee=2",
            1,
            "a table without class `cow`; expected a number for each class of the data",
        ),
        (
            "1,2",
            1,
            "a list of 2 numbers for 3 classes; expected a number for each class, in the classes' order; the classes are ant, bee, cow",
        ),
        ("1,-2,1", 2, "expected \"balanced\", a number above 0 for each class"),
    ] {
        let message = dir.fails(&format!("{train} {weights}"), code);
        assert!(message.contains(expected), "{message}");
    }
    let recipe = "format = 1\nname = 'r'\n[data]\ndataset = 'folder'\n[[run]]\nname = 'a'\nmodel = 'student'\n";
    for (line, expected) in [
        (
            "class_weights = [1, 0, 2]",
            "r.toml, line 8: run[1].class_weights: is 0 at place 2; expected numbers above 0",
        ),
        ("class_weights = 'even'", "line 8: expected \"balanced\", a list with a number for each"),
        (
            "labels = 0.0\nclass_weights = 'balanced'\n[[run.method]]\nname = 'kd'\nweight = 1.0",
            "run[1].class_weights: is set; expected none in a run whose labels have the weight 0",
        ),
    ] {
        fs::write(dir.path("r.toml"), format!("{recipe}{line}\n")).unwrap();
        let message = dir.fails("train --recipe r.toml --data pictures --out out", 1);
        assert!(message.contains(expected), "{message}");
    }
    assert!(!dir.path("out/student").exists() && !dir.path("out/a").exists());
    // A class without training images has no balanced weight.
    let line = format!("{train} balanced --train-limit 2");
    let message = dir.fails(&line, 1);
    assert!(message.contains("no training image is of class `cow`"), "{message}");
}

#[test]
fn balanced_runs_stopped_anywhere_end_the_same() {
    let dir = WorkDir::new();
    let line = "train --model student --sampler balanced --class-weights balanced";
    let said = dir.train(&format!("{line} --out whole"));
    assert!(said.contains("rare classes count more twice over"), "{said}");
    dir.train("train --model student --out shuffled");
    assert!(dir.read("whole/student.safetensors") != dir.read("shuffled/student.safetensors"));
    for step in [3, BATCHES + 1] {
        let out = format!("stopped-{step}");
        let run = resolved(&dir, "whole/student", &out);
        let outcome = train(&run, &mut |progress| match progress {
            Progress::Step { step: done, .. } if done == step as u64 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(outcome.unwrap(), Outcome::Stopped { .. }));
        dir.train(&format!("{line} --out {out}"));
        assert_same(&dir, "whole", &out, "student");
    }
    // Another sampler is another recipe.
    let message = dir.train_fails("train --model student --out whole", 1);
    assert!(
        message.contains("training.sampler (\"balanced\" there, not set asked for)"),
        "{message}"
    );
}

#[test]
fn broken_pictures_are_left_out_where_it_is_asked_for_and_listed() {
    let dir = uneven();
    let ants = files(&dir.path("pictures/train/ant"));
    let broken = [&ants[3], &ants[7], &files(&dir.path("pictures/test/bee"))[1]];
    broken.iter().for_each(|path| damage(path));
    let line = format!("train --model student --out out {SHORT}");
    let message = dir.fails(&line, 1);
    assert!(
        message.contains("3 pictures can't be read") && message.contains("\n--skip-broken ("),
        "{message}"
    );
    let output = dir.command(&format!("{line} --skip-broken")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let below =
        |path: &Path| path.strip_prefix(dir.path("pictures")).unwrap().display().to_string();
    let names: Vec<String> = broken.iter().map(|path| below(path)).collect();
    let expected = format!(
        "student: 3 pictures that can't be read are left out: {}; all are listed in out/student/skipped-pictures.txt",
        names.join(", ")
    );
    assert!(said.contains(&expected), "{said}");
    let listed = String::from_utf8(dir.read("out/student/skipped-pictures.txt")).unwrap();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let dataset = &dir.events("out/student")[0]["dataset"];
    assert_eq!((&dataset["train"], &dataset["test"]), (&31.into(), &8.into()));
    for (name, (line, recorded)) in
        names.iter().zip(listed.lines().zip(dataset["skipped"].as_array().unwrap()))
    {
        assert!(line.starts_with(&format!("{name}: ")), "{line}");
        assert_eq!(recorded["path"], **name);
    }
    let page = String::from_utf8(dir.read("out/report.html")).unwrap();
    assert!(page.contains("Pictures left out") && page.contains("3 pictures that can&#x27;t be"));
    assert_eq!(page.matches(names[0].rsplit('/').next().unwrap()).count(), 2, "warning and table");

    let eval = "eval --weights out/student.safetensors --dataset folder --data pictures --json";
    assert!(dir.fails(eval, 1).contains("--skip-broken"));
    let output = dir.command(&format!("{eval} --skip-broken")).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("3 pictures that can't be read are"));
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["dataset"]["skipped"], serde_json::json!(names));

    // The same broken pictures are the same data; others are not.
    let again = dir.stdout(&format!("{line} --skip-broken"));
    assert!(again.contains("student: finished before"), "{again}");
    damage(&ants[9]);
    let message = dir.fails(&format!("{line} --skip-broken"), 1);
    assert!(
        message.contains("this folder is of another recipe; it differs in data.sha256"),
        "{message}"
    );
    // A class has to keep a picture.
    files(&dir.path("pictures/train/cow")).iter().for_each(|path| damage(path));
    let message = dir.fails(&format!("{line} --skip-broken"), 1);
    assert!(
        message.contains("train/cow: found no picture that can be read, the first"),
        "{message}"
    );
    let message = dir.train_fails("train --model student --out other --skip-broken", 1);
    assert!(
        message
            .contains("data: skip_broken: is true; expected false: only of pictures of one's own"),
        "{message}"
    );
}

#[test]
fn class_weights_without_labels_are_refused_before_anything_is_read() {
    let dir = WorkDir::new();
    // Neither the data nor the teacher is there: they would be missed first if they were looked for.
    let line = "distill --method kd --alpha 0 --class-weights balanced --dataset cifar10 --data none --teacher none --out out";
    let message = dir.fails(line, 2);
    let expected =
        "run \"kd\": class_weights: is set; expected none in a run whose labels have the weight 0";
    assert!(message.contains(expected), "{message}");
    assert!(!dir.path("out").exists());
}

#[test]
fn a_comparison_leaves_broken_pictures_out_where_it_is_asked_for() {
    let dir = uneven();
    damage(&files(&dir.path("pictures/train/ant"))[3]);
    let recipe = "format = 1\nname = \"one\"\n[data]\ndataset = \"folder\"\n[[run]]\nname = \"student\"\nmodel = \"student\"\n";
    std::fs::write(dir.path("one.toml"), recipe).unwrap();
    let line = "compare one.toml --seeds 1 --data pictures --epochs 1 --batch-size 16 --device cpu --out out";
    assert!(dir.fails(line, 1).contains("--skip-broken"));
    let table = dir.stdout(&format!("{line} --skip-broken"));
    assert!(table.contains("student"), "{table}");
    assert!(dir.path("out/seed-0/student/skipped-pictures.txt").exists());
    let figures = dir.json("out/figures.json");
    assert_eq!(figures["arms"][0]["settings"]["data"]["skip_broken"], true);
}

#[test]
fn warnings_about_classes_go_to_standard_error() {
    let dir = uneven();
    let line = format!("train --model student --out out {SHORT} --test-limit 2 --train-limit 2");
    let output = dir.command(&line).output().unwrap();
    let (said, warned) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for split in ["training", "test"] {
        let expected = format!("no {split} image is of class `cow`");
        assert!(warned.contains(&expected) && !said.contains(&expected), "{said}{warned}");
    }
    assert!(said.contains("(of the 2 of 3 classes with test images)"), "{said}");
}
