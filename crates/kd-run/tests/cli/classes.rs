//! Which class of a weights file is which class of the data, and the normalisation that a file brings with it.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use kd_data::Normalization;
use kd_models::weights::{Metadata, load, peek, save};
use kd_models::{Architecture, ModelConfig};

use crate::workdir::WorkDir;

const CIFAR: Normalization =
    Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.2435, 0.2616] };
/// Data and length of the runs.
const DATA: &str = "--dataset folder --data pictures";
const SHORT: &str = "--dataset folder --data pictures --epochs 1 --batch-size 4";

/// Eight pictures to train on and four to test on of each class.
fn pictures(dir: &WorkDir, folder: &str, classes: [&str; 2]) {
    let synthetic = kd_data::SyntheticConfig { train: 16, test: 8, seed: 0 };
    let data = kd_data::synthetic(&synthetic);
    for (name, split) in [("train", &data.train), ("test", &data.test)] {
        for i in 0..split.len() {
            let pixels = split.image(i);
            let pixel =
                |x, y| image::Rgb([0, 1, 2].map(|c| pixels[c * 1024 + (y * 32 + x) as usize]));
            let path = dir.path(&format!("{folder}/{name}/{}/{i}.png", classes[i % 2]));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            RgbImage::from_fn(32, 32, pixel).save(path).unwrap();
        }
    }
}

/// Weights of a small network with two classes, whose head has its rows in the order `rows`; `names` are theirs.
fn network(path: &Path, rows: [u32; 2], names: Option<[&str; 2]>, normalization: Normalization) {
    let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, 2);
    let parameters = kd_models::init(&config, 3, &Device::Cpu).unwrap();
    let rows = Tensor::new(&rows, &Device::Cpu).unwrap();
    let tensor = |name: &str, tensor: Tensor| match name.starts_with("classifier.3") {
        true => tensor.index_select(&rows, 0).unwrap(),
        false => tensor,
    };
    let tensors: BTreeMap<String, Tensor> = parameters
        .iter()
        .map(|(name, var)| (name.clone(), tensor(name, var.as_detached_tensor())))
        .collect();
    let mut metadata = Metadata::new(&config, normalization.mean, normalization.std, "folder");
    metadata.class_names = names.map(|names| names.map(String::from).to_vec());
    save(path, &tensors, &metadata).unwrap();
}

/// A folder with pictures of cat and boat, a teacher of cat and ship, and the same teacher as one that knows the pictures' classes.
fn cat_and_boat() -> WorkDir {
    let dir = WorkDir::new();
    pictures(&dir, "pictures", ["cat", "boat"]);
    let own = Normalization::default();
    network(&dir.path("ship.safetensors"), [0, 1], Some(["cat", "ship"]), own);
    network(&dir.path("turned.safetensors"), [0, 1], Some(["cat", "boat"]), own);
    network(&dir.path("right.safetensors"), [1, 0], Some(["boat", "cat"]), own);
    std::fs::write(dir.path("map.toml"), "boat = \"ship\"\n").unwrap();
    dir
}

fn logits(dir: &WorkDir, line: &str) -> Vec<u8> {
    dir.stdout(&format!("eval {line} {DATA} --logits logits.safetensors"));
    let file = dir.read("logits.safetensors");
    safetensors::SafeTensors::deserialize(&file).unwrap().tensor("logits").unwrap().data().to_vec()
}

#[test]
fn other_class_names_are_an_error_that_shows_both_lists_and_what_to_do() {
    let dir = cat_and_boat();
    for line in [
        format!("distill --method kd --alpha 0 --teacher ship.safetensors --out out {SHORT}"),
        format!("train --model student --init ship.safetensors --out out {SHORT}"),
        format!("eval --weights ship.safetensors {DATA}"),
    ] {
        let message = dir.fails(&line, 1);
        for part in [
            "ship.safetensors: ",
            "cat, ship",
            "boat, cat",
            "--class-map FILE",
            "--ignore-class-names",
        ] {
            assert!(message.contains(part), "{line}: {part} is not in {message}");
        }
    }
    assert!(!dir.path("out/kd").exists(), "nothing was begun");
    // There is nothing to map in a run on labels.
    let line = format!("train --model student --class-map map.toml --out out {SHORT}");
    assert!(dir.fails(&line, 2).contains("uses no weights file"));
    std::fs::write(dir.path("wrong.toml"), "cat = 0\nboat = [1]\n").unwrap();
    let line = format!("eval --weights ship.safetensors --class-map wrong.toml {DATA}");
    let message = dir.fails(&line, 1);
    assert!(
        message.contains("wrong.toml: this is no class map") && message.contains("line 2"),
        "{message}"
    );
}

#[test]
fn classes_are_mapped_by_name_and_by_a_class_map() {
    let dir = cat_and_boat();
    let right = logits(&dir, "--weights right.safetensors");
    assert!(right == logits(&dir, "--weights turned.safetensors"));
    assert!(right == logits(&dir, "--weights ship.safetensors --class-map map.toml"));
    assert!(right != logits(&dir, "--weights ship.safetensors --ignore-class-names"));
    let over =
        format!("eval --weights ship.safetensors --class-map map.toml --logits map.toml {DATA}");
    assert!(dir.fails(&over, 1).contains("--class-map"), "the class map is not written over");

    let run = |name: &str, flags: &str| {
        let line =
            format!("distill --method kd --alpha 0.1 --name {name} {flags} --out out {SHORT}");
        (dir.stdout(&line), dir.read(&format!("out/{name}.safetensors")))
    };
    let (said, right) = run("right", "--teacher right.safetensors");
    assert!(!said.contains("classes"), "{said}");
    let (said, turned) = run("turned", "--teacher turned.safetensors");
    assert!(said.contains("in another order (cat, boat)"), "{said}");
    let (said, mapped) = run("mapped", "--teacher ship.safetensors --class-map map.toml");
    assert!(said.contains("boat = ship, cat = cat"), "{said}");
    assert!(right == turned && right == mapped, "the same logits teach the same");
    // The same file, the other way round, in the same folder: its cached logits are others.
    let (said, ignored) = run("ignored", "--teacher ship.safetensors --ignore-class-names");
    assert!(said.contains("class names are ignored") && ignored != right, "{said}");
    assert_eq!(dir.cached("out").len(), 4);

    // The runs' own recipes say it.
    for (name, weights) in [("mapped", right), ("ignored", ignored)] {
        dir.stdout(&format!("distill --recipe out/{name}/recipe.toml --data pictures --out again"));
        assert!(weights == dir.read(&format!("again/{name}.safetensors")), "{name}");
    }
    let names = peek(&dir.path("again/mapped.safetensors")).unwrap().metadata.unwrap().class_names;
    assert_eq!(names, Some(vec!["boat".into(), "cat".into()]));
}

#[test]
fn initial_weights_are_mapped_like_a_teachers() {
    let dir = cat_and_boat();
    let run = |name: &str, flags: &str| {
        dir.stdout(&format!(
            "train --model student --name {name} --init {flags} --out out {SHORT}"
        ));
        dir.read(&format!("out/{name}.safetensors"))
    };
    let right = run("right", "right.safetensors");
    assert!(right == run("turned", "turned.safetensors"));
    assert!(right == run("mapped", "ship.safetensors --class-map map.toml"));
    assert!(right != run("ignored", "ship.safetensors --ignore-class-names"));
}

#[test]
fn a_teachers_file_and_initial_weights_have_a_class_map_each() {
    let dir = cat_and_boat();
    // The file to start from calls the boat a ferry.
    network(
        &dir.path("ferry.safetensors"),
        [0, 1],
        Some(["cat", "ferry"]),
        Normalization::default(),
    );
    std::fs::write(dir.path("ferry.toml"), "boat = 1\n").unwrap();
    let line = |name: &str, flags: &str| {
        format!("distill --method kd --model student --name {name} {flags} --out out {SHORT}")
    };
    let run = |name: &str, flags: &str| {
        dir.stdout(&line(name, flags));
        dir.read(&format!("out/{name}.safetensors"))
    };
    let right = run("right", "--teacher right.safetensors --init right.safetensors");
    let maps = "--teacher ship.safetensors --class-map map.toml --init ferry.safetensors";
    let said = dir.fails(&line("mapped", maps), 1);
    assert!(said.contains("with --init-class-map FILE (init_class_map in a recipe)"), "{said}");
    assert!(right == run("mapped", &format!("{maps} --init-class-map ferry.toml")));
    dir.stdout("distill --recipe out/mapped/recipe.toml --data pictures --out again");
    assert!(right == dir.read("again/mapped.safetensors"), "the run's own recipe says it");
    for (flags, expected) in [
        ("--teacher right.safetensors --init-class-map ferry.toml", "starts from no weights file"),
        ("--init-class-map ferry.toml --ignore-class-names", "cannot be used with"),
    ] {
        let said = dir.fails(&line("wrong", flags), 2);
        assert!(said.contains(expected), "{said}");
    }
    let both = "--init ferry.safetensors --class-map map.toml --init-class-map ferry.toml";
    let said = dir.fails(&format!("train --model student {both} --out out {SHORT}"), 2);
    assert!(said.contains("has no teacher, so both class maps would be of the file"), "{said}");
}

#[test]
fn a_teacher_beside_a_network_answers_in_the_networks_order() {
    let dir = cat_and_boat();
    let line = "predict --json --weights right.safetensors --teacher";
    let same = dir.stdout(&format!("{line} right.safetensors pictures/test"));
    let turned = dir.stdout(&format!("{line} turned.safetensors pictures/test"));
    let images =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["images"].clone();
    assert_eq!(images(&same), images(&turned));
    // Where a file doesn't name its classes, it is said how they are taken.
    network(&dir.path("bare.safetensors"), [1, 0], None, Normalization::default());
    for (model, teacher, expected) in [
        ("right", "bare", "bare.safetensors does not name its classes; both files' classes are"),
        ("bare", "right", "bare.safetensors does not name its classes; both files' classes are"),
        ("bare", "bare", "bare.safetensors and bare.safetensors do not name their classes; both"),
    ] {
        let line = format!(
            "predict --json --weights {model}.safetensors --teacher {teacher}.safetensors pictures/test"
        );
        let output = dir.command(&line).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected), "{said}");
        assert_eq!(
            images(&same)[0]["teacher"]["label"],
            images(&String::from_utf8(output.stdout).unwrap())[0]["teacher"]["label"]
        );
    }
    let message = dir.fails(&format!("{line} ship.safetensors pictures/test"), 2);
    assert!(message.contains("boat, cat, and cat, ship"), "{message}");
}

#[test]
fn a_file_with_another_normalisation_sees_its_own() {
    let dir = WorkDir::new();
    pictures(&dir, "pictures", ["cat", "boat"]);
    let names = Some(["boat", "cat"]);
    network(&dir.path("own.safetensors"), [0, 1], names, CIFAR);
    network(&dir.path("other.safetensors"), [0, 1], names, Normalization::default());
    let tutorial = kd_run::recipe::TUTORIAL;
    let cifar = tutorial
        .replace("mean = [0.485, 0.456, 0.406]", "mean = [0.4914, 0.4822, 0.4465]")
        .replace("std = [0.229, 0.224, 0.225]", "std = [0.247, 0.2435, 0.2616]");
    assert_ne!(cifar, tutorial);
    std::fs::write(dir.path("cifar.toml"), cifar).unwrap();
    let own = logits(&dir, "--weights own.safetensors --recipe cifar.toml");
    assert!(own == logits(&dir, "--weights own.safetensors"));
    assert!(own != logits(&dir, "--weights other.safetensors"));

    let line = |flags: &str| format!("distill --method kd {flags} {SHORT} --out out");
    let said = dir.stdout(&line("--teacher own.safetensors --name own"));
    assert!(said.contains("normalised with mean [0.4914, 0.4822, 0.4465]"), "{said}");
    let cached = |name: &str| {
        let teacher = &dir.events(&format!("out/{name}"))[1];
        teacher["quality"].clone()
    };
    // The teacher's file as a bare one: what the recipe states, or else the data's.
    let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, 2);
    let tensors = load(&dir.path("own.safetensors"), &config).unwrap().tensors;
    candle_core::safetensors::save(&tensors.into_iter().collect(), dir.path("bare.safetensors"))
        .unwrap();
    let stated = tutorial.replace(
        "name = \"kd\"\nmodel",
        "name = \"kd\"\nteacher_mean = [0.4914, 0.4822, 0.4465]\nteacher_std = [0.247, 0.2435, 0.2616]\nmodel",
    );
    assert_ne!(stated, tutorial);
    std::fs::write(dir.path("stated.toml"), &stated).unwrap();
    let bare = "--teacher bare.safetensors --teacher-model student";
    dir.stdout(&line(&format!("{bare} --recipe stated.toml --name stated")));
    assert!(dir.read("out/own.safetensors") == dir.read("out/stated.safetensors"));
    assert_eq!(cached("own"), cached("stated"));
    let flags = "--teacher-mean 0.4914,0.4822,0.4465 --teacher-std 0.247,0.2435,0.2616";
    dir.stdout(&line(&format!("{bare} {flags} --name flags")));
    assert!(dir.read("out/own.safetensors") == dir.read("out/flags.safetensors"));
    assert!(dir.fails(&line(&format!("{bare} --teacher-mean 1,1,1")), 2).contains("--teacher-std"));
    let said = dir.stdout(&line(&format!("{bare} --name assumed")));
    assert!(
        said.contains("does not say how") && said.contains("does not name its classes"),
        "{said}"
    );
    assert!(dir.read("out/own.safetensors") != dir.read("out/assumed.safetensors"));
    let message = dir.fails(&line("--teacher other.safetensors --recipe stated.toml"), 1);
    assert!(message.contains("remove them from the recipe"), "{message}");
    std::fs::write(dir.path("half.toml"), stated.replace("teacher_std", "# teacher_std")).unwrap();
    let message = dir.fails(&line(&format!("{bare} --recipe half.toml")), 1);
    assert!(message.contains("both teacher_mean and teacher_std, or neither"), "{message}");

    // Training goes on with the data's normalisation, so there it stays an error.
    let line = format!("train --model student --init own.safetensors --out out {SHORT}");
    let message = dir.fails(&line, 1);
    assert!(message.contains("set mean and std in the recipe's [data] table"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_class_map_that_never_ends_is_not_read_for_ever() {
    let dir = WorkDir::new();
    let line = "eval --weights none --dataset synthetic --test-limit 10 --class-map /dev/zero";
    let message = dir.fails(line, 1);
    let expected =
        "the class map can't be read: /dev/zero: can't be read: it has more than 1048576 bytes";
    assert!(message.contains(expected), "{message}");
}
