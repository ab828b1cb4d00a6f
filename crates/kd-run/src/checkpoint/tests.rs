use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::folder::{file_name, list, load};
use super::format::{FORMAT, Header, KEY, checksum};
use super::*;
use crate::evaluate::Evaluation;
use crate::figures::Sums;
use crate::recipe;

/// A task's tensors by their names in a checkpoint.
type Tensors = BTreeMap<String, Tensor>;

fn made(folder: &Path, step: u64) -> (State, Tensors, PathBuf) {
    let weight = [[0.1f32, -2.5], [f32::MIN_POSITIVE, 3e30]];
    let tensors = Tensors::from([
        ("parameter/w".to_string(), Tensor::new(&weight, &Device::Cpu).unwrap()),
        ("adam.first/w".to_string(), Tensor::new(&[0.3f32; 4], &Device::Cpu).unwrap()),
        ("adam.second/w".to_string(), Tensor::new(&[1e-12f32; 4], &Device::Cpu).unwrap()),
    ]);
    // A sum that has no short decimal form.
    let sums = Sums { loss: 0.1 + 0.2, seconds: 1.0 / 3.0, ..Sums::default() };
    let evaluation = (step >= 10).then(evaluation);
    let state = State {
        recipe: "r".into(),
        epoch: step as usize / 10,
        batch: step as usize % 10,
        step,
        sums: Sums { images: step as usize % 10, ..sums },
        evaluation,
        ..State::default()
    };
    let path = save(folder, &state, &tensors).unwrap();
    (state, tensors, path)
}

fn evaluation() -> Evaluation {
    Evaluation::new(&["a".into(), "b".into()], vec![vec![1, 0], vec![1, 0]], 1.0)
}

fn expected(recipe: &str) -> Expected<'_> {
    let shapes = BTreeMap::from([("w".to_string(), vec![2, 2])]);
    Expected { recipe, tied_to_length: false, shapes, epochs: 3, batches: 10 }
}

#[test]
fn a_checkpoint_reads_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (state, tensors, path) = made(folder.path(), 7);
    let bytes = fs::read(&path).unwrap();
    let found = load(&path, &expected("r")).unwrap();
    assert_eq!(found.state, state);
    let values = |tensors: &Tensors| -> Vec<(String, Vec<usize>, Vec<u32>)> {
        let bits = |tensor: &Tensor| {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        tensors.iter().map(|(name, t)| (name.clone(), t.dims().to_vec(), bits(t))).collect()
    };
    assert_eq!(values(&found.tensors), values(&tensors));
    made(folder.path(), 7);
    assert_eq!(fs::read(&path).unwrap(), bytes, "the same state gives the same file");
}

#[test]
fn any_changed_byte_and_any_cut_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (.., path) = made(folder.path(), 7);
    let bytes = fs::read(&path).unwrap();
    for index in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] ^= 4;
        fs::write(&path, &damaged).unwrap();
        // Changed blanks that pad the header say nothing.
        if let Ok(found) = load(&path, &expected("r")) {
            assert_eq!(bytes[index], b' ', "byte {index} of {}", bytes.len());
            assert_eq!(found.state.step, 7);
        }
    }
    for len in 0..bytes.len() {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(load(&path, &expected("r")).is_err(), "cut to {len}");
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path(), 7);
    let (.., newest) = made(folder.path(), 12);
    assert_eq!(latest(folder.path(), &expected("r")).unwrap().unwrap().state.step, 12);
    fs::write(&newest, b"half").unwrap();
    assert_eq!(latest(folder.path(), &expected("r")).unwrap().unwrap().state.step, 7);
}

#[test]
fn the_newest_are_kept_and_the_best() {
    for best in [None, Some(0), Some(3), Some(10)] {
        let folder = tempfile::tempdir().unwrap();
        for step in [0, 3, 5, 10, 15] {
            made(folder.path(), step);
        }
        let best_step = best.map(|step| (step, 0.5));
        prune(folder.path(), 2, &State { step: 10, best_step, ..State::default() }).unwrap();
        let found: Vec<_> = list(folder.path())
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        let mut kept = vec![file_name(5), file_name(10)];
        kept.splice(0..0, best.filter(|step| *step < 5).map(file_name));
        assert_eq!(found, kept);
    }
}

#[test]
fn the_best_is_the_first_of_the_highest() {
    let mut state = State::default();
    for (step, accuracy) in [(7, 0.3), (14, 0.5), (21, 0.5), (28, 0.4)] {
        state.step = step;
        state.count_best(accuracy);
    }
    assert_eq!(state.best_step, Some((14, 0.5)));
}

fn foreign(folder: &Path, recipe: &str) -> String {
    let error = latest(folder, &expected(recipe)).expect_err("it is not taken");
    format!("{error:#}")
}

#[test]
fn another_format_is_not_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path(), 7);
    let (.., newest) = made(folder.path(), 12);
    let mut bytes = fs::read(&newest).unwrap();
    let found = br#"{\"format\":1"#;
    let at = bytes.windows(found.len()).position(|window| window == found).unwrap();
    bytes[at + found.len() - 1] = b'2';
    fs::write(&newest, bytes).unwrap();
    let message = foreign(folder.path(), "r");
    assert!(message.contains("step-000000012.safetensors: this checkpoint has"), "{message}");
    assert!(message.contains("format 2, and this version of kd reads format 1"), "{message}");
}

#[test]
fn another_recipe_is_not_passed_over_and_another_path_of_the_teacher_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let (mut state, tensors, _) = made(folder.path(), 7);
    state.recipe = recipe::TUTORIAL.into();
    state.step = 8;
    state.batch = 8;
    save(folder.path(), &state, &tensors).unwrap();
    let message = foreign(folder.path(), &recipe::TUTORIAL.replace("seed = 0", "seed = 5"));
    assert!(message.contains("training.seed (0 there, 5 asked for)"), "{message}");
    let moved = recipe::TUTORIAL.replace("seed = 0  ", "");
    let found = latest(folder.path(), &expected(&moved)).map(|found| found.unwrap().state.step);
    assert_eq!(found.unwrap(), 8, "a value that is the default need not be written");
}

/// A file that is whole and right in form, made by somebody for this reader.
fn forged(change: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (.., path) = made(folder.path(), 7);
    let contents = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&contents).unwrap();
    let mut data: BTreeMap<_, _> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut data);
    let views: BTreeMap<&str, TensorView<'_>> = data
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    let header = Header { format: FORMAT, sha256: checksum(&views) };
    let header = HashMap::from([(KEY.to_string(), serde_json::to_string(&header).unwrap())]);
    let bytes = safetensors::serialize(views, Some(header)).unwrap();
    format!("{:#}", parse(&bytes, &expected("r")).expect_err("it is refused"))
}

/// The same with another state.
fn forged_state(from: &str, to: &str) -> String {
    forged(|data| {
        let (_, shape, bytes) = data.get_mut("state").unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        *bytes = text.replacen(from, to, 1).into_bytes();
        *shape = vec![bytes.len()];
    })
}

#[test]
fn a_forged_checkpoint_is_refused_by_what_is_wrong() {
    let nan = |name: &'static str| {
        forged(|data| data.get_mut(name).unwrap().2[..4].copy_from_slice(&[0, 0, 0xc0, 0x7f]))
    };
    assert!(nan("parameter/w").contains("parameter/w is NaN at element 0"));
    assert!(nan("adam.first/w").contains("adam.first/w is NaN at element 0"));
    let message = forged(|data| data.get_mut("parameter/w").unwrap().1 = vec![4]);
    assert!(message.contains("parameter/w is F32 [4]; the run's is F32 [2, 2]"), "{message}");
    let message = forged(|data| data.get_mut("parameter/w").unwrap().0 = Dtype::I32);
    assert!(message.contains("parameter/w is I32 [2, 2]"), "{message}");
    let message = forged(|data| _ = data.remove("parameter/w"));
    assert!(message.contains("parameter w is missing"), "{message}");
    let message = forged(|data| _ = data.remove("state"));
    assert!(message.contains("it has no state"), "{message}");
    let message = forged(|data| {
        let entry = data["parameter/w"].clone();
        data.insert("parameter/other".into(), entry);
    });
    assert!(message.contains("parameter/other is not the run's"), "{message}");
    let message = forged(|data| {
        let entry = data["adam.first/w"].clone();
        data.insert("adam.third/w".into(), entry);
    });
    assert!(message.contains("adam.third/w is nothing that a checkpoint holds"), "{message}");

    let message = forged_state("\"batch\":7", "\"batch\":70");
    assert!(message.contains("batch 70 of epoch 0; the run has 3 epochs of 10"), "{message}");
    let message = forged_state("\"epoch\":0", "\"epoch\":9");
    assert!(message.contains("batch 7 of epoch 9"), "{message}");
    let message = forged_state("\"step\":7", "\"step\":18446744073709551615");
    assert!(message.contains("it is at step 18446744073709551615; expected 7"), "{message}");
    let message = forged_state("\"images\":7", "\"images\":0");
    assert!(message.contains("of 0 images"), "{message}");
    let message = forged_state("\"epoch\":0", "\"era\":0");
    assert!(message.contains("its state can't be read: unknown field `era`"), "{message}");
}

#[test]
fn a_header_that_announces_more_than_there_is_is_refused() {
    let contents = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes
    };
    let huge = r#"{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#;
    let far = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1099511627776]}}"#;
    let back = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#;
    let own = r#"{"__metadata__":{"kd-checkpoint":"{\"format\":1,\"sha256\":\"\"}"}}"#;
    let long = [0xff; 16];
    for bytes in [contents(huge), contents(far), contents(back), contents(own), long.to_vec()] {
        assert!(parse(&bytes, &expected("r")).is_err());
    }
}

#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let weight = Tensor::new(&[1.0, f32::NAN], &Device::Cpu).unwrap();
    let tensors = Tensors::from([("parameter/w".to_string(), weight)]);
    let error = save(folder.path(), &State::default(), &tensors);
    let message = format!("{:#}", error.unwrap_err());
    assert!(message.contains("w is NaN at element 1"), "{message}");
    assert!(list(folder.path()).unwrap().is_empty());
}
