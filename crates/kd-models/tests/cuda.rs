//! Planned passes on a GPU against those on the CPU and against candle's way on the GPU; ignored where there is no GPU.
//!
//! ```text
//! cargo test -p kd-models --features cuda --test cuda          # or --features cudnn
//! ```

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use common::graphs::{crossed, large, odd, resnet};
use common::{Way, hashed, trained, values};
use kd_models::families::{TutorialConfig, tutorial};
use kd_models::{Classifier, Graph, GraphNetwork, Output, Parameters, partly_frozen, var_builder};
use kd_ops::DropoutKey;
use kd_ops::cuda::graph::{Graph as Captured, StepScalars, keep_uploads};
use libtest_mimic::{Arguments, Trial};

const KEY: DropoutKey = DropoutKey { seed: 7, step: 3 };

fn main() {
    let tests: [(&str, fn(&Device)); 6] = [
        ("a_step_gives_what_the_cpu_and_candle_give", a_step),
        ("places_have_their_values_and_give_their_gradients", places),
        ("frozen_layers_keep_their_statistics", frozen_layers),
        ("images_that_are_a_variable_get_their_gradient", images_get_their_gradient),
        ("an_evaluation_folds_normalisations", an_evaluation),
        ("a_captured_pass_has_the_same_bits", a_captured_pass),
    ];
    let device = Device::new_cuda(0);
    if let Err(error) = &device {
        // The first line: a backtrace may follow.
        println!("skipped: no GPU ({})", error.to_string().lines().next().unwrap_or_default());
    }
    if let Ok(device) = &device {
        // As `kd` sets its device up.
        kd_ops::cuda::keep_freed_memory(device).unwrap();
        // SAFETY: one thread runs all tests, see below.
        unsafe { kd_ops::cuda::use_one_thread(device) };
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let device = device.as_ref().ok().cloned();
        let ignored = device.is_none();
        let run = move || {
            test(&device.unwrap());
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(ignored)
    });
    let mut arguments = Arguments::from_args();
    // All work for a GPU comes from one thread: candle's stream is another one in each thread.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// A loss that reads everything that was asked for.
fn loss(output: &Output) -> Tensor {
    let device = output.logits.device();
    let mut total = Tensor::zeros((), DType::F32, device).unwrap();
    for (i, tensor) in [&output.logits].into_iter().chain(output.features.values()).enumerate() {
        let weights = hashed(tensor.dims(), 50 + i as u32, 1.0).to_device(device).unwrap();
        let part = (tensor * weights).unwrap().sum_all().unwrap();
        let square = tensor.sqr().unwrap().mean_all().unwrap();
        total = ((total + part).unwrap() + square).unwrap();
    }
    total
}

fn on(device: &Device, parameters: &Parameters) -> Parameters {
    let copy = |(name, var): (&String, &Var)| {
        let copy = var.as_tensor().copy().unwrap().to_device(device).unwrap();
        (name.clone(), Var::from_tensor(&copy).unwrap())
    };
    parameters.iter().map(copy).collect()
}

/// What a step of training leaves: the values that were asked for, the gradients and the running statistics.
type Step = BTreeMap<String, Vec<f32>>;

fn step(
    way: Way,
    graph: &Graph,
    (images, device): (&Tensor, &Device),
    places: &[&str],
    freeze: &[&str],
) -> Step {
    let parameters = on(device, &trained(graph));
    let frozen = |name: &str| freeze.iter().any(|layer| name.starts_with(layer));
    let network = GraphNetwork::new(graph.clone(), partly_frozen(&parameters, frozen)).unwrap();
    let images = images.to_device(device).unwrap();
    let (output, gradients) = way.train(&network, &images, (KEY, places), loss);
    let mut step = Step::from([("logits".to_string(), values(&output.logits))]);
    for (name, feature) in &output.features {
        step.insert(format!("place {name}"), values(feature));
    }
    for spec in graph.parameters() {
        let gradient = gradients.get(parameters[&spec.name].as_tensor());
        step.insert(
            format!("gradient {}", spec.name),
            gradient
                .map(|gradient| {
                    assert_eq!(gradient.dims(), spec.shape);
                    values(gradient)
                })
                .unwrap_or_default(),
        );
    }
    for buffer in graph.buffers() {
        step.insert(buffer.name.clone(), values(parameters[&buffer.name].as_tensor()));
    }
    step
}

/// The largest difference of two lists, over the largest number of the first; or over 0.1, where all are small.
fn difference(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(0.1f32, |most, x| most.max(x.abs()));
    let apart = expected.iter().zip(found).fold(0.0f32, |most, (a, b)| {
        if (a - b).is_nan() { f32::INFINITY } else { most.max((a - b).abs()) }
    });
    apart / largest
}

/// What two ways may differ by, over a tensor's largest number.
const BOUND: f32 = 2e-4;

/// Takes a planned step on the GPU and one on the CPU, on several batches of images: values and running statistics must agree on each,
/// gradients on two of at most six, because where a value before a ReLU lies so near to zero that rounding decides on which side,
/// they jump.
fn assert_agree(
    what: &str,
    device: &Device,
    (graph, batch): (&Graph, usize),
    places: &[&str],
    freeze: &[&str],
) {
    let [channels, height, width] = graph.input();
    let (mut agreeing, mut worst) = (0, Vec::new());
    for tag in 1..=6 {
        let images = hashed(&[batch, channels, height, width], tag, 1.0);
        let cpu = step(Way::Planned, graph, (&images, &Device::Cpu), places, freeze);
        let gpu = step(Way::Planned, graph, (&images, device), places, freeze);
        assert_eq!(cpu.keys().collect::<Vec<_>>(), gpu.keys().collect::<Vec<_>>(), "{what}");
        let mut largest = (0.0f32, "");
        for (name, expected) in &cpu {
            assert_eq!(expected.len(), gpu[name].len(), "{what}: {name}");
            let apart = difference(expected, &gpu[name]);
            match name.starts_with("gradient") {
                true if apart > largest.0 => largest = (apart, name),
                true => {}
                false => assert!(apart < BOUND, "{what}, images {tag}: {name} differs by {apart}"),
            }
        }
        agreeing += usize::from(largest.0 < BOUND);
        worst.push(format!("{} by {}", largest.1, largest.0));
        if agreeing == 2 {
            return;
        }
    }
    panic!("{what}: gradients agree on {agreeing} of 6 batches; they differ most in {worst:?}");
}

fn student() -> Graph {
    tutorial(&TutorialConfig { input: [3, 13, 10], ..TutorialConfig::student() }).unwrap()
}

fn graphs() -> [(&'static str, Graph); 6] {
    let teacher = TutorialConfig {
        input: [3, 12, 12],
        convs: vec![(10, false), (6, true), (6, false), (3, true)],
        hidden: 20,
        ..TutorialConfig::teacher()
    };
    [
        ("teacher", tutorial(&teacher).unwrap()),
        ("student", student()),
        ("resnet14 of 11x13", resnet(2, [3, 11, 13])),
        ("odd", odd()),
        ("crossed", crossed()),
        ("resnet10", large(false, [3, 33, 32])),
    ]
}

fn a_step(device: &Device) {
    for (name, graph) in graphs() {
        let [channels, height, width] = graph.input();
        let parameters = on(device, &trained(&graph));
        let network = GraphNetwork::new(graph.clone(), var_builder(&parameters)).unwrap();
        let images = hashed(&[2, channels, height, width], 1, 1.0).to_device(device).unwrap();
        let (_, tape) = network.train(&images, KEY, &[]).unwrap();
        assert_eq!(format!("{tape:?}"), "Tape(a planned pass)", "{name}");
        for batch in [1, 5] {
            // One image has one value in each channel of the last maps, which a batch normalisation refuses.
            if batch == 1 && name == "resnet10" {
                continue;
            }
            assert_agree(&format!("{name}, batch {batch}"), device, (&graph, batch), &[], &[]);
        }
    }
    // On the GPU itself, where candle goes another way through the same kernels.
    let images = hashed(&[4, 3, 13, 10], 3, 1.0);
    let [candle, planned] = Way::BOTH.map(|way| step(way, &student(), (&images, device), &[], &[]));
    for (name, expected) in &candle {
        let apart = difference(expected, &planned[name]);
        assert!(apart < 1e-5, "student, candle's way: {name} differs by {apart}");
    }
}

fn places(device: &Device) {
    for (name, graph) in graphs().into_iter().filter(|(name, _)| *name != "resnet10") {
        let places = graph.places();
        let all: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        assert_agree(&format!("{name}, all places"), device, (&graph, 3), &all, &[]);
        for asked in all.iter().step_by(2) {
            let what = format!("{name}, place {asked}");
            assert_agree(&what, device, (&graph, 2), &[*asked], &[]);
        }
    }
}

fn frozen_layers(device: &Device) {
    let resnet = resnet(1, [3, 9, 8]);
    for freeze in [&["conv1", "bn1"][..], &["layer"], &["bn1", "layer1", "fc"]] {
        assert_agree(&format!("resnet8, frozen {freeze:?}"), device, (&resnet, 3), &[], freeze);
    }
    let freeze = &["features"];
    assert_agree("student, frozen features", device, (&student(), 3), &["features.2"], freeze);
}

fn images_get_their_gradient(device: &Device) {
    for (name, graph) in graphs().into_iter().filter(|(name, _)| *name != "resnet10") {
        let [channels, height, width] = graph.input();
        let images = hashed(&[3, channels, height, width], 5, 1.0);
        let [cpu, gpu] = [&Device::Cpu, device].map(|device| {
            let parameters = on(device, &trained(&graph));
            let network = GraphNetwork::new(graph.clone(), var_builder(&parameters)).unwrap();
            let images = Var::from_tensor(&images.to_device(device).unwrap()).unwrap();
            let (_, gradients) = Way::Planned.train(&network, images.as_tensor(), (KEY, &[]), loss);
            values(gradients.get(images.as_tensor()).unwrap())
        });
        let apart = difference(&cpu, &gpu);
        assert!(apart < 5e-3, "{name}: the images' gradient differs by {apart}");
    }
}

fn an_evaluation(device: &Device) {
    for (name, graph) in graphs() {
        let [channels, height, width] = graph.input();
        let all = graph.places();
        let all: Vec<&str> = all.iter().map(|place| place.name.as_str()).collect();
        for (batch, places) in [(1, &[][..]), (5, &[]), (2, &all[..])] {
            let images = hashed(&[batch, channels, height, width], 5, 1.0);
            let [cpu, gpu] = [&Device::Cpu, device].map(|device| {
                let parameters = on(device, &trained(&graph));
                let network = GraphNetwork::new(graph.clone(), var_builder(&parameters)).unwrap();
                let images = images.to_device(device).unwrap();
                let output = network.evaluate(&images, places).unwrap();
                let mut found = vec![values(&output.logits)];
                found.extend(output.features.values().map(values));
                found
            });
            for (at, (cpu, gpu)) in cpu.iter().zip(&gpu).enumerate() {
                let apart = difference(cpu, gpu);
                assert!(apart < BOUND, "{name}, batch {batch}, output {at} differs by {apart}");
            }
        }
    }
}

/// A forward and backward pass as a graph, launched twice with other images between, against the same by pieces.
fn a_captured_pass(device: &Device) {
    for (name, graph) in [("student", student()), ("resnet8", resnet(1, [3, 9, 8]))] {
        let [channels, height, width] = graph.input();
        let shape = [4, channels, height, width];
        let batches = [6, 7].map(|tag| hashed(&shape, tag, 1.0).to_device(device).unwrap());
        let first = graph.parameters().next().unwrap().name.clone();
        // The gradient of the first weight, to which everything contributes, and the logits.
        let pass = |network: &GraphNetwork, parameters: &Parameters, images: &Tensor| {
            let (output, gradients) = Way::Planned.train(network, images, (KEY, &[]), |output| {
                output.logits.sqr().unwrap().sum_all().unwrap()
            });
            let gradient = gradients.get(parameters[&first].as_tensor()).unwrap();
            [output.logits.flatten_all().unwrap(), gradient.flatten_all().unwrap()]
        };
        let network = || {
            let parameters = on(device, &trained(&graph));
            let network = GraphNetwork::new(graph.clone(), var_builder(&parameters)).unwrap();
            (network, parameters)
        };
        let (by_pieces, parameters) = network();
        let expected = batches
            .each_ref()
            .map(|images| pass(&by_pieces, &parameters, images).map(|tensor| values(&tensor)));

        let (captured, parameters) = network();
        let images = batches[0].copy().unwrap();
        let results = {
            let _uploads = keep_uploads(device);
            let before = pass(&captured, &parameters, &images);
            before.map(|tensor| {
                let result = tensor.detach().zeros_like().unwrap();
                result.slice_set(&tensor.detach(), 0, 0).unwrap();
                result
            })
        };
        let body = || -> candle_core::Result<()> {
            for (to, from) in results.iter().zip(pass(&captured, &parameters, &images)) {
                to.slice_set(&from.detach(), 0, 0)?;
            }
            Ok(())
        };
        // SAFETY: network, images and results outlive the graph.
        let mut step = unsafe { Captured::capture(device, body) }.unwrap();
        for (batch, expected) in batches.iter().zip(&expected) {
            images.slice_set(batch, 0, 0).unwrap();
            step.launch(KEY.step, StepScalars::default()).unwrap();
            let found = results.each_ref().map(values);
            assert!(found == *expected, "{name}: the bits of a captured pass differ");
            // Between the launches another pass works in memory of its own size.
            captured.evaluate(&batches[1], &[]).unwrap();
        }
    }
}
