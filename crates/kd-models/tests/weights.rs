//! Weights files: what is saved is loaded, and what is wrong is said.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::{bits, config, tensors};
use kd_models::weights::{Loaded, Metadata, load, load_start, save};
use kd_models::{Architecture, Error, ModelConfig, init};
use proptest::prelude::*;
use tempfile::TempDir;

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

fn student() -> ModelConfig {
    config(Architecture::TUTORIAL_STUDENT)
}

fn student_tensors() -> BTreeMap<String, Tensor> {
    tensors(&init(&student(), 1, &Device::Cpu).unwrap())
}

fn metadata() -> Metadata {
    Metadata::new(&student(), MEAN, STD, "synthetic")
}

/// A folder with a good weights file in it.
fn saved() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("student.safetensors");
    save(&path, &student_tensors(), &metadata()).unwrap();
    (folder, path)
}

/// Writes tensors as PyTorch does: without this crate's metadata.
fn foreign(folder: &TempDir, tensors: &BTreeMap<String, Tensor>) -> PathBuf {
    let path = folder.path().join("foreign.safetensors");
    let tensors: HashMap<String, Tensor> = tensors.clone().into_iter().collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    path
}

/// Loads a changed copy of the student's weights, which must fail.
fn error_of(change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> Error {
    let folder = TempDir::new().unwrap();
    let mut tensors = student_tensors();
    change(&mut tensors);
    let path = foreign(&folder, &tensors);
    let error = load(&path, &student()).unwrap_err();
    assert!(error.to_string().contains("foreign.safetensors"), "the file is not named: {error}");
    error
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn what_was_saved_is_loaded() {
    let (_folder, path) = saved();
    let Loaded { tensors: loaded, metadata: description, notes } = load(&path, &student()).unwrap();
    assert_eq!(description, Some(metadata()));
    assert_eq!(notes, [""; 0]);
    let expected = student_tensors();
    assert_eq!(loaded.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &expected {
        assert_eq!(tensor.dims(), loaded[name].dims());
        assert_eq!(bits(tensor), bits(&loaded[name]), "{name}");
    }
}

#[test]
fn the_same_weights_give_the_same_bytes() {
    let (folder, path) = saved();
    let again = folder.path().join("again.safetensors");
    let mut with_names = metadata();
    save(&again, &student_tensors(), &with_names).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
    // Through a load, too.
    let Loaded { tensors: loaded, metadata: description, .. } = load(&path, &student()).unwrap();
    save(&again, &loaded, &description.unwrap()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
    with_names.class_names = Some((0..10).map(|class| format!("class {class}")).collect());
    save(&again, &loaded, &with_names).unwrap();
    assert_eq!(load(&again, &student()).unwrap().metadata, Some(with_names));
}

#[test]
fn saving_leaves_nothing_else_in_the_folder() {
    let (folder, path) = saved();
    save(&path, &student_tensors(), &metadata()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_without_this_crates_metadata_is_loaded() {
    let folder = TempDir::new().unwrap();
    let loaded = load(&foreign(&folder, &student_tensors()), &student()).unwrap();
    assert_eq!((loaded.tensors.len(), loaded.metadata), (8, None));
    assert_eq!(loaded.notes, [""; 0]);
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    let error = error_of(|tensors| drop(tensors.remove("features.3.bias")));
    assert!(
        error
            .to_string()
            .ends_with("tensor features.3.bias is missing; the student needs it with shape [16]"),
        "{error}"
    );
}

#[test]
fn an_extra_tensor_is_named_with_its_shape() {
    let error = error_of(|tensors| drop(tensors.insert("regressor.0.bias".into(), zeros(&[32]))));
    assert!(
        error.to_string().ends_with("the student has no tensor regressor.0.bias (shape [32])"),
        "{error}"
    );
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let error = error_of(|tensors| {
        tensors.insert("features.3.weight".into(), zeros(&[16, 8, 3, 3]));
    });
    assert!(
        error.to_string().ends_with(
            "tensor features.3.weight has shape [16, 8, 3, 3]; the student needs [16, 16, 3, 3]"
        ),
        "{error}"
    );
}

#[test]
fn a_wrong_type_is_named() {
    let error = error_of(|tensors| {
        let bytes = tensors["features.0.bias"].to_dtype(DType::U8).unwrap();
        tensors.insert("features.0.bias".into(), bytes);
    });
    let message = "tensor features.0.bias is U8; expected F32, F16, BF16 or F64";
    assert!(error.to_string().ends_with(message), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for value in [f32::NAN, f32::INFINITY] {
        let error = error_of(|tensors| {
            let mut bias = vec![0f32; 16];
            bias[5] = value;
            tensors.insert("features.0.bias".into(), Tensor::new(bias, &Device::Cpu).unwrap());
        });
        let message =
            format!("tensor features.0.bias has {value} at element 5; weights must be finite");
        assert!(error.to_string().ends_with(&message), "{error}");
    }
}

#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("nan.safetensors");
    let mut tensors = student_tensors();
    tensors
        .insert("features.0.bias".into(), Tensor::new(vec![f32::NAN; 16], &Device::Cpu).unwrap());
    assert!(matches!(save(&path, &tensors, &metadata()), Err(Error::NotFinite { index: 0, .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn another_class_count_is_said_with_and_without_metadata() {
    let (folder, path) = saved();
    let wanted = ModelConfig { classes: 100, ..student() };
    for path in [path, foreign(&folder, &student_tensors())] {
        let error = load(&path, &wanted).unwrap_err();
        assert!(matches!(error, Error::ClassCount { found: 10, expected: 100, .. }), "{error}");
    }
}

#[test]
fn another_networks_weights_are_said() {
    let (folder, path) = saved();
    let error = load(&path, &config(Architecture::TUTORIAL_TEACHER)).unwrap_err().to_string();
    assert!(error.ends_with("these are the weights of a student, not of a teacher"), "{error}");
    // Without metadata the tensors say it.
    let path = foreign(&folder, &student_tensors());
    let error = load(&path, &config(Architecture::TUTORIAL_TEACHER)).unwrap_err().to_string();
    assert!(error.ends_with("these are the weights of a student, not of a teacher"), "{error}");
    // Tensors of no listed network: the first one that doesn't fit.
    let mut none = student_tensors();
    none.insert("features.9.bias".into(), zeros(&[16]));
    let error = load(&foreign(&folder, &none), &student()).unwrap_err();
    assert!(matches!(error, Error::ExtraTensor { .. }), "{error}");
}

#[test]
fn another_normalization_is_said() {
    let path = Path::new("teacher.safetensors");
    metadata().check_normalization(path, MEAN, STD).unwrap();
    let error = metadata().check_normalization(path, [0.5; 3], STD).unwrap_err().to_string();
    assert!(
        error.contains("[0.485, 0.456, 0.406]") && error.contains("[0.5, 0.5, 0.5]"),
        "{error}"
    );
}

/// Loads a file of these bytes, which must fail as malformed.
fn malformed(bytes: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bad.safetensors");
    fs::write(&path, bytes).unwrap();
    match load(&path, &student()).unwrap_err() {
        Error::Malformed { reason, .. } => reason,
        error => panic!("not malformed: {error}"),
    }
}

#[test]
fn a_truncated_file_is_said() {
    let (_folder, path) = saved();
    let bytes = fs::read(path).unwrap();
    assert!(malformed(&bytes[..bytes.len() - 1]).contains("bytes of data"));
    assert!(malformed(&bytes[..100]).contains("in all"));
    assert!(malformed(&bytes[..7]).contains("7 bytes"));
    assert!(malformed(&[]).contains("0 bytes"));
}

#[test]
fn bytes_after_the_end_are_said() {
    let (_folder, path) = saved();
    let mut bytes = fs::read(path).unwrap();
    bytes.push(0);
    assert!(malformed(&bytes).contains("bytes of data"));
}

#[test]
fn a_header_that_announces_too_much_is_said_before_anything_is_allocated() {
    let mut bytes = u64::MAX.to_le_bytes().to_vec();
    bytes.extend([b' '; 100]);
    assert!(malformed(&bytes).contains("18446744073709551615"));
    // A header that is there, but longer than any network's.
    let mut bytes = (2u64 << 20).to_le_bytes().to_vec();
    bytes.resize(8 + (2 << 20), b' ');
    assert!(malformed(&bytes).contains("no more than 1048576"));
}

#[test]
fn a_header_that_is_no_json_is_said() {
    for header in ["not json", "{", "[]", "{\"features.0.weight\": 3}", "\u{0}"] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        assert!(malformed(&bytes).contains("header can't be read"), "{header}");
    }
}

#[test]
fn shapes_and_offsets_that_overflow_are_said() {
    for header in [
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,64]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}"#,
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        malformed(&bytes);
    }
}

#[test]
fn metadata_that_cannot_be_understood_is_said() {
    let cases = [
        ("{}", "format"),
        ("not json", "expected"),
        (r#"{"format":2}"#, "this version reads format 1"),
        (
            r#"{"format":1,"architecture":"oracle","classes":10,"mean":[0,0,0],"std":[1,1,1],"dataset":""}"#,
            "oracle",
        ),
        (
            r#"{"format":1,"architecture":"student","classes":10,"class_names":["a"],"mean":[0,0,0],"std":[1,1,1],"dataset":""}"#,
            "1 class names for 10 classes",
        ),
    ];
    for (json, expected) in cases {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("bad.safetensors");
        let metadata = HashMap::from([("kd".to_string(), json.to_string())]);
        let tensors: Vec<(String, Tensor)> = student_tensors().into_iter().collect();
        let bytes = safetensors::serialize(tensors, Some(metadata)).unwrap();
        fs::write(&path, bytes).unwrap();
        let error = load(&path, &student()).unwrap_err();
        assert!(matches!(error, Error::Metadata { .. }), "{json}: {error}");
        assert!(error.to_string().contains(expected), "{json}: {error}");
    }
}

#[test]
fn a_file_that_is_not_there_or_no_file_is_named() {
    let folder = TempDir::new().unwrap();
    let error = load(&folder.path().join("none"), &student()).unwrap_err();
    assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains("none"), "{error}");
    assert!(load(folder.path(), &student()).is_err());
}

#[test]
fn a_folder_that_is_not_there_is_named_when_saving() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("none").join("student.safetensors");
    let error = save(&path, &student_tensors(), &metadata()).unwrap_err();
    assert!(error.to_string().contains("student.safetensors"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// A header with a changed byte loads, or is refused; it never panics.
    #[test]
    fn a_damaged_header_never_panics(at in 0usize..1100, byte in any::<u8>()) {
        let (_folder, path) = saved();
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        let _ = load(&path, &student());
    }

    /// Neither does a cut.
    #[test]
    fn a_cut_file_is_refused(len in 0usize..1_072_000) {
        let (_folder, path) = saved();
        let bytes = fs::read(&path).unwrap();
        prop_assume!(len < bytes.len());
        fs::write(&path, &bytes[..len]).unwrap();
        prop_assert!(load(&path, &student()).is_err());
    }
}

/// PyTorch counts batches in an integer beside each normalisation's statistics.
#[test]
fn pytorchs_counted_batches_are_passed_over() {
    let folder = TempDir::new().unwrap();
    let config = config(Architecture::RESNET8);
    let expected = tensors(&init(&config, 1, &Device::Cpu).unwrap());
    let mut with_counts = expected.clone();
    for norm in ["bn1", "layer2.0.bn2"] {
        let count = Tensor::new(7i64, &Device::Cpu).unwrap();
        with_counts.insert(format!("{norm}.num_batches_tracked"), count);
    }
    let loaded = load(&foreign(&folder, &with_counts), &config).unwrap().tensors;
    assert_eq!(loaded.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &expected {
        assert_eq!(bits(tensor), bits(&loaded[name]), "{name}");
    }
    let sound = with_counts.clone();
    with_counts.insert("bn1.running_var".into(), Tensor::full(-0.5f32, 16, &Device::Cpu).unwrap());
    let error = load(&foreign(&folder, &with_counts), &config).unwrap_err().to_string();
    assert!(error.contains("bn1.running_var is -0.5 at element 0"), "{error}");
    with_counts = sound;
    with_counts.insert("conv1.num_batches_tracked".into(), zeros(&[1]));
    let error = load(&foreign(&folder, &with_counts), &config).unwrap_err().to_string();
    assert!(error.contains("has no tensor conv1.num_batches_tracked"), "{error}");
    with_counts.retain(|name, _| !name.contains("tracked") && name != "bn1.running_var");
    let error = load(&foreign(&folder, &with_counts), &config).unwrap_err().to_string();
    assert!(error.contains("bn1.running_var is missing"), "{error}");
}

#[test]
fn weights_to_start_from_may_have_another_last_layer_and_nothing_else() {
    let (_folder, path) = saved();
    let same = load_start(&path, &student()).unwrap();
    assert_eq!((same.tensors.len(), same.other_classes), (8, None));
    let hundred = ModelConfig { classes: 100, ..student() };
    let start = load_start(&path, &hundred).unwrap();
    assert_eq!((start.tensors.len(), start.other_classes), (6, Some(10)));
    assert!(!start.tensors.contains_key("classifier.3.weight"));
    assert!(!start.tensors.contains_key("classifier.3.bias"));
    let folder = TempDir::new().unwrap();
    let mut tensors = student_tensors();
    tensors.insert("features.3.weight".into(), zeros(&[16, 8, 3, 3]));
    let error = load_start(&foreign(&folder, &tensors), &hundred).unwrap_err().to_string();
    assert!(error.contains("[16, 8, 3, 3]") && error.contains("[16, 16, 3, 3]"), "{error}");
}
