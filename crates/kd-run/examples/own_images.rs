//! One's own pictures, in folders, and a network trained on them.
//!
//! ```text
//! cargo run --release -p kd-run --example own_images -- pictures
//! ```
//!
//! `pictures` has `train/CLASS/*.png` and `test/CLASS/*.png` (or JPEG), of any size. On the command line
//! the same is `kd train --model student --dataset folder --data pictures`, with a recipe for the mirrored pictures.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context;
use kd_run::recipe::{DatasetName, Recipe, TUTORIAL};
use kd_run::resolve::{Choices, resolve};
use kd_run::train::{Outcome, Progress, train};

/// Trains the tutorial's student on the pictures in `folder`, with results in `out`; its accuracy on the test pictures.
fn accuracy(folder: &Path, out: &Path, epochs: usize) -> anyhow::Result<f64> {
    let mut recipe = Recipe::parse(TUTORIAL, "the built-in recipe")?;
    // Few pictures go further when they are mirrored at random.
    recipe.data.augment.flip = true;
    let choices = Choices {
        dataset: Some(DatasetName::Folder),
        data: folder.into(),
        epochs: Some(epochs),
        batch_size: Some(16),
        out: Some(out.into()),
        ..Choices::default()
    };
    let run = resolve(&recipe, recipe.run("student")?, &choices)?.run;
    println!(
        "{} pictures to train on, {} to test on, of {}",
        run.data.train.len(),
        run.data.test.len(),
        run.data.classes.join(", ")
    );
    let outcome = train(&run, &mut |progress| {
        if let Progress::Epoch(epoch) = progress {
            println!("epoch {}: loss {:.3}", epoch.epoch, epoch.train_loss);
        }
        ControlFlow::Continue(())
    })?;
    match outcome {
        Outcome::Finished(evaluation) | Outcome::AlreadyFinished(evaluation) => {
            Ok(evaluation.context("there are no test pictures with labels")?.accuracy)
        }
        Outcome::Stopped { step } => anyhow::bail!("stopped after step {step}"),
    }
}

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).context("give the folder with train/ and test/")?;
    let accuracy = accuracy(Path::new(&folder), Path::new("runs/own-images"), 10)?;
    println!("{:.1} % of the test pictures are classified correctly", 100.0 * accuracy);
    Ok(())
}

#[test]
fn pictures_in_folders_are_learned() {
    // Bright pictures and dark ones.
    let folder = tempfile::tempdir().unwrap();
    for (split, count) in [("train", 24), ("test", 8)] {
        for (class, light) in [("dark", 20), ("bright", 200)] {
            let path = folder.path().join(split).join(class);
            std::fs::create_dir_all(&path).unwrap();
            for i in 0..count {
                let pixel =
                    |x, y| image::Rgb([light + (x % 7) as u8, light + (y % 5) as u8, 2 * i]);
                let picture = image::RgbImage::from_fn(60, 40, pixel);
                picture.save(path.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    assert!(accuracy(folder.path(), &folder.path().join("out"), 4).unwrap() > 0.9);
}
