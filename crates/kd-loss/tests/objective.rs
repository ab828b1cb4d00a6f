//! The weighted sum of methods: weights, schedules, parts, and what a method gets to see.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use kd_loss::{
    Error, HostStep, Inputs, Method, MethodConfig, Needs, Objective, RunStep, Term, Weighted, build,
};

mod common;

use common::{helpers, labels, no_helpers, ramp, setup, term};

#[test]
fn weights_that_make_no_sense_are_errors() {
    let kd = || build(&MethodConfig::from_name("kd").unwrap(), &setup(), no_helpers()).unwrap();
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let error =
            Objective::new(1.0, vec![Weighted::new("kd", weight, kd())]).err().unwrap().to_string();
        assert_eq!(
            error,
            format!("kd: weight is {weight}; expected a number that is not negative")
        );
        assert!(Objective::new(weight, vec![]).is_err());
    }
    let error =
        Objective::new(0.0, vec![Weighted::new("kd", 0.0, kd())]).err().unwrap().to_string();
    assert!(error.contains("nothing to learn"), "{error}");
    assert!(Objective::new(0.0, vec![Weighted::new("kd", 1.0, kd())]).is_ok());
}

/// Each method in a sum with the labels: parts, total, and a gradient for all that learns.
#[test]
fn an_objective_sums_its_parts_and_reaches_every_variable() {
    let student_logits = Var::from_tensor(&ramp(&[2, 10])).unwrap();
    let teacher_logits = ramp(&[2, 10]).sqr().unwrap();
    let map = Var::from_tensor(&ramp(&[2, 16, 8, 8])).unwrap();
    let student_features = BTreeMap::from([("features.5".to_string(), map.as_tensor().clone())]);
    let teacher_features =
        BTreeMap::from([("features.9".to_string(), ramp(&[2, 32, 8, 8]).abs().unwrap())]);
    let labels = labels(&[3, 9]);
    let inputs = Inputs {
        teacher_logits: Some(&teacher_logits),
        student_features: &student_features,
        teacher_features: &teacher_features,
        ..Inputs::new(&student_logits, &labels)
    };

    let names = ["kd", "cosine", "regressor", "label-smoothing"];
    let mut methods = Vec::new();
    let mut learned = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let config = MethodConfig::from_name(name).unwrap();
        let (vars, vb) = helpers(&config);
        learned.extend(vars);
        let method = build(&config, &setup(), vb).unwrap();
        methods.push(Weighted::new(name, 0.1 * (i + 1) as f64, method));
    }
    let objective = Objective::new(0.75, methods).unwrap();
    let needs = objective.needs();
    assert_eq!((needs.student.len(), needs.teacher.len()), (1, 1), "each place once");
    assert!(needs.teacher_logits);

    let loss = objective.loss(&inputs, RunStep::default()).unwrap();
    let found: Vec<_> = loss.parts.iter().map(|(name, _)| *name).collect();
    assert_eq!(found[0], "labels");
    assert_eq!(found[1..], names);
    let weights = [0.75, 0.1, 0.2, 0.3, 0.4];
    let scalar = |tensor: &Tensor| f64::from(tensor.to_scalar::<f32>().unwrap());
    let sum: f64 = loss.parts.iter().zip(weights).map(|((_, part), w)| w * scalar(part)).sum();
    assert!((scalar(&loss.total) - sum).abs() < 1e-5 * sum, "{sum}");

    let grads = loss.total.backward().unwrap();
    learned.extend([("logits".to_string(), student_logits.clone()), ("map".into(), map.clone())]);
    for (name, var) in &learned {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        assert!(scalar(&grad.abs().unwrap().sum_all().unwrap()) > 0.0, "{name}");
    }
}

/// Class weights reach every cross-entropy with the labels, the control's among them, and no other loss.
#[test]
fn class_weights_are_for_the_labels_cross_entropies() {
    let student = ramp(&[3, 10]);
    let teacher = student.sqr().unwrap();
    let weights: Vec<f32> = (1..=10).map(|i| i as f32 / 4.0).collect();
    let weights = Tensor::new(weights, &Device::Cpu).unwrap();
    let labels = labels(&[3, 9, 3]);
    let inputs = Inputs { teacher_logits: Some(&teacher), ..Inputs::new(&student, &labels) };
    let weighted = Inputs { class_weights: Some(&weights), ..inputs };
    let method = |name: &'static str| {
        let method = MethodConfig::from_name(name).unwrap();
        Weighted::new(name, 0.5, build(&method, &setup(), no_helpers()).unwrap())
    };
    let objective = Objective::new(2.0, vec![method("kd"), method("label-smoothing")]).unwrap();
    let value = |tensor: &Tensor| f64::from(tensor.to_scalar::<f32>().unwrap());
    let of = |inputs: &Inputs<'_>| {
        let loss = objective.loss(inputs, RunStep::default()).unwrap();
        let parts: Vec<f64> = loss.parts.iter().map(|(_, part)| value(part)).collect();
        (value(&loss.total), parts)
    };
    let ((_, plain), (total, parts)) = (of(&inputs), of(&weighted));
    let cross_entropy = |smoothing| {
        value(&kd_loss::cross_entropy_weighted(&student, &labels, &weights, smoothing).unwrap())
    };
    assert_eq!(parts, [cross_entropy(0.0), plain[1], cross_entropy(0.1)]);
    assert!(parts[0] != plain[0] && parts[2] != plain[2], "{parts:?} {plain:?}");
    let sum = 2.0 * parts[0] + 0.5 * parts[1] + 0.5 * parts[2];
    assert!((total - sum).abs() < 1e-6 * sum, "{total} {sum}");
}

#[test]
fn a_label_weight_of_zero_leaves_the_labels_out() {
    let config = MethodConfig::from_name("kd").unwrap();
    let kd = build(&config, &setup(), no_helpers()).unwrap();
    let objective = Objective::new(0.0, vec![Weighted::new("kd", 1.0, kd)]).unwrap();
    let logits = ramp(&[2, 10]);
    // Nothing reads the labels.
    let labels = labels(&[77, 78]);
    let inputs = Inputs { teacher_logits: Some(&logits), ..Inputs::new(&logits, &labels) };
    let loss = objective.loss(&inputs, RunStep::default()).unwrap();
    assert_eq!(loss.parts.len(), 1);
}

/// A method's weight follows its schedule; the parts are told before it.
#[test]
fn a_schedule_scales_the_total_and_not_the_part() {
    let recipe = "name = 'kd'\nweight = 3.0\nwarmup = 0.5\ndecay = 'linear'";
    let term = term(recipe).unwrap();
    assert_eq!(toml::from_str::<Term>(&toml::to_string(&term).unwrap()).unwrap(), term);
    let Term { weight, schedule, method } = term;
    let method = build(&method, &setup(), no_helpers()).unwrap();
    let objective =
        Objective::new(0.0, vec![Weighted { name: "kd", weight, schedule, method }]).unwrap();
    let (student, teacher) = (ramp(&[2, 10]), ramp(&[2, 10]).sqr().unwrap());
    let labels = labels(&[0, 1]);
    let inputs = Inputs { teacher_logits: Some(&teacher), ..Inputs::new(&student, &labels) };
    for (step, factor) in [(0, 0.5), (1, 0.75), (2, 0.5), (3, 0.25)] {
        let loss = objective.loss(&inputs, RunStep { step, steps: 4 }).unwrap();
        let part = loss.parts[0].1.to_scalar::<f32>().unwrap();
        let total = loss.total.to_scalar::<f32>().unwrap();
        assert!((total / part - 3.0 * factor).abs() < 1e-5, "step {step}: {total} of {part}");
    }
    assert!(toml::from_str::<Term>("name = 'kd'\nweight = 1.0\ndecay = 'fast'").is_err());
}

/// What only the host knows is shown to the method that asks for it, and to no other: a captured step would keep it as it was.
#[test]
fn only_a_method_that_asks_sees_what_the_host_knows() {
    struct Looks {
        asks: bool,
    }
    impl Method for Looks {
        fn needs(&self) -> Needs {
            Needs { host: self.asks, ..Needs::default() }
        }

        fn loss(&self, inputs: &Inputs<'_>) -> kd_loss::Result<Tensor> {
            let seen = inputs.host.map_or(-1.0, |host| host.at.step as f32);
            Ok(Tensor::new(seen, &Device::Cpu)?)
        }
    }
    let method = |name, asks| Weighted::new(name, 1.0, Box::new(Looks { asks }));
    let objective =
        Objective::new(0.0, vec![method("blind", false), method("asks", true)]).unwrap();
    assert!(objective.needs().host);
    assert_eq!(objective.needs_host(), Some("asks"));
    assert_eq!(Objective::new(0.0, vec![method("blind", false)]).unwrap().needs_host(), None);
    let (logits, labels) = (ramp(&[2, 10]), labels(&[0, 1]));
    let at = RunStep { step: 3, steps: 4 };
    let host = HostStep { indices: &[5, 6], seed: 0, epoch: 0, epochs: 1, at };
    let inputs = Inputs { host: Some(host), ..Inputs::new(&logits, &labels) };
    let parts = objective.loss(&inputs, at).unwrap().parts;
    let seen: Vec<f32> = parts.iter().map(|(_, part)| part.to_scalar().unwrap()).collect();
    assert_eq!(seen, [-1.0, 3.0]);
    // And one that asks gets an error, not a guess, where the host's knowledge is missing.
    let mut config = MethodConfig::from_name("crd").unwrap();
    if let MethodConfig::Crd(config) = &mut config {
        config.negatives = 2;
    }
    let (_, vb) = helpers(&config);
    let crd = build(&config, &setup(), vb).unwrap();
    assert!(crd.needs().host);
    let place = |size| BTreeMap::from([("classifier.1".to_string(), ramp(&[2, size]))]);
    let inputs = Inputs {
        student_features: &place(256),
        teacher_features: &place(512),
        ..Inputs::new(&logits, &labels)
    };
    let error = crd.loss(&inputs).unwrap_err();
    assert!(matches!(error, Error::MissingHostStep), "{error}");
}
