//! The one operation for labels and soft targets, against candle's operations in f64.

use candle_core::{DType, Device, Tensor, Var};
use kd_loss::{
    Inputs, MethodConfig, Objective, RunStep, Setup, Weighted, build, cross_entropy, kd,
    kd_with_labels,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Case {
    student: Var,
    teacher: Tensor,
    labels: Tensor,
}

/// Logits in ±`scale`, rounded to `dtype`.
fn case(batch: usize, classes: usize, scale: f64, dtype: DType) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64((batch * classes) as u64);
    let mut logits = || {
        let values: Vec<f64> =
            (0..batch * classes).map(|_| rng.random_range(-scale..scale)).collect();
        let logits = Tensor::from_vec(values, (batch, classes), &Device::Cpu).unwrap();
        logits.to_dtype(dtype).unwrap()
    };
    let (student, teacher) = (Var::from_tensor(&logits()).unwrap(), logits());
    let labels: Vec<u32> = (0..batch).map(|_| rng.random_range(0..classes as u32)).collect();
    Case { student, teacher, labels: Tensor::new(labels, &Device::Cpu).unwrap() }
}

impl Case {
    /// The same numbers in f64, for which candle's operations compute the losses.
    fn in_f64(&self) -> Self {
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let student = Var::from_tensor(&wide(&self.student)).unwrap();
        Self { student, teacher: wide(&self.teacher), labels: self.labels.clone() }
    }

    fn loss(&self, temperature: f64, alpha: f64) -> Tensor {
        kd_with_labels(&self.student, &self.teacher, &self.labels, temperature, alpha).unwrap()
    }
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, absolute: f64, relative: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    for (i, (a, b)) in numbers(found).into_iter().zip(numbers(expected)).enumerate() {
        let slack = absolute + relative * b.abs();
        assert!((a - b).abs() <= slack, "{what} [{i}] is {a}, in f64 {b}");
    }
}

#[test]
fn value_and_gradient_are_those_of_f64() {
    for (batch, classes) in [(1, 1), (1, 2), (1, 10), (5, 7), (128, 10), (3, 1001), (1, 100_000)] {
        for (dtype, rounding) in
            [(DType::F32, 1e-6), (DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 1024.0)]
        {
            let what = format!("{dtype:?} [{batch}, {classes}]");
            let case = case(batch, classes, 8.0, dtype);
            let wide = case.in_f64();
            let (loss, expected) = (case.loss(3.0, 0.3), wide.loss(3.0, 0.3));
            assert_eq!(loss.dtype(), DType::F32, "{what}");
            // The inputs are the same numbers and everything inside is f64, so the value is exact to f32.
            assert_close(&what, &loss, &expected, 1e-7, 1e-6);
            // Something multiplied in afterwards, as a loss scale is.
            let gradient = (loss * 512.0).unwrap().backward().unwrap();
            let gradient = gradient.get(&case.student).unwrap();
            assert_eq!(gradient.dtype(), dtype, "{what}");
            let expected = (expected * 512.0).unwrap().backward().unwrap();
            let smallest = if dtype == DType::F32 { 1e-9 } else { 6e-8 };
            assert_close(&what, gradient, expected.get(&wide.student).unwrap(), smallest, rounding);
        }
    }
}

#[test]
fn logits_far_apart_have_the_right_value_and_gradient() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let case = case(6, 5, 1e4, dtype);
        let wide = case.in_f64();
        let (loss, expected) = (case.loss(2.0, 0.75), wide.loss(2.0, 0.75));
        assert_close("value", &loss, &expected, 0.0, 1e-6);
        let (loss, expected) = (loss.backward().unwrap(), expected.backward().unwrap());
        let (loss, expected) = (loss.get(&case.student), expected.get(&wide.student));
        assert_close("gradient", loss.unwrap(), expected.unwrap(), 1e-7, 1.0 / 256.0);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let case = case(301, 257, 4.0, DType::F32);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let loss = case.loss(2.0, 0.75);
            let gradient = loss.backward().unwrap().get(&case.student).unwrap().clone();
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (loss.to_scalar::<f32>().unwrap().to_bits(), gradient)
        })
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

#[test]
fn backward_can_be_asked_twice() {
    let case = case(4, 9, 4.0, DType::F32);
    let loss = case.loss(2.0, 0.75);
    let once = || numbers(loss.backward().unwrap().get(&case.student).unwrap());
    assert_eq!(once(), once());
}

#[test]
fn the_teacher_gets_no_gradient_from_the_sum() {
    let case = case(4, 9, 4.0, DType::F32);
    let teacher = Var::from_tensor(&case.teacher).unwrap();
    let loss = kd_with_labels(&case.student, &teacher, &case.labels, 2.0, 0.75).unwrap();
    let gradients = loss.backward().unwrap();
    assert!(gradients.get(&teacher).is_none() && gradients.get(&case.student).is_some());
}

/// A teacher in bf16 is widened to the student's f32.
#[test]
fn a_teachers_logits_may_be_bf16() {
    let case = case(4, 9, 4.0, DType::F32);
    let teacher = case.teacher.to_dtype(DType::BF16).unwrap();
    let loss = kd(&case.student, &teacher, 2.0).unwrap().to_scalar::<f32>().unwrap();
    let same = kd(&case.student, &teacher.to_dtype(DType::F32).unwrap(), 2.0).unwrap();
    assert_eq!(loss, same.to_scalar::<f32>().unwrap());
}

#[test]
fn a_class_that_is_masked_out_leaves_the_labels_loss_finite() {
    let logits = Var::new(&[[1.0f32, f32::NEG_INFINITY, 0.0]], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[0u32], &Device::Cpu).unwrap();
    let loss = cross_entropy(&logits, &labels).unwrap();
    assert!((loss.to_scalar::<f32>().unwrap() - (1.0 + (-1f32).exp()).ln()).abs() < 1e-6);
    assert_eq!(numbers(loss.backward().unwrap().get(&logits).unwrap())[1], 0.0);
}

/// An objective makes one operation of labels and KD, whatever stands beside them.
#[test]
fn an_objective_has_the_fused_sum_and_its_parts() {
    let case = case(6, 10, 4.0, DType::F32);
    let shapes = Setup { classes: 10, ..Setup::default() };
    let method = |recipe: &str| {
        let config: MethodConfig = toml::from_str(recipe).unwrap();
        let vb = candle_nn::VarBuilder::zeros(DType::F32, &Device::Cpu);
        build(&config, &shapes, vb).unwrap()
    };
    let inputs =
        Inputs { teacher_logits: Some(&case.teacher), ..Inputs::new(&case.student, &case.labels) };
    let at = RunStep::default();
    let plain = || Weighted::new("kd", 0.25, method("name = 'kd'\ntemperature = 2.0"));
    let loss = Objective::new(0.75, vec![plain()]).unwrap().loss(&inputs, at).unwrap();
    let expected = case.loss(2.0, 0.75);
    assert_eq!(numbers(&loss.total), numbers(&expected));
    let of = |loss: &Tensor| numbers(loss.backward().unwrap().get(&case.student).unwrap());
    assert_eq!(of(&loss.total), of(&expected));
    let parts = |loss: &kd_loss::Loss| -> Vec<(&str, f64)> {
        loss.parts.iter().map(|(name, part)| (*name, numbers(part)[0])).collect()
    };
    let labels = numbers(&cross_entropy(&case.student, &case.labels).unwrap())[0];
    let soft = numbers(&kd(&case.student, &case.teacher, 2.0).unwrap())[0];
    assert_eq!(parts(&loss), [("labels", labels), ("kd", soft)]);

    // Others before and after it, one of them KD with another temperature and one standardised.
    let terms = vec![
        Weighted::new("dist", 2.0, method("name = 'dist'")),
        plain(),
        Weighted::new("kd", 0.5, method("name = 'kd'\ntemperature = 4.0")),
        Weighted::new("kd", 0.125, method("name = 'kd'\nstandardize = true")),
    ];
    let loss = Objective::new(0.75, terms).unwrap().loss(&inputs, at).unwrap();
    let found = parts(&loss);
    let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["labels", "dist", "kd", "kd", "kd"]);
    let weights = [0.75, 2.0, 0.25, 0.5, 0.125];
    let sum: f64 = found.iter().zip(weights).map(|((_, part), weight)| part * weight).sum();
    assert!((numbers(&loss.total)[0] - sum).abs() < 1e-6 * sum, "{found:?}");
    assert_eq!((found[0].1, found[2].1), (labels, soft));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any logits up to 1e4 apart give a finite value and gradient, and KL is never negative.
    #[test]
    fn extreme_logits_stay_finite(
        student in prop::collection::vec(prop::sample::select(vec![-1e4f32, -1.0, 0.0, 1e4]), 6),
        teacher in prop::collection::vec(prop::sample::select(vec![-1e4f32, -1.0, 0.0, 1e4]), 6),
        temperature in prop::sample::select(vec![0.1, 1.0, 2.0, 100.0]),
        dtype in prop::sample::select(vec![DType::F32, DType::F64]),
    ) {
        let make = |values: Vec<f32>| {
            Tensor::from_vec(values, (2, 3), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        let student = Var::from_tensor(&make(student)).unwrap();
        let teacher = make(teacher);
        let labels = Tensor::new(&[0u32, 2], &Device::Cpu).unwrap();
        let soft = kd(&student, &teacher, temperature).unwrap();
        let hard = cross_entropy(&student, &labels).unwrap();
        for loss in [soft, hard] {
            let value = loss.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
            prop_assert!(value.is_finite() && value >= -1e-6, "value {value}");
            let grads = loss.backward().unwrap();
            let grad = grads.get(&student).unwrap().to_dtype(DType::F64).unwrap();
            let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            prop_assert!(grad.iter().all(|x| x.is_finite()), "gradient {grad:?}");
        }
    }
}

#[test]
fn a_diverged_network_gives_nan_and_is_not_hidden() {
    let labels = Tensor::new(&[0u32], &Device::Cpu).unwrap();
    let good = Tensor::new(&[[0f32, 1.0]], &Device::Cpu).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let bad = Tensor::new(&[[0f32, bad]], &Device::Cpu).unwrap();
        assert!(cross_entropy(&bad, &labels).unwrap().to_scalar::<f32>().unwrap().is_nan());
        assert!(kd(&bad, &good, 2.0).unwrap().to_scalar::<f32>().unwrap().is_nan());
        assert!(kd(&good, &bad, 2.0).unwrap().to_scalar::<f32>().unwrap().is_nan());
    }
}

#[test]
fn logits_that_are_a_view_give_the_same_loss() {
    let z = Tensor::new(&[[1f32, 5.0], [2.0, 0.0], [3.0, -1.0]], &Device::Cpu).unwrap();
    let view = z.t().unwrap();
    let labels = Tensor::new(&[0u32, 2], &Device::Cpu).unwrap();
    let value = |z: &Tensor| cross_entropy(z, &labels).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(value(&view), value(&view.contiguous().unwrap()));
    let rows = Tensor::cat(&[&z, &z], 0).unwrap().narrow(0, 1, 2).unwrap();
    let labels = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
    let value = |z: &Tensor| kd(z, &rows, 2.0).unwrap().to_scalar::<f32>().unwrap();
    assert!(value(&rows).abs() < 1e-6);
    cross_entropy(&rows, &labels).unwrap();
}
