//! The published pairs on files in CIFAR-100's format with drawn pixels: a training step of every run of every recipe, and teachers
//! from checkpoints as RepDistiller and mdistiller write them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use kd_record::{Comparison, OutFolder};

use crate::pairs::{self, Pair, Table};
use crate::{process, workspace};

/// Of CIFAR-100's training and test file: name and number of images.
const FILES: [(&str, usize); 2] = [("train.bin", 50_000), ("test.bin", 10_000)];

/// One epoch of one step of eight images.
const ONE_STEP: [&str; 8] =
    ["--epochs", "1", "--batch-size", "8", "--train-limit", "8", "--test-limit", "8"];

/// Trains a step of all runs of these pairs, or of all where none is named, with the program `kd`, or that which is built for it, and where there is a Python with PyTorch also takes teachers
/// from checkpoints that it writes.
pub(super) fn run(kd: Option<&Path>, only: &[String], python: Option<&Path>) -> anyhow::Result<()> {
    let table = pairs::read()?;
    let is_asked = |pair: &&Pair| only.is_empty() || only.contains(&pair.name());
    let chosen: Vec<&Pair> = table.pairs.iter().filter(is_asked).collect();
    ensure!(
        only.is_empty() || chosen.len() == only.len(),
        "--pairs {}: expected names of recipes in recipes/cifar100, each once",
        only.join(",")
    );
    let kd = match kd {
        Some(kd) => kd.to_owned(),
        None => workspace::build("kd-run", "kd", &[])?,
    };
    let out = workspace::root().join("target/soak/pairs");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let data = out.join("cifar-100-binary");
    write_images(&data)?;
    for pair in chosen {
        step_of_every_run(&kd, &table, pair, &data, &out)?;
    }
    match python {
        Some(python) => teachers_of_others(&kd, python, &data, &out),
        None => {
            println!(
                "Checkpoints of RepDistiller's and mdistiller's kind were left out; they need --python with PyTorch"
            );
            Ok(())
        }
    }
}

/// Files in the format of CIFAR-100's binary version: a coarse and a fine label and 3,072 pixels an image, drawn by a xorshift generator.
fn write_images(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (name, images) in FILES {
        let path = folder.join(name);
        let mut write = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(&path)?);
            for image in 0..images {
                let class = (image % 100) as u8;
                file.write_all(&[class / 5, class])?;
                for _ in 0..3072 / 8 {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    file.write_all(&state.to_le_bytes())?;
                }
            }
            file.flush()
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// `kd compare` of a pair's recipe: each run as a process of its own, and the table of all.
fn step_of_every_run(
    kd: &Path,
    table: &Table,
    pair: &Pair,
    data: &Path,
    out: &Path,
) -> anyhow::Result<()> {
    let name = pair.name();
    let folder = OutFolder::new(out.join(&name));
    let mut command = Command::new(kd);
    command.arg("compare").arg(pairs::folder().join(format!("{name}.toml")));
    command.args(["--seeds", "1", "--device", "cpu"]).args(ONE_STEP);
    command.arg("--data").arg(data).arg("--out").arg(&folder.path);
    process::run(&mut command).with_context(|| format!("pair {name}"))?;
    let comparison = Comparison::read(&folder.comparison())?;
    let comparison =
        comparison.with_context(|| format!("pair {name}: kd compare left no table"))?;
    let stages = table.methods.iter().filter(|method| method.first.is_some()).count();
    let expected = 2 + table.methods.len() + stages;
    let run = comparison.rows.iter().filter(|row| row.get(1).is_some_and(|seeds| seeds == "1"));
    let run = run.count();
    ensure!(run == expected, "pair {name}: {run} runs took a step, expected {expected}");
    println!("pair {name}: each of {run} runs took a step");
    Ok(())
}

/// Recipe, checkpoint's file and kd's name of its network, as `parity/pair_checkpoints.py` writes them.
const CHECKPOINTS: [(&str, &str, &str); 4] = [
    ("wrn-40-2-to-wrn-16-2", "wrn_40_2_vanilla/ckpt_epoch_240.pth", "wrn-40-2"),
    ("resnet56-to-resnet20", "resnet56_vanilla/ckpt_epoch_240.pth", "resnet56_b"),
    ("vgg13-to-vgg8", "vgg13/student_best", "vgg13"),
    ("resnet50-to-mobilenetv2", "ResNet50/student_best", "resnet50-cifar"),
];

/// A step of KD by teachers whose checkpoints PyTorch wrote.
fn teachers_of_others(kd: &Path, python: &Path, data: &Path, out: &Path) -> anyhow::Result<()> {
    let folder: PathBuf = out.join("checkpoints");
    let script = workspace::root().join("parity/pair_checkpoints.py");
    process::run(Command::new(python).arg(script).arg(&folder))?;
    for (pair, file, model) in CHECKPOINTS {
        let mut command = Command::new(kd);
        let recipe = pairs::folder().join(format!("{pair}.toml"));
        command
            .args(["distill", "--run", "kd", "--device", "cpu", "--plain", "--recipe"])
            .arg(recipe);
        command
            .args(ONE_STEP)
            .arg("--data")
            .arg(data)
            .arg("--out")
            .arg(out.join("foreign").join(pair));
        command.arg("--teacher").arg(folder.join(file)).args(["--teacher-model", model]);
        command.args(["--teacher-mean", "0.5071,0.4867,0.4408"]);
        command.args(["--teacher-std", "0.2675,0.2565,0.2761"]);
        process::run(&mut command).with_context(|| format!("pair {pair}, teacher {file}"))?;
        println!("pair {pair}: taught by {file}");
    }
    Ok(())
}
