//! Graphs: what the builder refuses, other sizes of images, other heads, folding, and random networks computed.

mod common;

use candle_core::{Device, Tensor};
use common::{config, hashed, tensors, trained, values};
use kd_models::graph::{Conv, Graph, GraphBuilder, NodeId, Norm, Op};
use kd_models::{
    Architecture, Classifier, GraphNetwork, Mode, ModelConfig, build, frozen, init, var_builder,
};
use kd_ops::DropoutKey;
use proptest::prelude::*;

const KEY: DropoutKey = DropoutKey { seed: 3, step: 5 };

/// A convolution of images and what `more` makes of it.
fn built(more: impl FnOnce(&mut GraphBuilder, NodeId) -> kd_models::Result<Graph>) -> String {
    let mut g = GraphBuilder::new("small", [3, 8, 6]).unwrap();
    let x = g.conv("conv", g.images(), Conv::new(4, 3)).unwrap();
    more(&mut g, x).map_or_else(|error| error.to_string(), |graph| format!("{graph:?}"))
}

fn end(g: &GraphBuilder, x: NodeId) -> kd_models::Result<Graph> {
    let mut g = g.clone();
    let x = g.flatten("flat", x)?;
    let x = g.linear("head", x, 5)?;
    g.finish(x)
}

#[test]
fn what_does_not_fit_is_refused_with_the_layers_name() {
    let sound = built(|g, x| end(g, x));
    assert!(sound.starts_with("Graph"), "{sound}");
    let wide = Conv::new(2, 9);
    let none = Conv { stride: 0, ..Conv::new(2, 3) };
    let huge = Conv::new(usize::MAX, 3);
    let cases: [(String, &str); 20] = [
        (
            built(|g, x| {
                g.conv("c", x, wide)?;
                end(g, x)
            }),
            "layer c: a window of 9x9 does not fit into a map whose side is 6",
        ),
        (
            built(|g, x| {
                g.conv("c", x, none)?;
                end(g, x)
            }),
            "layer c: kernel and stride must be at least 1",
        ),
        (
            built(|g, x| {
                g.conv("c", x, huge)?;
                end(g, x)
            }),
            "layer c: a tensor of shape",
        ),
        (
            built(|g, x| {
                g.conv("c", x, Conv::new(0, 3))?;
                end(g, x)
            }),
            "has no values",
        ),
        (
            built(|g, x| {
                g.relu("conv", x)?;
                end(g, x)
            }),
            "layer conv: there are two layers of this name",
        ),
        (
            built(|g, x| {
                g.relu("images", x)?;
                end(g, x)
            }),
            "layer images: there are two",
        ),
        (
            built(|g, x| {
                g.relu("", x)?;
                end(g, x)
            }),
            "a layer needs a name",
        ),
        (
            built(|g, x| {
                g.linear("l", x, 3)?;
                end(g, x)
            }),
            "layer l: a linear layer takes a vector, got [4, 6, 4]",
        ),
        (
            built(|g, x| {
                g.sum("s", x, g.images())?;
                end(g, x)
            }),
            "layer s: a sum takes two values of one shape",
        ),
        (
            built(|g, x| {
                g.subsample_pad("s", x, 7)?;
                end(g, x)
            }),
            "an even number of channels to the 4 of its input, got 7",
        ),
        (
            built(|g, x| {
                g.conv("c", x, Conv { groups: 3, ..Conv::new(6, 3) })?;
                end(g, x)
            }),
            "layer c: 3 groups; expected a number that divides the 4 channels of its input and the 6",
        ),
        (
            built(|g, x| {
                g.conv("c", x, Conv { groups: 0, ..Conv::new(4, 3) })?;
                end(g, x)
            }),
            "layer c: 0 groups; expected a number that divides",
        ),
        (
            built(|g, x| {
                g.conv("c", x, Conv { padding: 1, same_padding: true, ..Conv::new(4, 3) })?;
                end(g, x)
            }),
            "layer c: \"same\" padding takes the place of padding, got 1",
        ),
        (
            built(|g, x| {
                g.conv("c", x, Conv { stride: 0, same_padding: true, ..Conv::new(4, 3) })?;
                end(g, x)
            }),
            "layer c: kernel and stride must be at least 1",
        ),
        (
            built(|g, x| {
                g.add("p", Op::MaxPool { kernel: 3, stride: 2, padding: 2 }, &[x])?;
                end(g, x)
            }),
            "layer p: a max-pool's padding is at most half of its 3x3 window, got 2",
        ),
        (
            built(|g, x| {
                g.add("n", Op::BatchNorm(Norm { eps: 0.0, momentum: 0.1 }), &[x])?;
                end(g, x)
            }),
            "layer n: a batch normalisation with eps 0 and momentum 0.1; expected an eps above 0",
        ),
        (
            built(|g, x| {
                g.dropout("d", x, 1.0)?;
                end(g, x)
            }),
            "layer d: dropout of 1; expected a share in [0, 1)",
        ),
        (
            built(|g, x| {
                g.relu("stray", x)?;
                end(g, x)
            }),
            "layer stray: no other layer takes its values",
        ),
        (
            built(|g, x| {
                g.place("map", x)?;
                g.place("map", x)?;
                end(g, x)
            }),
            "layer map: there are two feature places of this name",
        ),
        (
            built(|g, x| {
                g.place("logits", x)?;
                end(g, x)
            }),
            "layer logits: a feature place can't be called like the logits",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.starts_with("the small, layer ") && found.contains(expected), "{found}");
    }
    let no_head = built(|g, x| g.clone().finish(x));
    assert!(no_head.contains("layer conv: the logits must come from a linear layer"), "{no_head}");
    assert!(GraphBuilder::new("none", [3, 0, 6]).is_err());
    let mut other = GraphBuilder::new("other", [1, 1, 1]).unwrap();
    let foreign = built(|_, x| {
        other.relu("r", x)?;
        end(&other, x)
    });
    assert!(
        foreign.contains("layer r: it reads a node that this graph does not have"),
        "{foreign}"
    );
}

/// Pools leave out what fills no window, as PyTorch's do: 29x30 becomes 14x15 and then 7x7.
#[test]
fn images_of_other_sizes_follow_by_hand() {
    let teacher = |input| ModelConfig { input, ..config(Architecture::TUTORIAL_TEACHER) };
    for (input, inputs) in [([3, 48, 32], 32 * 12 * 8), ([1, 29, 30], 32 * 7 * 7), ([3, 4, 5], 32)]
    {
        let graph = teacher(input).graph().unwrap();
        let first = graph.parameters().next().unwrap();
        assert_eq!(first.shape, [128, input[0], 3, 3]);
        let hidden = graph.parameters().find(|spec| spec.name == "classifier.0.weight").unwrap();
        assert_eq!(hidden.shape, [512, inputs], "{input:?}");
    }
    let error = teacher([3, 3, 32]).graph().unwrap_err().to_string();
    assert_eq!(
        error,
        "the teacher, layer features.9: a window of 2x2 does not fit into a map whose side is 1"
    );
    // Stride 2 rounds up: 33x50, 17x25, 9x13. The number of parameters does not depend on the size.
    let resnet = ModelConfig { input: [3, 33, 50], ..config(Architecture::RESNET20) };
    let graph = resnet.graph().unwrap();
    let shapes: Vec<_> = graph.places().into_iter().map(|place| place.shape).collect();
    // Each stage before and behind its last ReLU.
    let [first, second, third]: [&[usize]; 3] = [&[16, 33, 50], &[32, 17, 25], &[64, 9, 13]];
    let expected = [first, first, first, second, second, third, third, &[64]];
    assert_eq!(shapes, expected);
    assert_eq!(graph.parameter_count(), 269_722);
    for config in [teacher([1, 29, 30]), resnet] {
        let network =
            build(&config, var_builder(&init(&config, 1, &Device::Cpu).unwrap())).unwrap();
        let [c, h, w] = config.input;
        let images = hashed(&[2, c, h, w], 1, 1.0);
        let output = network.forward_t(&images, Mode::Train(KEY), &[]).unwrap();
        assert_eq!(output.logits.dims(), [2, 10]);
    }
    for input in [[0, 32, 32], [3, 65537, 32]] {
        let error = teacher(input).graph().unwrap_err().to_string();
        assert!(error.starts_with("model setting input is"), "{error}");
    }
}

#[test]
fn another_head_leaves_the_rest_as_it_is() {
    for architecture in Architecture::all() {
        let ten = config(architecture).graph().unwrap();
        let seven = ten.with_classes(7).unwrap();
        assert_eq!(seven, ModelConfig::new(architecture, 7).graph().unwrap());
        assert_eq!((seven.classes(), seven.head().parameters[0].shape[0]), (7, 7));
    }
    let ten = config(Architecture::RESNET8).graph().unwrap();
    assert!(ten.with_classes(0).is_err() && ten.with_classes(usize::MAX).is_err());
}

fn logits(
    graph: &Graph,
    tensors: &kd_models::Tensors,
    images: &Tensor,
    places: &[&str],
) -> Vec<f32> {
    let network = GraphNetwork::new(graph.clone(), frozen(tensors)).unwrap();
    values(&network.forward_t(images, Mode::Eval, places).unwrap().logits)
}

/// Of the order of rounding, for values of any size.
fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{what}: {a} and {b}");
    }
}

#[test]
fn folded_normalisations_give_the_same_outputs_without_their_tensors() {
    for name in ["resnet8", "resnet20"] {
        let graph = config(common::named(name)).graph().unwrap();
        let weights = tensors(&trained(&graph));
        let (folded, folded_weights) = graph.fold(&weights).unwrap();
        assert_eq!(folded.buffers().count(), 0);
        assert!(folded.nodes().iter().all(|node| !matches!(node.op, Op::BatchNorm(_))));
        assert_eq!(folded.tensors().count(), folded_weights.len());
        assert_eq!(folded.places(), graph.places());
        let images = hashed(&[3, 3, 32, 32], 5, 2.0);
        let whole = logits(&graph, &weights, &images, &[]);
        assert_close(name, &logits(&folded, &folded_weights, &images, &[]), &whole);
        let mut lacking = weights.clone();
        lacking.remove("bn1.bias");
        let error = graph.fold(&lacking).unwrap_err().to_string();
        assert!(
            error.ends_with("needs a tensor bn1.bias of shape [16] and type F32; there is none")
        );
    }
    // A network without normalisations stays as it is.
    let graph = config(Architecture::TUTORIAL_STUDENT).graph().unwrap();
    let weights = tensors(&graph.init(1, &Device::Cpu).unwrap());
    assert_eq!(graph.fold(&weights).unwrap().0, graph);
}

/// A network of any layers that fit: each choice adds one, or nothing where it does not fit.
fn random(input: [usize; 3], choices: &[(u8, usize, bool)]) -> Graph {
    let mut g = GraphBuilder::new("random", input).unwrap();
    let mut x = g.images();
    let mut before = x;
    for (index, &(kind, size, shown)) in choices.iter().enumerate() {
        let name = format!("layer{index}");
        let conv = Conv {
            kernel: 1 + size % 3,
            stride: 1 + size % 2,
            padding: size % 2,
            bias: size.is_multiple_of(3),
            ..Conv::new(2 + size, 1)
        };
        let grouped = Conv { outputs: 6, groups: 1 + size % 3, ..conv };
        let same = Conv { same_padding: true, padding: 0, kernel: 1 + size, ..conv };
        let next = match kind % 14 {
            0..3 => g.conv(&name, x, conv),
            9 => g.conv(&name, x, grouped),
            10 => g.conv(&name, x, same),
            11 => g.relu6(&name, x),
            12 => g.add(&name, Op::MaxPool { kernel: 3, stride: 1 + size % 2, padding: 1 }, &[x]),
            13 => g.add(&name, Op::BatchNorm(Norm { eps: 0.1, momentum: 0.5 }), &[x]),
            3 => g.batch_norm(&name, x),
            4 => g.relu(&name, x),
            5 => g.max_pool(&name, x, 2, 2),
            6 => g.max_pool(&name, x, 3, 1 + size % 2),
            7 => g.sum(&name, x, before),
            _ => g.subsample_pad(&name, x, 2 * size),
        };
        let Ok(next) = next else { continue };
        if size.is_multiple_of(2) {
            before = x;
        }
        x = next;
        if shown {
            g.place(&name, x).unwrap();
        }
    }
    x = match choices.len().is_multiple_of(2) {
        true => g.global_average_pool("pool", x),
        false => g.flatten("flat", x),
    }
    .unwrap();
    x = g.linear("hidden", x, 6).unwrap();
    x = g.relu("hidden.relu", x).unwrap();
    x = g.dropout("drop", x, 0.2).unwrap();
    x = g.linear("head", x, 4).unwrap();
    g.finish(x).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The shapes that a graph announces are those that are computed; whatever is fused, the values are the same; so
    /// they are with normalisations folded; and every weight gets a gradient.
    #[test]
    fn a_random_network_computes_what_its_graph_says(
        height in 1usize..13,
        width in 1usize..13,
        choices in prop::collection::vec((any::<u8>(), 0usize..7, any::<bool>()), 0..12),
    ) {
        let graph = random([3, height, width], &choices);
        let parameters = trained(&graph);
        let weights = tensors(&parameters);
        let places = graph.places();
        let names: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        let images = hashed(&[2, 3, height, width], 9, 1.0);
        let network = GraphNetwork::new(graph.clone(), var_builder(&parameters)).unwrap();
        let shown = network.forward_t(&images, Mode::Eval, &names).unwrap();
        for place in &places {
            prop_assert_eq!(&shown.features[&place.name].dims()[1..], &place.shape[..]);
        }
        let whole = values(&shown.logits);
        prop_assert_eq!(whole.len(), 2 * 4);
        assert_close("fused", &logits(&graph, &weights, &images, &[]), &whole);
        for name in &names {
            let alone = network.forward_t(&images, Mode::Eval, &[name]).unwrap();
            assert_close(name, &values(&alone.features[*name]), &values(&shown.features[*name]));
        }
        let (folded, folded_weights) = graph.fold(&weights).unwrap();
        assert_close("folded", &logits(&folded, &folded_weights, &images, &[]), &whole);
        let grads = shown.logits.sum_all().unwrap().backward().unwrap();
        for spec in graph.parameters() {
            prop_assert!(grads.get(&parameters[&spec.name]).is_some(), "{}", spec.name);
        }
    }
}
