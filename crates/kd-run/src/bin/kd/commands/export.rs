//! `kd export`: a network for other programs.

use std::path::PathBuf;

use clap::Args;
use kd_data::Normalization;
use kd_models::Architecture;
use kd_models::onnx::{Input, OnnxConfig, onnx};
use kd_models::preprocessing::Stated;
use kd_record::own::{Kind, Output};
use kd_record::write::write_whole;

use super::{print, weights};
use crate::args::{architecture, at_least_one};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd export --weights runs/mine/kd.safetensors --onnx student.onnx
  kd export --weights runs/mine/kd.safetensors --onnx student.onnx --int8

The graph's input is `images` [batch, 3, 32, 32], red, green, blue, any batch size; its output is `logits` [batch, classes].
The classes' names are a JSON array in the metadata entry `classes`.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Export {
    /// The weights file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The network, if the weights file doesn't name it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// The number of classes [default: that of the weights file]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    classes: Option<usize>,
    /// The ONNX file to write: it takes RGB bytes `[batch, 3, 32, 32]`, normalises them and gives logits
    #[arg(long, value_name = "FILE")]
    onnx: PathBuf,
    /// Make the input floats from 0 to 1 instead of bytes
    #[arg(long)]
    float: bool,
    /// Store weights as signed bytes, which makes the file a quarter of the size
    #[arg(long)]
    int8: bool,
    /// Replace the ONNX file even if kd did not write it
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(flags: &Export) -> Result<(), Failure> {
    let output = Output {
        path: &flags.onnx,
        kind: Kind::Onnx,
        others: &[("--weights", &flags.weights)],
        force: Some(flags.force),
    };
    output.check()?;
    let weights = weights::load(&flags.weights, flags.model, flags.classes, &Stated::default())?;
    let Normalization { mean, std } = weights.normalization();
    let options = OnnxConfig {
        input: if flags.float { Input::Float } else { Input::Uint8 },
        int8: flags.int8,
        mean: mean.to_vec(),
        std: std.to_vec(),
        class_names: weights.class_names,
    };
    write_whole(&flags.onnx, &onnx(&weights.config.graph()?, &weights.tensors, &options)?)?;
    Ok(print(&format!("{}\n", flags.onnx.display()))?)
}
