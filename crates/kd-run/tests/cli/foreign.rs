//! Networks that somebody else trained: what is done to pictures before them, and teachers of another normalisation.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use kd_data::images::read_scaled;
use kd_data::{Interpolation, Scaling};
use kd_models::{Architecture, ModelConfig};
use serde_json::Value;

use crate::workdir::{TINY, WorkDir, weights as foreign_weights};

fn pictures(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (name, width, height) in [("a.png", 300, 201), ("b.png", 150, 310)] {
        let pixel = |x: u32, y: u32| image::Rgb([(x % 256) as u8, (y * 3 % 256) as u8, 90]);
        RgbImage::from_fn(width, height, pixel).save(folder.join(name)).unwrap();
    }
}

/// The probabilities that the network gives to a picture which is scaled, cut and normalised so.
fn expected(
    weights: &Path,
    config: &ModelConfig,
    picture: &Path,
    scaling: Scaling,
    [mean, std]: [f64; 2],
) -> Vec<f32> {
    let config = ModelConfig { input: [3, scaling.size, scaling.size], ..*config };
    let tensors = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().collect();
    let network = kd_models::build(&config, kd_models::frozen(&tensors)).unwrap();
    let pixels = read_scaled(picture, &scaling).unwrap().pixels;
    let values: Vec<f32> =
        pixels.iter().map(|&byte| ((f64::from(byte) / 255.0 - mean) / std) as f32).collect();
    let image = Tensor::from_vec(values, (1, 3, scaling.size, scaling.size), &Device::Cpu).unwrap();
    let logits = network.evaluate(&image, &[]).unwrap().logits;
    let powers = logits.exp().unwrap();
    let sum = powers.sum_keepdim(1).unwrap();
    powers.broadcast_div(&sum).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_picture_is_prepared_as_flags_or_a_config_or_the_family_say() {
    let dir = WorkDir::new();
    pictures(&dir.path("pictures"));
    let weights = dir.path("model.safetensors");
    let network: Architecture = "efficientnet_lite0".parse().unwrap();
    let config = ModelConfig::new(network, 3);
    foreign_weights(&weights, network, 3, 3, false);
    let check = |more: &str, scaling: Scaling, normalization: [f64; 2], classes: [&str; 3]| {
        let line = format!("predict --weights model.safetensors --json {more} pictures");
        let printed: Value = serde_json::from_str(&dir.stdout(&line)).unwrap();
        assert_eq!(printed["classes"], Value::from(classes.to_vec()));
        for (at, name) in ["a.png", "b.png"].into_iter().enumerate() {
            let picture = dir.path(&format!("pictures/{name}"));
            let expected = expected(&weights, &config, &picture, scaling, normalization);
            let found = &printed["images"][at]["probabilities"];
            for (class, value) in expected.iter().enumerate() {
                let found = found[class].as_f64().unwrap();
                assert!((found - f64::from(*value)).abs() < 1e-5, "{more} {name} {class}");
            }
        }
    };
    let own = Scaling { resize: 256, size: 224, interpolation: Interpolation::Bicubic };
    let numbers = ["0", "1", "2"];
    let network = "--model efficientnet_lite0";
    check(network, own, [127.0 / 255.0, 128.0 / 255.0], numbers);
    let given = "--size 96 --resize 100 --interpolation bilinear --mean 0.5,0.5,0.5 --std 1,1,1";
    let scaling = Scaling { resize: 100, size: 96, interpolation: Interpolation::Bilinear };
    check(&format!("{network} {given}"), scaling, [0.5, 1.0], numbers);

    let json = r#"{"architecture": "tf_efficientnet_lite0", "label_names": ["x", "y", "z"], "pretrained_cfg":
        {"input_size": [3, 128, 128], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.25, 0.25, 0.25], "std": [0.5, 0.5, 0.5]}}"#;
    fs::write(dir.path("config.json"), json).unwrap();
    let scaling = Scaling { resize: 142, size: 128, ..own };
    check("", scaling, [0.25, 0.5], ["x", "y", "z"]);
    // A flag comes first; what is not given stays.
    check("--mean 0,0,0", scaling, [0.0, 0.5], ["x", "y", "z"]);

    let line = "predict --weights model.safetensors --model resnet18 pictures";
    let message = dir.fails(line, 1);
    assert!(message.contains("config.json") && message.contains("not resnet18"), "{message}");
    let message = dir.fails("predict --weights model.safetensors --size 300 --resize 256 a", 1);
    assert!(message.contains("resize is 256; expected 300"), "{message}");
}

#[test]
fn a_teacher_sees_images_of_its_familys_normalisation_unless_another_is_stated() {
    let dir = WorkDir::new();
    let network = "efficientnet_lite0".parse().unwrap();
    foreign_weights(&dir.path("lite.safetensors"), network, 10, 3, false);
    let distill = |out: &str, more: &str| {
        let line = format!(
            "distill --model student --method kd --teacher lite.safetensors --teacher-model efficientnet_lite0 --out {out} {more}"
        );
        let output = dir.command(&line).args(TINY).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (dir.read(&format!("{out}/kd.safetensors")), said)
    };
    let (own, said) = distill("own", "");
    assert!(said.contains("as efficientnet_lite0's authors did"), "{said}");
    let same = "--teacher-mean 0.49803922,0.49803922,0.49803922 --teacher-std 0.5019608,0.5019608,0.5019608";
    assert!(distill("same", same).0 == own);
    let other = "--teacher-mean 0.485,0.456,0.406 --teacher-std 0.229,0.224,0.225";
    assert!(distill("other", other).0 != own);
}
