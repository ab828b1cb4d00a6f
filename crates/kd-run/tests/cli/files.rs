//! Training on pictures of any size, which are read from their files as they are wanted.

use std::fs;
use std::path::Path;

use image::RgbImage;

use crate::workdir::WorkDir;

/// A picture whose class shows: stripes of the class's width.
fn save(path: &Path, class: u32, number: u32) {
    let (width, height) = (50 + 7 * (number % 5), 44 + 5 * (number % 3));
    let colour = |x: u32, y: u32| {
        let light = ((x + number) / (2 + 4 * class)).is_multiple_of(2);
        image::Rgb([if light { 220 } else { 40 }, (y * 4) as u8, (number * 31) as u8])
    };
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_fn(width, height, colour).save(path).unwrap();
}

fn pictures(dir: &WorkDir) {
    for (split, count) in [("train", 24), ("val", 8)] {
        for class in 0..3 {
            for number in 0..count {
                save(
                    &dir.path(&format!("mine/{split}/class {class}/{number:02}.png")),
                    class,
                    number,
                );
            }
        }
    }
}

const RECIPE: &str = r#"
format = 1
name = "mine"
[data]
dataset = "folder"
size = 40
resize = 44
interpolation = "bicubic"
[data.augment]
resized_crop = [0.3, 1.0]
crop_ratio = [0.8, 1.25]
flip = true
color_jitter = { brightness = 0.2, hue = 0.05 }
rand_augment = { magnitude = 7 }
random_erasing = { p = 0.25 }
[training]
epochs = 2
batch_size = 16
[[run]]
name = "large"
model = "student"
[[run]]
name = "small"
model = "student"
teacher = "large"
[[run.method]]
name = "kd"
weight = 0.5
"#;

#[test]
fn a_recipe_with_a_size_trains_distils_and_goes_on_from_files() {
    let dir = WorkDir::new();
    pictures(&dir);
    fs::write(dir.path("r.toml"), RECIPE).unwrap();
    let line = "train --recipe r.toml --run large --data mine";
    let output = dir.command(&format!("{line} --out whole")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .contains("there is no folder test; the pictures in val are tested on"),
        "{said}"
    );

    // Other threads, no memory for pictures, and a run that is broken off and goes on: the same weights.
    let other = format!("{line} --out parts --threads 1 --data-memory 1B --checkpoint-every 1");
    assert!(dir.command(&format!("{other} --epochs 1")).output().unwrap().status.success());
    let again = dir.command(&other).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(dir.read("whole/large.safetensors"), dir.read("parts/large.safetensors"));
    assert_eq!(dir.events("parts/large").last(), dir.events("whole/large").last());

    let distil = "distill --recipe r.toml --run small --data mine --out whole";
    let output = dir.command(distil).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The size is known from the weights.
    let line = "eval --weights whole/small.safetensors --dataset folder --data mine --json";
    let found: serde_json::Value = serde_json::from_str(&dir.stdout(line)).unwrap();
    assert_eq!(found["dataset"]["test"], 24);
    as_in_training(&dir);
    dir.stdout("report whole");
    let page = String::from_utf8(dir.read("whole/report.html")).unwrap();
    assert!(page.contains("class 2"));
}

/// Without a flag, `kd eval` and `kd predict` scale the pictures as the recipe of the weights' training says.
fn as_in_training(dir: &WorkDir) {
    let logits = |name: &str, more: &str| {
        let line = format!("eval --weights whole/small.safetensors --data mine --logits {name}");
        dir.stdout(&format!("{line} {more}"));
        let file = dir.read(name);
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let bytes = file.tensor("logits").unwrap().data().to_vec();
        let (values, _) = bytes.as_chunks::<4>();
        values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()
    };
    let stated = logits("a", "--recipe r.toml");
    assert_eq!(stated, logits("b", "--dataset folder"));
    let line = "predict --json --weights whole/small.safetensors mine/val";
    let printed: serde_json::Value = serde_json::from_str(&dir.stdout(line)).unwrap();
    for (at, row) in stated.chunks_exact(3).enumerate() {
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        for (class, logit) in row.iter().enumerate() {
            let found = printed["images"][at]["probabilities"][class].as_f64().unwrap();
            let expected = f64::from(*logit).exp() / sum;
            assert!((found - expected).abs() < 1e-6, "{at} {class}: {found} {expected}");
        }
    }
    // Another way than the training's is said.
    let recipe = RECIPE.replace("resize = 44", "resize = 40");
    fs::write(dir.path("other.toml"), recipe).unwrap();
    let line =
        "eval --weights whole/small.safetensors --dataset folder --data mine --recipe other.toml";
    let output = dir.command(line).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = "scaled to 44 pixels (bicubic, the shorter side), 40x40 of them cut out; the data's are scaled to 40";
    assert!(output.status.success() && said.contains(expected), "{said}");
}

#[test]
fn one_folder_is_split_and_a_picture_that_breaks_says_where_and_what_helps() {
    let dir = WorkDir::new();
    pictures(&dir);
    fs::rename(dir.path("mine/train"), dir.path("one")).unwrap();
    let recipe = RECIPE.replace("size = 40", "split = 0.25\nsize = 40");
    fs::write(dir.path("r.toml"), recipe).unwrap();
    let line = "train --recipe r.toml --run large --data one --epochs 1 --out out";
    let output = dir.command(line).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cut = dir.path("one/class 1/03.png");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let message = dir.fails(&format!("{line}2"), 1);
    for expected in ["03.png", "epoch 1, step", "--skip-broken (skip_broken = true"] {
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let output = dir.command(&format!("{line}3 --skip-broken")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("1 picture that can't be read is left out"),
        "{said}"
    );
}

#[test]
fn prepared_shards_train_to_the_weights_of_the_pictures_themselves() {
    let dir = WorkDir::new();
    pictures(&dir);
    let line = "prepare --data mine --resize 40 --shard-pictures 30 --out prepared";
    let said = dir.stdout(line);
    assert!(said.contains("72 pictures to train on and 24 to test on in 4 shards, 0 of"), "{said}");
    assert!(dir.stdout(line).contains("4 of which were there"));
    let train = "train --model student --size 40 --epochs 1 --batch-size 16";
    let shards = "--data prepared --dataset shards --test-shards test-*.tar";
    for data in [
        "--data mine --dataset folder --out a",
        &format!("{shards} --train-shards train-{{000000..000002}}.tar --out b"),
    ] {
        let output = dir.command(&format!("{train} {data}")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let files = ["a", "b"].map(|out| dir.read(&format!("{out}/student.safetensors")));
    let [a, b] = [0, 1].map(|at| safetensors::SafeTensors::deserialize(&files[at]).unwrap());
    assert!(a.names().len() > 5);
    for (name, tensor) in a.tensors() {
        assert_eq!(tensor.data(), b.tensor(&name).unwrap().data(), "{name}");
    }
    let line =
        format!("eval --weights b/student.safetensors {shards} --train-shards train-*.tar --json");
    let found: serde_json::Value = serde_json::from_str(&dir.stdout(&line)).unwrap();
    assert_eq!(
        (&found["dataset"]["test"], &found["dataset"]["name"]),
        (&24.into(), &"shards".into())
    );
    let message = dir.fails(&format!("{train} {shards} --out c"), 1);
    assert!(message.contains("train_shards: is not said; expected the shards' names"), "{message}");
}

#[test]
fn other_data_sets_are_scaled_to_the_size_too() {
    let dir = WorkDir::new();
    let errors = dir.train("train --model student --size 36 --out out");
    assert!(!errors.contains("error"), "{errors}");
    let line =
        "eval --weights out/student.safetensors --dataset synthetic --size 36 --test-limit 40";
    assert!(dir.stdout(line).contains("test accuracy"));
}

#[test]
fn lines_of_a_recipe_that_do_not_fit_are_named() {
    let dir = WorkDir::new();
    let cases = [
        ("size = 40", "size = 6000", "data.size: is 6000; expected 1 to 4096 pixels"),
        ("resize = 44", "resize = 30", "data.resize: is 30; expected none without size"),
        (
            "[0.3, 1.0]",
            "[0.3, 1.5]",
            "data.augment.resized_crop: is [0.3, 1.5]; expected two shares",
        ),
        (
            "magnitude = 7",
            "magnitude = 31",
            "data.augment.rand_augment: is num_ops = 2, magnitude = 31",
        ),
        ("hue = 0.05", "hue = 0.6", "data.augment.color_jitter: is [0.2, 0.0, 0.0, 0.6]"),
        ("p = 0.25", "p = 2", "data.augment.random_erasing: is p = 2"),
        (
            "flip = true",
            "trivial_augment_wide = true",
            "data.augment.trivial_augment_wide: is true; expected false beside rand_augment",
        ),
        ("size = 40\nresize = 44", "split = 1.2", "data.split: is 1.2; expected a share above 0"),
        ("\"bicubic\"", "\"cubic\"", "unknown variant `cubic`"),
    ];
    for (from, to, expected) in cases {
        assert!(RECIPE.contains(from));
        fs::write(dir.path("r.toml"), RECIPE.replacen(from, to, 1)).unwrap();
        let message = dir.fails("train --recipe r.toml --run large --data mine", 1);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}
