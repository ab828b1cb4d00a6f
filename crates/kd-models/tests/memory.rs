//! The memory that is said of a pass, beside what an allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use candle_core::{DType, Device, Tensor};
use kd_models::memory::{Pass, PassMemory, evaluation, training, weights};
use kd_models::{
    Architecture, Classifier, Graph, GraphNetwork, ModelConfig, Parameters, frozen, partly_frozen,
    var_builder,
};
use kd_ops::DropoutKey;

/// Counts bytes as they are asked for and given back.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// All that has ever been asked for.
static ASKED: AtomicUsize = AtomicUsize::new(0);
/// What is counted is the whole process, so one test counts at a time.
static COUNTS: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn count(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
    ASKED.fetch_add(bytes, Ordering::Relaxed);
}

/// The bytes that `body` had at its peak beyond those that were there before it.
fn peak_of<T>(body: impl FnOnce() -> T) -> (u64, T) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = body();
    ((PEAK.load(Ordering::Relaxed) - before) as u64, result)
}

fn graph(name: &str, side: usize) -> Graph {
    let architecture: Architecture = name.parse().unwrap();
    let config = ModelConfig { input: [3, side, side], ..ModelConfig::new(architecture, 10) };
    config.graph().unwrap()
}

fn images(graph: &Graph, batch: usize) -> Tensor {
    let [channels, height, width] = graph.input();
    let noise = Tensor::rand(-1f32, 1.0, (batch, channels, height, width), &Device::Cpu);
    noise.unwrap().to_dtype(DType::F32).unwrap()
}

fn step(network: &GraphNetwork, images: &Tensor, places: &[&str]) {
    let (output, tape) = network.train(images, DropoutKey { seed: 0, step: 0 }, places).unwrap();
    let mut loss = output.logits.sqr().unwrap().mean_all().unwrap();
    for map in output.features.values() {
        loss = (loss + map.mean_all().unwrap()).unwrap();
    }
    let mut gradients = loss.backward().unwrap();
    network.backward(tape, &mut gradients).unwrap();
}

/// Two threads of their own, which have no scratch memory of an earlier case, do `body`; they are gone afterwards, and their memory is
/// given back.
fn on_two_threads(body: impl FnOnce() + Send) {
    let threads = Mutex::new(Vec::<JoinHandle<()>>::new());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).spawn_handler(|thread| {
        let handle = std::thread::Builder::new().spawn(|| thread.run())?;
        threads.lock().unwrap().push(handle);
        Ok(())
    });
    pool.build().unwrap().install(body);
    for thread in threads.into_inner().unwrap() {
        thread.join().unwrap();
    }
}

/// How often a pass is counted at most. On a busy machine one of the two threads may do all the work before the other wakes, and
/// what the other would take is not counted: the largest count is the pass's.
const TRIES: usize = 8;

/// What a pass takes, twice in a row by a network that is new: the largest count, of as few as come near to what is said of it.
fn counted_near(
    said: PassMemory,
    network: impl Fn() -> GraphNetwork,
    pass: impl Fn(&GraphNetwork) + Sync,
) -> u64 {
    let mut most = 0;
    for _ in 0..TRIES {
        let network = network();
        let (counted, ()) = peak_of(|| {
            on_two_threads(|| {
                pass(&network);
                pass(&network);
            });
        });
        most = most.max(counted);
        if is_near(said, most) {
            break;
        }
    }
    most
}

/// By what share a figure may be wrong, and by how many bytes besides: matrix products take some for themselves.
const SHARE: f64 = 0.15;
const BYTES: f64 = (1 << 20) as f64;

fn is_near(said: PassMemory, counted: u64) -> bool {
    let counted = counted as f64;
    (said.total() as f64 - counted).abs() <= SHARE * counted + BYTES
}

/// A sentence where what is said is further than that from what is counted.
fn apart(what: &str, said: PassMemory, counted: u64) -> Option<String> {
    let ratio = said.total() as f64 / counted as f64;
    let sentence = format!("{what}: {said:?} is {ratio:.3} times the {counted} counted");
    println!("{sentence}");
    (!is_near(said, counted)).then_some(sentence)
}

/// Name, side of the images, batch, places and frozen layers.
type Case = (&'static str, usize, usize, &'static [&'static str], &'static [&'static str]);

const CASES: [Case; 12] = [
    ("teacher", 32, 32, &[], &[]),
    ("student", 32, 128, &[], &[]),
    ("student", 32, 1, &[], &[]),
    ("resnet20", 32, 32, &[], &[]),
    ("resnet20", 32, 2, &[], &[]),
    ("resnet20", 32, 32, &["layer1", "layer3"], &[]),
    ("resnet20", 32, 32, &[], &["conv1", "bn1", "layer1", "layer2"]),
    ("resnet56", 32, 16, &[], &[]),
    ("resnet20_b", 33, 17, &[], &[]),
    ("resnet18", 224, 2, &[], &[]),
    ("resnet50", 96, 3, &[], &[]),
    ("mobilenet_v2_035", 128, 4, &[], &[]),
];

#[test]
fn what_is_said_of_a_training_pass_is_what_an_allocator_counts() {
    let _alone = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut wrong = Vec::new();
    for (name, side, batch, places, layers) in CASES {
        let graph = graph(name, side);
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        let still: BTreeSet<String> = match layers.is_empty() {
            true => BTreeSet::new(),
            false => graph.frozen_parameters(&layers).unwrap(),
        };
        let (of_weights, parameters) =
            peak_of(|| -> Parameters { graph.init(0, &Device::Cpu).unwrap() });
        let ratio = weights(&graph) as f64 / of_weights as f64;
        assert!((0.5..1.001).contains(&ratio), "{name}: weights {ratio:.3}");
        let network = || {
            let variables = partly_frozen(&parameters, |name| still.contains(name));
            GraphNetwork::new(graph.clone(), variables).unwrap()
        };
        let images = images(&graph, batch);
        let said = training(&graph, &Pass { batch, threads: 2, places }, &still).unwrap();
        let counted = counted_near(said, network, |network| step(network, &images, places));
        let what = format!("{name} {side} {batch} {places:?} {layers:?}");
        wrong.extend(apart(&what, said, counted));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_said_of_an_evaluation_is_what_an_allocator_counts() {
    let _alone = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut wrong = Vec::new();
    for (name, side, batch, places, _) in CASES {
        let graph = graph(name, side);
        let parameters = graph.init(0, &Device::Cpu).unwrap();
        let tensors = parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        let tensors = tensors.collect();
        let network = || GraphNetwork::new(graph.clone(), frozen(&tensors)).unwrap();
        let images = images(&graph, batch);
        let said = evaluation(&graph, &Pass { batch, threads: 2, places }).unwrap();
        let counted = counted_near(said, network, |network| {
            network.evaluate(&images, places).unwrap();
        });
        let what = format!("evaluation {name} {side} {batch} {places:?}");
        wrong.extend(apart(&what, said, counted));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The bytes that `body` asks for, those that it gives back among them.
fn asked_for<T>(body: impl FnOnce() -> T) -> (usize, T) {
    let before = ASKED.load(Ordering::Relaxed);
    let result = body();
    (ASKED.load(Ordering::Relaxed) - before, result)
}

/// What is handed out has memory of its own. Besides it a step takes some numbers for each channel and a list now and then, and
/// what the matrix product of a linear layer takes for itself: nothing of the size of the batch's maps, nor of the convolutions'
/// weights.
#[test]
fn a_step_after_the_first_allocates_what_it_hands_out() {
    let _alone = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let (name, batch) = ("resnet20", 16);
    let graph = graph(name, 32);
    let parameters = graph.init(0, &Device::Cpu).unwrap();
    let said = training(&graph, &Pass { batch, threads: 2, places: &[] }, &BTreeSet::new());
    let said = said.unwrap();
    let bound = usize::try_from(said.maps.min(said.workspace)).unwrap() / 10;
    let gradients_len: usize =
        graph.parameters().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let handed_out = size_of::<f32>() * (gradients_len + 3 * batch * graph.classes());
    let images = images(&graph, batch);
    let network = GraphNetwork::new(graph, var_builder(&parameters)).unwrap();
    on_two_threads(|| {
        for step in 0..10 {
            let key = DropoutKey { seed: 0, step };
            let (forward, (output, tape)) = asked_for(|| network.train(&images, key, &[]).unwrap());
            let mut gradients =
                output.logits.sqr().unwrap().mean_all().unwrap().backward().unwrap();
            let (backward, ()) = asked_for(|| network.backward(tape, &mut gradients).unwrap());
            let besides = (forward + backward).saturating_sub(handed_out);
            println!("{name} step {step}: {besides} besides {handed_out}");
            // Either thread may be the one whose scratch memory is not yet large enough.
            assert!(step < 3 || besides < bound, "{name}, step {step}: {besides} of {said:?}");
        }
    });
}
