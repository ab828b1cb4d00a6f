//! ONNX: the network with normalisation in front, batch size left open.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use candle_core::Tensor;
use kd_models::ModelConfig;
use kd_ops::BatchNormConfig;
use prost::Message;

use super::schema::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, tensor_shape_proto, type_proto,
};

/// ONNX's IR version and operator set: those of ONNX 1.12, which runtimes since 2022 know.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
/// Height and width of the images.
const SIDE: i64 = 32;

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
    /// Mean of each colour, on inputs from 0 to 1.
    pub mean: [f32; 3],
    /// What each colour is then divided by.
    pub std: [f32; 3],
    /// The classes' names.
    pub class_names: Option<Vec<String>>,
}

/// The network as an ONNX file's bytes: input `images` `[batch, 3, 32, 32]` (RGB), output `logits`
/// `[batch, classes]`; metadata `classes` is a JSON array of the names.
///
/// # Errors
/// When a weight is missing, or the network has layers that this can't express.
pub fn onnx(
    network: &ModelConfig,
    weights: &BTreeMap<String, Tensor>,
    config: &OnnxConfig,
) -> anyhow::Result<Vec<u8>> {
    let mut graph = Graph { weights, int8: config.int8, used: 0, proto: GraphProto::default() };
    graph.proto.name = network.architecture.name().into();
    let (element, scale) = match config.input {
        Input::Uint8 => (DataType::Uint8, 255.0),
        Input::Float => (DataType::Float, 1.0),
    };
    graph.proto.input = vec![value("images", element, &[3, SIDE, SIDE])];
    graph.proto.output = vec![value("logits", DataType::Float, &[network.classes as i64])];

    let mut x = String::from("images");
    if config.input == Input::Uint8 {
        x = graph.node("Cast", &[&x], "images.float", vec![int("to", DataType::Float as i64)]);
    }
    for (operator, name, values) in [("Sub", "mean", config.mean), ("Div", "std", config.std)] {
        let values: Vec<f32> = values.iter().map(|value| value * scale).collect();
        graph.floats(name, &[1, 3, 1, 1], &values);
        x = graph.node(operator, &[&x, name], &format!("images.{operator}"), vec![]);
    }

    match kd_models::buffer_shapes(network).is_empty() {
        true => graph.cnn(x, network)?,
        false => graph.resnet(x, network)?,
    }
    ensure!(
        graph.used == weights.len(),
        "the network {} has layers that can't be exported: {} of {} weights are used",
        network.architecture,
        graph.used,
        weights.len()
    );

    let mut metadata_props = Vec::new();
    if let Some(names) = &config.class_names {
        let value = serde_json::to_string(names)?;
        metadata_props.push(StringStringEntryProto { key: "classes".into(), value });
    }
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        producer_name: "kd".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph.proto),
        metadata_props,
        ..ModelProto::default()
    };
    Ok(model.encode_to_vec())
}

struct Graph<'a> {
    weights: &'a BTreeMap<String, Tensor>,
    int8: bool,
    /// How many of the weights are in the graph.
    used: usize,
    proto: GraphProto,
}

impl Graph<'_> {
    fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.proto.node.push(NodeProto {
            op_type: operator.into(),
            name: output.into(),
            input: inputs.iter().map(|input| (*input).into()).collect(),
            output: vec![output.into()],
            attribute,
            ..NodeProto::default()
        });
        output.into()
    }

    /// A network whose places are its layers, one after another.
    fn cnn(&mut self, mut x: String, network: &ModelConfig) -> anyhow::Result<()> {
        let mut shape = vec![3, SIDE as usize, SIDE as usize];
        let mut flat = false;
        for place in kd_models::places(network) {
            if self.weights.contains_key(&format!("{}.weight", place.name)) {
                x = self.layer(&x, &place.name, &place.name, &mut flat)?;
            } else if place.shape == shape {
                x = self.node("Relu", &[&x], &place.name, vec![]);
            } else {
                let halved = [shape[0], shape[1] / 2, shape[2] / 2];
                ensure!(place.shape == halved, "{}: a layer that can't be exported", place.name);
                let sides = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
                x = self.node("MaxPool", &[&x], &place.name, sides);
            }
            shape = place.shape;
        }
        // The last layer is no place; dropout does nothing outside training.
        let shapes = kd_models::parameter_shapes(network);
        let last =
            shapes.last().and_then(|(name, _)| name.rsplit_once('.')).context("no weights")?.0;
        self.layer(&x, last, "logits", &mut flat)?;
        Ok(())
    }

    /// A residual network, its normalisations folded into the convolutions before them.
    fn resnet(&mut self, mut x: String, network: &ModelConfig) -> anyhow::Result<()> {
        let mut shortcut = String::new();
        for (name, shape) in kd_models::parameter_shapes(network) {
            let (Some(conv), &[outputs, inputs, 3, 3]) = (name.strip_suffix(".weight"), &shape[..])
            else {
                continue;
            };
            let (block, position) = conv.rsplit_once('.').unwrap_or(("stem", ""));
            // Only a stage's first layer widens, and it narrows at once.
            let stride = if position == "conv1" && inputs != outputs { 2 } else { 1 };
            if position == "conv1" {
                shortcut = match stride {
                    1 => x.clone(),
                    _ => self.shortcut(&x, block, (outputs - inputs) as i64 / 2),
                };
            }
            x = self.folded(&x, conv, &conv.replace("conv", "bn"), stride)?;
            let mut output = format!("{conv}.relu");
            if position == "conv2" {
                x = self.node("Add", &[&x, &shortcut], &format!("{block}.sum"), vec![]);
                output = block.to_string();
            }
            x = self.node("Relu", &[&x], &output, vec![]);
        }
        x = self.node("GlobalAveragePool", &[&x], "pool", vec![]);
        self.layer(&x, "linear", "logits", &mut false)?;
        Ok(())
    }

    /// Every second pixel, between `channels` channels of zeros before and as many behind.
    fn shortcut(&mut self, x: &str, block: &str, channels: i64) -> String {
        let mut numbers = |what: &str, values: &[i64]| {
            let name = format!("{block}.{what}");
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.tensor(&name, DataType::Int64, &[values.len() as i64], bytes);
            name
        };
        let starts = numbers("starts", &[0, 0]);
        let ends = numbers("ends", &[SIDE, SIDE]);
        let axes = numbers("axes", &[2, 3]);
        let steps = numbers("steps", &[2, 2]);
        let pads = numbers("pads", &[0, channels, 0, 0, 0, channels, 0, 0]);
        let inputs = [x, &starts, &ends, &axes, &steps];
        let x = self.node("Slice", &inputs, &format!("{block}.second"), vec![]);
        self.node("Pad", &[&x, &pads], &format!("{block}.shortcut"), vec![])
    }

    /// A convolution without bias and its normalisation by running statistics as one convolution.
    fn folded(&mut self, x: &str, conv: &str, norm: &str, stride: i64) -> anyhow::Result<String> {
        let name = format!("{conv}.weight");
        let mut weight = self.values(&name)?;
        let [scale, shift, mean, var] = [
            self.values(&format!("{norm}.weight"))?,
            self.values(&format!("{norm}.bias"))?,
            self.values(&format!("{norm}.running_mean"))?,
            self.values(&format!("{norm}.running_var"))?,
        ];
        let eps = BatchNormConfig::default().eps;
        let mut bias = Vec::with_capacity(scale.len());
        let window = weight.len() / scale.len().max(1);
        for (channel, weight) in weight.chunks_exact_mut(window.max(1)).enumerate() {
            let factor = f64::from(scale[channel]) / (f64::from(var[channel]) + eps).sqrt();
            for weight in weight {
                *weight = (f64::from(*weight) * factor) as f32;
            }
            let bias_here = f64::from(shift[channel]) - f64::from(mean[channel]) * factor;
            bias.push(bias_here as f32);
        }
        let dims: Vec<i64> = self.weights[&name].dims().iter().map(|dim| *dim as i64).collect();
        let weight = self.weight_of(&name, &dims, &weight);
        let bias_name = format!("{conv}.bias");
        self.floats(&bias_name, &[bias.len() as i64], &bias);
        let window = vec![
            ints("kernel_shape", &[3, 3]),
            ints("pads", &[1, 1, 1, 1]),
            ints("strides", &[stride, stride]),
        ];
        Ok(self.node("Conv", &[x, &weight, &bias_name], conv, window))
    }

    /// A convolution (weight `[O, I, 3, 3]`) or a linear layer (`[O, I]`).
    fn layer(
        &mut self,
        x: &str,
        name: &str,
        output: &str,
        flat: &mut bool,
    ) -> anyhow::Result<String> {
        let (weight, rank) = self.weight(&format!("{name}.weight"))?;
        let bias = format!("{name}.bias");
        let values = self.values(&bias)?;
        self.floats(&bias, &[values.len() as i64], &values);
        match rank {
            4 => {
                let pads = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
                Ok(self.node("Conv", &[x, &weight, &bias], output, pads))
            }
            2 => {
                let mut x = x.to_string();
                if !std::mem::replace(flat, true) {
                    x = self.node("Flatten", &[&x], "flat", vec![int("axis", 1)]);
                }
                Ok(self.node("Gemm", &[&x, &weight, &bias], output, vec![int("transB", 1)]))
            }
            _ => bail!("{name}: a weight of rank {rank} can't be exported"),
        }
    }

    fn values(&mut self, name: &str) -> anyhow::Result<Vec<f32>> {
        let tensor = self.weights.get(name).with_context(|| format!("{name}: missing"))?;
        self.used += 1;
        Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
    }

    /// Adds a weight; the name of its f32 values in the graph, and its rank.
    fn weight(&mut self, name: &str) -> anyhow::Result<(String, usize)> {
        let values = self.values(name)?;
        let dims: Vec<i64> = self.weights[name].dims().iter().map(|dim| *dim as i64).collect();
        Ok((self.weight_of(name, &dims, &values), dims.len()))
    }

    /// Adds a weight's values, as bytes where that is asked for; the name of its f32 values in the graph.
    fn weight_of(&mut self, name: &str, dims: &[i64], values: &[f32]) -> String {
        if !self.int8 {
            self.floats(name, dims, values);
            return name.into();
        }
        let rows = values.chunks_exact(values.len() / dims[0] as usize);
        let scale = |row: &[f32]| match row.iter().fold(0f32, |most, value| most.max(value.abs())) {
            0.0 => 1.0,
            most => most / 127.0,
        };
        let scales: Vec<f32> = rows.clone().map(scale).collect();
        let bytes = rows.zip(&scales).flat_map(|(row, scale)| {
            row.iter().map(move |value| (value / scale).round().clamp(-127.0, 127.0) as i8 as u8)
        });
        let (bytes, scale, zero) =
            (bytes.collect(), format!("{name}.scale"), format!("{name}.zero"));
        let quantized = format!("{name}.int8");
        self.tensor(&quantized, DataType::Int8, dims, bytes);
        self.floats(&scale, &[dims[0]], &scales);
        self.tensor(&zero, DataType::Int8, &[dims[0]], vec![0; dims[0] as usize]);
        let inputs = [quantized.as_str(), &scale, &zero];
        self.node("DequantizeLinear", &inputs, name, vec![int("axis", 0)])
    }

    fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, DataType::Float, dims, bytes);
    }

    fn tensor(&mut self, name: &str, element: DataType, dims: &[i64], raw_data: Vec<u8>) {
        self.proto.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: element as i32,
            raw_data,
            ..TensorProto::default()
        });
    }
}

/// An input or output of the graph, its first dimension open.
fn value(name: &str, element: DataType, dims: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dimension = |value| Dimension { value: Some(value), ..Dimension::default() };
    let mut dim = vec![dimension(Value::DimParam("batch".into()))];
    dim.extend(dims.iter().map(|dim| dimension(Value::DimValue(*dim))));
    let tensor =
        type_proto::Tensor { elem_type: element as i32, shape: Some(TensorShapeProto { dim }) };
    let kind =
        TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(kind), ..ValueInfoProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.into(), i, r#type, ..AttributeProto::default() }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let (ints, r#type) = (ints.to_vec(), AttributeType::Ints as i32);
    AttributeProto { name: name.into(), ints, r#type, ..AttributeProto::default() }
}
