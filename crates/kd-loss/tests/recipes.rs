//! Methods from recipes: their options, what they need, and what is wrong with bad input.

use candle_core::{DType, Device, Tensor};
use kd_loss::{
    Error, HelperInit, Inputs, METHODS, MethodConfig, Needs, Schedule, Term, alpha_weights, build,
    cosine, cross_entropy, cross_entropy_smoothed, helper_parameters, kd, kd_with_labels, mse,
};

mod common;

use common::{helpers, labels, no_helpers, setup, term};

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_recipes_table_gives_weight_name_and_options() {
    let parsed = term("name = 'kd'\nweight = 0.25\ntemperature = 4.0").unwrap();
    assert_eq!(parsed.weight, 0.25);
    assert!(matches!(&parsed.method, MethodConfig::Kd(config) if config.temperature == 4.0));
    // Left out: the tutorial's.
    let parsed = term("name = 'kd'\nweight = 1").unwrap();
    assert_eq!(parsed.method, MethodConfig::from_name("kd").unwrap());
    assert!(matches!(&parsed.method, MethodConfig::Kd(config) if config.temperature == 2.0));
    let parsed = term("name = 'cosine'\nweight = 1\nstudent = 'features.2'").unwrap();
    assert!(
        matches!(&parsed.method, MethodConfig::Cosine(c) if c.student.as_deref() == Some("features.2"))
    );
}

#[test]
fn a_method_survives_toml_and_json() {
    for info in METHODS {
        let method = MethodConfig::from_name(info.name).unwrap();
        assert_eq!(method.name(), info.name);
        for method in [method.resolve(&setup()).unwrap(), method] {
            let before = Term { weight: 0.5, schedule: Schedule::default(), method };
            let recipe = toml::to_string(&before).unwrap();
            assert_eq!(term(&recipe).unwrap(), before, "{recipe}");
            let json = serde_json::to_string(&before).unwrap();
            assert_eq!(serde_json::from_str::<Term>(&json).unwrap(), before, "{json}");
        }
    }
}

#[test]
fn an_unknown_method_or_option_is_an_error_that_lists_the_known() {
    let error = term("name = 'magic'\nweight = 1").unwrap_err().to_string();
    assert!(error.contains("magic") && error.contains("`label-smoothing`"), "{error}");
    let error = term("name = 'kd'\nweight = 1\ntemprature = 4.0").unwrap_err().to_string();
    assert!(error.contains("temprature") && error.contains("`temperature`"), "{error}");
    let error = MethodConfig::from_name("magic").unwrap_err().to_string();
    assert!(
        error.starts_with("there is no method \"magic\"; the methods are kd, dkd, "),
        "{error}"
    );
}

#[test]
fn options_that_make_no_sense_are_errors_that_name_them() {
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut config = MethodConfig::from_name("kd").unwrap();
        if let MethodConfig::Kd(config) = &mut config {
            config.temperature = value;
        }
        let error = build(&config, &setup(), no_helpers()).err().unwrap().to_string();
        assert_eq!(error, format!("kd: temperature is {value}; expected a number above 0"));
        assert!(kd(&zeros(&[1, 2]), &zeros(&[1, 2]), value).is_err());
    }
    for value in [-0.1, 1.1, f64::NAN] {
        let error = alpha_weights(value).unwrap_err().to_string();
        assert_eq!(error, format!("loss: alpha is {value}; expected a number in [0, 1]"));
        let z = zeros(&[1, 2]);
        assert!(kd_with_labels(&z, &z, &labels(&[0]), 2.0, value).is_err());
        assert!(cross_entropy_smoothed(&z, &labels(&[0]), value).is_err());
    }
    assert_eq!(alpha_weights(0.75).unwrap(), (0.75, 0.25));
}

#[test]
fn shapes_that_do_not_match_are_errors_that_give_both() {
    let says = |error: Error, a: &str, b: &str| {
        let error = error.to_string();
        assert!(error.contains(a) && error.contains(b), "{error}");
    };
    says(kd(&zeros(&[2, 3]), &zeros(&[2, 4]), 2.0).unwrap_err(), "[2, 3]", "[2, 4]");
    says(kd(&zeros(&[2, 3]), &zeros(&[1, 3]), 2.0).unwrap_err(), "[2, 3]", "[1, 3]");
    says(kd(&zeros(&[3]), &zeros(&[3]), 2.0).unwrap_err(), "[3]", "[B, C]");
    says(cross_entropy(&zeros(&[2, 3]), &labels(&[0])).unwrap_err(), "[2, 3]", "[1]");
    says(cross_entropy(&zeros(&[2, 0]), &labels(&[0, 0])).unwrap_err(), "[2, 0]", "[B, C]");
    says(cosine(&zeros(&[2, 3]), &zeros(&[2, 7])).unwrap_err(), "[2, 3]", "[2, 7]");
    says(cosine(&zeros(&[2, 6]), &zeros(&[2, 3])).unwrap_err(), "[2, 6]", "[2, 3]");
    says(cosine(&zeros(&[2, 3]), &zeros(&[3, 3])).unwrap_err(), "[2, 3]", "[3, 3]");
    says(mse(&zeros(&[2, 3]), &zeros(&[2, 4])).unwrap_err(), "[2, 3]", "[2, 4]");
}

#[test]
fn an_empty_batch_is_an_error() {
    let none = zeros(&[0, 3]);
    let no_labels = Tensor::zeros(0, DType::U32, &Device::Cpu).unwrap();
    assert!(matches!(cross_entropy(&none, &no_labels), Err(Error::EmptyBatch)));
    assert!(matches!(kd(&none, &none, 2.0), Err(Error::EmptyBatch)));
    assert!(matches!(cosine(&none, &none), Err(Error::EmptyBatch)));
    assert!(matches!(mse(&none, &none), Err(Error::EmptyBatch)));
}

#[test]
fn a_label_out_of_range_is_named_with_its_position() {
    for dtype in [DType::F32, DType::F64] {
        let z = zeros(&[3, 10]).to_dtype(dtype).unwrap();
        let error = cross_entropy(&z, &labels(&[0, 9, 10])).unwrap_err().to_string();
        assert_eq!(
            error,
            "label 10 at position 2 of the batch is out of range; there are 10 classes, 0 to 9"
        );
    }
    let wrong_type = labels(&[0]).to_dtype(DType::I64).unwrap();
    assert!(matches!(cross_entropy(&zeros(&[1, 2]), &wrong_type), Err(Error::LabelType { .. })));
}

#[test]
fn places_default_to_the_last_feature_map_and_unknown_ones_are_errors() {
    for name in ["cosine", "regressor"] {
        let config = MethodConfig::from_name(name).unwrap();
        let (_, vb) = helpers(&config);
        let needs = build(&config, &setup(), vb).unwrap().needs();
        let expected = Needs {
            student: vec!["features.5".into()],
            teacher: vec!["features.9".into()],
            ..Needs::default()
        };
        assert_eq!(needs, expected);
        assert!(needs.any_teacher());
        let resolved = toml::to_string(&config.resolve(&setup()).unwrap()).unwrap();
        assert!(resolved.contains("student = \"features.5\""), "{resolved}");
        assert!(resolved.contains("teacher = \"features.9\""), "{resolved}");
    }
    let config = term("name = 'cosine'\nweight = 1\nteacher = 'layer3'").unwrap().method;
    let error = build(&config, &setup(), no_helpers()).err().unwrap().to_string();
    assert_eq!(
        error,
        "cosine: the teacher has no feature place \"layer3\"; it has features.4, features.9, classifier.1"
    );
}

#[test]
fn places_that_do_not_fit_are_errors_that_give_both_shapes() {
    for (name, student) in [("cosine", "features.2"), ("regressor", "features.2")] {
        let recipe = format!("name = '{name}'\nweight = 1\nstudent = '{student}'");
        let config = term(&recipe).unwrap().method;
        let error = build(&config, &setup(), no_helpers()).err().unwrap().to_string();
        assert!(error.contains("[16, 16, 16]") && error.contains("[32, 8, 8]"), "{error}");
    }
}

#[test]
fn the_regressors_parameters_are_the_references() {
    let config = MethodConfig::from_name("regressor").unwrap();
    let helpers = helper_parameters(&config, &setup()).unwrap();
    let found: Vec<_> = helpers.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect();
    let expected: [(&str, &[usize]); 2] =
        [("regressor.0.weight", &[32, 16, 3, 3]), ("regressor.0.bias", &[32])];
    assert_eq!(found, expected);
    assert!(helpers.iter().all(
        |p| matches!(p.init, HelperInit::Uniform(bound) if (bound - 1.0 / 12.0).abs() < 1e-12)
    ));
    for name in ["kd", "cosine", "label-smoothing"] {
        let config = MethodConfig::from_name(name).unwrap();
        assert_eq!(helper_parameters(&config, &setup()).unwrap(), []);
    }
}

#[test]
fn something_missing_from_the_inputs_is_an_error() {
    let (logits, labels) = (zeros(&[2, 10]), labels(&[0, 1]));
    let inputs = Inputs::new(&logits, &labels);
    for (name, expected) in [("kd", "teacher's logits"), ("cosine", "\"features.5\"; it has none")]
    {
        let config = MethodConfig::from_name(name).unwrap();
        let method = build(&config, &setup(), no_helpers()).unwrap();
        let error = method.loss(&inputs).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
