//! Values against the formulas in plain f64, gradients against finite differences, extreme logits.

use candle_core::{DType, Device, Tensor, Var};
use kd_loss::{cosine, cross_entropy, cross_entropy_smoothed, kd, mse};
use proptest::prelude::*;

fn softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let max = z.iter().copied().fold(f64::MIN, f64::max);
    let e: Vec<f64> = z.iter().map(|z| ((z - max) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

fn cross_entropy_formula(z: &[Vec<f64>], labels: &[u32], smoothing: f64) -> f64 {
    let row = |(z, &label): (&Vec<f64>, &u32)| {
        let p = softmax(z, 1.0);
        let even = p.iter().map(|p| p.ln()).sum::<f64>() / p.len() as f64;
        -(1.0 - smoothing) * p[label as usize].ln() - smoothing * even
    };
    z.iter().zip(labels).map(row).sum::<f64>() / z.len() as f64
}

fn kd_formula(student: &[Vec<f64>], teacher: &[Vec<f64>], t: f64) -> f64 {
    let row = |(s, z): (&Vec<f64>, &Vec<f64>)| {
        let (p, q) = (softmax(s, t), softmax(z, t));
        p.iter().zip(&q).map(|(p, q)| q * (q / p).ln()).sum::<f64>()
    };
    t * t * student.iter().zip(teacher).map(row).sum::<f64>() / student.len() as f64
}

fn cosine_formula(student: &[Vec<f64>], teacher: &[Vec<f64>]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let row = |(s, t): (&Vec<f64>, &Vec<f64>)| {
        let pool = t.len() / s.len();
        let t: Vec<f64> =
            t.chunks(pool).map(|group| group.iter().sum::<f64>() / pool as f64).collect();
        1.0 - dot(s, &t) / (dot(s, s).sqrt() * dot(&t, &t).sqrt())
    };
    student.iter().zip(teacher).map(row).sum::<f64>() / student.len() as f64
}

fn tensor(rows: &[Vec<f64>]) -> Tensor {
    let shape = (rows.len(), rows[0].len());
    let tensor = Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F32).unwrap()
}

/// Checks a loss's value against a formula, and its gradient against the formula's differences.
fn check(
    student: &[Vec<f64>],
    loss: impl Fn(&Tensor) -> Tensor,
    formula: impl Fn(&[Vec<f64>]) -> f64,
) {
    // What f32 makes of the inputs is what is differentiated.
    let student: Vec<Vec<f64>> =
        student.iter().map(|row| row.iter().map(|&x| f64::from(x as f32)).collect()).collect();
    let var = Var::from_tensor(&tensor(&student)).unwrap();
    let value = loss(&var);
    let ours = f64::from(value.to_scalar::<f32>().unwrap());
    let expected = formula(&student);
    assert!((ours - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{ours}, formula {expected}");
    let grad = value.backward().unwrap().get(&var).unwrap().to_vec2::<f32>().unwrap();
    for (row, grad) in grad.iter().enumerate() {
        for (column, &grad) in grad.iter().enumerate() {
            let h = 1e-5;
            let mut moved = student.clone();
            moved[row][column] += h;
            let above = formula(&moved);
            moved[row][column] -= 2.0 * h;
            let difference = (above - formula(&moved)) / (2.0 * h);
            let slack = 1e-5 * (1.0 + difference.abs());
            assert!(
                (f64::from(grad) - difference).abs() < slack,
                "gradient [{row}, {column}] is {grad}, by differences {difference}"
            );
        }
    }
}

fn rows(rows: usize, columns: usize, scale: f64) -> impl Strategy<Value = Vec<Vec<f64>>> {
    let row = prop::collection::vec(-scale..scale, columns);
    prop::collection::vec(
        row.prop_map(|row| row.into_iter().map(|x| f64::from(x as f32)).collect()),
        rows,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cross_entropy_has_the_formulas_value_and_gradient(
        z in rows(3, 5, 8.0), labels in prop::collection::vec(0u32..5, 3), smoothing in 0.0..=1.0,
    ) {
        let tensor = Tensor::new(labels.clone(), &Device::Cpu).unwrap();
        check(&z, |z| cross_entropy(z, &tensor).unwrap(), |z| cross_entropy_formula(z, &labels, 0.0));
        check(
            &z,
            |z| cross_entropy_smoothed(z, &tensor, smoothing).unwrap(),
            |z| cross_entropy_formula(z, &labels, smoothing),
        );
    }

    #[test]
    fn kd_has_the_formulas_value_and_gradient(
        student in rows(3, 5, 8.0), teacher in rows(3, 5, 8.0), temperature in 0.7..20.0,
    ) {
        check(
            &student,
            |student| kd(student, &tensor(&teacher), temperature).unwrap(),
            |student| kd_formula(student, &teacher, temperature),
        );
    }

    #[test]
    fn cosine_has_the_formulas_value_and_gradient(student in rows(3, 4, 2.0), teacher in rows(3, 12, 2.0)) {
        // Near zero the direction changes too fast for differences.
        prop_assume!(student.iter().all(|row| row.iter().any(|x| x.abs() > 0.5)));
        check(
            &student,
            |student| cosine(student, &tensor(&teacher)).unwrap(),
            |student| cosine_formula(student, &teacher),
        );
    }

    #[test]
    fn mse_has_the_formulas_value_and_gradient(student in rows(3, 4, 2.0), teacher in rows(3, 4, 2.0)) {
        let formula = |student: &[Vec<f64>]| {
            let pairs = student.concat().into_iter().zip(teacher.concat());
            pairs.map(|(s, t)| (s - t).powi(2)).sum::<f64>() / 12.0
        };
        check(&student, |student| mse(student, &tensor(&teacher)).unwrap(), formula);
    }

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

/// KL(teacher ‖ student), not the other way round: a teacher that is sure makes it cross-entropy.
#[test]
fn kl_has_the_teacher_first() {
    let student = Tensor::new(&[[0f32, 0.0]], &Device::Cpu).unwrap();
    let teacher = Tensor::new(&[[0f32, 1e4]], &Device::Cpu).unwrap();
    let value = kd(&student, &teacher, 1.0).unwrap().to_scalar::<f32>().unwrap();
    assert!((value - 2f32.ln()).abs() < 1e-6, "{value}");
}

/// T² keeps the gradient's size: at a high temperature it is (z_s - z_t) / C per image, whatever T.
#[test]
fn the_gradient_at_a_high_temperature_does_not_depend_on_it() {
    for temperature in [100.0, 1000.0] {
        let student = Var::new(&[[1f32, -1.0]], &Device::Cpu).unwrap();
        let teacher = Tensor::new(&[[-0.5f32, 0.5]], &Device::Cpu).unwrap();
        let grads = kd(&student, &teacher, temperature).unwrap().backward().unwrap();
        let grad = grads.get(&student).unwrap().to_vec2::<f32>().unwrap();
        assert!((grad[0][0] - 0.75).abs() < 1e-3, "{grad:?}");
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
fn a_feature_vector_of_zeros_has_a_finite_gradient() {
    let student = Var::new(&[[0f32, 0.0], [1.0, 2.0]], &Device::Cpu).unwrap();
    let teacher = Tensor::new(&[[1f32, 2.0], [0.0, 0.0]], &Device::Cpu).unwrap();
    let loss = cosine(&student, &teacher).unwrap();
    assert!((loss.to_scalar::<f32>().unwrap() - 1.0).abs() < 1e-6);
    let grads = loss.backward().unwrap();
    let grad = grads.get(&student).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(grad.iter().all(|x| x.is_finite()), "{grad:?}");
}

#[test]
fn the_teacher_gets_no_gradient_and_the_student_does() {
    let student = Var::new(&[[0.5f32, 1.0], [2.0, -1.0]], &Device::Cpu).unwrap();
    let teacher = Var::new(&[[1f32, 2.0], [0.0, 3.0]], &Device::Cpu).unwrap();
    let double = |var: &Var| Var::from_tensor(&var.to_dtype(DType::F64).unwrap()).unwrap();
    for (student, teacher) in [(double(&student), double(&teacher)), (student, teacher)] {
        let losses = [
            ("kd", kd(&student, &teacher, 2.0)),
            ("cosine", cosine(&student, &teacher)),
            ("mse", mse(&student, &teacher)),
        ];
        for (name, loss) in losses {
            let grads = loss.unwrap().backward().unwrap();
            let grad = grads.get(&student).unwrap_or_else(|| panic!("{name}: no gradient"));
            let sum = grad.abs().unwrap().sum_all().unwrap().to_dtype(DType::F32).unwrap();
            assert!(sum.to_scalar::<f32>().unwrap() > 0.0, "{name}");
            assert!(grads.get(&teacher).is_none(), "{name}: the teacher has a gradient");
        }
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
