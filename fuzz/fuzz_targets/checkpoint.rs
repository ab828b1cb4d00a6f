//! Checkpoints and weights files: an error, or something whole, finite and of the right shapes.
//!
//! Each input is read as it is and once more with the checksum that its contents should have, so that the
//! checksum keeps nobody out.

#![no_main]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use kd_models::{Architecture, ModelConfig};
use kd_run::checkpoint::{Expected, parse};
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

fuzz_target!(|data: &[u8]| {
    check(data);
    if let Some(signed) = signed(data) {
        check(&signed);
    }
    let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, 10);
    if let Ok(loaded) = kd_models::weights::parse(data, Path::new("fuzzed"), &config) {
        assert_eq!(loaded.tensors.len(), config.graph().unwrap().parameters().count());
    }
});

fn check(data: &[u8]) {
    let shapes = BTreeMap::from([("w".to_string(), vec![2, 2]), ("v".to_string(), vec![3])]);
    let expected = Expected { recipe: "r", tied_to_length: false, shapes, epochs: 3, batches: 10 };
    let Ok(found) = parse(data, &expected) else { return };
    assert!(found.state.epoch <= 3 && found.state.batch < 10);
    assert_eq!(found.tensors["parameter/w"].dims(), [2, 2]);
    assert_eq!(found.tensors["parameter/v"].dims(), [3]);
    for tensor in found.tensors.values() {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| value.is_finite()));
    }
}

/// The same tensors with a right header. Written from the format's description, not with kd's own code.
fn signed(data: &[u8]) -> Option<Vec<u8>> {
    let tensors = SafeTensors::deserialize(data).ok()?;
    let views = tensors.tensors();
    let views: BTreeMap<&str, TensorView<'_>> =
        views.iter().map(|(name, view)| (name.as_str(), view.clone())).collect();
    let mut hash = Sha256::new();
    for (name, view) in &views {
        hash.update(format!("{name} {} {:?}\n", view.dtype(), view.shape()));
        hash.update(view.data());
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let header = serde_json::json!({ "format": 1, "sha256": hash }).to_string();
    let header = HashMap::from([("kd-checkpoint".to_string(), header)]);
    safetensors::serialize(views, Some(header)).ok()
}
