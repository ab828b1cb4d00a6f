//! Export to ONNX: any graph with normalisation in front, batch size left open.

mod proto;
// Generated; most of it is never used, and its comments are ONNX's own.
#[allow(dead_code, unreachable_pub, missing_docs, clippy::all, rustdoc::all)]
#[rustfmt::skip]
mod schema;

use std::collections::BTreeMap;

use kd_ops::{Levels, Pads};

use crate::graph::{Graph, Node, Op, TensorSpec};
use crate::parameters::find;
use crate::quantize::{LayerScales, Quantized};
use crate::{Error, Result, Tensors};
use proto::{Writer, float, int, ints};
use schema::AttributeProto;
use schema::tensor_proto::DataType;

/// What images the exported network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes from 0 to 255.
    Uint8,
    /// f32 from 0 to 1.
    Float,
}

/// How to export.
#[derive(Clone, Debug)]
pub struct OnnxConfig {
    /// What the network takes.
    pub input: Input,
    /// Weights of convolutions and linear layers as signed bytes with a scale for each output channel; biases
    /// stay f32, and so does all that is computed.
    pub int8: bool,
    /// Mean of each channel of the images, on inputs from 0 to 1.
    pub mean: Vec<f32>,
    /// What each channel is then divided by.
    pub std: Vec<f32>,
    /// The classes' names.
    pub class_names: Option<Vec<String>>,
}

/// The network as an ONNX file's bytes: input `images` `[batch, C, H, W]`, output `logits` `[batch, classes]`; metadata
/// `classes` is a JSON array of the names.
///
/// Batch normalisations are folded into the convolutions before them where that is possible ([`Graph::fold`]), and
/// dropout, which does nothing outside of training, is left out.
///
/// # Errors
/// When a weight is missing or has another shape than the network's, or mean and std are not one number a channel.
pub fn onnx(graph: &Graph, weights: &Tensors, config: &OnnxConfig) -> Result<Vec<u8>> {
    let (graph, weights) = graph.fold(weights)?;
    write(&graph, &weights, &BTreeMap::new(), config)
}

/// A quantised network as an ONNX file's bytes, as [`onnx`] has it, with pairs of `QuantizeLinear` and `DequantizeLinear` nodes where
/// bytes are read: the form that runtimes turn into their int8 kernels. Maps are unsigned bytes, weights signed ones with a scale for
/// each output channel, biases 32-bit numbers. Layers that stay f32 do so here, whatever `config.int8` says.
///
/// # Errors
/// As [`onnx`]'s.
pub fn onnx_of_quantized(network: &Quantized, config: &OnnxConfig) -> Result<Vec<u8>> {
    let config = OnnxConfig { int8: false, ..config.clone() };
    write(&network.graph, &network.tensors, &network.layers, &config)
}

/// A folded network; `scales` are those of the layers that are quantised.
fn write(
    graph: &Graph,
    weights: &Tensors,
    scales: &BTreeMap<String, LayerScales>,
    config: &OnnxConfig,
) -> Result<Vec<u8>> {
    let [channels, height, width] = graph.input();
    for (field, values) in [("mean", &config.mean), ("std", &config.std)] {
        if values.len() != channels {
            return Err(Error::Config {
                field,
                found: format!("{values:?}"),
                expected: format!("a number for each of the {channels} channels of the images"),
            });
        }
    }
    let (element, scale) = match config.input {
        Input::Uint8 => (DataType::Uint8, 255.0),
        Input::Float => (DataType::Float, 1.0),
    };
    let mut writer = Writer::new(graph.name());
    let mut x = writer.input("images", element, &[channels, height, width]);
    writer.reserve("logits");
    if config.input == Input::Uint8 {
        x = writer.node("Cast", &[&x], "images.float", vec![int("to", DataType::Float as i64)]);
    }
    for (operator, name, values) in [("Sub", "mean", &config.mean), ("Div", "std", &config.std)] {
        let values: Vec<f32> = values.iter().map(|value| value * scale).collect();
        let values = writer.floats(name, &[1, channels, 1, 1], &values);
        x = writer.node(operator, &[&x, &values], &format!("images.{operator}"), vec![]);
    }

    let mut export = Export { graph, weights, scales, int8: config.int8, writer };
    // For each node, the name under which the file has its values.
    let mut values: Vec<String> = vec![x];
    for node in &graph.nodes()[1..] {
        let inputs: Vec<&str> = node.inputs.iter().map(|id| values[id.index()].as_str()).collect();
        let value = export.node(node, &inputs)?;
        values.push(value);
    }
    // The head is the last node.
    export.writer.output("logits", DataType::Float, &[graph.classes()]);
    let class_names = config.class_names.as_ref().map(serde_json::to_string).transpose();
    let class_names = class_names.map_err(|error| Error::Config {
        field: "class_names",
        found: error.to_string(),
        expected: "names that can be written as JSON".into(),
    })?;
    Ok(export.writer.finish(class_names))
}

struct Export<'a> {
    graph: &'a Graph,
    weights: &'a Tensors,
    scales: &'a BTreeMap<String, LayerScales>,
    int8: bool,
    writer: Writer,
}

impl Export<'_> {
    /// Adds the nodes that compute a node of the graph; gives the name of its value.
    fn node(&mut self, node: &Node, inputs: &[&str]) -> Result<String> {
        let x = inputs[0];
        let square = |name: &str, side: usize| ints(name, &[side as i64, side as i64]);
        let (operator, attributes) = match &node.op {
            Op::Images(_) => unreachable!("a graph's first node, and no other, is its images"),
            Op::Conv(conv) => {
                let map = &self.graph.node(node.inputs[0]).shape;
                let Pads { top, bottom, left, right } = conv.pads([map[1], map[2]]);
                let pads = [top, left, bottom, right].map(|zeros| zeros as i64);
                let mut window = vec![
                    square("kernel_shape", conv.kernel),
                    ints("pads", &pads),
                    square("strides", conv.stride),
                ];
                if conv.groups != 1 {
                    window.push(int("group", conv.groups as i64));
                }
                return self.layer("Conv", node, x, window);
            }
            Op::Linear { .. } => {
                return self.layer("Gemm", node, x, vec![int("transB", 1)]);
            }
            Op::BatchNorm(norm) => {
                let mut inputs = vec![x.to_string()];
                for spec in node.parameters.iter().chain(&node.buffers) {
                    inputs.push(self.floats(spec)?);
                }
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                let attributes = vec![float("epsilon", norm.eps as f32)];
                return Ok(self.writer.node("BatchNormalization", &inputs, &node.name, attributes));
            }
            Op::SubsamplePad { channels } => {
                let before = self.graph.node(node.inputs[0]).shape[0];
                return Ok(self.subsample_pad(&node.name, x, (channels - before) / 2));
            }
            Op::GlobalAveragePool => {
                let map = self.writer.node("GlobalAveragePool", &[x], &node.name, vec![]);
                let name = format!("{}.flat", node.name);
                return Ok(self.writer.node("Flatten", &[&map], &name, vec![int("axis", 1)]));
            }
            Op::Quantize(levels) => return Ok(self.quantize(&node.name, x, *levels)),
            Op::Dropout { .. } => return Ok(x.to_string()),
            Op::MaxPool { kernel, stride, padding } => {
                let mut window = vec![square("kernel_shape", *kernel), square("strides", *stride)];
                if *padding != 0 {
                    window.push(ints("pads", &[*padding as i64; 4]));
                }
                ("MaxPool", window)
            }
            Op::AveragePool { kernel, stride, padding } => (
                "AveragePool",
                vec![
                    square("kernel_shape", *kernel),
                    square("strides", *stride),
                    ints("pads", &[*padding as i64; 4]),
                    int("count_include_pad", 1),
                ],
            ),
            Op::Concat => ("Concat", vec![int("axis", 1)]),
            Op::Channels { start, count } => {
                let bounds = [("starts", *start), ("ends", start + count), ("axes", 1)];
                let [starts, ends, axes] = bounds.map(|(what, value)| {
                    self.writer.integers(&format!("{}.{what}", node.name), &[value as i64])
                });
                return Ok(self.writer.node(
                    "Slice",
                    &[x, &starts, &ends, &axes],
                    &node.name,
                    vec![],
                ));
            }
            Op::ChannelShuffle { groups } => return Ok(self.shuffle(node, x, *groups)),
            Op::Relu6 => {
                let [least, most] = [("least", 0.0), ("most", 6.0)].map(|(what, value)| {
                    self.writer.floats(&format!("{}.{what}", node.name), &[], &[value])
                });
                return Ok(self.writer.node("Clip", &[x, &least, &most], &node.name, vec![]));
            }
            Op::Relu => ("Relu", vec![]),
            Op::Add => ("Add", vec![]),
            Op::Flatten => ("Flatten", vec![int("axis", 1)]),
        };
        Ok(self.writer.node(operator, inputs, &node.name, attributes))
    }

    /// A convolution or linear layer, whose weight comes first and then, if it has one, its bias.
    fn layer(
        &mut self,
        operator: &str,
        node: &Node,
        x: &str,
        attributes: Vec<AttributeProto>,
    ) -> Result<String> {
        let mut inputs = vec![x.to_string()];
        let scales = self.scales.get(&node.name);
        for spec in &node.parameters {
            if let Some(scales) = scales {
                inputs.push(self.multiples(spec, scales)?);
                continue;
            }
            inputs.push(match self.int8 && spec.shape.len() > 1 {
                true => self.bytes(spec)?,
                false => self.floats(spec)?,
            });
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        Ok(self.writer.node(operator, &inputs, &node.name, attributes))
    }

    /// Values to unsigned bytes and back; gives the name of what comes back.
    fn quantize(&mut self, name: &str, x: &str, levels: Levels) -> String {
        let scale = self.writer.floats(&format!("{name}.scale"), &[], &[levels.scale]);
        let zero = vec![levels.zero_point];
        let zero = self.writer.tensor(&format!("{name}.zero"), DataType::Uint8, &[], zero);
        let bytes = format!("{name}.bytes");
        let bytes = self.writer.node("QuantizeLinear", &[x, &scale, &zero], &bytes, vec![]);
        self.writer.node("DequantizeLinear", &[&bytes, &scale, &zero], name, vec![])
    }

    /// Adds a quantised layer's weight as signed bytes, or its bias as 32-bit numbers; gives the name of its f32 values.
    fn multiples(&mut self, spec: &TensorSpec, scales: &LayerScales) -> Result<String> {
        let (name, values) = (&spec.name, self.values(spec)?);
        let is_weight = spec.shape.len() > 1;
        let (element, of, steps): (_, _, Vec<f32>) = match is_weight {
            true => (DataType::Int8, "int8", scales.weight.clone()),
            false => {
                let step = |scale: &f32| (f64::from(*scale) * f64::from(scales.input)) as f32;
                (DataType::Int32, "int32", scales.weight.iter().map(step).collect())
            }
        };
        let outputs = steps.len();
        let rows = values.chunks_exact(values.len() / outputs).zip(&steps);
        let numbers =
            rows.flat_map(|(row, step)| row.iter().map(move |value| (value / step).round()));
        let bytes: Vec<u8> = match is_weight {
            true => numbers.map(|number| number as i8 as u8).collect(),
            false => numbers.flat_map(|number| (number as i32).to_le_bytes()).collect(),
        };
        let numbers = self.writer.tensor(&format!("{name}.{of}"), element, &spec.shape, bytes);
        let steps = self.writer.floats(&format!("{name}.scale"), &[outputs], &steps);
        let mut inputs = vec![numbers, steps];
        if is_weight {
            let zeros = vec![0; outputs];
            inputs.push(self.writer.tensor(&format!("{name}.zero"), element, &[outputs], zeros));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        Ok(self.writer.node("DequantizeLinear", &inputs, name, vec![int("axis", 0)]))
    }

    /// Groups of channels as rows, turned into columns.
    fn shuffle(&mut self, node: &Node, x: &str, groups: usize) -> String {
        let (name, shape) = (&node.name, &node.shape);
        let sides = |shape: &[usize]| shape.iter().map(|&side| side as i64).collect::<Vec<_>>();
        // 0 stands for the batch.
        let grouped = sides(&[0, groups, shape[0] / groups, shape[1], shape[2]]);
        let grouped = self.writer.integers(&format!("{name}.grouped"), &grouped);
        let whole = sides(&[0, shape[0], shape[1], shape[2]]);
        let whole = self.writer.integers(&format!("{name}.whole"), &whole);
        let rows = self.writer.node("Reshape", &[x, &grouped], &format!("{name}.rows"), vec![]);
        let turn = vec![ints("perm", &[0, 2, 1, 3, 4])];
        let columns = self.writer.node("Transpose", &[&rows], &format!("{name}.columns"), turn);
        self.writer.node("Reshape", &[&columns, &whole], name, vec![])
    }

    /// Every second pixel, between `channels` channels of zeros before and as many behind.
    fn subsample_pad(&mut self, name: &str, x: &str, channels: usize) -> String {
        let mut numbers =
            |what: &str, values: &[i64]| self.writer.integers(&format!("{name}.{what}"), values);
        let starts = numbers("starts", &[0, 0]);
        // To the end, however far that is.
        let ends = numbers("ends", &[i64::MAX, i64::MAX]);
        let axes = numbers("axes", &[2, 3]);
        let steps = numbers("steps", &[2, 2]);
        let channels = channels as i64;
        let pads = numbers("pads", &[0, channels, 0, 0, 0, channels, 0, 0]);
        let inputs = [x, &starts, &ends, &axes, &steps];
        let x = self.writer.node("Slice", &inputs, &format!("{name}.second"), vec![]);
        self.writer.node("Pad", &[&x, &pads], name, vec![])
    }

    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let tensor = find(self.graph.name(), spec, self.weights)?;
        Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
    }

    /// Adds a tensor; gives its name.
    fn floats(&mut self, spec: &TensorSpec) -> Result<String> {
        let values = self.values(spec)?;
        Ok(self.writer.floats(&spec.name, &spec.shape, &values))
    }

    /// Adds a tensor as signed bytes with a scale for each output; gives the name of its f32 values.
    fn bytes(&mut self, spec: &TensorSpec) -> Result<String> {
        let (name, outputs) = (&spec.name, spec.shape[0]);
        let values = self.values(spec)?;
        let rows = values.chunks_exact(values.len() / outputs);
        let scale = |row: &[f32]| match row.iter().fold(0f32, |most, value| most.max(value.abs())) {
            0.0 => 1.0,
            most => most / 127.0,
        };
        let scales: Vec<f32> = rows.clone().map(scale).collect();
        let bytes = rows.zip(&scales).flat_map(|(row, scale)| {
            row.iter().map(move |value| (value / scale).round().clamp(-127.0, 127.0) as i8 as u8)
        });
        let (int8, bytes) = (DataType::Int8, bytes.collect());
        let quantized = self.writer.tensor(&format!("{name}.int8"), int8, &spec.shape, bytes);
        let scale = self.writer.floats(&format!("{name}.scale"), &[outputs], &scales);
        let zeros = vec![0; outputs];
        let zero = self.writer.tensor(&format!("{name}.zero"), int8, &[outputs], zeros);
        let inputs = [quantized.as_str(), &scale, &zero];
        Ok(self.writer.node("DequantizeLinear", &inputs, name, vec![int("axis", 0)]))
    }
}
