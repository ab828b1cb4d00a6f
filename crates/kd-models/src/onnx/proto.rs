//! Writing ONNX's protobuf messages.

use std::collections::HashSet;

use prost::Message;

use super::schema::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, tensor_shape_proto, type_proto,
};

/// ONNX's IR version and operator set: those of ONNX 1.12, which runtimes since 2022 know.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// A file in the making. Every name that it gives to a value is the file's only one: where a name is taken, a number is
/// added.
pub(super) struct Writer {
    graph: GraphProto,
    names: HashSet<String>,
}

impl Writer {
    pub(super) fn new(name: &str) -> Self {
        let graph = GraphProto { name: name.into(), ..GraphProto::default() };
        Self { graph, names: HashSet::new() }
    }

    /// A name that no other value has.
    fn unique(&mut self, name: &str) -> String {
        let mut unique = name.to_string();
        let mut count = 2;
        while !self.names.insert(unique.clone()) {
            unique = format!("{name}.{count}");
            count += 1;
        }
        unique
    }

    /// An input whose first dimension is open.
    pub(super) fn input(&mut self, name: &str, element: DataType, dims: &[usize]) -> String {
        self.graph.input.push(value(name, element, dims));
        self.unique(name)
    }

    /// Keeps a name for [`Writer::output`].
    pub(super) fn reserve(&mut self, name: &str) {
        self.names.insert(name.to_string());
    }

    /// Makes the value of the last node the graph's output, under a reserved name. Its first dimension is open.
    pub(super) fn output(&mut self, name: &str, element: DataType, dims: &[usize]) {
        self.graph.output.push(value(name, element, dims));
        if let Some(last) = self.graph.node.last_mut() {
            last.output = vec![name.to_string()];
        }
    }

    /// A node with one result; gives the result's name, which is `output` where that is not yet taken.
    pub(super) fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attribute: Vec<AttributeProto>,
    ) -> String {
        let output = self.unique(output);
        self.graph.node.push(NodeProto {
            op_type: operator.into(),
            name: output.clone(),
            input: inputs.iter().map(|input| (*input).into()).collect(),
            output: vec![output.clone()],
            attribute,
            ..NodeProto::default()
        });
        output
    }

    /// A tensor of f32; gives its name.
    pub(super) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, DataType::Float, dims, bytes)
    }

    /// A vector of i64; gives its name.
    pub(super) fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, DataType::Int64, &[values.len()], bytes)
    }

    /// A tensor of little-endian values; gives its name.
    pub(super) fn tensor(
        &mut self,
        name: &str,
        element: DataType,
        dims: &[usize],
        raw_data: Vec<u8>,
    ) -> String {
        let name = self.unique(name);
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: dims.iter().map(|dim| *dim as i64).collect(),
            data_type: element as i32,
            raw_data,
            ..TensorProto::default()
        });
        name
    }

    /// The file's bytes; `class_names` is a JSON array for the metadata.
    pub(super) fn finish(self, class_names: Option<String>) -> Vec<u8> {
        let entry = |value| StringStringEntryProto { key: "classes".into(), value };
        let model = ModelProto {
            ir_version: IR_VERSION,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            producer_name: "kd".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph),
            metadata_props: class_names.into_iter().map(entry).collect(),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }
}

/// An input or output of the graph, its first dimension open.
fn value(name: &str, element: DataType, dims: &[usize]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dimension = |value| Dimension { value: Some(value), ..Dimension::default() };
    let mut dim = vec![dimension(Value::DimParam("batch".into()))];
    dim.extend(dims.iter().map(|dim| dimension(Value::DimValue(*dim as i64))));
    let tensor =
        type_proto::Tensor { elem_type: element as i32, shape: Some(TensorShapeProto { dim }) };
    let kind =
        TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(kind), ..ValueInfoProto::default() }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.into(), i, r#type, ..AttributeProto::default() }
}

pub(super) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let (ints, r#type) = (ints.to_vec(), AttributeType::Ints as i32);
    AttributeProto { name: name.into(), ints, r#type, ..AttributeProto::default() }
}

pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    let r#type = AttributeType::Float as i32;
    AttributeProto { name: name.into(), f, r#type, ..AttributeProto::default() }
}
