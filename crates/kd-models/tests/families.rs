//! The families that torchvision and timm ship: published sizes, PyTorch's values (parity/families.py), first values, threads
//! and settings that make no sense.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use common::{Way, bits, fixture, hashed, named, short_digest, values};
use kd_models::families::{
    EfficientNetLiteConfig, MobileNetV2Config, ResNetConfig, efficientnet_lite, mobilenet_v2,
    resnet,
};
use kd_models::graph::{Conv, Op};
use kd_models::weights::{Loaded, parse};
use kd_models::{
    Architecture, Graph, GraphNetwork, Mode, ModelConfig, Parameters, init, var_builder,
};
use kd_ops::DropoutKey;
use kd_ops::sgd::{Sgd, SgdConfig};

const KEY: DropoutKey = DropoutKey { seed: 3, step: 5 };

fn default_graph(name: &str) -> Graph {
    let architecture = named(name);
    ModelConfig::new(architecture, architecture.default_classes()).graph().unwrap()
}

/// Parameters: torchvision 0.29 (`num_params` of its weights) and timm 1.0 (its `results` folder and the modules themselves).
#[test]
fn parameter_counts_are_the_published() {
    for (name, count) in [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v2_035", 1_677_128),
        ("mobilenet_v2_050", 1_968_680),
        ("mobilenet_v2_075", 2_636_424),
        ("mobilenet_v2_140", 6_108_776),
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
        ("efficientnet_lite3", 8_197_096),
        ("efficientnet_lite4", 13_006_568),
    ] {
        assert_eq!(default_graph(name).parameter_count(), count, "{name}");
    }
}

/// With CIFAR-100's classes: the counts of RepDistiller's modules, `sum(p.numel() for p in model.parameters())`, in millions the published 2.26, 0.70, 0.57, 9.46,
/// 3.97, 7.43, 1.23, 23.71, 0.81, 0.95 and 1.36 (Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", 2022, and others).
#[test]
fn the_published_pairs_have_the_published_parameter_counts() {
    for (name, count) in [
        ("wrn-40-2", 2_255_156),
        ("wrn-16-2", 703_284),
        ("wrn-40-1", 569_780),
        ("vgg8", 3_965_028),
        ("vgg11", 9_277_284),
        ("vgg13", 9_462_180),
        ("vgg16", 14_774_436),
        ("vgg19", 20_086_692),
        ("resnet32x4", 7_433_860),
        ("resnet8x4", 1_233_540),
        ("resnet50-cifar", 23_705_252),
        ("mobilenetv2-cifar", 812_836),
        ("shufflenetv1", 949_258),
        ("shufflenetv2", 1_355_528),
    ] {
        let graph = ModelConfig::new(named(name), 100).graph().unwrap();
        assert_eq!(graph.parameter_count(), count, "{name}");
    }
}

/// In millions, rounded as published: torchvision 0.29 (`_ops` of its weights), and for the other widths the table of slim's
/// MobileNet (`slim/nets/mobilenet/README.md`). EfficientNet-Lite's authors (`efficientnet/lite/README.md`) count normalisations,
/// activations and sums as well, which is 3 to 6 % more; convolutions and linear layers alone are counted over timm's modules.
#[test]
fn multiply_adds_are_the_published() {
    for (name, published) in [
        ("resnet18", 1814),
        ("resnet34", 3664),
        ("resnet50", 4089),
        ("mobilenet_v2", 301),
        ("mobilenet_v2_035", 59),
        ("mobilenet_v2_050", 97),
        ("mobilenet_v2_075", 209),
        ("mobilenet_v2_140", 582),
    ] {
        let found = default_graph(name).multiply_adds();
        let off = found.abs_diff(published * 1_000_000);
        assert!(off <= 1_000_000, "{name}: {found}, published {published} million");
    }
    // `python parity/families.py` counts over timm's modules.
    for (name, counted, published) in [
        ("efficientnet_lite0", 385_187_552, 407),
        ("efficientnet_lite1", 600_185_232, 631),
        ("efficientnet_lite2", 859_736_272, 899),
        ("efficientnet_lite3", 1_383_321_872, 1440),
        ("efficientnet_lite4", 2_553_034_336, 2640),
    ] {
        let found = default_graph(name).multiply_adds();
        assert_eq!(found, counted, "{name}");
        let ratio = published as f64 * 1e6 / found as f64;
        assert!((1.03..1.06).contains(&ratio), "{name}: {ratio}");
    }
}

/// `tag` of parity/families.py: FNV-1a, 32 bits.
fn tag(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// `fixed_weights` of parity/families.py.
fn weights(graph: &Graph, last: &str, middle: f64) -> Parameters {
    let mut parameters = BTreeMap::new();
    for node in graph.nodes() {
        for spec in node.parameters.iter().chain(&node.buffers) {
            let shape = &spec.shape;
            let (scale, middle) = match (&node.op, spec.name.rsplit('.').next()) {
                (Op::BatchNorm(_), Some("weight")) => (middle / 2.0, middle),
                (Op::BatchNorm(_), Some("running_var")) => (0.5, 1.0),
                (Op::BatchNorm(_), _) => (0.5, 0.0),
                _ if shape.len() > 1 => {
                    ((shape[1..].iter().product::<usize>() as f64).powf(-0.5), 0.0)
                }
                _ => ((shape[0] as f64).powf(-0.5), 0.0),
            };
            let values = (hashed(shape, tag(&spec.name), scale) + middle).unwrap();
            let ends = |of: &str| spec.name.ends_with(&format!(".{last}.{of}"));
            let values =
                if ends("weight") || ends("bias") { (values * 0.2).unwrap() } else { values };
            parameters.insert(spec.name.clone(), candle_core::Var::from_tensor(&values).unwrap());
        }
    }
    parameters
}

/// How far a tensor is off `short_digest` of PyTorch's, relative to its norm or `least`: sum, norm, sum with alternating signs,
/// first and last element.
fn off(name: &str, tensor: &Tensor, fixture: &HashMap<String, Tensor>, least: f64) -> f64 {
    let ours = values(tensor);
    let theirs = fixture[name].to_vec1::<f64>().unwrap();
    // Differences of a sum add up as a random walk does.
    let root = (ours.len() as f64).sqrt();
    let slack = |i: usize| if i == 1 { 1.0 } else { root.min(30.0) };
    let off = |(i, (found, theirs)): (usize, (f64, &f64))| (found - theirs).abs() / slack(i);
    let worst =
        short_digest(&ours).into_iter().zip(&theirs).enumerate().map(off).fold(0.0, f64::max);
    worst / theirs[1].max(least)
}

fn assert_logits(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f32) {
    let largest = values(theirs).iter().fold(0f32, |most, x| most.max(x.abs()));
    for (ours, theirs) in values(ours).iter().zip(values(theirs)) {
        assert!(
            (ours - theirs).abs() < tolerance * largest,
            "{what}: {ours}, PyTorch has {theirs}"
        );
    }
}

/// A network of parity/families.py: the shape of its images and the tag of their hash, the norm at the end of a residual branch,
/// and the middle of the norms' scales.
struct Case {
    name: &'static str,
    images: [usize; 4],
    tag: u32,
    last: &'static str,
    middle: f64,
}

/// Names, logits, losses, gradients, weights and running statistics after two steps, and logits after them; both ways.
fn agrees_with_pytorch(case: Case) {
    for way in Way::BOTH {
        agrees_this_way(&case, way);
    }
}

fn agrees_this_way(case: &Case, way: Way) {
    let &Case { name, images: [batch, channels, height, width], tag, last, middle } = case;
    let fixture = fixture(&format!("{name}.safetensors"));
    let (input, dropout) = ([channels, height, width], 0.0);
    let graph = ModelConfig { input, dropout, ..ModelConfig::new(named(name), 7) }.graph().unwrap();
    let parameters = weights(&graph, last, middle);
    let ours: BTreeSet<String> = parameters.keys().map(|name| format!("after.{name}")).collect();
    let theirs = fixture.keys().filter(|key| key.starts_with("after.")).cloned().collect();
    assert_eq!(ours, theirs);

    let network = GraphNetwork::new(graph, var_builder(&parameters)).unwrap();
    let images = hashed(&case.images, tag, 2.0);
    let labels: Vec<u32> = (0..batch as u32).map(|i| i * 3 % 7).collect();
    let evaluated = || way.logits(&network, &images);
    assert_logits("logits", &evaluated(), &fixture["logits"], 1e-4);
    let norm = |name: &str| fixture[name].to_vec1::<f64>().unwrap()[1];
    let of_gradients = fixture.keys().filter(|key| key.starts_with("grad."));
    let largest = of_gradients.map(|key| norm(key)).fold(0.0, f64::max);
    let mut sgd =
        Sgd::new(SgdConfig { lr: 1e-5, momentum: 0.9, nesterov: false, weight_decay: 0.0 });
    for (step, expected) in values(&fixture["losses"]).iter().enumerate() {
        let (value, grads) = way.step(&network, &images, &labels);
        let close = (value - expected).abs() < 1e-4 * expected;
        assert!(close, "{way:?}, step {step}: {value}, {expected}");
        for (name, var) in parameters.iter().filter(|(name, _)| !name.contains("running")) {
            // Behind some normalisations the gradient is zero but for rounding.
            let key = format!("grad.{name}");
            if step == 0 {
                let off = off(&key, grads.get(var).unwrap(), &fixture, 1e-3 * largest);
                assert!(off < 5e-3, "{key} is off by {off:e} of its norm");
            }
        }
        sgd.step(&parameters, &grads).unwrap();
    }
    for (name, var) in &parameters {
        let off = off(&format!("after.{name}"), var, &fixture, 1e-6);
        assert!(off < 2e-5, "{name} is off by {off:e} of its norm");
    }
    assert_logits("logits after", &evaluated(), &fixture["logits_after"], 1e-4);
}

#[test]
fn resnet18_agrees_with_torchvision() {
    let images = [4, 3, 64, 50];
    agrees_with_pytorch(Case { name: "resnet18", images, tag: 1005, last: "bn2", middle: 2.0 });
}

/// A bottleneck's stride lies in its 3x3 convolution.
#[test]
fn resnet50_agrees_with_torchvision() {
    let images = [4, 3, 64, 50];
    agrees_with_pytorch(Case { name: "resnet50", images, tag: 1024, last: "bn3", middle: 2.0 });
}

/// ReLU6 cuts off: the norms' scales are about 2.
#[test]
fn mobilenet_v2_agrees_with_torchvision() {
    let (name, images) = ("mobilenet_v2_035", [3, 3, 50, 40]);
    agrees_with_pytorch(Case { name, images, tag: 1038, last: "conv.3", middle: 2.0 });
}

/// TensorFlow's padding, eps and momentum.
#[test]
fn efficientnet_lite_agrees_with_timm() {
    let (name, images) = ("efficientnet_lite0", [3, 3, 50, 40]);
    agrees_with_pytorch(Case { name, images, tag: 1010, last: "bn3", middle: 1.0 });
}

/// Names, values and gradients of the networks for CIFAR's images, whose module names are RepDistiller's and mdistiller's (parity/small_networks.py).
#[test]
fn the_published_pairs_agree_with_pytorch() {
    let images = [3, 3, 16, 12];
    for (name, images, tag, last) in [
        ("wrn-16-2", images, 1040, "conv2"),
        ("vgg8", images, 1040, "none"),
        ("resnet50-cifar", images, 1041, "bn3"),
        ("mobilenetv2-cifar", [3, 3, 32, 40], 1055, "7"),
        ("shufflenetv1", [3, 3, 32, 24], 1075, "bn3"),
        ("shufflenetv2", [3, 3, 32, 24], 1066, "none"),
    ] {
        agrees_with_pytorch(Case { name, images, tag, last, middle: 1.0 });
    }
}

/// Standard deviation of normal values, bound of uniform ones: torchvision's and timm's defaults.
#[test]
fn fresh_weights_are_distributed_as_in_torchvision_and_timm() {
    let he = |fan_out: f64| (2.0 / fan_out).sqrt();
    for (name, weight, std) in [
        ("resnet18", "conv1.weight", he(64.0 * 49.0)),
        ("resnet18", "layer2.0.downsample.0.weight", he(128.0)),
        ("resnet18", "fc.weight", 1.0 / (3.0 * 512f64).sqrt()),
        ("mobilenet_v2", "features.2.conv.0.0.weight", he(96.0)),
        // torchvision counts the outputs of all groups, timm and TensorFlow those of one.
        ("mobilenet_v2", "features.2.conv.1.0.weight", he(96.0 * 9.0)),
        ("mobilenet_v2", "classifier.1.weight", 0.01),
        ("efficientnet_lite0", "conv_stem.weight", he(32.0 * 9.0)),
        ("efficientnet_lite0", "blocks.5.0.conv_dw.weight", he(25.0)),
        ("efficientnet_lite0", "classifier.weight", 1.0 / (3.0 * 1000f64).sqrt()),
    ] {
        let graph = default_graph(name);
        let spec = graph.parameters().find(|spec| spec.name == weight).unwrap();
        let values = values(&spec.fill.values(weight, &spec.shape, 42, &Device::Cpu).unwrap());
        let n = values.len() as f64;
        let found = (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n).sqrt();
        // Five standard errors of a normal's standard deviation.
        let off = (found / std - 1.0).abs();
        assert!(off < 5.0 / (2.0 * n).sqrt(), "{name} {weight}: {found}, expected {std}");
    }
    let zero = |name: &str, bias: &str| {
        let graph = default_graph(name);
        let spec = graph.parameters().find(|spec| spec.name == bias).unwrap();
        values(&spec.fill.values(bias, &spec.shape, 42, &Device::Cpu).unwrap())
            .iter()
            .all(|&x| x == 0.0)
    };
    assert!(zero("mobilenet_v2", "classifier.1.bias"));
    assert!(zero("efficientnet_lite0", "classifier.bias") && !zero("resnet18", "fc.bias"));
    // The head keeps its initialisation where the number of classes changes.
    let graph = default_graph("mobilenet_v2").with_classes(3).unwrap();
    assert_eq!(graph.head().op, default_graph("mobilenet_v2").with_classes(3).unwrap().head().op);
    let all = init(&ModelConfig::new(named("mobilenet_v2"), 3), 1, &Device::Cpu).unwrap();
    assert!(values(&all["classifier.1.bias"]).iter().all(|&x| x == 0.0));
}

#[test]
fn a_step_gives_the_same_bits_for_every_thread_count() {
    for name in ["resnet18", "mobilenet_v2_035", "efficientnet_lite0"] {
        let config = ModelConfig { input: [3, 40, 33], ..ModelConfig::new(named(name), 3) };
        let step = || {
            let parameters = init(&config, 1, &Device::Cpu).unwrap();
            let network = kd_models::build(&config, var_builder(&parameters)).unwrap();
            let images = hashed(&[5, 3, 40, 33], 1, 2.0);
            let logits = network.forward_t(&images, Mode::Train(KEY), &[]).unwrap().logits;
            let grads = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let grads = parameters.values().filter_map(|var| grads.get(var)).map(bits);
            let statistics = parameters.values().map(|var| bits(var));
            grads.chain(statistics).collect::<Vec<_>>()
        };
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(step)
        };
        let one = with(1);
        assert!(one == with(2) && one == with(3), "{name}");
    }
}

/// From one pixel to rectangles, one and four channels, as far as the network's strides allow.
#[test]
fn pictures_of_any_size_and_number_of_channels_are_taken() {
    for input in [[3, 1, 1], [1, 9, 32], [4, 33, 2], [3, 32, 32]] {
        for name in ["resnet18", "resnet50", "mobilenet_v2_050", "efficientnet_lite1"] {
            let config = ModelConfig { input, ..ModelConfig::new(named(name), 2) };
            let graph = config.graph().unwrap();
            let stem = graph.parameters().next().unwrap();
            assert_eq!(stem.shape[1], input[0], "{name}");
            assert_eq!(graph.classes(), 2);
        }
    }
    let huge = ModelConfig { input: [3, 512, 384], ..ModelConfig::new(named("resnet50"), 1000) };
    let last = huge.graph().unwrap().places().into_iter().find(|place| place.name == "layer4");
    assert_eq!(last.unwrap().shape, [2048, 16, 12]);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let width = |width: f64| {
        let name = "narrow".to_string();
        let config =
            MobileNetV2Config { name, input: [3, 32, 32], classes: 10, width, dropout: 0.0 };
        mobilenet_v2(&config).map(|_| ()).map_err(|error| error.to_string())
    };
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
        let expected =
            format!("model setting width is {wrong}; expected a number above 0 and at most 16");
        assert_eq!(width(wrong), Err(expected));
    }
    assert_eq!(width(1e-9), Ok(()));
    assert_eq!(width(16.0), Ok(()));
    let depth = EfficientNetLiteConfig { depth: 0.0, ..EfficientNetLiteConfig::lite0() };
    let error = efficientnet_lite(&depth).unwrap_err().to_string();
    assert_eq!(error, "model setting depth is 0; expected a number above 0 and at most 16");
    let none = ResNetConfig {
        name: "none".into(),
        input: [3, 0, 32],
        classes: 10,
        blocks: [1; 4],
        bottleneck: false,
    };
    let error = resnet(&none).unwrap_err().to_string();
    assert_eq!(error, "the none, layer images: a tensor of shape [3, 0, 32] has no values");
    // A stage without blocks is no error: the network is a shorter one.
    assert!(resnet(&ResNetConfig { input: [3, 8, 8], blocks: [0, 1, 0, 0], ..none }).is_ok());
}

/// timm's own `efficientnet_lite0` has the same tensors as TensorFlow's but other zeros and another eps.
#[test]
fn a_lite_network_with_even_zeros_is_a_setting_away() {
    let lite0 = EfficientNetLiteConfig::lite0();
    let norm = kd_models::graph::Norm::default();
    let timms = EfficientNetLiteConfig { same_padding: false, norm, ..lite0.clone() };
    let (timms, tensorflows) =
        (efficientnet_lite(&timms).unwrap(), efficientnet_lite(&lite0).unwrap());
    assert!(timms.tensors().eq(tensorflows.tensors()));
    let stem = |graph: &Graph| match graph.nodes()[1].op {
        Op::Conv(Conv { padding, same_padding, .. }) => (padding, same_padding),
        _ => panic!("no convolution"),
    };
    assert_eq!((stem(&timms), stem(&tensorflows)), ((1, false), (0, true)));
}

/// A file of these tensors, as safetensors in memory, loaded as the network `name` for 7 classes.
fn load(tensors: &BTreeMap<String, Tensor>, name: &str) -> Result<Loaded, String> {
    let bytes = |(name, tensor): (&String, &Tensor)| {
        let bytes = values(tensor).into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        (name.clone(), tensor.dims().to_vec(), bytes)
    };
    let tensors: Vec<_> = tensors.iter().map(bytes).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name, view.unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    let config = ModelConfig { input: [3, 32, 32], ..ModelConfig::new(named(name), 7) };
    parse(&file, Path::new("file"), &config).map_err(|error| error.to_string())
}

#[test]
fn a_file_of_another_network_of_the_family_is_named() {
    let tensors_of = |name: &str| {
        let graph = ModelConfig::new(named(name), 7).graph().unwrap();
        common::tensors(&graph.init(1, &Device::Cpu).unwrap())
    };
    let mut narrow = tensors_of("mobilenet_v2_035");
    let loaded = load(&narrow, "mobilenet_v2_035").unwrap();
    assert!(loaded.notes.is_empty() && loaded.tensors.len() == narrow.len());
    for (name, tensor) in &loaded.tensors {
        assert_eq!(bits(tensor), bits(&narrow[name]), "{name}");
    }
    let error = load(&narrow, "mobilenet_v2_050").unwrap_err();
    assert_eq!(
        error,
        "file: these are the weights of a mobilenet_v2_035, not of a mobilenet_v2_050"
    );
    // A count of batches is none of the network's; a shortcut with weights is another network's.
    let one = Tensor::zeros(&[1], candle_core::DType::F32, &Device::Cpu).unwrap();
    narrow.insert("features.0.1.num_batches_tracked".into(), one.clone());
    assert!(load(&narrow, "mobilenet_v2_035").is_ok());
    let mut resnet = tensors_of("resnet18");
    resnet.insert("layer1.0.downsample.0.weight".into(), one);
    let error = load(&resnet, "resnet18").unwrap_err();
    assert_eq!(error, "file: the resnet18 has no tensor layer1.0.downsample.0.weight (shape [1])");
}

#[test]
fn every_family_is_listed_with_its_defaults() {
    let large = Architecture::all().filter(|network| network.default_classes() == 1000);
    let large: Vec<_> =
        large.map(|network| (network.family(), network.default_input()[1])).collect();
    assert_eq!(large.len(), 13);
    let of = |family: &str| large.iter().filter(|(of, _)| *of == family).count();
    assert_eq!((of("resnet"), of("mobilenet_v2"), of("efficientnet_lite")), (3, 5, 5));
    let sides: Vec<_> = large[8..].iter().map(|(_, side)| *side).collect();
    assert_eq!(sides, [224, 240, 260, 280, 300]);
}
