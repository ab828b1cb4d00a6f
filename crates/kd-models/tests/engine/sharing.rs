//! Processes that share each batch end with the bits of one.

use std::sync::Arc;

use candle_core::Tensor;
use kd_models::families::{
    CifarResNetConfig, MobileNetV2Config, TutorialConfig, cifar_resnet, mobilenet_v2, tutorial,
};
use kd_models::{BlockSums, Classifier, Graph, GraphNetwork, Output, var_builder};
use kd_ops::DropoutKey;
use kd_ops::adam::{Adam, AdamConfig};

use super::common::ranks::Rank;
use super::common::{bits, trained};
use super::{graphs, large, numbers};

const STEPS: u32 = 2;

/// A run of a tensor's first dimension.
fn share(of: &Tensor, (rank, ranks): (usize, usize)) -> Tensor {
    let len = of.dim(0).unwrap() / ranks;
    of.narrow(0, rank * len, len).unwrap().contiguous().unwrap()
}

/// A loss that is a sum over images: of every output its values times numbers of its own, and its squares.
fn loss(output: &Output, batch: usize, (rank, ranks): (usize, usize)) -> Tensor {
    let outputs = [&output.logits].into_iter().chain(output.features.values());
    let terms = outputs.enumerate().map(|(i, tensor)| {
        let whole = [&[batch], &tensor.dims()[1..]].concat();
        let weights = share(&numbers(&whole, 90 + i as u32), (rank, ranks));
        let square = (tensor.sqr().unwrap() * 0.01).unwrap();
        ((tensor * weights).unwrap() + square).unwrap().sum_all().unwrap()
    });
    terms.reduce(|a, b| (a + b).unwrap()).unwrap()
}

/// Steps of Adam on batches, of which the rank computes its share; then what all processes must have alike: in each step the
/// gradients, at the end weights and running statistics.
fn steps(
    graph: &Graph,
    batch: usize,
    places: &[&str],
    of: Option<&Arc<Rank>>,
) -> Vec<(String, Vec<u32>)> {
    let parameters = trained(graph);
    let mut network = GraphNetwork::new(graph.clone(), var_builder(&parameters)).unwrap();
    let at = of.map_or((0, 1), |rank| (rank.rank(), rank.ranks()));
    if let Some(rank) = of {
        network = network.sharing(rank.clone());
    }
    let mut adam = Adam::new(AdamConfig { lr: 0.01, ..AdamConfig::default() });
    let mut found = Vec::new();
    for step in 0..STEPS {
        let [channels, height, width] = graph.input();
        let images = numbers(&[batch, channels, height, width], step);
        let key = DropoutKey { seed: 3, step: step.into() };
        let (output, tape) = network.train(&share(&images, at), key, places).unwrap();
        let mut gradients = loss(&output, batch, at).backward().unwrap();
        network.backward(tape, &mut gradients).unwrap();
        for (name, parameter) in &parameters {
            if let Some(gradient) = gradients.get(parameter) {
                found.push((format!("gradient {name}, step {step}"), bits(gradient)));
            }
        }
        adam.step(&parameters, &gradients).unwrap();
    }
    found.extend(parameters.iter().map(|(name, var)| (name.clone(), bits(var))));
    found
}

fn assert_alike(what: &str, graph: &Graph, batch: usize, places: &[&str]) {
    let alone = steps(graph, batch, places, None);
    for ranks in [2, 4] {
        let ranks = Rank::all(ranks);
        std::thread::scope(|scope| {
            let run = |rank: &Arc<Rank>| {
                // Threads of their own, and not as many each.
                let threads = 1 + rank.rank() % 2;
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| steps(graph, batch, places, Some(rank)))
            };
            let runs: Vec<_> = ranks.iter().map(|rank| scope.spawn(move || run(rank))).collect();
            for (rank, run) in runs.into_iter().enumerate() {
                let shared = run.join().unwrap();
                assert_eq!(alone.len(), shared.len());
                for ((name, alone), (_, shared)) in alone.iter().zip(&shared) {
                    assert!(
                        alone == shared,
                        "{what}, {} ranks: {name} of rank {rank}",
                        ranks.len()
                    );
                }
            }
        });
        assert!(ranks[0].calls() > 0);
    }
}

/// The named networks, smaller images than usual.
#[test]
fn two_and_four_processes_end_with_the_bits_of_one() {
    let input = [3, 12, 12];
    let tutorial = |config| tutorial(&TutorialConfig { input, ..config }).unwrap();
    let resnet = CifarResNetConfig { input, ..CifarResNetConfig::new("resnet20", 10, 3) };
    let mobile = MobileNetV2Config {
        name: "mobile".into(),
        input: [3, 32, 32],
        classes: 10,
        width: 0.35,
        dropout: 0.2,
    };
    for (name, graph, batch) in [
        ("teacher", tutorial(TutorialConfig::teacher()), 16),
        ("student", tutorial(TutorialConfig::student()), 64),
        ("resnet20", cifar_resnet(&resnet).unwrap(), 32),
        ("mobilenet_v2", mobilenet_v2(&mobile).unwrap(), 16),
        // Convolutions of several images at once.
        ("resnet10 of 40x33", large(false, [3, 40, 33]), 48),
    ] {
        assert_alike(name, &graph, batch, &[]);
    }
}

/// Also with places, dropout of maps, and fewer images than a batch has parts.
#[test]
fn shared_batches_of_odd_graphs_and_sizes_give_the_bits_of_one_process() {
    for (name, graph) in graphs() {
        let places = graph.places();
        let all: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        for batch in [4, 16] {
            assert_alike(&format!("{name}, batch {batch}"), &graph, batch, &all);
        }
    }
}

#[test]
fn a_batch_whose_blocks_do_not_divide_is_refused() {
    let (_, graph) = graphs().swap_remove(1);
    let parameters = trained(&graph);
    let network = GraphNetwork::new(graph, var_builder(&parameters)).unwrap();
    let network = network.sharing(Rank::all(4)[2].clone());
    let key = DropoutKey { seed: 0, step: 0 };
    let error = network.train(&numbers(&[5, 3, 32, 32], 0), key, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "4 processes with 5 images each can't sum in the order of one process; expected 1, 2 or 4 processes that share a batch \
         size divisible by 16"
    );
    // Through candle nothing is shared.
    let images = numbers(&[4, 3, 32, 32], 0).to_dtype(candle_core::DType::F64).unwrap();
    let error = network.train(&images, key, &[]).unwrap_err().to_string();
    assert!(error.starts_with("the student can't be trained by several processes"), "{error}");
}
