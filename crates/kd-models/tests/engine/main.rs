//! The planned passes against candle's way of computing the same graph: values, gradients, running statistics.

#[path = "../common/mod.rs"]
mod common;
mod sharing;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use common::graphs::{graphs, large, resnet};
use common::{Way, hashed, tensors, trained, values};
use kd_models::families::{TutorialConfig, tutorial};
use kd_models::graph::{Conv, GraphBuilder};
use kd_models::{
    Classifier, Graph, GraphNetwork, Mode, Output, Parameters, frozen, partly_frozen, var_builder,
};
use kd_ops::DropoutKey;

const KEY: DropoutKey = DropoutKey { seed: 7, step: 3 };

/// Images or weights of a loss: numbers in [-1, 1).
fn numbers(shape: &[usize], seed: u32) -> Tensor {
    hashed(shape, seed, 1.0)
}

/// A loss that reads everything that was asked for.
fn loss(output: &Output) -> Tensor {
    let mut total = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
    for (i, tensor) in [&output.logits].into_iter().chain(output.features.values()).enumerate() {
        let weights = numbers(tensor.dims(), 50 + i as u32);
        let part = (tensor * weights).unwrap().sum_all().unwrap();
        let square = tensor.sqr().unwrap().mean_all().unwrap();
        total = ((total + part).unwrap() + square).unwrap();
    }
    total
}

/// What a step of training leaves: the values that were asked for, the gradients and the running statistics.
type Step = BTreeMap<String, Vec<f32>>;

fn record(
    output: &Output,
    gradients: BTreeMap<String, Option<Vec<f32>>>,
    parameters: &Parameters,
    graph: &Graph,
) -> Step {
    let mut step = Step::from([("logits".to_string(), values(&output.logits))]);
    for (name, feature) in &output.features {
        step.insert(format!("place {name}"), values(feature));
    }
    for (name, gradient) in gradients {
        step.insert(format!("gradient {name}"), gradient.unwrap_or_default());
    }
    for buffer in graph.buffers() {
        step.insert(buffer.name.clone(), values(parameters[&buffer.name].as_tensor()));
    }
    step
}

fn copies(parameters: &Parameters) -> Parameters {
    let copy = |(name, var): (&String, &Var)| {
        (name.clone(), Var::from_tensor(&var.as_tensor().copy().unwrap()).unwrap())
    };
    parameters.iter().map(copy).collect()
}

fn gradients_of(
    graph: &Graph,
    parameters: &Parameters,
    gradients: &candle_core::backprop::GradStore,
) -> BTreeMap<String, Option<Vec<f32>>> {
    let specs = graph.parameters();
    let of = |name: &str| gradients.get(parameters[name].as_tensor()).map(values);
    specs.map(|spec| (spec.name.clone(), of(&spec.name))).collect()
}

/// A step through candle and a planned one.
fn both(graph: &Graph, images: &Tensor, places: &[&str], freeze: &[&str]) -> (Step, Step) {
    let start = trained(graph);
    let build = |parameters: &Parameters| {
        let frozen = |name: &str| freeze.iter().any(|layer| name.starts_with(layer));
        GraphNetwork::new(graph.clone(), partly_frozen(parameters, frozen)).unwrap()
    };
    let (_, tape) = build(&copies(&start)).train(images, KEY, places).unwrap();
    assert_eq!(format!("{tape:?}"), "Tape(a planned pass)");
    let [candle, planned] = Way::BOTH.map(|way| {
        let own = copies(&start);
        let (output, gradients) = way.train(&build(&own), images, (KEY, places), loss);
        record(&output, gradients_of(graph, &own, &gradients), &own, graph)
    });
    (candle, planned)
}

/// The largest difference of two lists, over the largest number of the first; or over 0.1, where all are small: the gradient of
/// a bias before a batch normalisation is nothing but rounding.
fn difference(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(0.1f32, |most, x| most.max(x.abs()));
    let apart = expected.iter().zip(found).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    apart / largest
}

/// Takes steps on several batches of images, both ways. Values and running statistics must agree on each, gradients on three
/// of at most eight: where a value before a ReLU lies so near to zero that rounding decides on which side, gradients jump by
/// some thousandths; elsewhere they agree to 1e-5.
fn assert_agree(what: &str, graph: &Graph, batch: usize, places: &[&str], freeze: &[&str]) {
    let [channels, height, width] = graph.input();
    let mut agreeing = 0;
    let mut worst = Vec::new();
    for tag in 1..=8 {
        let images = numbers(&[batch, channels, height, width], tag);
        let (candle, planned) = both(graph, &images, places, freeze);
        assert_eq!(candle.keys().collect::<Vec<_>>(), planned.keys().collect::<Vec<_>>(), "{what}");
        let mut largest = 0.0f32;
        for (name, expected) in &candle {
            assert_eq!(expected.len(), planned[name].len(), "{what}: {name}");
            let apart = difference(expected, &planned[name]);
            if name.starts_with("gradient") {
                largest = largest.max(apart);
            } else {
                assert!(apart < BOUND, "{what}, images {tag}: {name} differs by {apart}");
            }
        }
        agreeing += usize::from(largest < BOUND);
        worst.push(largest);
        if agreeing == 3 {
            return;
        }
    }
    panic!("{what}: gradients agree on {agreeing} of 8 batches; they differ by {worst:?}");
}

/// What the two ways may differ by, over a tensor's largest number.
const BOUND: f32 = 1e-4;

#[test]
fn a_planned_step_gives_what_candles_gives() {
    for (name, graph) in graphs() {
        for batch in [2, 19] {
            assert_agree(&format!("{name}, batch {batch}"), &graph, batch, &[], &[]);
        }
    }
}

#[test]
fn a_planned_step_of_a_large_network_gives_what_candles_gives() {
    for (name, graph) in [
        ("resnet10 of 40x33", large(false, [3, 40, 33])),
        ("resnet14 with bottlenecks", large(true, [3, 33, 33])),
    ] {
        assert_agree(name, &graph, 3, &[], &[]);
    }
}

#[test]
fn a_place_in_the_middle_of_a_fusion_has_its_value_and_gives_its_gradient() {
    for (name, graph) in graphs() {
        let places = graph.places();
        let all: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        for asked in all.iter().map(std::slice::from_ref).chain([&all[..]]) {
            assert_agree(&format!("{name}, places {asked:?}"), &graph, 2, asked, &[]);
        }
    }
}

#[test]
fn frozen_layers_get_no_gradient_and_keep_their_statistics() {
    let resnet = resnet(1, [3, 16, 16]);
    for frozen in [
        &["conv1", "bn1", "layer1"][..],
        &["bn1", "layer2.0.bn1"],
        &["layer1.0.conv2", "linear"],
        &["bn1.weight"],
    ] {
        assert_agree(&format!("{frozen:?} frozen"), &resnet, 5, &["layer1"], frozen);
    }
}

/// Also where nothing is trained but the images.
#[test]
fn images_that_are_a_variable_get_the_gradient_that_candle_gives_them() {
    for (name, graph) in graphs() {
        let [channels, height, width] = graph.input();
        let start = tensors(&trained(&graph));
        let places = graph.places();
        let all: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        // Where rounding decides a ReLU, gradients jump: three of eight batches have to agree.
        let mut agreeing = 0;
        for tag in 1..=8 {
            for asked in [&[][..], &all] {
                let images =
                    Var::from_tensor(&numbers(&[3, channels, height, width], tag)).unwrap();
                let [candle, planned] = Way::BOTH.map(|way| {
                    let network = GraphNetwork::new(graph.clone(), frozen(&start)).unwrap();
                    let (_, gradients) = way.train(&network, &images, (KEY, asked), loss);
                    let gradient = gradients.get(&images).expect("the images have a gradient");
                    assert_eq!(gradient.dims(), images.dims());
                    values(gradient)
                });
                agreeing += usize::from(difference(&candle, &planned) < BOUND);
            }
        }
        assert!(agreeing >= 6, "{name}: {agreeing} of 16 agree");
    }
}

/// What the engine has no kernel for is computed through candle, without a word and without an error.
#[test]
fn a_depthwise_window_of_more_than_15_pixels_goes_through_candle() {
    let mut g = GraphBuilder::new("wide", [8, 18, 18]).unwrap();
    let images = g.images();
    let conv = Conv { groups: 8, padding: 8, ..Conv::new(8, 17) };
    let x = g.conv("conv", images, conv).unwrap();
    let x = g.global_average_pool("mean", x).unwrap();
    let x = g.linear("head", x, 4).unwrap();
    let graph = g.finish(x).unwrap();
    let parameters = trained(&graph);
    let network = GraphNetwork::new(graph, var_builder(&parameters)).unwrap();
    let images = numbers(&[2, 8, 18, 18], 1);
    let (_, tape) = network.train(&images, KEY, &[]).unwrap();
    assert_eq!(format!("{tape:?}"), format!("{:?}", kd_models::Tape::default()));
    let expected = network.forward_t(&images, Mode::Eval, &[]).unwrap();
    let found = network.evaluate(&images, &[]).unwrap();
    assert!(values(&expected.logits) == values(&found.logits));
}

/// As candle's way does: nothing is divided by the number of images but the loss.
#[test]
fn a_batch_without_images_gives_gradients_of_zero() {
    let graph = tutorial(&TutorialConfig::student()).unwrap();
    let parameters = trained(&graph);
    let network = GraphNetwork::new(graph, var_builder(&parameters)).unwrap();
    let images = Tensor::zeros((0, 3, 32, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
    let (output, tape) = network.train(&images, KEY, &["features.2"]).unwrap();
    assert_eq!(output.logits.dims(), [0, 10]);
    let mut gradients = output.logits.sum_all().unwrap().backward().unwrap();
    network.backward(tape, &mut gradients).unwrap();
    for (name, var) in &parameters {
        assert!(values(gradients.get(var).unwrap()).iter().all(|g| *g == 0.0), "{name}");
    }
    assert_eq!(network.evaluate(&images, &[]).unwrap().logits.dims(), [0, 10]);
}

#[test]
fn a_planned_evaluation_gives_what_candles_gives() {
    for (name, graph) in graphs() {
        let parameters = trained(&graph);
        let [channels, height, width] = graph.input();
        let places = graph.places();
        let all: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        let network = GraphNetwork::new(graph, frozen(&tensors(&parameters))).unwrap();
        for batch in [1, 18] {
            let images = numbers(&[batch, channels, height, width], 4);
            for asked in [&[][..], &all] {
                let expected = network.forward_t(&images, Mode::Eval, asked).unwrap();
                let found = network.evaluate(&images, asked).unwrap();
                assert!(difference(&values(&expected.logits), &values(&found.logits)) < 1e-4);
                for (place, expected) in &expected.features {
                    let found = &found.features[place];
                    assert_eq!(expected.dims(), found.dims(), "{name}: {place}");
                    let apart = difference(&values(expected), &values(found));
                    assert!(apart < 1e-4, "{name}: {place} differs by {apart}");
                }
            }
        }
    }
}

#[test]
fn a_plan_serves_one_batch_size_after_another() {
    let graph = resnet(1, [3, 16, 16]);
    let network = |parameters: &Parameters| {
        GraphNetwork::new(graph.clone(), var_builder(parameters)).unwrap()
    };
    let step = |network: &GraphNetwork, batch: usize| {
        let (output, tape) = network.train(&numbers(&[batch, 3, 16, 16], 5), KEY, &[]).unwrap();
        let mut gradients = loss(&output).backward().unwrap();
        network.backward(tape, &mut gradients).unwrap();
        (values(&output.logits), gradients)
    };
    let (once, again) = (trained(&graph), trained(&graph));
    let (alone, _) = step(&network(&once), 7);
    let used = network(&again);
    for batch in [3, 40, 7, 7] {
        let (logits, gradients) = step(&used, batch);
        // In training the logits don't depend on the running statistics, which is all that changes.
        assert!(batch != 7 || logits == alone);
        assert!(gradients.get(again["conv1.weight"].as_tensor()).is_some());
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let graph = resnet(1, [3, 32, 32]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| both(&graph, &numbers(&[21, 3, 32, 32], 6), &["layer2"], &[]).1)
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

/// Threads share the rows of a single image; weights that are laid out once are the same.
#[test]
fn one_image_has_the_same_bits_on_any_number_of_threads_and_in_a_prepared_network() {
    for (name, graph) in graphs() {
        let parameters = tensors(&trained(&graph));
        let [channels, height, width] = graph.input();
        let network = || GraphNetwork::new(graph.clone(), frozen(&parameters)).unwrap();
        let prepared = network().prepared();
        let run = |network: &GraphNetwork, batch: usize, threads: usize| {
            let images = numbers(&[batch, channels, height, width], 9);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            values(&pool.install(|| network.evaluate(&images, &[]).unwrap().logits))
        };
        for batch in [1, 2] {
            let one = run(&network(), batch, 1);
            for threads in [1, 2, 3] {
                assert!(run(&network(), batch, threads) == one, "{name}, {threads} threads");
                assert!(
                    run(&prepared, batch, threads) == one,
                    "{name}, {threads} threads, prepared"
                );
            }
        }
    }
}

#[test]
fn two_passes_may_be_under_way_at_once() {
    let graph = resnet(1, [3, 16, 16]);
    let parameters = trained(&graph);
    let network = GraphNetwork::new(graph.clone(), var_builder(&parameters)).unwrap();
    let (a, b) = (numbers(&[4, 3, 16, 16], 7), numbers(&[4, 3, 16, 16], 8));
    let gradient = |output: &Output, tape| {
        let mut gradients = loss(output).backward().unwrap();
        network.backward(tape, &mut gradients).unwrap();
        values(gradients.get(parameters["layer1.0.conv1.weight"].as_tensor()).unwrap())
    };
    let alone = {
        let (output, tape) = network.train(&a, KEY, &[]).unwrap();
        gradient(&output, tape)
    };
    let (output_a, tape_a) = network.train(&a, KEY, &[]).unwrap();
    let (output_b, tape_b) = network.train(&b, KEY, &[]).unwrap();
    let of_b = gradient(&output_b, tape_b);
    assert!(gradient(&output_a, tape_a) == alone);
    assert!(of_b != alone);
}
