//! Values and gradients agree with PyTorch's, computed in f64 (parity/make_fixtures.py).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use kd_loss::{
    Inputs, MethodConfig, Setup, build, cosine, cross_entropy, cross_entropy_smoothed, kd,
    kd_with_labels,
};

type Fixture = HashMap<String, Tensor>;

fn fixture() -> Fixture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    candle_core::safetensors::load(folder.join("losses.safetensors"), &Device::Cpu).unwrap()
}

fn labels(fixture: &Fixture) -> Tensor {
    fixture["labels"].to_dtype(DType::U32).unwrap()
}

/// Compares a loss and its gradients with case `name`; the inputs in PyTorch's order.
fn assert_agrees(fixture: &Fixture, name: &str, loss: &Tensor, inputs: &[&Var]) {
    let expected = fixture[&format!("{name}.value")].to_scalar::<f64>().unwrap();
    let value = f64::from(loss.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap());
    let slack = 1e-6 + 1e-6 * expected.abs();
    assert!((value - expected).abs() <= slack, "{name}: {value}, PyTorch has {expected}");
    let grads = loss.backward().unwrap();
    for (position, input) in inputs.iter().enumerate() {
        let grad =
            grads.get(input).unwrap_or_else(|| panic!("{name}: input {position}, no gradient"));
        let expected = &fixture[&format!("{name}.grad.{position}")];
        assert_eq!(grad.dims(), expected.dims(), "{name}");
        let expected = expected.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let grad =
            grad.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (i, (ours, theirs)) in grad.iter().zip(&expected).enumerate() {
            let slack = 2e-7 + 1e-5 * theirs.abs();
            assert!(
                (ours - theirs).abs() <= slack,
                "{name}: gradient {position}[{i}] is {ours}, PyTorch has {theirs}"
            );
        }
    }
}

const LOGITS: [&str; 4] = ["small", "equal", "large", "extreme"];

/// Runs a loss of the logits in f32 (one fused operation) and in f64 (candle's operations).
fn for_each_logits(loss: impl Fn(&Fixture, &str, &Var, &Tensor)) {
    let fixture = fixture();
    for name in LOGITS {
        for dtype in [DType::F32, DType::F64] {
            let student = fixture[&format!("{name}.student")].to_dtype(dtype).unwrap();
            let teacher = fixture[&format!("{name}.teacher")].to_dtype(dtype).unwrap();
            loss(&fixture, name, &Var::from_tensor(&student).unwrap(), &teacher);
        }
    }
}

#[test]
fn cross_entropy_agrees_with_pytorch() {
    for_each_logits(|fixture, name, student, _| {
        let loss = cross_entropy(student, &labels(fixture)).unwrap();
        assert_agrees(fixture, &format!("{name}.cross_entropy"), &loss, &[student]);
    });
}

#[test]
fn smoothed_cross_entropy_agrees_with_pytorch() {
    for_each_logits(|fixture, name, student, _| {
        for smoothing in [0.1, 1.0] {
            let loss = cross_entropy_smoothed(student, &labels(fixture), smoothing).unwrap();
            assert_agrees(fixture, &format!("{name}.smoothed_{smoothing:.1}"), &loss, &[student]);
        }
    });
}

#[test]
fn kd_agrees_with_pytorch() {
    for_each_logits(|fixture, name, student, teacher| {
        for temperature in [0.5, 1.0, 2.0, 4.0, 20.0] {
            let loss = kd(student, teacher, temperature).unwrap();
            assert_agrees(fixture, &format!("{name}.kd_{temperature:.1}"), &loss, &[student]);
        }
    });
}

#[test]
fn kd_with_labels_agrees_with_pytorch() {
    for_each_logits(|fixture, name, student, teacher| {
        let loss = kd_with_labels(student, teacher, &labels(fixture), 2.0, 0.75).unwrap();
        assert_agrees(fixture, &format!("{name}.kd_with_labels"), &loss, &[student]);
    });
}

#[test]
fn cosine_agrees_with_pytorch() {
    let fixture = fixture();
    for name in ["cosine_equal", "cosine_pooled", "cosine_pooled3", "cosine_same"] {
        let student = Var::from_tensor(&fixture[&format!("{name}.student")]).unwrap();
        let loss = cosine(&student, &fixture[&format!("{name}.teacher")]).unwrap();
        assert_agrees(&fixture, name, &loss, &[&student]);
    }
}

#[test]
fn the_regressor_agrees_with_pytorch() {
    let fixture = fixture();
    let var = |name: &str| Var::from_tensor(&fixture[&format!("regressor.{name}")]).unwrap();
    let (student, weight, bias) = (var("student"), var("weight"), var("bias"));
    let vb = VarBuilder::from_tensors(
        HashMap::from([
            ("regressor.0.weight".to_string(), weight.as_tensor().clone()),
            ("regressor.0.bias".to_string(), bias.as_tensor().clone()),
        ]),
        DType::F32,
        &Device::Cpu,
    );
    let shapes = Setup {
        student: vec![("features.5".into(), vec![4, 5, 5]), ("classifier.1".into(), vec![9])],
        teacher: vec![("features.9".into(), vec![6, 5, 5]), ("classifier.1".into(), vec![9])],
        classes: 10,
        ..Setup::default()
    };
    let method = build(&MethodConfig::from_name("regressor").unwrap(), &shapes, vb).unwrap();
    let features =
        |name: &str, tensor: &Tensor| BTreeMap::from([(name.to_string(), tensor.clone())]);
    let logits = Tensor::zeros((2, 10), DType::F32, &Device::Cpu).unwrap();
    let labels = Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap();
    let inputs = Inputs {
        student_features: &features("features.5", &student),
        teacher_features: &features("features.9", &fixture["regressor.teacher"]),
        ..Inputs::new(&logits, &labels)
    };
    let loss = method.loss(&inputs).unwrap();
    assert_agrees(&fixture, "regressor", &loss, &[&student, &weight, &bias]);
}
