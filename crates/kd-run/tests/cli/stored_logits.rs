//! A teacher that is a file of its logits by picture: made by `kd eval --logits`, taken by `kd distill --teacher-logits`.

use std::fs;
use std::path::Path;

use kd_models::Architecture;
use kd_record::PictureLogits;

use crate::pictures::save;
use crate::workdir::{WorkDir, weights};

/// Pictures in two folders a split, with names that sort otherwise than they are numbered.
fn pictures(dir: &Path) {
    let data = kd_data::synthetic(&kd_data::SyntheticConfig { train: 16, test: 4, seed: 0 });
    for (split, name) in [(&data.train, "train"), (&data.test, "test")] {
        for i in 0..split.len() {
            let class = ["Hut ä", "shoe"][i % 2];
            save(split, i, &dir.join(format!("{name}/{class}/{}.png", 7 * i % 16)));
        }
    }
}

const RUN: &str = "--epochs 2 --batch-size 4 --lr 0.001 --dataset folder --data pictures";

/// A student learns the same, bit for bit, from the teacher and from the file of its logits: of pictures in files and in memory, whatever
/// the order of the file's rows and of its classes.
#[test]
fn a_file_of_logits_teaches_as_the_network_does() {
    let dir = WorkDir::new();
    pictures(&dir.path("pictures"));
    weights(&dir.path("t.safetensors"), Architecture::TUTORIAL_STUDENT, 2, 5, false);
    for size in ["", "--size 32"] {
        let data = format!("--dataset folder --data pictures {size}");
        let eval = "eval --model student --weights t.safetensors --on train --logits answers";
        let said = dir.stdout(&format!("{eval} {data} --force"));
        assert!(said.starts_with("training accuracy "), "{said}");
        let path = dir.path("answers");
        let mut found = PictureLogits::read(&path).unwrap();
        assert_eq!((found.names.len(), found.logits.len()), (16, 32));
        assert!(found.names.contains(&"train/Hut ä/14.png".to_string()), "{:?}", found.names);
        assert_eq!(found.classes, ["Hut ä", "shoe"]);
        let out = format!("out{}", size.len());
        let distill = |teacher: &str, name: &str| {
            let line =
                format!("distill --method kd --name {name} --out {out} {teacher} {size} {RUN}");
            dir.stdout(&line);
            dir.read(&format!("{out}/{name}.safetensors"))
        };
        let network = distill("--teacher t.safetensors --teacher-model student", "network");
        assert!(distill("--teacher-logits answers", "file") == network, "{size}");
        // Another program wrote the rows from the last to the first and the classes the other way round.
        found.names.reverse();
        found.classes.reverse();
        found.logits.reverse();
        found.names.push("elsewhere.png".into());
        found.logits.extend([1.0, 2.0]);
        found.write(&path, Some(&[0; 17])).unwrap();
        assert!(distill("--teacher-logits answers", "turned") == network, "{size}");
        let start = &dir.events(&format!("{out}/turned"))[0];
        let file = start.pointer("/roles/teacher/file").unwrap().as_str().unwrap();
        assert!(file.ends_with("/answers"), "{start}");
        // The recipe that the run recorded trains the same run.
        let recipe =
            format!("distill --recipe {out}/turned/recipe.toml --out again{out} --data pictures");
        dir.stdout(&recipe);
        assert!(dir.read(&format!("again{out}/turned.safetensors")) == network);
    }
}

/// Pictures without a folder to test on: the training pictures can be looked at, and those that a run held out.
#[test]
fn pictures_without_test_pictures_are_evaluated_where_that_can_be_done() {
    let dir = WorkDir::new();
    pictures(&dir.path("pictures"));
    fs::remove_dir_all(dir.path("pictures/test")).unwrap();
    dir.stdout(&format!("train --model student --name one --out out --held-out 4 --size 16 {RUN}"));
    let eval = "eval --weights out/one.safetensors --size 16 --data pictures --json";
    let number = |line: &str, of: &str| {
        let printed: serde_json::Value = serde_json::from_str(&dir.stdout(line)).unwrap();
        (printed["dataset"][of].as_u64(), printed["accuracy"].clone())
    };
    let (count, _) = number(&format!("{eval} --dataset folder --on train"), "train");
    assert_eq!(count, Some(16));
    let (count, accuracy) = number(&format!("{eval} --recipe out/one/recipe.toml"), "test");
    assert_eq!(count, Some(4));
    assert_eq!(accuracy, dir.json("out/one/evaluation.json")["accuracy"]);
    let message = dir.fails(&format!("{eval} --dataset folder"), 1);
    assert!(message.contains("(--recipe OUT/RUN/recipe.toml)"), "{message}");
    // What a recipe says of shards does not count for a folder.
    let text = String::from_utf8(dir.read("out/one/recipe.toml")).unwrap();
    let shards = "dataset = \"shards\"\ntrain_shards = \"a.tar\"\nsplit = 0.5\n";
    let text = text.replace("dataset = \"folder\"\n", shards);
    assert!(text.contains(shards));
    fs::write(dir.path("shards.toml"), text).unwrap();
    dir.stdout(
        "train --recipe shards.toml --run one --dataset folder --data pictures --out of-a-folder",
    );
}

#[test]
fn a_file_that_can_not_teach_these_pictures_is_refused() {
    let dir = WorkDir::new();
    pictures(&dir.path("pictures"));
    weights(&dir.path("t.safetensors"), Architecture::TUTORIAL_STUDENT, 2, 5, false);
    let data = "--dataset folder --data pictures";
    dir.stdout(&format!(
        "eval --model student --weights t.safetensors --on train --logits a {data}"
    ));
    dir.stdout(&format!("eval --model student --weights t.safetensors --logits test {data}"));
    let whole = PictureLogits::read(&dir.path("a")).unwrap();
    let changed = |name: &str, change: fn(&mut PictureLogits)| {
        let mut logits = whole.clone();
        change(&mut logits);
        logits.write(&dir.path(name), None).unwrap();
    };
    changed("fewer", |logits| {
        logits.names.drain(..2);
        logits.logits.drain(..4);
    });
    changed("others", |logits| logits.classes = vec!["boot".into(), "shoe".into()]);
    // A recipe that has the file's hash takes no other file.
    let run = format!("--name one --out out {RUN}");
    dir.stdout(&format!("distill --method kd --teacher-logits a {run}"));
    changed("other", |logits| logits.logits.reverse());
    let line = "distill --recipe out/one/recipe.toml --data pictures --out again --teacher-logits";
    let message = dir.fails(&format!("{line} other"), 1);
    assert!(message.contains("these are other logits"), "{message}");
    fs::write(dir.path("page"), "<html>").unwrap();
    let distill = format!("distill --method kd --out out {RUN}");
    for (line, expected) in [
        ("--teacher-logits test", "the file lacks 16 of the 16 training images: train/Hut ä/"),
        ("--teacher-logits fewer", "the file lacks 2 of the 16 training images: "),
        ("--teacher-logits others", "boot"),
        (
            "--teacher-logits page",
            "can't be read as logits by picture: it is no whole safetensors file",
        ),
        ("--teacher-logits none", "none"),
        ("--teacher-logits t.safetensors", "it has no tensor `logits`"),
    ] {
        let message = dir.fails(&format!("{distill} {line}"), 1);
        assert!(message.contains(expected), "{line}: {message}");
    }
    let recipe = |data: &str, run: &str| {
        let text = format!(
            "format = 1\nname = \"r\"\n[data]\ndataset = \"folder\"\n{data}\n[[run]]\nname = \"a\"\nmodel = \"student\"\nteacher_logits = \"a\"\n{run}\n"
        );
        fs::write(dir.path("r.toml"), text).unwrap();
    };
    for (of_data, of_run, expected) in [
        (
            "",
            "teacher = \"t\"\n[[run.method]]\nname = \"kd\"\nweight = 1.0",
            "none beside teacher,",
        ),
        ("", "", "none: no method of this run needs a teacher"),
        ("", "[[run.method]]\nname = \"fitnet\"\nweight = 1.0", "the file has logits alone"),
        (
            "[data.augment]\nmixup = 1.0",
            "[[run.method]]\nname = \"kd\"\nweight = 1.0",
            "the file has no logits of mixed images",
        ),
    ] {
        recipe(of_data, of_run);
        let message = dir.fails("distill --recipe r.toml --run a --data pictures --out out", 1);
        assert!(message.contains(expected), "{of_run}: {message}");
    }
}
