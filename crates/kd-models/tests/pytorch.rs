//! The networks compute what PyTorch computes (parity/make_fixtures.py).

mod common;

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use common::{Way, config, fixed_weights, fixture, graph, hashed, named, short_digest, values};
use kd_models::{Architecture, Mode, build, var_builder};
use kd_ops::adam::{Adam, AdamConfig};
use kd_ops::sgd::{Sgd, SgdConfig};

/// Compares a tensor with the digest of PyTorch's.
fn assert_agrees(name: &str, tensor: &Tensor, fixture: &HashMap<String, Tensor>, tolerance: f32) {
    assert_agrees_each(name, tensor, fixture, tolerance, |_| tolerance);
}

/// The same with a tolerance of its own for each element, beside that for all together.
fn assert_agrees_each(
    name: &str,
    tensor: &Tensor,
    fixture: &HashMap<String, Tensor>,
    tolerance: f32,
    each: impl Fn(usize) -> f32,
) {
    let ours = values(tensor);
    let stride = fixture[&format!("{name}.stride")].to_vec1::<i64>().unwrap()[0] as usize;
    let theirs = values(&fixture[&format!("{name}.sample")]);
    let sample: Vec<f32> = ours.iter().copied().step_by(stride).collect();
    assert_eq!(sample.len(), theirs.len(), "{name}: another number of elements");
    for (i, (ours, theirs)) in sample.iter().zip(&theirs).enumerate() {
        let (at, difference) = (i * stride, (ours - theirs).abs());
        let within = each(at);
        assert!(
            difference <= within,
            "{name}[{at}]: {ours}, PyTorch has {theirs}, within {within}"
        );
    }
    // The sample sees one element in many; these see all.
    let sum_norm = fixture[&format!("{name}.sum_norm")].to_vec1::<f64>().unwrap();
    let sum: f64 = ours.iter().map(|&x| f64::from(x)).sum();
    let norm = ours.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let slack = f64::from(tolerance) * (ours.len() as f64).sqrt();
    assert!((sum - sum_norm[0]).abs() <= slack, "{name}: sum {sum}, PyTorch {}", sum_norm[0]);
    assert!((norm - sum_norm[1]).abs() <= slack, "{name}: norm {norm}, PyTorch {}", sum_norm[1]);
}

/// The networks whose fixtures `network` makes.
const CNNS: [Architecture; 2] = [Architecture::TUTORIAL_TEACHER, Architecture::TUTORIAL_STUDENT];

/// The networks whose fixtures `resnet` makes: one with shortcuts of option A, two with option B.
/// Each with the tag of its training images.
fn resnets() -> [(Architecture, u32); 3] {
    [(Architecture::RESNET20, 1003), (named("resnet8_b"), 1037), (named("resnet8x4"), 1037)]
}

#[test]
fn logits_and_every_feature_place_agree_with_pytorch() {
    for architecture in CNNS.into_iter().chain(resnets().map(|(architecture, _)| architecture)) {
        let config = config(architecture);
        let fixture = fixture(&format!("{architecture}.safetensors"));
        let network = build(&config, var_builder(&fixed_weights(&config))).unwrap();
        let images = hashed(&[3, 3, 32, 32], 1000, 2.0);
        let all: Vec<String> =
            graph(&config).places().into_iter().map(|place| place.name).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        // Each place alone and all at once: layers are fused differently.
        let mut asked: Vec<&[&str]> = all.chunks(1).collect();
        asked.extend([&all[..], &[]]);
        for asked in asked {
            let output = network.forward_t(&images, Mode::Eval, asked).unwrap();
            for (ours, theirs) in values(&output.logits).iter().zip(values(&fixture["logits"])) {
                assert!((ours - theirs).abs() < 1e-5, "logits: {ours}, PyTorch has {theirs}");
            }
            assert_eq!(output.features.len(), asked.len());
            for (name, map) in &output.features {
                assert_agrees(name, map, &fixture, 2e-5);
            }
        }
    }
}

/// What a gradient differs by from PyTorch's: 1.2e-7 at most in portable code and on AVX2, some 1e-8 where most are.
const ROUNDING: f64 = 1e-7;

#[test]
fn three_adam_steps_agree_with_pytorch() {
    for (architecture, way) in CNNS.into_iter().flat_map(|of| Way::BOTH.map(|way| (of, way))) {
        let mut config = config(architecture);
        config.dropout = 0.0;
        let fixture = fixture(&format!("{architecture}.safetensors"));
        let parameters = fixed_weights(&config);
        let network = build(&config, var_builder(&parameters)).unwrap();
        let mut adam = Adam::new(AdamConfig::default());
        let mut slack: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let images = hashed(&[4, 3, 32, 32], 1001, 2.0);
        for (step, expected) in values(&fixture["losses"]).iter().enumerate() {
            let (value, grads) = way.step(&*network, &images, &[0, 7, 4, 1]);
            let close = (value - expected).abs() < 1e-5;
            assert!(close, "{way:?}, step {step}: {value}, PyTorch {expected}");
            if step == 0 {
                for (name, var) in &parameters {
                    let grad = grads.get(var).unwrap();
                    assert_agrees(&format!("grad.{name}"), grad, &fixture, 5e-7);
                }
            }
            adam.step(&parameters, &grads).unwrap();
            // A step is the learning rate times a quotient of gradients: where they are nearly zero, rounding decides its length and sign.
            for (name, moments) in &adam.moments {
                let slack =
                    slack.entry(name.clone()).or_insert_with(|| vec![0.0; moments.second.len()]);
                for (slack, square) in slack.iter_mut().zip(&moments.second) {
                    let mean = f64::from(*square) / (1.0 - adam.config.beta2.powi(step as i32 + 1));
                    let unknown = ROUNDING / (mean.sqrt() + adam.config.eps);
                    *slack += adam.config.lr * unknown.min(2.0);
                }
            }
        }
        for (name, var) in &parameters {
            let each = |at: usize| (2e-6 + slack[name][at]) as f32;
            assert_agrees_each(&format!("adam.{name}"), var, &fixture, 2e-5, each);
        }
    }
}

/// Compares a tensor with `short_digest` of PyTorch's.
fn assert_agrees_in_short(
    name: &str,
    tensor: &Tensor,
    fixture: &HashMap<String, Tensor>,
    tolerance: f64,
) {
    let ours = values(tensor);
    let theirs = fixture[name].to_vec1::<f64>().unwrap();
    for (i, (found, theirs)) in short_digest(&ours).into_iter().zip(theirs).enumerate() {
        // Errors of a sum add up as a random walk does.
        let slack = if i < 3 { (ours.len() as f64).sqrt() } else { 1.0 };
        let close = (found - theirs).abs() <= tolerance * slack;
        assert!(close, "{name}, figure {i}: {found}, PyTorch has {theirs}");
    }
}

/// Gradients, weights and running statistics in training, and evaluation with what it left.
#[test]
fn three_steps_of_a_resnet_with_nesterovs_momentum_agree_with_pytorch() {
    for ((architecture, tag), way) in
        resnets().into_iter().flat_map(|of| Way::BOTH.map(|way| (of, way)))
    {
        let config = config(architecture);
        let fixture = fixture(&format!("{architecture}.safetensors"));
        let parameters = fixed_weights(&config);
        let network = build(&config, var_builder(&parameters)).unwrap();
        let mut sgd =
            Sgd::new(SgdConfig { lr: 1e-3, momentum: 0.9, nesterov: true, weight_decay: 5e-4 });
        let images = hashed(&[2, 3, 32, 32], tag, 2.0);
        for (step, expected) in values(&fixture["losses"]).iter().enumerate() {
            let (value, grads) = way.step(&*network, &images, &[0, 7]);
            let close = (value - expected).abs() < 1e-5;
            assert!(close, "{way:?}, step {step}: {value}, PyTorch {expected}");
            for (name, var) in &parameters {
                let is_buffer = name.contains("running");
                assert_eq!(grads.get(var).is_none(), is_buffer, "{name}");
                if step == 0 && !is_buffer {
                    let grad = grads.get(var).unwrap();
                    assert_agrees_in_short(&format!("grad.{name}"), grad, &fixture, 1e-4);
                }
            }
            sgd.step(&parameters, &grads).unwrap();
        }
        for (name, var) in &parameters {
            assert_agrees_in_short(&format!("after.{name}"), var, &fixture, 1e-4);
        }
        let logits = way.logits(&*network, &images);
        for (ours, theirs) in values(&logits).iter().zip(values(&fixture["logits_after"])) {
            assert!((ours - theirs).abs() < 2e-5, "{way:?}, logits: {ours}, PyTorch has {theirs}");
        }
    }
}
