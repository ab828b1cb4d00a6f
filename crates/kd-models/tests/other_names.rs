//! Files with other code bases' names of the layers; which is which, parity/other_names.py shows by equal logits.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{bits, hashed, named};
use kd_models::weights::{load, load_start, peek};
use kd_models::{Graph, ModelConfig};
use tempfile::TempDir;

/// Their names and ours.
fn pairs(fixture: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/names");
    let text = std::fs::read_to_string(folder.join(format!("{fixture}.txt"))).unwrap();
    let line = |line: &str| line.split_once(' ').map(|(a, b)| (a.into(), b.into())).unwrap();
    text.lines().map(line).collect()
}

/// Writes a file with their names, each tensor with values of its own.
fn write(folder: &TempDir, graph: &Graph, pairs: &[(String, String)], prefix: &str) -> PathBuf {
    let specs: BTreeMap<_, _> = graph.tensors().map(|spec| (spec.name.as_str(), spec)).collect();
    let tensors = pairs.iter().enumerate().map(|(tag, (theirs, ours))| {
        let values = (hashed(&specs[ours.as_str()].shape, tag as u32, 0.5) + 1.0).unwrap();
        (format!("{prefix}{theirs}"), values)
    });
    let path = folder.path().join("theirs.safetensors");
    candle_core::safetensors::save(&tensors.collect(), &path).unwrap();
    path
}

#[test]
fn each_tensor_is_found_under_its_other_name() {
    for (fixture, network, of) in [
        ("lukemelas-efficientnet_lite0", "efficientnet_lite0", "EfficientNet-PyTorch's names"),
        ("timm-mobilenet_v2_050", "mobilenet_v2_050", "timm's names"),
    ] {
        for prefix in ["", "module."] {
            let folder = TempDir::new().unwrap();
            let config = ModelConfig::new(named(network), 5);
            let (graph, pairs) = (config.graph().unwrap(), pairs(fixture));
            let path = write(&folder, &graph, &pairs, prefix);
            assert_eq!(peek(&path).unwrap().config(Some(named(network)), None).unwrap().classes, 5);
            let loaded = load(&path, &config).unwrap();
            assert_eq!(loaded.tensors.len(), pairs.len());
            for (tag, (_, ours)) in pairs.iter().enumerate() {
                let found = &loaded.tensors[ours];
                let expected = (hashed(found.dims(), tag as u32, 0.5) + 1.0).unwrap();
                assert_eq!(bits(found), bits(&expected), "{ours}");
            }
            assert!(loaded.notes[0].contains(of), "{:?}", loaded.notes);
            // With another number of classes the head is new.
            let other = ModelConfig { classes: 3, ..config };
            let start = load_start(&path, &other).unwrap();
            assert_eq!((start.other_classes, start.tensors.len()), (Some(5), pairs.len() - 2));
        }
    }
}

#[test]
fn a_layer_too_many_is_named_as_the_file_names_it() {
    let folder = TempDir::new().unwrap();
    let config = ModelConfig::new(named("efficientnet_lite0"), 5);
    let mut pairs = pairs("lukemelas-efficientnet_lite0");
    pairs.push(("_blocks.3._se_reduce.bias".into(), "conv_stem.weight".into()));
    let path = write(&folder, &config.graph().unwrap(), &pairs, "");
    let error = load(&path, &config).unwrap_err().to_string();
    assert!(error.contains("_blocks.3._se_reduce.bias"), "{error}");
    // A deeper network's file is another network's.
    let lite2 = ModelConfig::new(named("efficientnet_lite1"), 5);
    let error = load(&path, &lite2).unwrap_err().to_string();
    assert!(error.contains("theirs.safetensors"), "{error}");
}
