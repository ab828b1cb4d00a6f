//! Nothing that kd did not write is written over, and no input is an output.

use std::fs;

use kd_models::Architecture;

use crate::workdir::{TINY, WorkDir, weights};

/// A safetensors file without kd's metadata.
fn foreign(dir: &WorkDir, name: &str) -> Vec<u8> {
    weights(&dir.path(name), Architecture::TUTORIAL_STUDENT, 10, 0, false);
    dir.read(name)
}

#[test]
fn a_run_does_not_replace_weights_that_it_did_not_write() {
    let dir = WorkDir::new();
    fs::create_dir(dir.path("out")).unwrap();
    let before = foreign(&dir, "out/student.safetensors");
    let message = dir.train_fails("train --model student --out out", 1);
    assert!(
        message.contains("out/student.safetensors: exists and is not of this run: kd did not"),
        "{message}"
    );
    assert!(message.contains("choose another --out or --name"), "{message}");
    // Another run of kd's own is not this run either.
    weights(&dir.path("out/student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 1, true);
    let others = dir.read("out/student.safetensors");
    let message = dir.train_fails("train --model student --out out", 1);
    assert!(message.contains("holds no run that has written its weights"), "{message}");
    assert_eq!(dir.read("out/student.safetensors"), others);
    assert!(!dir.path("out/student").exists());
    // The same name elsewhere is nobody's, and a finished run goes on as before.
    fs::write(dir.path("out/student.safetensors"), before).unwrap();
    dir.train("train --model student --name mine --out out");
    let line = format!("train --model student --name mine --out out {}", TINY.join(" "));
    assert!(dir.stdout(&line).contains("finished before"));
    // A folder of the run's name with something else in it.
    fs::create_dir(dir.path("out/notes")).unwrap();
    fs::write(dir.path("out/notes/film.partial.txt"), "mine").unwrap();
    let message = dir.train_fails("train --model student --name notes --out out", 1);
    assert!(message.contains("is not of this run: it holds film.partial.txt"), "{message}");
    // One's own recipe, in the place where the run would keep its own.
    fs::create_dir(dir.path("out/fresh")).unwrap();
    let recipe = fs::read_to_string(dir.path("out/mine/recipe.toml")).unwrap();
    let commented = format!("# why\n{}", recipe.replace("name = \"mine\"", "name = \"fresh\""));
    fs::write(dir.path("out/fresh/recipe.toml"), &commented).unwrap();
    let message = dir.fails("train --recipe out/fresh/recipe.toml --out out --data data", 1);
    assert!(message.contains("recipe.toml: exists and is not of this run"), "{message}");
    assert_eq!(dir.read("out/fresh/recipe.toml"), commented.as_bytes());
}

#[cfg(unix)]
#[test]
fn a_run_does_not_read_what_it_writes_over() {
    let dir = WorkDir::new();
    dir.train("train --model student --out out");
    fs::create_dir(dir.path("links")).unwrap();
    std::os::unix::fs::symlink("../out/student.safetensors", dir.path("links/w")).unwrap();
    fs::hard_link(dir.path("out/student.safetensors"), dir.path("hard")).unwrap();
    let before = dir.read("out/student.safetensors");
    for spelling in
        ["out/student.safetensors", "links/w", "hard", "links/../out/student.safetensors"]
    {
        let line = format!("train --model student --init {spelling} --out out");
        let message = dir.train_fails(&line, 2);
        assert!(message.contains("the weights to start from can't be the file"), "{message}");
        let line = format!(
            "distill --method kd --model student --name student --teacher {spelling} --out out"
        );
        let message = dir.train_fails(&line, 2);
        assert!(message.contains("the teacher's weights can't be the file"), "{message}");
    }
    assert_eq!(dir.read("out/student.safetensors"), before);
    dir.train("train --model student --name tuned --init links/w --out out");
    let line =
        "train --model student --dataset folder --data pictures --out pictures/train/../train/x";
    let message = dir.fails(line, 2);
    assert!(message.contains("whose folders are the classes of the pictures"), "{message}");
}

#[cfg(unix)]
#[test]
fn an_export_replaces_neither_its_weights_nor_a_file_of_anothers() {
    let dir = WorkDir::new();
    let before = foreign(&dir, "w.safetensors");
    std::os::unix::fs::symlink("w.safetensors", dir.path("link")).unwrap();
    let export = "export --model student --weights w.safetensors";
    for spelling in ["w.safetensors", "./w.safetensors", "link"] {
        for force in ["", " --force"] {
            let message = dir.fails(&format!("{export} --onnx {spelling}{force}"), 1);
            assert!(message.contains("this is also the file of --weights"), "{message}");
        }
    }
    fs::write(dir.path("thesis.onnx"), "mine").unwrap();
    let message = dir.fails(&format!("{export} --onnx thesis.onnx"), 1);
    assert!(message.contains("thesis.onnx: exists and was not written by kd"), "{message}");
    assert_eq!((dir.read("thesis.onnx"), dir.read("w.safetensors")), (b"mine".to_vec(), before));
    dir.stdout(&format!("{export} --onnx thesis.onnx --force"));
    // What kd wrote is replaced.
    dir.stdout(&format!("{export} --onnx thesis.onnx --int8"));

    let eval = "eval --model student --weights w.safetensors --dataset synthetic --test-limit 10";
    let message = dir.fails(&format!("{eval} --logits link"), 1);
    assert!(message.contains("this is also the file of --weights"), "{message}");
    let message = dir.fails(&format!("{eval} --logits thesis.onnx"), 1);
    assert!(message.contains("was not written by kd"), "{message}");
    for _ in 0..2 {
        dir.stdout(&format!("{eval} --logits logits.safetensors"));
    }
}

#[test]
fn a_page_or_table_of_anothers_stays() {
    let dir = WorkDir::new();
    fs::create_dir(dir.path("out")).unwrap();
    fs::write(dir.path("out/report.html"), "<!DOCTYPE html><title>My thesis</title>").unwrap();
    // Before it trains, not after.
    let message = dir.train_fails("train --model student --out out", 1);
    assert!(message.contains("out/report.html: exists and was not written by kd"), "{message}");
    assert!(!dir.path("out/student").exists());
    fs::rename(dir.path("out/report.html"), dir.path("thesis.html")).unwrap();
    dir.train("train --model student --out out");
    fs::write(dir.path("out/summary.json"), "{\"mine\": 1}").unwrap();
    let message = dir.fails("report out", 1);
    assert!(message.contains("out/summary.json: exists and was not written by kd"), "{message}");
    assert_eq!(dir.read("out/summary.json"), b"{\"mine\": 1}");
    dir.stdout("report out --force");
    dir.stdout("report out");

    fs::create_dir(dir.path("man")).unwrap();
    fs::write(dir.path("man/kd-train.1"), ".TH mine 1\n").unwrap();
    let message = dir.fails("man --out man", 1);
    assert!(message.contains("man/kd-train.1: exists and was not written by kd"), "{message}");
    assert!(!dir.path("man/kd.1").exists());
    dir.stdout("man --out man --force");
    dir.stdout("man --out man");
}

#[test]
fn a_comparison_writes_over_none_of_its_inputs() {
    let dir = WorkDir::new();
    let recipe = dir.stdout("recipe");
    fs::write(dir.path("a.toml"), &recipe).unwrap();
    for (flags, named) in [
        ("--markdown ./a.toml", "a recipe"),
        ("--json a.toml", "a recipe"),
        ("--json t.md --markdown sub/../t.md", "--json"),
        ("--json out/report.html", "--out"),
    ] {
        for force in ["", " --force"] {
            let message = dir.fails(&format!("compare a.toml --out out {flags}{force}"), 1);
            assert!(message.contains(&format!("this is also the file of {named}")), "{message}");
        }
    }
    fs::write(dir.path("thesis.md"), "# Mine").unwrap();
    let message = dir.fails("compare a.toml --out out --markdown thesis.md", 1);
    assert!(message.contains("thesis.md: exists and was not written by kd"), "{message}");
    fs::write(dir.path("f.json"), "{\"format\":1,\"dataset\":null,\"arms\":[],\"runs\":[]}")
        .unwrap();
    let message = dir.fails("compare --from f.json --markdown f.json --force", 1);
    assert!(message.contains("this is also the file of --from"), "{message}");
    assert_eq!(dir.read("a.toml"), recipe.as_bytes());
    assert!(!dir.path("out").exists());
}
