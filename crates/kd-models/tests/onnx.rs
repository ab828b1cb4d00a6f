//! What is exported computes what the network computes: the file is read with message types written from ONNX's
//! protobuf schema by hand, and its operators are run as ONNX describes them, with candle's own operations.
//! `parity/onnx_export.py` checks the same in onnxruntime.

mod common;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use common::{config, hashed, tensors, values};
use kd_models::graph::{Conv, GraphBuilder, Norm, Op};
use kd_models::onnx::{Input, OnnxConfig, onnx, onnx_of_quantized};
use kd_models::quantize::{Calibration, QuantizeConfig, layers, observe, quantize};
use kd_models::{
    Architecture, Classifier, Graph, GraphNetwork, Mode, ModelConfig, Tensors, frozen,
};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<Initializer>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "4")]
    operator: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Initializer {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

impl Initializer {
    /// Its values as f32; types 1, 2, 3, 6 and 7 are f32, u8, i8, i32 and i64.
    fn tensor(&self) -> Tensor {
        let bytes = &self.raw_data;
        let values: Vec<f32> = match self.data_type {
            1 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            2 => bytes.iter().map(|b| f32::from(*b)).collect(),
            3 => bytes.iter().map(|b| f32::from(*b as i8)).collect(),
            6 => bytes
                .chunks_exact(4)
                .map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            7 => bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            other => panic!("element type {other}"),
        };
        let dims: Vec<usize> = self.dims.iter().map(|dim| *dim as usize).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }
}

/// Runs an exported file.
fn run(file: &[u8], images: &Tensor) -> Vec<f32> {
    let graph = Model::decode(file).unwrap().graph.unwrap();
    let mut known: HashMap<String, Tensor> = HashMap::from([("images".into(), images.clone())]);
    for initializer in &graph.initializers {
        let other = known.insert(initializer.name.clone(), initializer.tensor());
        assert!(other.is_none(), "{} is there twice", initializer.name);
    }
    for node in &graph.nodes {
        let inputs: Vec<&Tensor> = node.inputs.iter().map(|name| &known[name]).collect();
        let value = compute(node, &inputs);
        let other = known.insert(node.outputs[0].clone(), value);
        assert!(other.is_none(), "{} is there twice", node.outputs[0]);
    }
    values(&known["logits"])
}

/// A map with zeros around it: as many as ONNX's `pads` say, top, left, bottom, right.
fn around(x: &Tensor, pads: &[usize]) -> Tensor {
    let x = x.pad_with_zeros(2, pads[0], pads[2]).unwrap();
    x.pad_with_zeros(3, pads[1], pads[3]).unwrap()
}

fn compute(node: &Node, inputs: &[&Tensor]) -> Tensor {
    let x = inputs[0];
    let attribute = |name: &str| node.attributes.iter().find(|a| a.name == name).unwrap();
    let first = |name: &str| attribute(name).ints[0] as usize;
    let integer = |name: &str| node.attributes.iter().find(|a| a.name == name).map(|a| a.i);
    let pads = node.attributes.iter().find(|a| a.name == "pads");
    let pads = pads.map_or(vec![0; 4], |a| a.ints.iter().map(|&pad| pad as usize).collect());
    let column = |t: &Tensor| t.reshape((1, (), 1, 1)).unwrap();
    match node.operator.as_str() {
        "Cast" => x.to_dtype(DType::F32),
        "Sub" => x.broadcast_sub(inputs[1]),
        "Div" => x.broadcast_div(inputs[1]),
        "Add" => x + inputs[1],
        "Relu" => x.relu(),
        "Flatten" => x.flatten_from(1),
        "GlobalAveragePool" => x.mean_keepdim((2, 3)),
        "Clip" => {
            let [least, most] = [1, 2].map(|input| f64::from(values(inputs[input])[0]));
            x.maximum(least).unwrap().minimum(most)
        }
        // The edge must not win; the values of these tests are above -1000.
        "MaxPool" => ((around(&(x + 1000.0).unwrap(), &pads) - 1000.0).unwrap())
            .max_pool2d_with_stride(first("kernel_shape"), first("strides")),
        "Conv" => {
            let groups = integer("group").map_or(1, |group| group as usize);
            let x = around(x, &pads);
            let y = x.conv2d(inputs[1], 0, first("strides"), 1, groups).unwrap();
            inputs.get(2).map_or(Ok(y.clone()), |bias| y.broadcast_add(&column(bias)))
        }
        "Gemm" => {
            assert_eq!(attribute("transB").i, 1);
            x.matmul(&inputs[1].t().unwrap()).unwrap().broadcast_add(inputs[2])
        }
        "BatchNormalization" => {
            let [scale, shift, mean, var] = [1, 2, 3, 4].map(|input| column(inputs[input]));
            let std = (var + f64::from(attribute("epsilon").f)).unwrap().sqrt().unwrap();
            let x = x.broadcast_sub(&mean).unwrap().broadcast_div(&std).unwrap();
            x.broadcast_mul(&scale).unwrap().broadcast_add(&shift)
        }
        "QuantizeLinear" => {
            let [scale, zero] = [1, 2].map(|input| values(inputs[input])[0]);
            let byte = |x: &f32| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0);
            Tensor::from_vec(values(x).iter().map(byte).collect(), x.dims(), x.device())
        }
        // Of maps: one scale, and a byte that stands for 0.
        "DequantizeLinear" if inputs[1].rank() == 0 => {
            let [scale, zero] = [1, 2].map(|input| values(inputs[input])[0]);
            let value = |byte: &f32| (byte - zero) * scale;
            Tensor::from_vec(values(x).iter().map(value).collect(), x.dims(), x.device())
        }
        "DequantizeLinear" => {
            assert!(inputs.get(2).is_none_or(|zero| values(zero).iter().all(|zero| *zero == 0.0)));
            let mut rows = vec![1; x.rank()];
            rows[0] = x.dims()[0];
            x.broadcast_mul(&inputs[1].reshape(rows).unwrap())
        }
        "AveragePool" => {
            assert_eq!(attribute("count_include_pad").i, 1);
            let (kernel, stride) = (first("kernel_shape"), first("strides"));
            around(x, &pads).avg_pool2d_with_stride(kernel, stride)
        }
        "Concat" => Tensor::cat(inputs, attribute("axis").i as usize),
        "Reshape" => {
            let sides = values(inputs[1]).into_iter().enumerate();
            // 0 is the input's own side.
            let sides =
                sides.map(|(dim, side)| if side == 0.0 { x.dims()[dim] } else { side as usize });
            x.reshape(sides.collect::<Vec<_>>())
        }
        "Transpose" => {
            let turned: Vec<usize> =
                attribute("perm").ints.iter().map(|&dim| dim as usize).collect();
            x.permute(turned).unwrap().contiguous()
        }
        "Slice" if inputs.len() == 4 => {
            let [start, end, dim] = [1, 2, 3].map(|input| values(inputs[input])[0] as usize);
            x.narrow(dim, start, end - start)
        }
        // Of an option-A shortcut: every second pixel from the first on, to the end.
        "Slice" => {
            assert_eq!((values(inputs[1]), values(inputs[3])), (vec![0.0; 2], vec![2.0, 3.0]));
            assert_eq!(values(inputs[4]), [2.0; 2]);
            [2, 3].iter().try_fold(x.clone(), |x, &dim| {
                let end = (x.dims()[dim] as u32).min(values(inputs[2])[dim - 2] as u32);
                let second: Vec<u32> = (0..end).step_by(2).collect();
                x.index_select(&Tensor::new(second, &Device::Cpu)?, dim)
            })
        }
        "Pad" => {
            let pads: Vec<usize> = values(inputs[1]).into_iter().map(|pad| pad as usize).collect();
            (0..4).try_fold(x.clone(), |x, dim| x.pad_with_zeros(dim, pads[dim], pads[dim + 4]))
        }
        other => panic!("operator {other}"),
    }
    .unwrap()
}

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

fn options(input: Input, int8: bool) -> OnnxConfig {
    OnnxConfig { input, int8, mean: MEAN.into(), std: STD.into(), class_names: None }
}

/// Images of bytes, and the logits of the network for them.
fn expected(graph: &Graph, weights: &Tensors) -> (Tensor, Vec<f32>) {
    let [channels, height, width] = graph.input();
    let shape = [2, channels, height, width];
    let bytes = ((hashed(&shape, 3, 1.0) + 1.0).unwrap() * 127.5).unwrap().floor().unwrap();
    let network = GraphNetwork::new(graph.clone(), frozen(weights)).unwrap();
    let logits = network.forward_t(&normalized(&bytes), Mode::Eval, &[]).unwrap().logits;
    (bytes, values(&logits))
}

fn normalized(bytes: &Tensor) -> Tensor {
    let column =
        |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap().reshape((1, 3, 1, 1));
    let unit = (bytes / 255.0).unwrap();
    let images = unit.broadcast_sub(&column(MEAN).unwrap()).unwrap();
    images.broadcast_div(&column(STD).unwrap()).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn both_families_compute_in_a_file_what_they_compute_here() {
    let resnet = ModelConfig { input: [3, 21, 18], ..config(Architecture::RESNET8) };
    let student = ModelConfig { input: [3, 15, 22], ..config(Architecture::TUTORIAL_STUDENT) };
    let others =
        [Architecture::TUTORIAL_TEACHER, Architecture::TUTORIAL_STUDENT, Architecture::RESNET20];
    for config in others.map(config).into_iter().chain([resnet, student]) {
        let graph = config.graph().unwrap();
        // Scales and statistics that are not the fresh ones.
        let weights = tensors(&common::fixed_weights(&config));
        let (bytes, logits) = expected(&graph, &weights);
        let unit = (&bytes / 255.0).unwrap();
        for (input, images) in [(Input::Uint8, &bytes), (Input::Float, &unit)] {
            let found = run(&onnx(&graph, &weights, &options(input, false)).unwrap(), images);
            let off = largest_difference(&found, &logits);
            assert!(off < 1e-4, "{} {:?} {input:?}: {off}", graph.name(), config.input);
        }
        let quantized = onnx(&graph, &weights, &options(Input::Uint8, true)).unwrap();
        let whole = onnx(&graph, &weights, &options(Input::Uint8, false)).unwrap();
        assert!(quantized.len() * 3 < whole.len(), "{} and {}", quantized.len(), whole.len());
        let spread = logits.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        let off = largest_difference(&run(&quantized, &bytes), &logits);
        assert!(off < 0.1 * spread, "{} as bytes: {off} of {spread}", graph.name());
    }
}

#[test]
fn torchvisions_and_timms_networks_are_exported() {
    for name in ["resnet18", "mobilenet_v2_035", "efficientnet_lite0"] {
        let config = ModelConfig { input: [3, 35, 42], ..ModelConfig::new(common::named(name), 3) };
        let graph = config.graph().unwrap();
        let weights = tensors(&common::trained(&graph));
        let (bytes, logits) = expected(&graph, &weights);
        let file = onnx(&graph, &weights, &options(Input::Uint8, false)).unwrap();
        let spread = logits.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        let off = largest_difference(&run(&file, &bytes), &logits);
        assert!(off < 1e-4 * spread, "{name}: {off} of {spread}");
    }
}

/// Maps as bytes: what kd computes of a quantised network is what the file's operators compute, to a byte that rounding moves.
#[test]
fn a_quantised_network_computes_in_a_file_what_it_computes_here() {
    let small = |name: &str| ModelConfig { input: [3, 35, 42], ..config(common::named(name)) };
    let tutorial = ["student", "resnet8", "shufflenetv2"].map(common::named).map(config);
    for config in tutorial.into_iter().chain([small("mobilenet_v2_035")]) {
        let graph = config.graph().unwrap();
        let weights = tensors(&common::trained(&graph));
        let (bytes, logits) = expected(&graph, &weights);
        let images = normalized(&bytes);
        let (graph, weights) = graph.fold(&weights).unwrap();
        let seen = observe(&graph, &weights, std::slice::from_ref(&images)).unwrap();
        let spread = logits.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        let last = layers(&graph).nth(1).unwrap().name.clone();
        for (float, calibration, weight_bits) in
            [(None, Calibration::MinMax, 8), (Some(last), Calibration::Mse, 7)]
        {
            let float_layers = float.into_iter().collect();
            let config = QuantizeConfig {
                calibration,
                weight_bits,
                float_layers,
                ..QuantizeConfig::default()
            };
            let made = quantize(&graph, &weights, &seen, &config).unwrap();
            assert_eq!(made.layers.len() + config.float_layers.len(), layers(&graph).count());
            let network = GraphNetwork::new(made.graph.clone(), frozen(&made.tensors)).unwrap();
            let here = values(&network.evaluate(&images, &[]).unwrap().logits);
            let file = onnx_of_quantized(&made, &options(Input::Uint8, true)).unwrap();
            // A value halfway between two levels may go either way, and what follows moves with it.
            let off = largest_difference(&run(&file, &bytes), &here);
            assert!(off < 0.03 * spread, "{}: {off} of {spread}", graph.name());
            let off = largest_difference(&here, &logits);
            assert!(off < 0.4 * spread, "{}: {off} of {spread} from f32", graph.name());
            assert!(off > 0.0, "{}: nothing was rounded", graph.name());
        }
    }
}

/// One layer alone in bytes, between sums, pools and rearranged channels that are not.
#[test]
fn what_stays_f32_is_not_rounded() {
    for name in ["student", "resnet8", "shufflenetv2"] {
        let graph = config(common::named(name)).graph().unwrap();
        let weights = tensors(&common::trained(&graph));
        let (bytes, _) = expected(&graph, &weights);
        let images = normalized(&bytes);
        let (graph, weights) = graph.fold(&weights).unwrap();
        let seen = observe(&graph, &weights, std::slice::from_ref(&images)).unwrap();
        let names: Vec<String> = layers(&graph).map(|node| node.name.clone()).collect();
        let made = |float: &[String]| {
            let float_layers = float.iter().cloned().collect();
            let config = QuantizeConfig { float_layers, ..QuantizeConfig::default() };
            quantize(&graph, &weights, &seen, &config).unwrap()
        };
        let logits = |graph: &Graph, weights: &Tensors| {
            let network = GraphNetwork::new(graph.clone(), frozen(weights)).unwrap();
            values(&network.forward_t(&images, Mode::Eval, &[]).unwrap().logits)
        };
        let whole = made(&names);
        assert_eq!(logits(&whole.graph, &whole.tensors), logits(&graph, &weights), "{name}");
        for alone in [0, names.len() / 2, names.len() - 1] {
            let others = [&names[..alone], &names[alone + 1..]].concat();
            let made = made(&others);
            let rounded: Vec<&Op> = made
                .graph
                .nodes()
                .iter()
                .map(|node| &node.op)
                .filter(|op| matches!(op, Op::Quantize(_)))
                .collect();
            // Behind what gives the values, and again behind each pool or shuffle that passes them on: the same levels.
            assert!(
                !rounded.is_empty() && rounded.iter().all(|op| *op == rounded[0]),
                "{name}: {rounded:?}"
            );
        }
    }
}

#[test]
fn what_can_not_be_quantised_is_said() {
    let graph = config(Architecture::TUTORIAL_STUDENT).graph().unwrap();
    let weights = tensors(&graph.init(0, &Device::Cpu).unwrap());
    let images = |value: f32| Tensor::full(value, (1, 3, 32, 32), &Device::Cpu).unwrap();
    let message = |error: kd_models::Error| error.to_string();
    let nothing = observe(&graph, &weights, &[]).unwrap_err();
    assert!(message(nothing).contains("at least one picture"));
    let wild = observe(&graph, &weights, &[images(f32::INFINITY)]).unwrap_err();
    assert!(message(wild).contains("expected finite numbers"));
    let seen = observe(&graph, &weights, &[images(0.5)]).unwrap();
    let with = |config| message(quantize(&graph, &weights, &seen, &config).unwrap_err());
    let config = QuantizeConfig { weight_bits: 4, ..QuantizeConfig::default() };
    assert!(with(config).contains("weight_bits is 4; expected 7 or 8"));
    let calibration = Calibration::Percentile(5.0);
    let config = QuantizeConfig { calibration, ..QuantizeConfig::default() };
    assert!(with(config).contains("percentile is 5; expected a number from 50 to 100"));
    let float_layers = ["features.9".to_owned()].into();
    let config = QuantizeConfig { float_layers, ..QuantizeConfig::default() };
    assert!(with(config).contains("which are features.0, features.3, classifier.0, classifier.3"));
}

/// A normalisation that can't be folded, and names that the file has already.
#[test]
fn a_graph_of_ones_own_is_exported_whatever_its_names() {
    let mut g = GraphBuilder::new("own", [3, 9, 7]).unwrap();
    let x = g.batch_norm("mean", g.images()).unwrap();
    let x = g.conv("std", x, Conv { stride: 2, ..Conv::new(4, 3) }).unwrap();
    let y = g.batch_norm("images.Sub", x).unwrap();
    // The convolution is seen by somebody else, too.
    let x = g.sum("logits", x, y).unwrap();
    let x = g.max_pool("std.weight", x, 3, 1).unwrap();
    let x = g.flatten("mean.weight", x).unwrap();
    let x = g.linear("head", x, 3).unwrap();
    let graph = g.finish(x).unwrap();
    let mut weights = tensors(&graph.init(1, &Device::Cpu).unwrap());
    for (tag, name) in
        ["mean.running_mean", "images.Sub.running_mean", "mean.bias"].iter().enumerate()
    {
        let shape = weights[*name].dims().to_vec();
        weights.insert(name.to_string(), hashed(&shape, tag as u32, 1.0));
    }
    let (bytes, logits) = expected(&graph, &weights);
    let file = onnx(&graph, &weights, &options(Input::Uint8, false)).unwrap();
    let off = largest_difference(&run(&file, &bytes), &logits);
    assert!(off < 1e-4, "{off}");
}

/// Groups, uneven zeros, ReLU6, a padded pool, and an eps of its own, folded and not.
#[test]
fn the_operations_of_mobile_networks_are_exported() {
    for shown in [false, true] {
        let mut g = GraphBuilder::new("mobile", [3, 12, 9]).unwrap();
        let same = |conv: Conv| Conv { same_padding: true, stride: 2, ..conv };
        let x = g.conv("stem", g.images(), same(Conv::new(6, 3))).unwrap();
        // What a place shows can't be folded away.
        if shown {
            g.place("stem", x).unwrap();
        }
        let x = g.add("norm", Op::BatchNorm(Norm { eps: 0.3, momentum: 0.5 }), &[x]).unwrap();
        let x = g.relu6("act", x).unwrap();
        let x = g.conv("dw", x, Conv { groups: 6, padding: 2, ..Conv::new(6, 5) }).unwrap();
        let x = g.add("pool", Op::MaxPool { kernel: 3, stride: 2, padding: 1 }, &[x]).unwrap();
        let x = g.conv("groups", x, same(Conv { groups: 3, ..Conv::new(9, 2) })).unwrap();
        let x = g.flatten("flat", x).unwrap();
        let x = g.linear("head", x, 3).unwrap();
        let graph = g.finish(x).unwrap();
        let mut weights = tensors(&graph.init(1, &Device::Cpu).unwrap());
        // Values that ReLU6 cuts off on both sides.
        weights.insert("norm.weight".into(), (hashed(&[6], 7, 5.0) + 9.0).unwrap());
        let (bytes, logits) = expected(&graph, &weights);
        let file = onnx(&graph, &weights, &options(Input::Uint8, false)).unwrap();
        let off = largest_difference(&run(&file, &bytes), &logits);
        assert!(off < 1e-4, "{off}");
    }
}

/// Shuffled, split and joined channels, and averages of windows that overlap.
#[test]
fn shufflenets_compute_in_a_file_what_they_compute_here() {
    for name in ["shufflenetv1", "shufflenetv2"] {
        let config = ModelConfig { input: [3, 18, 13], ..config(common::named(name)) };
        let graph = config.graph().unwrap();
        let weights = tensors(&graph.init(1, &Device::Cpu).unwrap());
        let (bytes, logits) = expected(&graph, &weights);
        let file = onnx(&graph, &weights, &options(Input::Uint8, false)).unwrap();
        let off = largest_difference(&run(&file, &bytes), &logits);
        assert!(off < 1e-4, "{name}: {off}");
    }
}

#[test]
fn what_can_not_be_exported_is_said() {
    let graph = config(Architecture::TUTORIAL_STUDENT).graph().unwrap();
    let mut weights = tensors(&graph.init(1, &Device::Cpu).unwrap());
    let wrong = OnnxConfig { mean: vec![0.5], ..options(Input::Float, false) };
    let error = onnx(&graph, &weights, &wrong).unwrap_err().to_string();
    assert_eq!(
        error,
        "model setting mean is [0.5]; expected a number for each of the 3 channels of the images"
    );
    weights.insert("features.0.bias".into(), hashed(&[8], 1, 1.0));
    let error = onnx(&graph, &weights, &options(Input::Float, false)).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "needs a tensor features.0.bias of shape [16] and type F32; its shape is [8]"
        )
    );
}
