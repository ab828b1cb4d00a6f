//! The losses at their edges: small features, rows of zeros, equal rows, half precision, features far from the origin.
//!
//! Values that are written out were computed with 60 digits from the papers' formulas.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use kd_loss::{
    DistConfig, DkdConfig, HelperInit, HostStep, Inputs, METHODS, MethodConfig, RunStep, Setup,
    attention_transfer, build, correlation_congruence, cosine, dist, dkd, helper_parameters, kd,
    mse, pkt, rkd_angle, rkd_distance, similarity_preserving, standardize,
};

const CPU: &Device = &Device::Cpu;

fn var(values: &[f64], shape: &[usize], dtype: DType) -> Var {
    let tensor = Tensor::from_slice(values, shape, CPU).unwrap().to_dtype(dtype).unwrap();
    Var::from_tensor(&tensor).unwrap()
}

/// Numbers in ±2 that look random.
fn ramp(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    Tensor::from_vec(values, shape, CPU).unwrap()
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(
        0.0,
        |largest, value| if value.is_nan() { f64::NAN } else { value.abs().max(largest) },
    )
}

/// The value and the gradient of a loss.
fn both(loss: &Tensor, of: &Var) -> (f64, Vec<f64>) {
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(of).map_or_else(|| vec![0.0; of.elem_count()], flat);
    (flat(loss)[0], gradient)
}

#[track_caller]
fn near(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{found}, expected {expected}");
}

#[test]
fn small_features_keep_their_direction() {
    for dtype in [DType::F32, DType::F64] {
        let teacher = var(&[1.0, 2.0], &[1, 1, 1, 2], dtype);
        for scale in [1.0, 0.1, 1e-2] {
            let student = var(&[2e-4 * scale, 1e-4 * scale], &[1, 1, 1, 2], dtype);
            let (loss, gradient) = both(&attention_transfer(&student, &teacher).unwrap(), &student);
            near(loss, 0.529_411_76, 1e-5);
            near(gradient[0], 2076.12 / scale, 1e-3);
            near(gradient[1], -4152.25 / scale, 1e-3);
        }
        let student = var(&[1e-4, 5e-5, 0.0, 1e-4], &[2, 2], dtype);
        let teacher = var(&[1.0, 0.0, 0.5, 1.0], &[2, 2], dtype);
        let (loss, gradient) = both(&similarity_preserving(&student, &teacher).unwrap(), &student);
        near(loss, 0.003_45, 2e-3);
        near(largest(&gradient), 309.0, 2e-3);
    }
}

/// Each of these was between 2e5 and 2e7.
#[test]
fn rows_without_a_direction_have_no_gradient_that_ends_a_run() {
    let zero = [1.0, 0.5, 0.0, 1.0, 0.0, 0.0];
    let equal = [1.0, 0.5, 1.0, 0.5, 0.0, 1.0];
    let teacher = [1.0, 0.0, 0.5, 1.0, 1.0, 1.0];
    type Loss = fn(&Tensor, &Tensor) -> kd_loss::Result<Tensor>;
    let losses: [(&str, Loss); 6] = [
        ("sp", |s, t| similarity_preserving(s, t)),
        ("pkt", |s, t| pkt(s, t)),
        ("cc", |s, t| correlation_congruence(s, t, 0.4, 2)),
        ("cosine", |s, t| cosine(s, t)),
        ("rkd angle", |s, t| rkd_angle(s, t)),
        ("rkd distance", |s, t| rkd_distance(s, t)),
    ];
    for dtype in [DType::F32, DType::F64] {
        for (name, loss) in losses {
            for values in [zero, equal, [0.0; 6], [0.3; 6]] {
                let student = var(&values, &[3, 2], dtype);
                let (value, gradient) =
                    both(&loss(&student, &var(&teacher, &[3, 2], dtype)).unwrap(), &student);
                let largest = largest(&gradient);
                assert!(value.is_finite() && largest < 5.0, "{name}, {values:?}: {largest}");
                if name == "cosine" && values == zero {
                    assert_eq!(gradient[4..], [0.0, 0.0]);
                }
            }
        }
        // Equal logits, as a last layer that starts from zeros gives them.
        for level in [0.0, 0.1, 5.0] {
            let student = var(&[level; 3], &[1, 3], dtype);
            let teacher = var(&[1.0, 2.0, 4.0], &[1, 3], dtype);
            let standardized =
                kd(&standardize(&student).unwrap(), &standardize(&teacher).unwrap(), 2.0);
            for loss in [standardized, dist(&student, &teacher, &DistConfig::default())] {
                let (value, gradient) = both(&loss.unwrap(), &student);
                assert!(value.is_finite());
                assert_eq!(gradient, [0.0; 3], "level {level}");
            }
        }
    }
}

#[test]
fn distances_far_from_the_origin_are_not_cancelled_away() {
    let values = [100.0, 0.0, 100.01, 0.0, 100.0, 0.02];
    let exact = var(&values, &[3, 2], DType::F32).to_dtype(DType::F64).unwrap();
    let exact = Var::from_tensor(&exact).unwrap();
    let teacher = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0];
    let (reference, _) =
        both(&rkd_distance(&exact, &var(&teacher, &[3, 2], DType::F64)).unwrap(), &exact);
    let student = var(&values, &[3, 2], DType::F32);
    let (loss, gradient) =
        both(&rkd_distance(&student, &var(&teacher, &[3, 2], DType::F32)).unwrap(), &student);
    // 0.01847 and 4.78 of the decimal numbers; 100.01 is no f32.
    near(loss, 0.018_47, 2e-2);
    near(loss, reference, 1e-6);
    near(largest(&gradient), 4.78, 2e-2);
}

#[test]
fn half_precision_is_summed_in_f32() {
    let ones = var(&vec![1.0; 16_384], &[1, 16_384], DType::BF16);
    let zeros = var(&vec![0.0; 16_384], &[1, 16_384], DType::BF16);
    assert_eq!(flat(&mse(&ones, &zeros).unwrap()), [1.0]);
    let labels = Tensor::new(&[0u32, 2], CPU).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        let student = var(&[1.0, 0.5, -0.25, 2.0, -1.0, 0.75], &[2, 3], dtype);
        let teacher = var(&[0.5, 1.5, -1.0, -0.5, 1.0, 3.0], &[2, 3], dtype);
        // All of these numbers are exact in f16 and bf16.
        let [s, t] = [&student, &teacher]
            .map(|x| Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap());
        let losses = |s: &Tensor, t: &Tensor| {
            [
                dkd(s, t, &labels, &DkdConfig::default()).unwrap(),
                dist(s, t, &DistConfig::default()).unwrap(),
                rkd_distance(s, t).unwrap(),
                rkd_angle(s, t).unwrap(),
                pkt(s, t).unwrap(),
                cosine(s, t).unwrap(),
                mse(s, t).unwrap(),
                kd(s, t, 4.0).unwrap(),
            ]
        };
        let exact = losses(&s, &t);
        for (half, exact) in losses(&student, &teacher).iter().zip(&exact) {
            let ((value, gradient), (expected, of)) = (both(half, &student), both(exact, &s));
            assert_eq!(half.dtype(), DType::F32);
            near(value, expected, 1e-5);
            let scale = largest(&of);
            // The gradient is rounded to the input's type at the end, and nowhere before.
            for (found, of) in gradient.iter().zip(&of) {
                assert!((found - of).abs() <= 8e-3 * scale, "{dtype:?}: {gradient:?}, {of:?}");
            }
        }
    }
}

/// The tutorial's pair, in small.
fn setup() -> Setup {
    let place = |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec());
    Setup {
        student: vec![place("early", &[4, 4, 4]), place("late", &[4, 2, 2]), place("vector", &[5])],
        teacher: vec![place("early", &[6, 4, 4]), place("late", &[8, 2, 2]), place("vector", &[7])],
        classes: 6,
        train_labels: vec![0, 1, 2, 3],
    }
}

/// What is done to the student's and the teacher's features and logits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Edge {
    None,
    ZeroRow,
    EqualRows,
    AllZero,
}

/// A method's loss and the gradients of all that the student computes, in `dtype`, of the same numbers rounded to `rounded`.
fn evaluate(
    config: &MethodConfig,
    batch: usize,
    scale: f64,
    edge: Edge,
    rounded: DType,
    dtype: DType,
) -> Result<(f64, Vec<f64>)> {
    let setup = setup();
    let values = |shape: &[usize], shift: usize, scale: f64| -> Result<Tensor> {
        let whole = [&[batch], shape].concat();
        let count: usize = whole.iter().product();
        let x = ramp(&[count + shift]).narrow(0, shift, count)?.reshape(whole)?;
        let x = (x.to_dtype(DType::F64)? * scale)?;
        let row = |i: usize| x.narrow(0, i, 1);
        let x = match edge {
            Edge::None => x,
            Edge::AllZero => x.zeros_like()?,
            Edge::ZeroRow => Tensor::cat(&[row(0)?.zeros_like()?, x.narrow(0, 1, batch - 1)?], 0)?,
            Edge::EqualRows => Tensor::cat(&[row(1)?, x.narrow(0, 1, batch - 1)?], 0)?,
        };
        x.to_dtype(rounded)?.to_dtype(dtype)
    };
    let vars = |places: &[(String, Vec<usize>)], shift: usize| -> Result<BTreeMap<String, Var>> {
        let var = |(name, shape): &(String, Vec<usize>)| {
            Ok((name.clone(), Var::from_tensor(&values(shape, shift, scale)?)?))
        };
        places.iter().map(var).collect()
    };
    let (student, teacher) = (vars(&setup.student, 3)?, vars(&setup.teacher, 11)?);
    let logits = Var::from_tensor(&values(&[setup.classes], 5, scale)?)?;
    let teacher_logits = values(&[setup.classes], 17, scale)?;
    let tensors = |vars: &BTreeMap<String, Var>| -> BTreeMap<String, Tensor> {
        vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
    };
    let mut helpers = std::collections::HashMap::new();
    for parameter in helper_parameters(config, &setup).unwrap() {
        let start = match parameter.init {
            HelperInit::Constant(value) => Tensor::full(value, parameter.shape, CPU)?,
            HelperInit::Uniform(bound) => {
                (ramp(&parameter.shape).to_dtype(DType::F64)? * (bound / 2.0))?
            }
        };
        helpers.insert(parameter.name, start.to_dtype(rounded)?.to_dtype(dtype)?);
    }
    let vb = VarBuilder::from_tensors(helpers, dtype, CPU);
    let method = build(&config.resolve(&setup).unwrap(), &setup, vb).unwrap();
    let labels = Tensor::from_vec((0..batch as u32).map(|i| i % 6).collect(), batch, CPU)?;
    let indices: Vec<u32> = (0..batch as u32).collect();
    let at = RunStep { step: 1, steps: 10 };
    let host = HostStep { indices: &indices, seed: 3, epoch: 0, epochs: 1, at };
    let (student_features, teacher_features) = (tensors(&student), tensors(&teacher));
    let inputs = Inputs {
        teacher_logits: Some(&teacher_logits),
        student_features: &student_features,
        teacher_features: &teacher_features,
        host: method.needs().host.then_some(host),
        ..Inputs::new(&logits, &labels)
    };
    let loss = method.loss(&inputs).unwrap();
    let gradients = loss.backward()?;
    let learned = student.values().chain([&logits]);
    let gradient = learned.filter_map(|var| gradients.get(var)).flat_map(flat).collect();
    Ok((flat(&loss)[0], gradient))
}

/// The methods as the list has them; CRD with as many negatives as these few images allow.
fn configs() -> Vec<MethodConfig> {
    let mut all: Vec<_> =
        METHODS.iter().map(|method| MethodConfig::from_name(method.name).unwrap()).collect();
    for config in &mut all {
        if let MethodConfig::Crd(crd) = config {
            (crd.negatives, crd.dim) = (3, 4);
        }
    }
    all.extend(
        ["name = 'kd'\nstandardize = true", "name = 'dkd'\nstandardize = true"]
            .map(|text| toml::from_str(text).unwrap()),
    );
    all
}

/// f32 and the half types agree with f64 at every scale, for one image and for four.
#[test]
fn every_method_agrees_with_f64_at_every_scale() {
    for config in configs() {
        for scale in [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6] {
            // DIST divides probabilities by their deviation: of logits 1e-6 apart f32 holds one digit of it.
            if scale < 1e-4 && matches!(config, MethodConfig::Dist(_)) {
                continue;
            }
            for batch in [1, 4] {
                for rounded in [DType::F32, DType::BF16, DType::F16] {
                    // Below 6e-8 and above 65504 there is no f16.
                    if rounded == DType::F16 && !(1e-2..=1e2).contains(&scale) {
                        continue;
                    }
                    let of = |dtype| {
                        evaluate(&config, batch, scale, Edge::None, rounded, dtype).unwrap()
                    };
                    let ((loss, gradient), (expected, exact)) = (of(rounded), of(DType::F64));
                    let case = format!("{config:?}, scale {scale}, batch {batch}, {rounded:?}");
                    let close = if rounded == DType::F32 { 2e-3 } else { 2e-2 };
                    assert!(
                        (loss - expected).abs() <= close * expected.abs() + 5e-5,
                        "{case}: {loss}, {expected}"
                    );
                    let largest = largest(&exact);
                    assert_eq!(gradient.len(), exact.len(), "{case}");
                    for (found, exact) in gradient.iter().zip(&exact) {
                        let difference = (found - exact).abs();
                        assert!(
                            difference <= close * largest + 1e-6,
                            "{case}: {found}, {exact}, largest {largest}"
                        );
                    }
                }
            }
        }
    }
}

/// Zero rows, equal rows and zeros alone: finite, and no gradient beyond what ordinary inputs have.
#[test]
fn every_method_is_finite_at_every_edge() {
    for config in configs() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let (_, usual) = evaluate(&config, 4, 1.0, Edge::None, dtype, dtype).unwrap();
            let bound = 100.0 * largest(&usual) + 1.0;
            for edge in [Edge::ZeroRow, Edge::EqualRows, Edge::AllZero] {
                let (loss, gradient) = evaluate(&config, 4, 1.0, edge, dtype, dtype).unwrap();
                let largest = largest(&gradient);
                assert!(loss.is_finite(), "{config:?}, {edge:?}, {dtype:?}: {loss}");
                assert!(
                    largest <= bound,
                    "{config:?}, {edge:?}, {dtype:?}: {largest} above {bound}"
                );
            }
        }
    }
}
