//! The losses at their edges: small features, rows of zeros, equal rows, half precision, features far from the origin, with values that
//! were computed with 60 digits from the papers' formulas, or by PyTorch where that is said.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use candle_nn::VarBuilder;
use kd_loss::{
    DistConfig, DkdConfig, Inputs, MethodConfig, Setup, attention_transfer, build,
    correlation_congruence, cosine, crd_nce, dist, dkd, helper_parameters, kd, kd_with_labels, mse,
    nst, pkt, rkd_angle, rkd_distance, similarity_preserving, standardize, vid,
};

mod numbers;

use numbers::{CPU, flat, largest, ramp, var};

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
                if ["pkt", "cc", "cosine"].contains(&name) && values == zero {
                    assert_eq!(gradient[4..], [0.0, 0.0], "{name}");
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

/// PyTorch adds 1e-12 to each squared length, and its values are kept (torch 2, f64): at features of 1e-3 nothing is seen of it, at 1e-6 the
/// cosine of 4/5 is 2/3.
#[test]
fn the_cosine_of_small_features_is_pytorchs() {
    for dtype in [DType::F32, DType::F64] {
        for (ours, theirs, value, gradient) in [
            (1e-3, 1.0, 0.200_000_080_000_07, [-240.000_008, 119.999_924]),
            (1e-5, 1.0, 0.200_798_801_993_4, [-24_007.940_179_5, 11_924.209_491_5]),
            (1e-6, 1e-6, 0.333_333_332_889_4, [-222_222.222_296, 55_555.555_740_5]),
            (1e-6, 1e6, 0.269_703_256_416_6, [-243_432.247_780_1, 60_858.062_127_4]),
        ] {
            let student = var(&[ours, 2.0 * ours], &[1, 2], dtype);
            let teacher = var(&[2.0 * theirs, theirs], &[1, 2], dtype);
            let (loss, of) = both(&cosine(&student, &teacher).unwrap(), &student);
            near(loss, value, 2e-6);
            near(of[0], gradient[0], 1e-5);
            near(of[1], gradient[1], 1e-5);
        }
    }
}

/// Probabilities of logits that are nearly equal differ by less than f32 can say of numbers near 1/C; their correlations are those of the
/// logits all the same. Values and gradients are of the authors' formula in f64 (PyTorch), of the same f32 logits.
#[test]
fn correlations_of_nearly_equal_logits_are_not_rounded_away() {
    let cases = [
        (
            1e-3,
            0.283_826_971_275,
            [60.491_034_8, -101.937_358_5, 41.446_323_7, 21.654_511_6, -3.802_782_5, -17.851_729],
        ),
        (
            1e-5,
            0.361_260_384_026,
            [3_160.328_93, -12_820.741_02, 9_660.412_1, 5_034.663_89, 2_260.728_68, -7_295.392_57],
        ),
    ];
    for dtype in [DType::F32, DType::F64] {
        let teacher = var(&[2.0, 3.0, -1.0, 0.5, 4.0, 1.0], &[2, 3], dtype);
        for (scale, value, gradient) in cases {
            let logits = [3.0, 1.0, -2.0, 1.0, 5.0, 0.0].map(|z| f64::from((z * scale) as f32));
            let student = var(&logits, &[2, 3], dtype);
            let loss =
                dist(&student, &teacher, &DistConfig { temperature: 1.0, ..DistConfig::default() });
            let (loss, of) = both(&loss.unwrap(), &student);
            near(loss, value, 2e-6);
            of.iter().zip(gradient).for_each(|(found, expected)| near(*found, expected, 2e-5));
        }
    }
}

/// Where f32 has no room for the derivative, it is 0 as at zeros.
#[test]
fn rows_too_short_for_f32_are_rows_of_zeros() {
    type Loss = fn(&Tensor, &Tensor) -> kd_loss::Result<Tensor>;
    let losses: [(&str, Loss); 4] = [
        ("sp", |s, t| similarity_preserving(s, t)),
        ("pkt", |s, t| pkt(s, t)),
        ("cc", |s, t| correlation_congruence(s, t, 0.4, 2)),
        ("cosine", |s, t| cosine(s, t)),
    ];
    for dtype in [DType::F32, DType::F64] {
        let teacher = var(&[1.0, 0.0, 0.5, 1.0, 1.0, 1.0], &[3, 2], dtype);
        for scale in [2e-17, 1e-18, 1e-19, 1e-20, 1e-22, 1e-25, 1e-30, 1e-40] {
            let tiny = [1.0, 0.5, 2.0 * scale, -scale, 0.0, 1.0];
            let zero = [1.0, 0.5, 0.0, 0.0, 0.0, 1.0];
            for (name, loss) in losses {
                let [(value, gradient), (expected, of)] = [tiny, zero].map(|values| {
                    let student = var(&values, &[3, 2], dtype);
                    both(&loss(&student, &teacher).unwrap(), &student)
                });
                near(value, expected, 1e-6);
                let difference: Vec<f64> = gradient.iter().zip(&of).map(|(a, b)| a - b).collect();
                assert!(largest(&difference) < 1e-6, "{name}, {scale}: {gradient:?}, {of:?}");
            }
            // The first two images are nearly equal.
            let near_pair = [0.0, 0.0, 2.0 * scale, -scale, 0.0, 1.0];
            let relations: [(&str, Loss); 2] =
                [("angle", |s, t| rkd_angle(s, t)), ("distance", |s, t| rkd_distance(s, t))];
            for (name, loss) in relations {
                let student = var(&near_pair, &[3, 2], dtype);
                let (value, gradient) = both(&loss(&student, &teacher).unwrap(), &student);
                let largest = largest(&gradient);
                assert!(value.is_finite() && largest < 5.0, "rkd {name}, {scale}: {gradient:?}");
            }
            // A channel that is nearly dead.
            let maps = [3, 2, 1, 1].as_slice();
            let (student, teacher) = (var(&tiny, maps, dtype), teacher.reshape(maps).unwrap());
            let (value, gradient) = both(&nst(&student, &teacher).unwrap(), &student);
            assert!(value.is_finite() && largest(&gradient) < 5.0, "nst, {scale}: {gradient:?}");
        }
        // Attention maps are squares: features of 1e-9 make a map of 1e-18.
        for scale in [1e-9, 1e-11, 1e-12, 1e-20, 1e-30] {
            let student = var(&[2.0 * scale, scale, 0.0, scale], &[1, 1, 2, 2], dtype);
            let teacher = var(&[1.0, 2.0, 1.0, 1.0], &[1, 1, 2, 2], dtype);
            let (value, gradient) =
                both(&attention_transfer(&student, &teacher).unwrap(), &student);
            assert!(value.is_finite(), "{scale}");
            assert_eq!(gradient, [0.0; 4], "{scale}");
        }
    }
}

/// Similarities of 1 at Z 1, as many images as negatives: h = 1/2 for each, so the loss is log 2 for each column. In bf16 sums stop at 256.
#[test]
fn contrast_of_half_precision_is_summed_in_f32() {
    for columns in [8, 1025] {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let ones = var(&vec![1.0; columns], &[1, columns], dtype);
            let loss = crd_nce(&ones, 1.0, columns - 1).unwrap();
            let (value, gradient) = both(&loss, &ones);
            near(value, columns as f64 * 2f64.ln(), 1e-5);
            // -1 + 1/2 for the positive, 1/2 for each negative.
            near(gradient[0], -0.5, 1e-3);
            gradient[1..].iter().for_each(|found| near(*found, 0.5, 1e-3));
            let gradients = loss.backward().unwrap();
            assert_eq!(gradients.get(&ones).map(Tensor::dtype), Some(dtype));
        }
    }
}

/// 1e5 is no f16, 257.3 no bf16 and 1e-50 no f32: logits of two types are widened, never rounded to the other's.
#[test]
fn a_teacher_of_another_type_is_not_rounded_to_the_students() {
    let labels = Tensor::new(&[0u32], CPU).unwrap();
    for (ours, theirs, teacher) in [
        (DType::F16, DType::F32, [1e5, 2.0, 99_999.0]),
        (DType::BF16, DType::F32, [257.3, 255.9, 256.4]),
        (DType::BF16, DType::F16, [257.25, 255.75, 256.5]),
        (DType::F16, DType::BF16, [1e5, 2.0, 99_840.0]),
        (DType::F32, DType::F64, [1e39, 2.0, 1e39]),
        (DType::F64, DType::F32, [1.0, 3.5, 2.0]),
        (DType::F16, DType::F64, [1e39, 2.0, 1e39]),
    ] {
        let student = var(&[1.0, 2.0, 3.0], &[1, 3], ours);
        let exact = var(&[1.0, 2.0, 3.0], &[1, 3], DType::F64);
        let teacher = var(&teacher, &[1, 3], theirs);
        let wide = teacher.to_dtype(DType::F64).unwrap();
        let all = |student: &Tensor, teacher: &Tensor| {
            [
                kd(student, teacher, 2.0).unwrap(),
                kd_with_labels(student, teacher, &labels, 2.0, 0.75).unwrap(),
                dkd(student, teacher, &labels, &DkdConfig::default()).unwrap(),
                dist(student, teacher, &DistConfig::default()).unwrap(),
            ]
        };
        for (loss, reference) in all(&student, &teacher).iter().zip(&all(&exact, &wide)) {
            let ((value, gradient), (expected, of)) =
                (both(loss, &student), both(reference, &exact));
            near(value, expected, 1e-5);
            for (found, of) in gradient.iter().zip(&of) {
                let difference = (found - of).abs();
                assert!(
                    difference <= 4e-3 * of.abs().max(1e-2),
                    "{ours:?}, {theirs:?}: {found}, {of}"
                );
            }
        }
    }
}

/// Softplus at alpha 0, where |alpha| and max(alpha, 0) have a kink each and their sum has none: PyTorch's value and gradient (f64).
#[test]
fn the_variance_of_vid_is_smooth_at_zero() {
    let mean = var(&[0.5, -1.0, 2.0, 0.25], &[1, 2, 2, 1], DType::F64);
    let teacher = var(&[1.0, 0.0, -1.0, 0.5], &[1, 2, 2, 1], DType::F64);
    let alpha = var(&[0.0, 0.0], &[2], DType::F64);
    let (loss, gradient) = both(&vid(&mean, &alpha, &teacher).unwrap(), &alpha);
    near(loss, 1.676_447_999_518_3, 1e-12);
    near(gradient[0], 0.017_732_018_539_7, 1e-10);
    near(gradient[1], -0.998_532_105_821_2, 1e-12);
}

/// With biases of zero and a map of zeros all that VID's ReLUs get is 0, and their derivative there is PyTorch's 0: only the last
/// layer's bias and the variances learn.
#[test]
fn nothing_is_learned_through_a_relu_at_zero() {
    let place = |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec());
    let setup = Setup {
        student: vec![place("map", &[4, 2, 2])],
        teacher: vec![place("map", &[8, 2, 2])],
        classes: 6,
        train_labels: Vec::new(),
    };
    let config = MethodConfig::from_name("vid").unwrap();
    for dtype in [DType::F32, DType::F64] {
        let start = |name: &str, shape: &[usize]| {
            let start = ramp(shape).to_dtype(dtype).unwrap();
            if name.ends_with("bias") { start.zeros_like().unwrap() } else { start }
        };
        let helpers: BTreeMap<String, Var> = helper_parameters(&config, &setup)
            .unwrap()
            .into_iter()
            .map(|p| (p.name.clone(), Var::from_tensor(&start(&p.name, &p.shape)).unwrap()))
            .collect();
        let tensors =
            helpers.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let vb = VarBuilder::from_tensors(tensors, dtype, CPU);
        let method = build(&config, &setup, vb).unwrap();
        let map = |channels: usize, scale: f64| {
            let map = (ramp(&[2, channels, 2, 2]) * scale).unwrap().to_dtype(dtype).unwrap();
            BTreeMap::from([("map".to_string(), map)])
        };
        let logits = var(&[0.0; 12], &[2, 6], dtype);
        let labels = Tensor::new(&[0u32, 1], CPU).unwrap();
        let inputs = Inputs {
            student_features: &map(4, 0.0),
            teacher_features: &map(8, 1.0),
            ..Inputs::new(&logits, &labels)
        };
        let gradients = method.loss(&inputs).unwrap().backward().unwrap();
        let learning: Vec<&str> = helpers
            .iter()
            .filter(|(_, var)| gradients.get(var).is_some_and(|of| largest(&flat(of)) != 0.0))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(learning, ["alpha", "mean.2.bias"]);
    }
}
