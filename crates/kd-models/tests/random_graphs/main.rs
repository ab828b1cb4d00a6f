//! Random graphs, computed by plan, beside a plain computation in f64: values, gradients of every parameter, running statistics,
//! and the same bits for any number of threads and after passes of other batch sizes.
//!
//! Where a gradient jumps, f32 and f64 may stand on different sides. So gradients are compared only where no value lies nearer
//! than [`MARGIN`] to a ReLU's corner and no two largest values of a max-pool's window are nearer to each other, over the
//! largest value there, and where no normalised channel is nothing but rounding ([`SPREAD`]). Images are drawn anew until they
//! are, [`TRIES`] times; values are compared on the last ones in any case.

#[path = "../common/mod.rs"]
mod common;
mod generator;
mod reference;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor, Var};
use common::{bits, tensors, values};
use generator::{Case, Draws, case};
use kd_models::{Classifier, GraphNetwork, Output, Parameters, frozen, partly_frozen};
use kd_ops::DropoutKey;
use reference::Pass;

const KEY: DropoutKey = DropoutKey { seed: 11, step: 5 };
const GRAPHS: u64 = 200;
const MARGIN: f64 = 2e-6;
const SPREAD: f64 = 1e-4;
const TRIES: u64 = 40;
/// What f32 may be wrong by, over the largest number of a tensor.
const OF_VALUES: f64 = 1e-4;
const OF_GRADIENTS: f64 = 1e-3;

/// Weights, scales, shifts and running statistics that all matter.
fn parameters(case: &Case, seed: u64) -> Parameters {
    let mut draws = Draws(seed ^ 0x5EED);
    let mut fill = |name: &str, shape: &[usize], positive: bool| {
        let fan = shape[1..].iter().product::<usize>().max(1) as f32;
        let count = shape.iter().product::<usize>();
        let value = |draws: &mut Draws| match (positive, shape.len()) {
            (true, _) => 1.0 + 0.5 * draws.value(),
            (false, 1) => 0.5 * draws.value(),
            (false, _) => draws.value() * (3.0 / fan).sqrt(),
        };
        let list: Vec<f32> = (0..count).map(|_| value(&mut draws)).collect();
        let tensor = Tensor::from_vec(list, shape, &Device::Cpu).unwrap();
        (name.to_string(), Var::from_tensor(&tensor).unwrap())
    };
    let is_scale = |name: &str, shape: &[usize]| {
        name.ends_with("running_var") || name.ends_with("weight") && shape.len() == 1
    };
    let specs = case.graph.tensors();
    specs.map(|spec| fill(&spec.name, &spec.shape, is_scale(&spec.name, &spec.shape))).collect()
}

fn images(case: &Case, seed: u64) -> Tensor {
    let mut draws = Draws(seed ^ 0x1A6E5);
    let [channels, height, width] = case.graph.input();
    let list = (0..case.batch * channels * height * width).map(|_| draws.value());
    let shape = (case.batch, channels, height, width);
    Tensor::from_vec(list.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    values(tensor).iter().map(|x| f64::from(*x)).collect()
}

/// The weights of the loss, `sum of w y + y² / 20`, at a position.
fn loss_weight(position: usize) -> f64 {
    let mut draws = Draws(position as u64);
    f64::from(draws.value())
}

/// The same loss of what a network gave, and the tensors that it is of: the logits, then each place.
fn loss(output: &Output) -> Tensor {
    let mut total = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
    for tensor in [&output.logits].into_iter().chain(output.features.values()) {
        let weights: Vec<f32> = (0..tensor.elem_count()).map(|i| loss_weight(i) as f32).collect();
        let weights = Tensor::from_vec(weights, tensor.shape(), &Device::Cpu).unwrap();
        let part = (tensor * weights).unwrap().sum_all().unwrap();
        let squares = (tensor.sqr().unwrap().sum_all().unwrap() / 20.0).unwrap();
        total = ((total + part).unwrap() + squares).unwrap();
    }
    total
}

struct Found {
    output: Output,
    gradients: BTreeMap<String, Option<Tensor>>,
    buffers: BTreeMap<String, Tensor>,
}

fn names(case: &Case) -> Vec<&str> {
    case.places.iter().map(String::as_str).collect()
}

fn is_frozen(case: &Case, name: &str) -> bool {
    case.frozen
        .iter()
        .any(|layer| name.strip_prefix(layer.as_str()).is_some_and(|r| r.starts_with('.')))
}

/// A planned step, from these weights, of which copies are changed.
fn planned(case: &Case, start: &Parameters, images: &Tensor) -> Found {
    let own = copies(start);
    let network = network(case, &own);
    step(case, &network, &own, images)
}

fn copies(parameters: &Parameters) -> Parameters {
    let copy = |(name, var): (&String, &Var)| {
        (name.clone(), Var::from_tensor(&var.as_tensor().copy().unwrap()).unwrap())
    };
    parameters.iter().map(copy).collect()
}

fn network(case: &Case, own: &Parameters) -> GraphNetwork {
    let variables = partly_frozen(own, |name| is_frozen(case, name));
    GraphNetwork::new(case.graph.clone(), variables).unwrap()
}

fn step(case: &Case, network: &GraphNetwork, own: &Parameters, images: &Tensor) -> Found {
    let (output, tape) = network.train(images, KEY, &names(case)).unwrap();
    let mut store = loss(&output).backward().unwrap();
    network.backward(tape, &mut store).unwrap();
    let of = |name: &str| store.get(own[name].as_tensor()).cloned();
    let gradients = case.graph.parameters().map(|spec| (spec.name.clone(), of(&spec.name)));
    let buffers = case.graph.buffers();
    let buffers = buffers.map(|spec| (spec.name.clone(), own[&spec.name].as_detached_tensor()));
    Found { output, gradients: gradients.collect(), buffers: buffers.collect() }
}

/// How far two lists are apart, over the largest number; or over `least`, where all are smaller.
fn apart(expected: &[f64], found: &[f64], least: f64) -> f64 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(least, |most, x| most.max(x.abs()));
    let pairs = expected.iter().zip(found);
    let most =
        pairs.fold(
            0.0f64,
            |most, (a, b)| {
                if (a - b).is_nan() { f64::INFINITY } else { most.max((a - b).abs()) }
            },
        );
    most / largest
}

/// What is wrong with a case, in sentences; and whether its gradients could be compared.
fn check(seed: u64) -> (Vec<String>, bool) {
    let case = case(seed);
    let start = parameters(&case, seed);
    let wide_tensors: BTreeMap<String, Vec<f64>> =
        start.iter().map(|(name, var)| (name.clone(), wide(var.as_tensor()))).collect();
    let still: BTreeSet<String> =
        start.keys().filter(|name| is_frozen(&case, name)).cloned().collect();
    let forward = |images: &Tensor, train| {
        let (batch, images) = (case.batch, wide(images));
        Pass::forward(&case.graph, batch, images, wide_tensors.clone(), &still, train)
    };
    let mut tries = (0..TRIES).map(|t| {
        let images = images(&case, seed.wrapping_mul(TRIES) + t);
        let pass = forward(&images, Some(KEY));
        (images, pass)
    });
    let clear = |pass: &Pass<'_>| pass.margin > MARGIN && pass.spread > SPREAD;
    let (mut drawn, mut pass) = tries.next().unwrap();
    while !clear(&pass) {
        let Some(next) = tries.next() else { break };
        (drawn, pass) = next;
    }
    let compared = clear(&pass);
    let mut wrong = Vec::new();
    let mut note = |what: String, far: f64, bound: f64| {
        if far > bound {
            wrong.push(format!("{what} differs by {far:.2e}"));
        }
    };
    let found = planned(&case, &start, &drawn);
    // Values behind a channel that is nothing but rounding are rounding, too.
    let bound = if pass.spread > SPREAD { OF_VALUES } else { f64::INFINITY };
    let last = case.graph.nodes().len() - 1;
    let mut seeds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let shown: Vec<(String, usize)> = case
        .places
        .iter()
        .map(|name| (name.clone(), case.graph.place(name).unwrap().index()))
        .collect();
    for (name, node) in [("logits".to_string(), last)].iter().chain(&shown) {
        let tensor =
            if *node == last { &found.output.logits } else { &found.output.features[name] };
        note(format!("train: {name}"), apart(&pass.values[*node], &wide(tensor), 0.01), bound);
        let seed = pass.values[*node].iter().enumerate().map(|(i, y)| loss_weight(i) + y / 10.0);
        seeds.insert(*node, seed.collect());
    }
    for (name, tensor) in &found.buffers {
        note(format!("train: {name}"), apart(&pass.tensors[name], &wide(tensor), 0.01), bound);
    }
    let expected = pass.backward(&seeds);
    // The gradient of a bias before a normalisation is nothing but rounding of much larger numbers.
    let largest = expected.values().flatten().fold(0.1f64, |most, g| most.max(g.abs()));
    for (name, tensor) in &found.gradients {
        match (expected.get(name), tensor) {
            (Some(expected), Some(tensor)) if compared => {
                let far = apart(expected, &wide(tensor), largest / 10.0);
                note(format!("gradient of {name}"), far, OF_GRADIENTS);
            }
            (Some(_), Some(_)) | (None, None) => {}
            (Some(_), None) => note(format!("no gradient of {name}:"), f64::INFINITY, 0.0),
            (None, Some(_)) => note(format!("{name} is frozen; its gradient"), f64::INFINITY, 0.0),
        }
    }
    let pass = forward(&drawn, None);
    let evaluated = GraphNetwork::new(case.graph.clone(), frozen(&tensors(&start))).unwrap();
    let output = evaluated.evaluate(&drawn, &names(&case)).unwrap();
    for (name, node) in [("logits".to_string(), last)].iter().chain(&shown) {
        let tensor = if *node == last { &output.logits } else { &output.features[name] };
        note(
            format!("evaluation: {name}"),
            apart(&pass.values[*node], &wide(tensor), 0.01),
            OF_VALUES,
        );
    }
    if !wrong.is_empty() {
        wrong.push(case.print());
    }
    (wrong, compared)
}

#[test]
fn random_graphs_are_what_f64_computes() {
    let first: u64 = std::env::var("KD_GRAPH").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut compared = 0;
    let mut failures = Vec::new();
    for seed in first..first + GRAPHS {
        let (wrong, gradients) = check(seed);
        compared += u64::from(gradients);
        if !wrong.is_empty() {
            failures.push(format!("seed {seed}: {}", wrong.join("\n  ")));
        }
    }
    println!("gradients of {compared} of {GRAPHS} graphs were compared");
    assert!(failures.is_empty(), "{} graphs:\n{}", failures.len(), failures.join("\n"));
    assert!(compared * 10 >= GRAPHS * 8, "gradients of only {compared} graphs could be compared");
}

/// Everything that a step leaves, as bits.
fn all_bits(found: &Found) -> Vec<Vec<u32>> {
    let output = [&found.output.logits].into_iter().chain(found.output.features.values());
    let gradients = found.gradients.values().flatten();
    output.chain(gradients).chain(found.buffers.values()).map(bits).collect()
}

#[test]
fn random_graphs_have_the_same_bits_on_any_number_of_threads() {
    let pools: Vec<_> = [1, 2, 3]
        .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
        .into_iter()
        .collect();
    for seed in 0..GRAPHS / 2 {
        let mut case = case(seed);
        case.batch += 20 * usize::from(seed % 4 == 0);
        let (start, images) = (parameters(&case, seed), images(&case, seed));
        let [one, two, three] = [0, 1, 2]
            .map(|pool| pools[pool].install(|| all_bits(&planned(&case, &start, &images))));
        assert!(one == two && one == three, "seed {seed}: {}", case.print());
    }
}

#[test]
fn random_graphs_after_passes_of_other_batch_sizes_are_as_alone() {
    for seed in 0..GRAPHS / 4 {
        let mut case = case(seed);
        let start = parameters(&case, seed);
        let drawn = images(&case, seed);
        let alone = all_bits(&planned(&case, &start, &drawn));
        let own = copies(&start);
        let network = network(&case, &own);
        let batch = case.batch;
        for other in [batch + 3, 1.max(batch / 2), batch + 17] {
            case.batch = other;
            let (others, asked) = (images(&case, seed + 1), names(&case));
            // Of a batch of one image a normalisation may have nothing to go by.
            if let Ok((output, tape)) = network.train(&others, KEY, &asked) {
                let mut store = loss(&output).backward().unwrap();
                network.backward(tape, &mut store).unwrap();
            }
        }
        case.batch = batch;
        for (name, var) in &own {
            var.set(&start[name].as_tensor().copy().unwrap()).unwrap();
        }
        let again = all_bits(&step(&case, &network, &own, &drawn));
        assert!(alone == again, "seed {seed}: {}", case.print());
    }
}

/// The f64 computation is held against itself: its gradients are those of finite differences of its values.
#[test]
fn the_f64_gradients_are_those_of_finite_differences() {
    let mut compared = 0;
    for seed in 0..GRAPHS / 4 {
        let case = case(seed);
        let start = parameters(&case, seed);
        let still = BTreeSet::new();
        let drawn = wide(&images(&case, seed));
        let weights: BTreeMap<String, Vec<f64>> =
            start.iter().map(|(name, var)| (name.clone(), wide(var.as_tensor()))).collect();
        let last = case.graph.nodes().len() - 1;
        let run = |weights: BTreeMap<String, Vec<f64>>| {
            Pass::forward(&case.graph, case.batch, drawn.clone(), weights, &still, Some(KEY))
        };
        let value = |pass: &Pass<'_>| -> f64 {
            let logits = pass.values[last].iter().enumerate();
            logits.map(|(i, y)| loss_weight(i) * y + y * y / 20.0).sum()
        };
        let pass = run(weights.clone());
        if pass.margin < 1e-5 || pass.spread < 1e-3 {
            continue;
        }
        let seed_of_loss = pass.values[last].iter().enumerate();
        let seeds = seed_of_loss.map(|(i, y)| loss_weight(i) + y / 10.0).collect();
        let gradients = pass.backward(&BTreeMap::from([(last, seeds)]));
        let mut draws = Draws(seed);
        // All parameters move together in a drawn direction.
        let direction: BTreeMap<&String, Vec<f64>> = gradients
            .iter()
            .map(|(name, g)| (name, g.iter().map(|_| f64::from(draws.value())).collect()))
            .collect();
        let moved = |by: f64| {
            let mut weights = weights.clone();
            for (name, along) in &direction {
                let weight = weights.get_mut(*name).unwrap();
                weight.iter_mut().zip(along).for_each(|(w, d)| *w += by * d);
            }
            value(&run(weights))
        };
        let step = 1e-7;
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        let expected: f64 = gradients
            .iter()
            .flat_map(|(name, g)| g.iter().zip(&direction[name]).map(|(g, d)| g * d))
            .sum();
        let scale = slope.abs().max(expected.abs()).max(1.0);
        assert!(
            (slope - expected).abs() < 1e-4 * scale,
            "seed {seed}: slope {slope}, gradients say {expected}\n{}",
            case.print()
        );
        compared += 1;
    }
    assert!(compared >= GRAPHS / 8, "only {compared} graphs could be compared");
}
