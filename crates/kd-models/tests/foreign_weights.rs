//! Weights as people have them: files that PyTorch wrote (parity/make_torch_files.py), other names, other types, and files
//! that are none.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::{bits, config, hashed, named, tensors};
use kd_models::weights::{Loaded, load, load_start, parse, peek};
use kd_models::{Architecture, Error, ModelConfig, init};
use proptest::prelude::*;
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// The tutorial's student for images of 4x4 pixels and two classes.
fn small_student() -> ModelConfig {
    ModelConfig { input: [3, 4, 4], classes: 2, ..config(Architecture::TUTORIAL_STUDENT) }
}

/// `hashed(STORAGE, tag, 0.5) + 1.0` of make_torch_files.py.
fn storage(tag: u32) -> Vec<f32> {
    (hashed(&[300], tag, 0.5) + 1.0).unwrap().to_vec1().unwrap()
}

/// Checks that each tensor is `views(_, storage)` of make_torch_files.py: element `[i, j, ...]` is `storage[i + j + ...]`.
fn assert_views(loaded: &Loaded, config: &ModelConfig, storage: &[f32]) {
    let graph = config.graph().unwrap();
    assert_eq!(loaded.tensors.len(), graph.tensors().count());
    for spec in graph.tensors() {
        let tensor = &loaded.tensors[&spec.name];
        assert_eq!((tensor.dims(), tensor.dtype()), (spec.shape.as_slice(), DType::F32));
        let mut sums = vec![0];
        for size in &spec.shape {
            sums = sums.iter().flat_map(|sum| (0..*size).map(move |at| sum + at)).collect();
        }
        let expected: Vec<u32> = sums.iter().map(|at| storage[*at].to_bits()).collect();
        assert_eq!(bits(tensor), expected, "{}", spec.name);
    }
}

fn error_of(path: &Path, config: &ModelConfig) -> String {
    let error = load(path, config).unwrap_err().to_string();
    assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "no file named: {error}");
    error
}

#[test]
fn a_state_dict_of_torch_save_is_loaded() {
    for name in ["student.pth", "parameters.pt", "same_twice.pth"] {
        let loaded = load(&fixture(name), &small_student()).unwrap();
        assert_views(&loaded, &small_student(), &storage(1));
        assert_eq!(loaded.notes.is_empty(), name != "same_twice.pth", "{:?}", loaded.notes);
    }
}

#[test]
fn the_number_of_classes_is_that_of_the_last_layer() {
    let header = peek(&fixture("student.pth")).unwrap();
    let config = header.config(Some(Architecture::TUTORIAL_STUDENT), None).unwrap();
    assert_eq!(config.classes, 2);
}

/// PyTorch rounds to the nearest, ties to even, as the crate `half` does.
#[test]
fn other_floating_point_types_become_f32() {
    let half = |value: &f32| half::f16::from_f32(*value).to_f32();
    let bfloat = |value: &f32| half::bf16::from_f32(*value).to_f32();
    let cases = [
        ("half.pt", storage(1).iter().map(half).collect(), "widens F16 to F32"),
        ("bfloat16.bin", storage(1).iter().map(bfloat).collect(), "widens BF16 to F32"),
        ("double.pth", storage(1), "rounds F64 to F32"),
    ];
    for (name, expected, note) in cases {
        let loaded = load(&fixture(name), &small_student()).unwrap();
        assert_views(&loaded, &small_student(), &expected);
        assert!(loaded.notes[0].contains(note), "{:?}", loaded.notes);
    }
}

#[test]
fn a_double_that_f32_cannot_hold_is_named() {
    let error = error_of(&fixture("beyond.pth"), &small_student());
    assert!(error.contains("classifier.3.bias has 1e300 at element 1"), "{error}");
}

#[test]
fn integers_are_no_weights() {
    let error = error_of(&fixture("integers.pth"), &small_student());
    assert!(error.contains("is Long; expected F32, F16, BF16 or F64"), "{error}");
}

#[test]
fn a_checkpoint_of_data_parallel_with_fc_is_loaded() {
    let resnet8 = config(Architecture::RESNET8);
    let loaded = load(&fixture("checkpoint.pth"), &resnet8).unwrap();
    assert_views(&loaded, &resnet8, &storage(1));
    let note = &loaded.notes[0];
    for said in ["`model`", "`module.`", "takes `fc` for `linear`"] {
        assert!(note.contains(said), "{said}: {note}");
    }
    assert_eq!(
        peek(&fixture("checkpoint.pth"))
            .unwrap()
            .config(Some(resnet8.architecture), None)
            .unwrap()
            .classes,
        10
    );
    let other =
        load_start(&fixture("checkpoint.pth"), &ModelConfig { classes: 7, ..resnet8 }).unwrap();
    assert_eq!(other.other_classes, Some(10));
    assert!(!other.tensors.contains_key("linear.weight") && !other.notes.is_empty());
}

#[test]
fn of_two_networks_in_a_file_the_one_that_fits_is_taken() {
    let path = fixture("lightning.ckpt");
    let loaded = load(&path, &small_student()).unwrap();
    assert_views(&loaded, &small_student(), &storage(1));
    assert!(loaded.notes[0].contains("`student.`"), "{:?}", loaded.notes);
    let loaded = load(&path, &config(Architecture::RESNET8)).unwrap();
    assert_views(&loaded, &config(Architecture::RESNET8), &storage(2));
    assert!(loaded.notes[0].contains("`teacher.`"), "{:?}", loaded.notes);
    assert!(loaded.notes[0].contains("leaves 8 tensors"), "{:?}", loaded.notes);
}

#[test]
fn of_two_that_fit_none_is_taken() {
    let error = error_of(&fixture("two.pth"), &small_student());
    assert!(error.contains("both the dict `model") && error.contains("`model_ema`"), "{error}");
}

/// Files of the format before PyTorch 1.6, which PyTorch still writes with `_use_new_zipfile_serialization=False`.
#[test]
fn the_format_before_pytorch_1_6_holds_the_same() {
    let (student, resnet) = (small_student(), config(Architecture::RESNET8));
    let loaded = load(&fixture("legacy_student.pth"), &student).unwrap();
    assert_views(&loaded, &student, &storage(1));
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
    let loaded = load(&fixture("legacy_checkpoint.pth"), &resnet).unwrap();
    assert_views(&loaded, &resnet, &storage(1));
    let half: Vec<f32> =
        storage(1).iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
    let loaded = load(&fixture("legacy_half.pt"), &student).unwrap();
    assert_views(&loaded, &student, &half);
    let error = error_of(&fixture("legacy_integers.pth"), &student);
    assert!(error.contains("is Long; expected F32"), "{error}");

    // Cut off anywhere, and with a storage that says it is shorter than its tensors, it is an error.
    let whole = fs::read(fixture("legacy_half.pt")).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("cut.pth");
    for len in (16..whole.len()).step_by(7) {
        fs::write(&path, &whole[..len]).unwrap();
        error_of(&path, &student);
    }
    let mut short = whole.clone();
    let at = whole.len() - 2 * 300 - 8;
    assert_eq!(short[at..][..8], 300u64.to_le_bytes());
    short[at..][..8].copy_from_slice(&20u64.to_le_bytes());
    fs::write(&path, &short).unwrap();
    let error = error_of(&path, &student);
    assert!(error.contains("of a storage of 40"), "{error}");
}

#[test]
fn what_holds_no_state_dict_is_said() {
    let cases = [
        ("object.pth", "class torch.nn.modules.linear.Linear"),
        ("nothing.pth", "no dict of named tensors"),
        ("script.pt", "TorchScript"),
        ("legacy_object.pth", "class torch.nn.modules.linear.Linear"),
    ];
    for (name, expected) in cases {
        let error = error_of(&fixture(name), &small_student());
        assert!(error.contains(expected) && error.contains("torch.save("), "{error}");
    }
}

/// Writes the tensors of a fresh network under other names.
fn renamed(
    folder: &TempDir,
    config: &ModelConfig,
    rename: impl Fn(&str) -> String,
) -> (PathBuf, BTreeMap<String, Tensor>) {
    let path = folder.path().join("renamed.safetensors");
    let own = tensors(&init(config, 1, &Device::Cpu).unwrap());
    let renamed: HashMap<_, _> = own.iter().map(|(n, t)| (rename(n), t.clone())).collect();
    candle_core::safetensors::save(&renamed, &path).unwrap();
    (path, own)
}

#[test]
fn prefixes_of_wrappers_are_taken_off() {
    let folder = TempDir::new().unwrap();
    for config in [config(Architecture::TUTORIAL_STUDENT), config(Architecture::RESNET8)] {
        for prefix in [
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "model.",
            "student.",
            "teacher.",
            "backbone.",
            "net.",
        ] {
            let (path, own) = renamed(&folder, &config, |name| format!("{prefix}{name}"));
            let loaded = load(&path, &config).unwrap();
            for (name, tensor) in &own {
                assert_eq!(bits(tensor), bits(&loaded.tensors[name]), "{prefix}{name}");
            }
            assert!(loaded.notes[0].contains(&format!("`{prefix}`")), "{:?}", loaded.notes);
            // What does not fit is an error all the same.
            let other = ModelConfig { classes: 3, ..config };
            assert!(matches!(load(&path, &other), Err(Error::ClassCount { found: 10, .. })));
            let other = common::config(named("resnet20"));
            let error = load(&path, &other).unwrap_err();
            assert!(matches!(error, Error::WrongArchitecture { .. }), "{error}");
        }
    }
}

/// As RepDistiller, chenyaofo's pytorch-cifar-models and akamaster's pytorch_resnet_cifar10 save them.
#[test]
fn networks_with_shortcuts_of_option_b_are_loaded_from_other_projects_files() {
    let resnet = config(named("resnet8_b"));
    for (name, said) in [
        ("option_b.pth", &["`model`"][..]),
        ("option_b.pt", &[]),
        (
            "option_b.th",
            &["`module.`", "takes `linear` for `fc`", "takes `shortcut` for `downsample`"],
        ),
    ] {
        let loaded = load(&fixture(name), &resnet).unwrap();
        assert_views(&loaded, &resnet, &storage(1));
        assert_eq!(loaded.notes.is_empty(), said.is_empty(), "{:?}", loaded.notes);
        for said in said {
            assert!(loaded.notes[0].contains(said), "{said}: {:?}", loaded.notes);
        }
        // Asked for as the network with option A they are named as what they are.
        let error = error_of(&fixture(name), &config(Architecture::RESNET8));
        assert!(error.contains("of a resnet8_b, not of a resnet8"), "{error}");
        let error = error_of(&fixture(name), &config(named("resnet8x4")));
        assert!(error.contains("of a resnet8_b, not of a resnet8x4"), "{error}");
    }
    let other = load_start(&fixture("option_b.th"), &ModelConfig { classes: 7, ..resnet }).unwrap();
    assert_eq!(other.other_classes, Some(10));
    assert!(!other.tensors.contains_key("fc.weight"));
    // A network with option A is none with option B.
    let error = error_of(&fixture("checkpoint.pth"), &resnet);
    assert!(error.contains("of a resnet8, not of a resnet8_b"), "{error}");
}

#[test]
fn shortcuts_with_weights_are_said_to_be_another_network() {
    let folder = TempDir::new().unwrap();
    let resnet = config(named("resnet20"));
    let (path, own) = renamed(&folder, &resnet, str::to_string);
    for prefix in ["", "module."] {
        for shortcut in ["downsample", "shortcut"] {
            let mut tensors: HashMap<String, Tensor> =
                own.iter().map(|(n, t)| (format!("{prefix}{n}"), t.clone())).collect();
            let weight = Tensor::zeros(&[32, 16, 1, 1], DType::F32, &Device::Cpu).unwrap();
            tensors.insert(format!("{prefix}layer2.0.{shortcut}.0.weight"), weight);
            candle_core::safetensors::save(&tensors, &path).unwrap();
            let error = load(&path, &resnet).unwrap_err();
            assert!(matches!(error, Error::ProjectionShortcut { .. }), "{error}");
            assert!(error.to_string().contains("option A"), "{error}");
        }
    }
}

#[test]
fn halves_in_safetensors_become_f32() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("half.safetensors");
    let config = config(Architecture::TUTORIAL_STUDENT);
    let own = tensors(&init(&config, 1, &Device::Cpu).unwrap());
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let other: HashMap<_, _> =
            own.iter().map(|(n, t)| (n.clone(), t.to_dtype(dtype).unwrap())).collect();
        candle_core::safetensors::save(&other, &path).unwrap();
        let loaded = load(&path, &config).unwrap();
        for (name, tensor) in &other {
            let expected = tensor.to_dtype(DType::F32).unwrap();
            assert_eq!(bits(&expected), bits(&loaded.tensors[name]), "{name}");
        }
        assert_eq!(loaded.notes.len(), 1);
    }
}

#[test]
fn files_that_are_no_weights_are_named_as_what_they_are() {
    let folder = TempDir::new().unwrap();
    let mut tar = vec![0; 512];
    tar[..4].copy_from_slice(b"data");
    tar[257..262].copy_from_slice(b"ustar");
    let cases: [(&[u8], &str, &str); 15] = [
        (b"", "empty (0 bytes)", "again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            "Git LFS pointer",
            "git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html></html>", "HTML page", "download the file itself"),
        (b"<html><body>404</body></html>", "HTML page", "download the file itself"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip", "gunzip"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "NumPy", "save_file"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0", "ONNX", "state dict"),
        (b"\x08\x0a:\x90\x01\x0a\x07conv1.w", "ONNX", "state dict"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "HDF5", "state dict"),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0", "pickle", "torch.save"),
        (b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "empty zip", "again"),
        (b"{\n  \"architectures\": []}", "JSON", "weights file itself"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "JPEG", "weights file"),
        (&tar, "tar archive", "tar -xf"),
        (b"\xef\xbb\xbf\x10\0\0\0\0\0\0\0{", "byte order mark", "again"),
    ];
    for (bytes, what, cure) in cases {
        for name in ["weights.safetensors", "weights.pth"] {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let error = error_of(&path, &small_student());
            assert!(error.contains(what) && error.contains(cure), "{what}: {error}");
        }
    }
}

#[test]
fn the_ending_of_a_name_says_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("student.safetensors");
    fs::copy(fixture("student.pth"), &path).unwrap();
    assert_views(&load(&path, &small_student()).unwrap(), &small_student(), &storage(1));
}

/// A zip archive of these members.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn refused(bytes: &[u8]) -> String {
    parse(bytes, Path::new("x.pth"), &small_student()).unwrap_err().to_string()
}

#[test]
fn zip_archives_that_are_no_weights_are_named_as_what_they_are() {
    assert!(refused(&archive(&[("weights.npy", b"")])).contains("NumPy"));
    assert!(refused(&archive(&[("readme.txt", b"hello")])).contains("unpack it"));
    let big = archive(&[("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"big")]);
    assert!(refused(&big).contains("big-endian"));
    assert!(
        refused(&archive(&[("a/data.pkl", b"\x80\x02}.")])).contains("no dict of named tensors")
    );
}

/// A pickle of `{"w": tensor}` whose tensor has these opcodes for its storage's description, offset, size and stride.
fn pickle(storage: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    bytes.extend(storage);
    bytes.extend(b"tQ");
    bytes.extend(rest);
    bytes.extend(b"\x89}tRs.");
    bytes
}

#[test]
fn a_damaged_pickle_is_an_error() {
    let storage = b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01";
    let sound = pickle(storage, b"K\0K\x01\x85K\x01\x85");
    let sound = archive(&[("a/data.pkl", &sound), ("a/data/0", &[0; 4])]);
    assert!(refused(&sound).contains("is missing") || refused(&sound).contains("no tensor w"));
    let damaged: [&[u8]; 16] = [
        // A storage without its parts, or of another shape.
        &pickle(b"", b"K\0K\x01\x85K\x01\x85"),
        &pickle(b"K\0", b"K\0K\x01\x85K\x01\x85"),
        // A tensor without size, with negative or unequal ones.
        &pickle(storage, b""),
        &pickle(storage, b"K\0J\xff\xff\xff\xff\x85K\x01\x85"),
        &pickle(storage, b"K\0K\x01\x85)"),
        // An offset whose bytes overflow.
        &pickle(storage, b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x01\x85K\x01\x85"),
        // An integer longer than 8 bytes.
        &pickle(storage, b"\x8a\xff"),
        // Text that is announced and not there, and text that is no UTF-8.
        b"\x80\x02X\xff\xff\xff\xffab",
        b"\x80\x02X\x01\0\0\0\xff.",
        // An empty stack, no mark, nothing stored, no end, an unknown opcode.
        b"\x80\x02.",
        b"t.",
        b"h\x05.",
        b"}",
        b"I1\n.",
        // Items set on what is no dict, and one without its value.
        b"K\x01K\x01K\x01s.",
        b"}(K\x01u.",
    ];
    for bytes in damaged {
        let error = refused(&archive(&[("a/data.pkl", bytes)]));
        assert!(error.contains("can't be read as weights"), "{error}");
    }
}

/// Each of these would take more memory or stack than there is, if values were copied or nested.
#[test]
fn small_pickles_of_endless_values_are_refused() {
    let mut nested = b"\x80\x02)".to_vec();
    nested.extend(vec![0x85; 3_000_000]);
    nested.push(b'.');
    assert!(refused(&archive(&[("a/data.pkl", &nested)])).contains("no dict"));
    // Each tuple holds the one before twice: 2^200 values in 1 KB.
    let mut doubled = b"\x80\x02)".to_vec();
    (0..200).for_each(|_| doubled.extend(b"q\0h\0\x86"));
    doubled.push(b'.');
    assert!(refused(&archive(&[("a/data.pkl", &doubled)])).contains("no dict"));
    // A dict that holds itself.
    assert!(
        refused(&archive(&[("a/data.pkl", b"\x80\x02}q\0X\x01\0\0\0ah\0s.")])).contains("no dict")
    );
}

#[test]
fn a_storage_that_is_cut_off_or_damaged_is_named() {
    let sound = fs::read(fixture("half.pt")).unwrap();
    let value = half::f16::from_f32(storage(1)[7]).to_le_bytes();
    let next = half::f16::from_f32(storage(1)[8]).to_le_bytes();
    let at = sound.windows(4).position(|at| at == [value, next].concat()).unwrap();
    let mut damaged = sound.clone();
    damaged[at] ^= 1;
    let error = refused(&damaged);
    assert!(error.contains("is damaged") && error.contains("checksum"), "{error}");
    for len in [4, 30, 300, sound.len() / 2, sound.len() - 1] {
        let error = refused(&sound[..len]);
        assert!(error.contains("cut off or damaged"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A file of PyTorch with changed bytes loads, or is refused; it never panics.
    #[test]
    fn a_damaged_torch_file_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut bytes = fs::read(fixture("checkpoint.pth")).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = parse(&bytes, Path::new("x"), &config(Architecture::RESNET8));
    }

    /// Neither do any opcodes.
    #[test]
    fn any_pickle_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&archive(&[("a/data.pkl", &bytes)]), Path::new("x"), &small_student());
    }
}
