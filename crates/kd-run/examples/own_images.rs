//! Pictures of one's own, in folders, and a network trained on them.
//!
//! ```text
//! cargo run --release -p kd-run --example own_images -- pictures
//! ```
//!
//! `pictures` has `train/CLASS/*.png` and `test/CLASS/*.png` (or JPEG), of any size. On the command line
//! the same is `kd train --model student --dataset folder --data pictures`.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::Device;
use kd_data::{Augment, BatchConfig, Normalization};
use kd_models::{Architecture, Classifier, Mode, ModelConfig};
use kd_ops::DropoutKey;
use kd_ops::adam::{Adam, AdamConfig};

/// Share of right answers among the test pictures.
fn train(folder: &Path, epochs: usize) -> anyhow::Result<f64> {
    let data = kd_data::image_folder(folder, kd_data::images::SIDE)?;
    let (train, test) = (Arc::new(data.train), Arc::new(data.test));
    println!(
        "{} pictures to train on, {} to test on, of {}",
        train.len(),
        test.len(),
        data.classes.join(", ")
    );

    let config = ModelConfig::new(Architecture::Student, data.classes.len());
    let parameters = kd_models::init(&config, 0, &Device::Cpu)?;
    let network = kd_models::build(&config, kd_models::var_builder(&parameters))?;
    let mut adam = Adam::new(AdamConfig::default());
    for epoch in 0..epochs {
        let config = BatchConfig {
            batch_size: 16,
            shuffle_seed: Some(0),
            epoch,
            // Few pictures go further when they are mirrored.
            augment: Augment { flip: true, ..Augment::default() },
            ..BatchConfig::default()
        };
        for batch in kd_data::batches(&train, &config, &Device::Cpu)? {
            let batch = batch?;
            let mode = Mode::Train(DropoutKey { seed: 0, step: adam.steps });
            let logits = network.forward_t(&batch.images, mode, &[])?.logits;
            let loss = kd_loss::cross_entropy(&logits, &batch.labels)?;
            adam.step(&parameters, &loss.backward()?)?;
        }
    }
    let network: &dyn Classifier = &*network;
    let (classes, normalization) = (&data.classes, Normalization::default());
    let evaluation =
        kd_run::evaluate::evaluate(network, &test, classes, normalization, &Device::Cpu)?;
    Ok(evaluation.accuracy)
}

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).context("give the folder with train/ and test/")?;
    println!("{:.1} % right", 100.0 * train(Path::new(&folder), 10)?);
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
    assert!(train(folder.path(), 4).unwrap() > 0.9);
}
