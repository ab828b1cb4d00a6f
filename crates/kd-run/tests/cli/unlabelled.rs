//! Pictures without labels: a student learns from a teacher's answers about them alone.

use std::fs;

use kd_models::Architecture;
use kd_record::PictureLogits;

use crate::pictures::save;
use crate::workdir::{WorkDir, weights};

/// The same pictures with folders of classes and without, in one order.
fn pictures(dir: &WorkDir) {
    let data = kd_data::synthetic(&kd_data::SyntheticConfig { train: 16, test: 6, seed: 0 });
    for (split, name) in [(&data.train, "train"), (&data.test, "test")] {
        for i in 0..split.len() {
            let class = ["Hut", "shoe"][2 * i / split.len()];
            for folder in ["with", "tested"] {
                let labelled = folder == "with" || name == "test";
                let class = if labelled { format!("{class}/") } else { String::new() };
                save(split, i, &dir.path(&format!("{folder}/{name}/{class}{i:02}.png")));
            }
            if name == "train" {
                save(split, i, &dir.path(&format!("plain/{i:02}.png")));
            }
        }
    }
    weights(&dir.path("t.safetensors"), Architecture::TUTORIAL_STUDENT, 2, 5, false);
}

const RUN: &str = "--epochs 2 --batch-size 4 --lr 0.001 --dataset folder";

/// Without labels in the loss, it is nothing to the weights whether the pictures have any.
#[test]
fn a_student_learns_the_same_from_a_teacher_without_the_labels() {
    let dir = WorkDir::new();
    pictures(&dir);
    for size in ["", " --size 32"] {
        let distill = |data: &str, out: &str| {
            let teacher = "--teacher t.safetensors --teacher-model student --ignore-class-names";
            let line = format!("distill --method kd --alpha 0 {teacher} --data {data} --out {out}");
            (dir.stdout(&format!("{line} {RUN}{size}")), dir.read(&format!("{out}/kd.safetensors")))
        };
        let out = |name: &str| format!("{name}{}", size.len());
        let (_, expected) = distill("with", &out("a"));
        let (said, found) = distill("tested", &out("b"));
        assert!(found == expected && said.contains("test accuracy "), "{said}");
        assert!(
            said.contains("have no labels: the network learns from its teacher alone"),
            "{said}"
        );
        assert!(dir.path(&format!("{}/report.html", out("b"))).exists());
        let epoch = &dir.events(&format!("{}/kd", out("b")))[2];
        assert!(
            epoch.get("train_accuracy").is_none() && epoch["test_accuracy"].is_number(),
            "{epoch}"
        );
        let (said, found) = distill("plain", &out("c"));
        // The file names its classes: here by their numbers, since the teacher's file names none.
        assert!(found != expected && same_tensors(&found, &expected), "{said}");
        assert!(
            said.contains("the 2 classes 0, 1") && said.contains("kd: not tested, since"),
            "{said}"
        );
        assert!(!dir.path(&format!("{}/report.html", out("c"))).exists());
        let (again, _) = distill("plain", &out("c"));
        assert!(again.contains("kd: finished before, not tested"), "{again}");
        let message = dir.fails(&format!("report {}", out("c")), 1);
        assert!(message.contains("this run was not tested"), "{message}");
    }
}

fn same_tensors(a: &[u8], b: &[u8]) -> bool {
    let [a, b] = [a, b].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    let mut names = a.names();
    names.sort_unstable();
    names.into_iter().all(|name| a.tensor(name).unwrap().data() == b.tensor(name).unwrap().data())
}

/// A teacher on another machine writes its logits of pictures without labels, and its classes with them.
#[test]
fn logits_of_pictures_without_labels_are_written_and_taught_by() {
    let dir = WorkDir::new();
    pictures(&dir);
    let eval =
        "eval --model student --weights t.safetensors --dataset folder --data plain --on train";
    dir.stdout(&format!("{eval} --logits answers"));
    let mut answers = PictureLogits::read(&dir.path("answers")).unwrap();
    assert_eq!((answers.names.len(), &answers.names[3][..]), (16, "03.png"));
    assert_eq!(answers.classes, ["0", "1"]);
    answers.classes = ["hat", "shoe"].map(String::from).to_vec();
    answers.write(&dir.path("answers"), None).unwrap();
    let message = dir.fails(eval, 2);
    assert!(
        message.contains("the pictures have no labels, so nothing can be measured"),
        "{message}"
    );

    let distill = "distill --method kd --alpha 0 --data plain";
    let by_file = dir.stdout(&format!("{distill} --teacher-logits answers --out a {RUN}"));
    assert!(by_file.contains("the 2 classes hat, shoe"), "{by_file}");
    dir.stdout(&format!("{distill} --teacher t.safetensors --teacher-model student --out b {RUN}"));
    let [a, b] = ["a", "b"].map(|out| dir.read(&format!("{out}/kd.safetensors")));
    assert!(same_tensors(&a, &b));
    let shown = dir.stdout("predict --weights a/kd.safetensors plain");
    assert!(
        shown.lines().count() == 16 && (shown.contains("hat") || shown.contains("shoe")),
        "{shown}"
    );
}

/// Whatever goes by labels is refused with one sentence, before anything is written.
#[test]
fn labels_asked_of_pictures_without_any_are_an_error() {
    let dir = WorkDir::new();
    pictures(&dir);
    let teacher = "--teacher t.safetensors --teacher-model student --data plain --out out";
    for (line, expected) in [
        ("train --model student --data plain --out out", "labels have the weight 1 in the loss"),
        (&format!("distill --method kd {teacher}"), "labels have the weight 0.75 in the loss"),
        (&format!("distill --method dkd --alpha 0 {teacher}"), "method dkd goes by them"),
        (&format!("distill --method crd --alpha 0 {teacher}"), "method crd goes by them"),
        (
            &format!("distill --method kd --alpha 0 --sampler balanced {teacher}"),
            "sampler = \"balanced\" goes by them",
        ),
    ] {
        let message = dir.fails(&format!("{line} {RUN}"), 2);
        assert!(message.contains("have no labels, and") && message.contains(expected), "{message}");
        assert!(message.contains("give pictures in folders of their classes"), "{message}");
    }
    let line = format!("distill --method kd --alpha 0 --held-out 3 {teacher} {RUN}");
    let message = dir.fails(&line, 1);
    assert!(message.contains("data.held_out goes by the classes of the training pictures"));
    let message =
        dir.fails(&format!("distill --method kd --alpha 0 --data plain --out out {RUN}"), 1);
    assert!(message.contains("the teacher can't be used: out/teacher.safetensors"), "{message}");
    assert!(!dir.path("out").exists());
    // Tested on, but not trained on.
    fs::remove_dir_all(dir.path("with/train")).unwrap();
    dir.stdout("eval --model student --weights t.safetensors --dataset folder --data with");
    let message = dir.fails(&format!("train --model student --data with --out out {RUN}"), 1);
    assert!(message.contains("there are no pictures to train on; add a folder train"), "{message}");
}

/// Kept views are made ahead of training, and a planned run says what it takes, of pictures without labels, too.
#[test]
fn views_of_pictures_without_labels_are_kept_and_runs_of_them_planned() {
    let dir = WorkDir::new();
    pictures(&dir);
    let recipe = "format = 1\nname = \"r\"\n[data]\ndataset = \"folder\"\nsize = 32\n[data.augment]\nflip = true\nviews = 2\n[training]\nepochs = 3\nbatch_size = 4\n[[run]]\nname = \"small\"\nmodel = \"student\"\nteacher = \"t.safetensors\"\nteacher_model = \"student\"\nlabels = 0.0\nkeep = { type = \"f32\" }\n[[run.method]]\nname = \"kd\"\nweight = 1.0\n";
    fs::write(dir.path("r.toml"), recipe).unwrap();
    let run = "--recipe r.toml --run small --data plain --out out";
    assert!(dir.stdout(&format!("keep {run}")).contains("32 rows are there for this run"));
    dir.stdout(&format!("plan {run}"));
    let said = dir.command(&format!("distill {run}")).output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("48 of 48 rows were read from the file"), "{said}");
}
