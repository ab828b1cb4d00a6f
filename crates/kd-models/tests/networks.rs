//! Names, shapes, counts, initialisation, gradients and repeatability of the networks.

mod common;

use candle_core::{DType, Device, Tensor};
use common::{bits, buffer_shapes, config, graph, hashed, named, parameter_shapes, values};
use kd_models::families::{CifarResNetConfig, cifar_resnet};
use kd_models::{
    Architecture, Error, Mode, ModelConfig, build, frozen, init, uniform, var_builder,
};
use kd_ops::DropoutKey;

const KEY: DropoutKey = DropoutKey { seed: 3, step: 5 };

#[test]
fn parameter_counts_are_the_references() {
    assert_eq!(graph(&config(Architecture::TUTORIAL_TEACHER)).parameter_count(), 1_186_986);
    assert_eq!(graph(&config(Architecture::TUTORIAL_STUDENT)).parameter_count(), 267_738);
    let student = ModelConfig::new(Architecture::TUTORIAL_STUDENT, 100);
    assert_eq!(graph(&student).parameter_count(), 267_738 + 90 * 257);
    // He et al. (2016), table 6, give 0.27, 0.46, 0.66, 0.85 and 1.7 million.
    for (name, count) in [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        // RepDistiller's models/resnet.py, by sum(p.numel() for p in model.parameters()).
        ("resnet8_b", 78_042),
        ("resnet14_b", 175_258),
        ("resnet20_b", 272_474),
        ("resnet32_b", 466_906),
        ("resnet44_b", 661_338),
        ("resnet56_b", 855_770),
        ("resnet110_b", 1_730_714),
        ("resnet8x4", 1_210_410),
        ("resnet32x4", 7_410_730),
    ] {
        assert_eq!(graph(&config(named(name))).parameter_count(), count, "{name}");
    }
}

#[test]
fn parameter_names_and_shapes_are_the_references() {
    let shapes = parameter_shapes(&config(Architecture::TUTORIAL_TEACHER));
    let expected: [(&str, &[usize]); 12] = [
        ("features.0.weight", &[128, 3, 3, 3]),
        ("features.0.bias", &[128]),
        ("features.2.weight", &[64, 128, 3, 3]),
        ("features.2.bias", &[64]),
        ("features.5.weight", &[64, 64, 3, 3]),
        ("features.5.bias", &[64]),
        ("features.7.weight", &[32, 64, 3, 3]),
        ("features.7.bias", &[32]),
        ("classifier.0.weight", &[512, 2048]),
        ("classifier.0.bias", &[512]),
        ("classifier.3.weight", &[10, 512]),
        ("classifier.3.bias", &[10]),
    ];
    assert_eq!(shapes.len(), expected.len());
    for ((name, shape), (expected_name, expected_shape)) in shapes.iter().zip(expected) {
        assert_eq!((name.as_str(), shape.as_slice()), (expected_name, expected_shape));
    }
    let shapes = parameter_shapes(&config(Architecture::TUTORIAL_STUDENT));
    let expected: [(&str, &[usize]); 8] = [
        ("features.0.weight", &[16, 3, 3, 3]),
        ("features.0.bias", &[16]),
        ("features.3.weight", &[16, 16, 3, 3]),
        ("features.3.bias", &[16]),
        ("classifier.0.weight", &[256, 1024]),
        ("classifier.0.bias", &[256]),
        ("classifier.3.weight", &[10, 256]),
        ("classifier.3.bias", &[10]),
    ];
    assert_eq!(shapes.len(), expected.len());
    for ((name, shape), (expected_name, expected_shape)) in shapes.iter().zip(expected) {
        assert_eq!((name.as_str(), shape.as_slice()), (expected_name, expected_shape));
    }
}

#[test]
fn a_resnets_names_are_those_of_its_usual_pytorch_code() {
    let config = config(Architecture::RESNET8);
    let names: Vec<String> = parameter_shapes(&config).into_iter().map(|(name, _)| name).collect();
    let expected = "conv1.weight bn1.weight bn1.bias layer1.0.conv1.weight layer1.0.bn1.weight \
        layer1.0.bn1.bias layer1.0.conv2.weight layer1.0.bn2.weight layer1.0.bn2.bias \
        layer2.0.conv1.weight layer2.0.bn1.weight layer2.0.bn1.bias layer2.0.conv2.weight \
        layer2.0.bn2.weight layer2.0.bn2.bias layer3.0.conv1.weight layer3.0.bn1.weight \
        layer3.0.bn1.bias layer3.0.conv2.weight layer3.0.bn2.weight layer3.0.bn2.bias \
        linear.weight linear.bias";
    assert_eq!(names.join(" "), expected);
    let buffers = buffer_shapes(&config);
    assert_eq!(buffers.len(), 14);
    assert_eq!(buffers[13], ("layer3.0.bn2.running_var".to_string(), vec![64]));
    // RepDistiller's state dict, without the counts of batches.
    let names = parameter_shapes(&common::config(named("resnet8x4")));
    let of_block = |names: &[(String, Vec<usize>)], block: &str| {
        let rests = names.iter().filter_map(|(name, _)| name.strip_prefix(block));
        rests.collect::<Vec<_>>().join(" ")
    };
    for block in ["layer1.0.", "layer2.0.", "layer3.0."] {
        let expected = "conv1.weight bn1.weight bn1.bias conv2.weight bn2.weight bn2.bias \
            downsample.0.weight downsample.1.weight downsample.1.bias";
        assert_eq!(of_block(&names, block), expected);
    }
    assert_eq!(of_block(&names, "fc."), "weight bias");
    // Option A has no shortcut that changes channels without a stride.
    let wide =
        CifarResNetConfig { channels: [32, 64, 128, 256], ..CifarResNetConfig::new("w", 10, 1) };
    let error = cifar_resnet(&wide).unwrap_err().to_string();
    assert!(
        error.contains("channels is [32, 64, 128, 256]; expected the same first two"),
        "{error}"
    );
    let names = parameter_shapes(&common::config(named("resnet8_b")));
    assert!(!of_block(&names, "layer1.0.").contains("downsample"));
    let last = parameter_shapes(&ModelConfig::new(named("resnet110"), 10));
    assert!(last.iter().any(|(name, _)| name == "layer3.17.conv2.weight"));
}

#[test]
fn multiply_adds_are_those_of_the_layers_one_by_one() {
    let teacher = 1024 * 9 * (3 * 128 + 128 * 64) + 256 * 9 * (64 * 64 + 64 * 32);
    let teacher = teacher + 2048 * 512 + 512 * 10;
    assert_eq!(graph(&config(Architecture::TUTORIAL_TEACHER)).multiply_adds(), teacher);
    let student = 1024 * 9 * 3 * 16 + 256 * 9 * 16 * 16 + 1024 * 256 + 256 * 10;
    assert_eq!(graph(&config(Architecture::TUTORIAL_STUDENT)).multiply_adds(), student);
    // Each stage halves the side and doubles the channels: its layers cost the same, but for its first.
    let layer = 1024 * 9 * 16 * 16;
    let resnet8 = 1024 * 9 * 3 * 16 + 6 * layer - 2 * layer / 2 + 64 * 10;
    assert_eq!(graph(&config(Architecture::RESNET8)).multiply_adds(), resnet8);
    let shortcuts = 256 * 16 * 32 + 64 * 32 * 64;
    assert_eq!(graph(&config(named("resnet8_b"))).multiply_adds(), resnet8 + shortcuts);
}

#[test]
fn places_have_the_shapes_they_announce() {
    for architecture in Architecture::all() {
        // Most of ImageNet's pictures would be larger; 70x53 pixels take less time and round everywhere.
        let small = |side: usize, to: usize| if side > 32 { to } else { side };
        let [channels, height, width] = architecture.default_input();
        let (height, width) = (small(height, 70), small(width, 53));
        let config =
            ModelConfig { input: [channels, height, width], ..ModelConfig::new(architecture, 7) };
        let network =
            build(&config, var_builder(&init(&config, 1, &Device::Cpu).unwrap())).unwrap();
        assert_eq!((network.num_classes(), network.places()), (7, graph(&config).places()));
        let names: Vec<String> =
            graph(&config).places().into_iter().map(|place| place.name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let images = hashed(&[2, channels, height, width], 1, 1.0);
        let output = network.forward_t(&images, Mode::Eval, &names).unwrap();
        assert_eq!(output.logits.dims(), [2, 7]);
        assert_eq!(output.features.len(), names.len());
        for place in graph(&config).places() {
            assert_eq!(output.features[&place.name].dims()[1..], place.shape, "{}", place.name);
        }
    }
}

#[test]
fn only_the_places_asked_for_are_returned() {
    let config = config(Architecture::TUTORIAL_STUDENT);
    let network = build(&config, var_builder(&init(&config, 1, &Device::Cpu).unwrap())).unwrap();
    let images = hashed(&[1, 3, 32, 32], 1, 1.0);
    let output = network.forward_t(&images, Mode::Eval, &["features.5"]).unwrap();
    assert_eq!(output.features.keys().collect::<Vec<_>>(), ["features.5"]);
}

#[test]
fn an_unknown_place_is_an_error_that_lists_the_known() {
    let config = config(Architecture::TUTORIAL_STUDENT);
    let network = build(&config, var_builder(&init(&config, 1, &Device::Cpu).unwrap())).unwrap();
    let images = hashed(&[1, 3, 32, 32], 1, 1.0);
    let error = network.forward_t(&images, Mode::Eval, &["features.9"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the student has no feature place \"features.9\"; its places are features.0, features.1, \
         features.2, features.3, features.4, features.5, classifier.0, classifier.1"
    );
}

#[test]
fn images_of_another_shape_are_an_error_that_gives_both_shapes() {
    let config = config(Architecture::TUTORIAL_TEACHER);
    let network = build(&config, var_builder(&init(&config, 1, &Device::Cpu).unwrap())).unwrap();
    for shape in [&[1, 3, 28, 28][..], &[1, 1, 32, 32], &[3, 32, 32]] {
        let images = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let error = network.forward_t(&images, Mode::Eval, &[]).unwrap_err();
        assert!(matches!(&error, Error::Images { found, .. } if found == shape), "{error}");
    }
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    for classes in [0, 65537, usize::MAX] {
        let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, classes);
        assert!(matches!(
            init(&config, 1, &Device::Cpu),
            Err(Error::Config { field: "classes", .. })
        ));
    }
    for dropout in [-0.1, 1.0, f64::NAN] {
        let config = ModelConfig { dropout, ..config(Architecture::TUTORIAL_STUDENT) };
        assert!(matches!(config.validate(), Err(Error::Config { field: "dropout", .. })));
    }
    let config = ModelConfig { dropout: 0.1, ..config(Architecture::RESNET20) };
    assert!(config.validate().unwrap_err().to_string().contains("a resnet20 has no dropout"));
    let error = "resnet".parse::<Architecture>().unwrap_err().to_string();
    let expected =
        "there is no model \"resnet\"; the models are teacher, student, resnet8, resnet14, ";
    assert!(error.starts_with(expected), "{error}");
    for architecture in Architecture::all() {
        assert_eq!(architecture.name().parse::<Architecture>().unwrap(), architecture);
        let json = serde_json::to_string(&architecture).unwrap();
        assert_eq!(json, format!("\"{architecture}\""));
    }
}

/// Uniform in ±1/sqrt(fan_in), biases too.
#[test]
fn fresh_weights_are_distributed_as_pytorchs() {
    for architecture in [Architecture::TUTORIAL_TEACHER, Architecture::TUTORIAL_STUDENT] {
        let config = config(architecture);
        let parameters = init(&config, 42, &Device::Cpu).unwrap();
        let mut fan_in = 0;
        for (name, shape) in parameter_shapes(&config) {
            if shape.len() > 1 {
                fan_in = shape[1..].iter().product();
            }
            let bound = 1.0 / (fan_in as f64).sqrt();
            let values = values(&parameters[&name]);
            let n = values.len() as f64;
            let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let var = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
            let most = values.iter().fold(0f64, |most, &x| most.max(f64::from(x).abs()));
            assert!(most <= bound, "{name}: {most} is beyond {bound}");
            // Standard error of a uniform's mean is bound/sqrt(3n), of its mean square 0.298 bound²/sqrt(n).
            assert!(mean.abs() < 5.0 * bound / (3.0 * n).sqrt(), "{name}: mean {mean}");
            let expected = bound * bound / 3.0;
            assert!((var - expected).abs() < 5.0 * 0.298 * bound * bound / n.sqrt(), "{name}");
        }
    }
}

/// Convolutions normal with variance 2/fan_in, normalisations 1 and 0, mean 0 and variance 1.
#[test]
fn a_fresh_resnet_is_as_he_et_al_start_it() {
    let config = config(Architecture::RESNET20);
    let parameters = init(&config, 42, &Device::Cpu).unwrap();
    let mut largest = 0f64;
    for (name, shape) in parameter_shapes(&config).into_iter().chain(buffer_shapes(&config)) {
        let values = values(&parameters[&name]);
        if shape.len() == 4 {
            let n = values.len() as f64;
            let std = (2.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
            let scaled = |x: &f32| f64::from(*x) / std;
            let moment = |power| values.iter().map(|x| scaled(x).powi(power)).sum::<f64>() / n;
            // Five standard errors of the mean, the mean square and the mean fourth power of normal values.
            assert!(moment(1).abs() < 5.0 / n.sqrt(), "{name}: mean {}", moment(1));
            assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{name}: {}", moment(2));
            assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt(), "{name}: {}", moment(4));
            largest = values.iter().map(scaled).fold(largest, |most, x| most.max(x.abs()));
        } else if !name.starts_with("linear") {
            let expected =
                if name.ends_with("weight") || name.ends_with("var") { 1.0 } else { 0.0 };
            assert!(values.iter().all(|&x| x == expected), "{name}");
        } else {
            assert!(values.iter().all(|x| x.abs() <= 0.125), "{name}");
        }
    }
    assert!((4.0..6.0).contains(&largest), "the largest of 270,000 normal values is {largest}");
}

#[test]
fn the_students_first_layer_has_the_references_norm() {
    let norm = |seed| {
        let parameters = init(&config(Architecture::TUTORIAL_STUDENT), seed, &Device::Cpu).unwrap();
        let squares: f32 = values(&parameters["features.0.weight"]).iter().map(|x| x * x).sum();
        squares.sqrt()
    };
    let mean = (0..20).map(norm).sum::<f32>() / 20.0;
    // sqrt(432 / (3 * 27)) = 2.309; the tutorial prints 2.327 for its seed.
    assert!((2.26..2.36).contains(&mean), "{mean}");
}

#[test]
fn fresh_weights_depend_on_seed_and_name_alone() {
    let student = config(Architecture::TUTORIAL_STUDENT);
    let a = init(&student, 7, &Device::Cpu).unwrap();
    let b = init(&student, 7, &Device::Cpu).unwrap();
    let c = init(&student, 8, &Device::Cpu).unwrap();
    for (name, var) in &a {
        assert_eq!(bits(var), bits(&b[name]), "{name}");
        assert_ne!(bits(var), bits(&c[name]), "{name}");
    }
    // Another head leaves the other layers as they are.
    let wide = init(&ModelConfig { classes: 100, ..student }, 7, &Device::Cpu).unwrap();
    assert_eq!(bits(&a["classifier.0.weight"]), bits(&wide["classifier.0.weight"]));
    // Parameters of the same shape differ.
    let bias = |name| bits(&uniform(name, &[16], 1.0, 7, &Device::Cpu).unwrap());
    assert_ne!(bias("features.0.bias"), bias("features.3.bias"));
    // A value written down: this must never change, or old runs can't be repeated.
    let first = values(&a["features.0.weight"])[0];
    assert_eq!(first.to_bits(), FIRST_WEIGHT, "{first}: {:#x}", first.to_bits());
}

const FIRST_WEIGHT: u32 = 0xbd31_1f56;

#[test]
fn every_variable_gets_a_gradient() {
    let some = [Architecture::TUTORIAL_TEACHER, Architecture::TUTORIAL_STUDENT, named("resnet14")];
    for architecture in some {
        let config = config(architecture);
        let parameters = init(&config, 1, &Device::Cpu).unwrap();
        let network = build(&config, var_builder(&parameters)).unwrap();
        let images = hashed(&[4, 3, 32, 32], 1, 2.0);
        let output = network.forward_t(&images, Mode::Train(KEY), &[]).unwrap();
        let grads = output.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for (name, _) in buffer_shapes(&config) {
            assert!(grads.get(&parameters[&name]).is_none(), "{name} is not trained");
        }
        for (name, _) in parameter_shapes(&config) {
            let var = &parameters[&name];
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert_eq!(grad.dims(), var.dims(), "{name}");
            let values = values(grad);
            assert!(values.iter().all(|x| x.is_finite()), "{name}");
            assert!(values.iter().any(|&x| x != 0.0), "{architecture}: {name} has gradient zero");
        }
    }
}

#[test]
fn a_gradient_flows_back_through_a_feature_place() {
    let config = config(Architecture::TUTORIAL_STUDENT);
    let parameters = init(&config, 1, &Device::Cpu).unwrap();
    let network = build(&config, var_builder(&parameters)).unwrap();
    let images = hashed(&[2, 3, 32, 32], 1, 2.0);
    let output = network.forward_t(&images, Mode::Train(KEY), &["features.5"]).unwrap();
    let grads = output.features["features.5"].sum_all().unwrap().backward().unwrap();
    for (name, var) in &parameters {
        assert_eq!(grads.get(var).is_some(), name.starts_with("features"), "{name}");
    }
}

#[test]
fn frozen_weights_get_no_gradient_and_give_the_same_logits() {
    let config = config(Architecture::TUTORIAL_TEACHER);
    let parameters = init(&config, 1, &Device::Cpu).unwrap();
    let images = hashed(&[1, 3, 32, 32], 1, 2.0);
    // Even where the tensors given are variables.
    let variables = parameters.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone()));
    let teacher = build(&config, frozen(&variables.collect())).unwrap();
    let frozen = teacher.forward_t(&images, Mode::Eval, &[]).unwrap().logits;
    assert!(!frozen.track_op());
    let network = build(&config, var_builder(&parameters)).unwrap();
    let trainable = network.forward_t(&images, Mode::Eval, &[]).unwrap().logits;
    assert!(trainable.track_op());
    assert_eq!(bits(&frozen), bits(&trainable));
}

#[test]
fn dropout_follows_the_key_and_only_in_training() {
    let config = config(Architecture::TUTORIAL_STUDENT);
    let network = build(&config, var_builder(&init(&config, 1, &Device::Cpu).unwrap())).unwrap();
    let images = hashed(&[2, 3, 32, 32], 1, 2.0);
    let run = |mode| bits(&network.forward_t(&images, mode, &[]).unwrap().logits);
    let other = DropoutKey { step: KEY.step + 1, ..KEY };
    assert_eq!(run(Mode::Train(KEY)), run(Mode::Train(KEY)));
    assert_ne!(run(Mode::Train(KEY)), run(Mode::Train(other)));
    assert_ne!(run(Mode::Train(KEY)), run(Mode::Eval));
    assert_eq!(run(Mode::Eval), run(Mode::Eval));
}

#[test]
fn gradients_repeat_bit_for_bit() {
    let config = config(Architecture::TUTORIAL_STUDENT);
    let run = || {
        let parameters = init(&config, 9, &Device::Cpu).unwrap();
        let network = build(&config, var_builder(&parameters)).unwrap();
        let images = hashed(&[8, 3, 32, 32], 4, 2.0);
        let output = network.forward_t(&images, Mode::Train(KEY), &[]).unwrap();
        let grads = output.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        parameters.values().map(|var| bits(grads.get(var).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// Going along the gradient by ±h changes the loss by 2 h times the gradient's length, for every parameter by itself.
#[test]
fn gradients_are_finite_differences() {
    for architecture in [Architecture::TUTORIAL_TEACHER, Architecture::TUTORIAL_STUDENT] {
        let config = config(architecture);
        let parameters = common::fixed_weights(&config);
        let network = build(&config, var_builder(&parameters)).unwrap();
        let images = hashed(&[3, 3, 32, 32], 90, 1.0);
        let weights = hashed(&[3, 10], 91, 1.0);
        let forward = || network.forward_t(&images, Mode::Train(KEY), &[]).unwrap().logits;
        // Each logit with a weight of its own, summed in f64.
        let loss = || -> f64 {
            let terms = values(&forward()).into_iter().zip(values(&weights));
            terms.map(|(logit, weight)| f64::from(logit) * f64::from(weight)).sum()
        };
        let grads = (forward() * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in &parameters {
            let grad = grads.get(var).unwrap();
            let length = values(grad).iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let start = var.as_tensor().copy().unwrap();
            let h = 1e-3;
            let at = |h: f64| {
                var.set(&(&start + (grad * (h / length)).unwrap()).unwrap()).unwrap();
                loss()
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            var.set(&start).unwrap();
            let off = (slope / length - 1.0).abs();
            assert!(off < 0.02, "{architecture} {name}: slope {slope}, gradient's length {length}");
        }
    }
}

/// Training moves a ResNet's running statistics, evaluation does not, and a frozen layer keeps them.
#[test]
fn running_statistics_move_in_training_alone_and_stay_where_frozen() {
    let config = config(Architecture::RESNET8);
    let parameters = init(&config, 1, &Device::Cpu).unwrap();
    let images = hashed(&[4, 3, 32, 32], 1, 2.0);
    let state = || -> Vec<(String, Vec<u32>)> {
        let names = buffer_shapes(&config).into_iter().map(|(name, _)| name);
        names.map(|name| (name.clone(), bits(&parameters[&name]))).collect()
    };
    let start = state();
    let network = build(&config, var_builder(&parameters)).unwrap();
    network.forward_t(&images, Mode::Eval, &[]).unwrap();
    assert_eq!(state(), start);
    // The first block and the stem don't train.
    let mut tensors: std::collections::HashMap<String, Tensor> =
        parameters.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let is_frozen = |name: &str| ["conv1.", "bn1.", "layer1."].iter().any(|p| name.starts_with(p));
    for (name, tensor) in &mut tensors {
        if is_frozen(name) {
            *tensor = tensor.detach();
        }
    }
    let vb = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let output = build(&config, vb).unwrap().forward_t(&images, Mode::Train(KEY), &[]).unwrap();
    for ((name, before), (_, after)) in start.iter().zip(state()) {
        assert_eq!(*before == after, is_frozen(name), "{name}");
    }
    let grads = output.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (name, _) in parameter_shapes(&config) {
        assert_eq!(grads.get(&parameters[&name]).is_none(), is_frozen(&name), "{name}");
    }
}
