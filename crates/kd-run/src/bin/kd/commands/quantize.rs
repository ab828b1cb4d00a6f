//! `kd quantize`: a network in eight bits, and what that costs.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};
use clap::Args;
use kd_data::{BatchConfig, Portions, Source, Split, batches, images};
use kd_models::onnx::{Input, OnnxConfig, onnx_of_quantized};
use kd_models::preprocessing::Stated;
use kd_models::quantize::{
    Calibration, LayerError, Observations, QuantizeConfig, Quantized, errors, observe, quantize,
};
use kd_models::{Architecture, Graph, GraphNetwork, Tensors, frozen};
use kd_record::PictureLogits;
use kd_record::own::{self, Kind, Output};
use kd_record::write::write_whole;
use kd_run::data;
use kd_run::evaluate::{evaluate, logits};
use kd_run::teacher::names_of;
use rayon::prelude::*;
use serde::Serialize;

use super::weights::{Weights, say};
use super::{eval, predict, print, read_recipe, weights};
use crate::args::{DataFlags, architecture, at_least_one, percent};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd quantize --weights runs/mine/kd.safetensors --onnx student-int8.onnx
  kd quantize --weights runs/mine/kd.safetensors --onnx student-int8.onnx --calibrate pictures/train --pictures 512
  kd quantize --weights runs/mine/kd.safetensors --onnx student-int8.onnx --max-drop 0.5

Ranges are those of the values that the pictures to calibrate on give: the data set's training pictures, or --calibrate's. The file has
QuantizeLinear and DequantizeLinear nodes around each layer, which runtimes turn into their int8 kernels: maps as unsigned bytes, weights
as signed ones with a scale for each output channel, biases as 32-bit numbers. Weights have seven bits by default, which is right on every
processor: those with AVX2 and without VNNI (and onnxruntime on them, unless session.x64quantprecision is set) add pairs of products in 16
bits, which eight-bit weights can overflow. --weight-bits 8 is for processors with VNNI, for Arm and for GPUs.";

/// Images of a batch of pictures to calibrate on.
const BATCH: usize = 32;
/// Batches whose values are compared layer by layer.
const COMPARED: usize = 2;

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Quantize {
    /// The weights file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The network, if the weights file doesn't name it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// The ONNX file to write: it takes RGB bytes `[batch, 3, H, W]`, normalises them and gives logits
    #[arg(long, value_name = "FILE")]
    onnx: PathBuf,
    /// A folder of pictures to calibrate on; their labels are not needed [default: the data set's training pictures]
    #[arg(long, value_name = "DIR")]
    calibrate: Option<PathBuf>,
    /// How many pictures to calibrate on
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pictures: usize,
    /// How the range of each map is chosen: "mse" (the smallest squared error), "min-max", or "percentile"
    #[arg(long, default_value = "mse", value_parser = Method::from_str)]
    method: Method,
    /// What is kept of each map's values by --method percentile
    #[arg(long, value_name = "PERCENT", default_value_t = 99.99, value_parser = percent)]
    percentile: f64,
    /// The bits of a weight: 7 (right on every processor) or 8
    #[arg(long, value_name = "BITS", default_value_t = 7, value_parser = clap::value_parser!(u32).range(7..=8))]
    weight_bits: u32,
    /// Do not let biases make up for the mean error of rounded weights
    #[arg(long)]
    no_bias_correction: bool,
    /// Leave a layer in f32; may be given several times
    #[arg(long, value_name = "LAYER")]
    float: Vec<String>,
    /// Leave further layers in f32, those that hurt most first, until the accuracy on the test pictures is at most so many points below
    /// that of f32
    #[arg(long, value_name = "POINTS", value_parser = percent, conflicts_with = "no_test")]
    max_drop: Option<f64>,
    /// Do not measure accuracy: the data set need not be there if --calibrate is given
    #[arg(long)]
    no_test: bool,
    /// Also write the eight-bit network's logits of the test pictures to this safetensors file, as kd computes them
    #[arg(long, value_name = "FILE", conflicts_with = "no_test")]
    logits: Option<PathBuf>,
    /// The recipe that says the data set [default: the built-in recipe, that of the tutorial]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    data: DataFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Replace the files to write even if kd did not write them
    #[arg(long)]
    force: bool,
}

/// A value of `--method`.
#[derive(Clone, Copy, Debug)]
enum Method {
    Mse,
    MinMax,
    Percentile,
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "mse" => Ok(Self::Mse),
            "min-max" => Ok(Self::MinMax),
            "percentile" => Ok(Self::Percentile),
            _ => Err("expected mse, min-max or percentile".into()),
        }
    }
}

/// The JSON that `--json` prints.
#[derive(Serialize)]
struct Printed {
    onnx: String,
    bytes: u64,
    weight_bits: u32,
    calibrated_on: usize,
    /// Layers in f32, in the order in which they were left out.
    float_layers: Vec<String>,
    layers: Vec<Layer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<Both>,
}

#[derive(Serialize)]
struct Layer {
    layer: String,
    /// `null` where nothing was rounded away.
    signal_to_noise_db: Option<f64>,
    logits_when_alone_db: Option<f64>,
}

/// Accuracy on the test images, from 0 to 1.
#[derive(Clone, Copy, Serialize)]
struct Both {
    float: f64,
    int8: f64,
    images: usize,
}

/// A folded network and what calibration saw of it.
struct Calibrated {
    graph: Graph,
    tensors: Tensors,
    seen: Observations,
}

pub(crate) fn run(flags: &Quantize) -> Result<(), Failure> {
    let mut others = vec![("--weights", flags.weights.as_path())];
    others.extend(flags.recipe.as_deref().map(|recipe| ("--recipe", recipe)));
    let force = Some(flags.force);
    Output { path: &flags.onnx, kind: Kind::Onnx, others: &others, force }.check()?;
    if let Some(path) = &flags.logits {
        others.push(("--onnx", &flags.onnx));
        Output { path, kind: own::LOGITS, others: &others, force }.check()?;
    }
    let about = weights::load(&flags.weights, flags.model, None, &Stated::default())?;
    predict::check_square(&about)?;
    let data = match flags.calibrate.is_some() && flags.no_test {
        true => None,
        false => Some(load(flags, &about)?),
    };
    let pictures: Arc<dyn Source> = match (&flags.calibrate, &data) {
        (Some(folder), _) => Arc::new(pictures(folder, flags.pictures, &about)?),
        (None, Some(data)) => Arc::clone(&data.train),
        (None, None) => unreachable!("without a folder the data set is read"),
    };
    let batches = normalized(&pictures, &about)?;
    let (graph, tensors) = about.config.graph()?.fold(&about.tensors)?;
    let seen = observe(&graph, &tensors, &batches)?;
    // The first is there: nothing can be seen on no picture.
    let network = Calibrated { graph, tensors, seen };

    let mut config = QuantizeConfig {
        calibration: match flags.method {
            Method::Mse => Calibration::Mse,
            Method::MinMax => Calibration::MinMax,
            Method::Percentile => Calibration::Percentile(flags.percentile),
        },
        weight_bits: flags.weight_bits,
        bias_correction: !flags.no_bias_correction,
        float_layers: flags.float.iter().cloned().collect(),
    };
    let compared = Tensor::cat(&batches[..batches.len().min(COMPARED)], 0)?;
    let Calibrated { graph, tensors, seen } = &network;
    let found = errors(graph, tensors, seen, &config, &compared)?;
    let test = data.as_ref().filter(|_| !flags.no_test);
    let mut left: Vec<String> = flags.float.clone();
    let (made, accuracy) = match test {
        Some(data) => {
            let (made, both) =
                within(flags.max_drop, &network, &mut config, &mut left, &found, data, &about)?;
            (made, Some(both))
        }
        None => (quantize(graph, tensors, seen, &config)?, None),
    };
    let normalization = about.normalization();
    if let (Some(path), Some(data)) = (&flags.logits, test) {
        let network = GraphNetwork::new(made.graph.clone(), frozen(&made.tensors))?;
        let logits = logits(&network, &data.test, normalization, &Device::Cpu)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let names = names_of(&*data.test).context("the images have no names")?;
        let classes = data.classes.clone();
        PictureLogits { names, classes, logits }.write(path, Some(&data.test.labels()?))?;
    }
    let options = OnnxConfig {
        input: Input::Uint8,
        int8: false,
        mean: normalization.mean.to_vec(),
        std: normalization.std.to_vec(),
        class_names: about.class_names.clone(),
    };
    let file = onnx_of_quantized(&made, &options)?;
    write_whole(&flags.onnx, &file)?;
    let printed = Printed {
        onnx: flags.onnx.display().to_string(),
        bytes: file.len() as u64,
        weight_bits: flags.weight_bits,
        calibrated_on: pictures.len(),
        float_layers: left,
        layers: found.iter().map(Layer::of).collect(),
        accuracy,
    };
    let text = match flags.json {
        true => {
            serde_json::to_string(&printed).context("the result can't be written as JSON")? + "\n"
        }
        false => table(&printed, flags.max_drop),
    };
    Ok(print(&text)?)
}

/// Quantises, and leaves the layer that hurts most in f32 as long as the accuracy falls by more than `most` points.
fn within(
    most: Option<f64>,
    network: &Calibrated,
    config: &mut QuantizeConfig,
    left: &mut Vec<String>,
    found: &[LayerError],
    data: &Portions,
    about: &Weights,
) -> Result<(Quantized, Both), Failure> {
    let Calibrated { graph, tensors, seen } = network;
    let accuracy = |graph: &Graph, tensors: &Tensors| -> anyhow::Result<f64> {
        let network = GraphNetwork::new(graph.clone(), frozen(tensors))?;
        let (classes, normalization) = (&data.classes, about.normalization());
        Ok(evaluate(&network, &data.test, classes, normalization, &Device::Cpu)?.accuracy)
    };
    let float = accuracy(graph, tensors)?;
    let mut worst: Vec<&LayerError> = found.iter().collect();
    worst.sort_by(|a, b| a.alone.total_cmp(&b.alone));
    let mut worst = worst.into_iter();
    loop {
        let made = quantize(graph, tensors, seen, config)?;
        let both =
            Both { float, int8: accuracy(&made.graph, &made.tensors)?, images: data.test.len() };
        if most.is_none_or(|most| 100.0 * (float - both.int8) <= most) {
            return Ok((made, both));
        }
        // Where every layer is in f32 the accuracy is f32's.
        let Some(next) = worst.next() else { return Ok((made, both)) };
        config.float_layers.insert(next.layer.clone());
        left.push(next.layer.clone());
    }
}

/// The data set's test pictures, and as many training pictures as are to be calibrated on.
fn load(flags: &Quantize, about: &Weights) -> anyhow::Result<Portions> {
    let mut config = read_recipe(flags.recipe.as_deref())?.data;
    flags.data.lay_over(&mut config);
    config.train_limit = Some(if flags.calibrate.is_some() { 1 } else { flags.pictures });
    config.held_out = None;
    if config.size.is_none() {
        eval::as_in_training(&flags.weights, flags.model, &mut config)?;
    }
    let memory = flags.data.data_memory.unwrap_or(data::DATA_MEMORY);
    let data = match flags.no_test {
        true => data::load_untested(&config, &flags.data.data, memory)?,
        false => data::load_within(&config, &flags.data.data, memory)?,
    };
    let (weights, found) = (flags.weights.display(), data.input());
    ensure!(
        found == about.config.input,
        "{weights}: the network takes images of {:?}, and the data set's are {found:?}; give its own data set",
        about.config.input
    );
    if flags.no_test {
        return Ok(data);
    }
    ensure!(
        data.test.is_labelled(),
        "{}: the pictures to test on have no labels, so no accuracy can be measured on them; give --no-test",
        flags.data.data.display()
    );
    let same = match &about.class_names {
        Some(names) => *names == data.classes,
        None => about.config.classes == data.classes.len(),
    };
    ensure!(
        same,
        "{weights}: the network has other classes than the data set, which has {}; give its own data set, or --no-test",
        data.classes.join(", ")
    );
    Ok(data)
}

/// As many pictures of a folder, evenly out of all those in and below it.
fn pictures(folder: &Path, most: usize, about: &Weights) -> anyhow::Result<Split> {
    let files = images::files(folder)?;
    ensure!(
        !files.is_empty(),
        "{}: the folder holds no PNG, JPEG, WebP, BMP or GIF file to calibrate on",
        folder.display()
    );
    let count = most.min(files.len());
    if count < most {
        say(&[format!("{}: {count} pictures, all that there are", folder.display())]);
    }
    let chosen: Vec<&PathBuf> = (0..count).map(|i| &files[i * files.len() / count]).collect();
    let read = chosen.par_iter().map(|path| predict::read(path, &about.preprocessing));
    let mut split = Split::default();
    for picture in read.collect::<Vec<_>>() {
        predict::add(&mut split, picture?);
    }
    Ok(split)
}

/// All of the pictures as the network gets them.
fn normalized(pictures: &Arc<dyn Source>, about: &Weights) -> anyhow::Result<Vec<Tensor>> {
    let config = BatchConfig {
        batch_size: BATCH,
        normalization: about.normalization(),
        ..BatchConfig::default()
    };
    let images = batches(pictures, &config, &Device::Cpu)?.map(|batch| Ok(batch?.images));
    images.collect()
}

impl Layer {
    fn of(error: &LayerError) -> Self {
        let finite = |decibels: f64| Some(decibels).filter(|decibels| decibels.is_finite());
        Self {
            layer: error.layer.clone(),
            signal_to_noise_db: finite(error.signal_to_noise),
            logits_when_alone_db: finite(error.alone),
        }
    }
}

fn table(printed: &Printed, max_drop: Option<f64>) -> String {
    let decibels = |value: Option<f64>| match value {
        Some(value) => format!("{value:.1}"),
        None => "exact".into(),
    };
    let width = printed.layers.iter().map(|layer| layer.layer.chars().count()).max().unwrap_or(0);
    let width = width.max("layer".len());
    let mut text = format!("{:width$}  all in int8  alone\n", "layer");
    for layer in &printed.layers {
        let (all, alone) =
            (decibels(layer.signal_to_noise_db), decibels(layer.logits_when_alone_db));
        let note = if printed.float_layers.contains(&layer.layer) { "  left in f32" } else { "" };
        let _ = writeln!(text, "{:width$}  {all:>11}  {alone:>5}{note}", layer.layer);
    }
    text += "\nSignal to noise in decibels: of the layer's values when every layer is in int8, and of the logits when this layer alone is.\n";
    if let Some(Both { float, int8, images }) = printed.accuracy {
        let _ = writeln!(
            text,
            "accuracy on {images} test images: f32 {:.2} %, int8 {:.2} %, {:+.2} points",
            100.0 * float,
            100.0 * int8,
            100.0 * (int8 - float)
        );
        if max_drop.is_some() && !printed.float_layers.is_empty() {
            text += "The layers left in f32 were chosen on these test images.\n";
        }
    }
    let bits = printed.weight_bits;
    let _ = writeln!(
        text,
        "{}: {} bytes, {bits}-bit weights, calibrated on {} pictures{}",
        printed.onnx,
        printed.bytes,
        printed.calibrated_on,
        match bits {
            8 =>
                "; on processors with AVX2 and without VNNI set session.x64quantprecision in onnxruntime",
            _ => "",
        }
    );
    text
}
