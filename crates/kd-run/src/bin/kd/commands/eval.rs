//! `kd eval`: what weights are worth on the test images, or on the training images.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use kd_data::{Portions, images};
use kd_models::Architecture;
use kd_models::preprocessing::{Preprocessing, Stated, find, timm};
use kd_models::weights::peek;
use kd_record::own::{self, Output};
use kd_record::{PictureLogits, TestFlip};
use kd_run::data;
use kd_run::evaluate::{Evaluation, evaluate, evaluate_with_flip, logits};
use kd_run::recipe::DataConfig;
use kd_run::teacher::{Pretrained, PretrainedConfig, classes_of, names_of};
use serde::Serialize;

use super::weights::say;
use super::{print, read_recipe};
use crate::args::{ClassFlags, ComputeFlags, DataFlags, architecture};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd eval --weights runs/mine/kd.safetensors
  kd eval --weights runs/mine/kd.safetensors --json | jq .accuracy
  kd eval --weights pytorch.safetensors --model student --logits logits.safetensors
  kd eval --weights teacher.safetensors --on train --logits answers.safetensors";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Eval {
    /// The weights file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The network, if the weights file doesn't name it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// The recipe that says data set and normalisation [default: the built-in recipe, that of the tutorial]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    data: DataFlags,
    #[command(flatten)]
    classes: ClassFlags,
    /// Also say what the mean of the logits of each picture and of its mirror image gives
    #[arg(long)]
    flip: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The images: "test" or "train"
    #[arg(long, default_value = "test", value_parser = ["test", "train"])]
    on: String,
    /// Also write the logits of all of these images to this safetensors file, with the images' names, labels and classes: what `kd distill --teacher-logits FILE` takes
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Replace the file of --logits even if kd did not write it
    #[arg(long, requires = "logits")]
    force: bool,
    #[command(flatten)]
    compute: ComputeFlags,
}

/// The JSON that `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    model: &'a str,
    weights: String,
    sha256: &'a str,
    dataset: Dataset<'a>,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
}

#[derive(Serialize)]
struct Dataset<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    test: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    train: Option<usize>,
    sha256: &'a str,
    /// The files of pictures that could not be read and were left out, those among the training images included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<String>,
}

pub(crate) fn run(flags: &Eval) -> Result<(), Failure> {
    if let Some(path) = &flags.logits {
        let mut others = vec![("--weights", flags.weights.as_path())];
        others.extend(flags.recipe.as_deref().map(|recipe| ("--recipe", recipe)));
        others.extend(flags.classes.class_map.as_deref().map(|map| ("--class-map", map)));
        let force = Some(flags.force);
        Output { path, kind: own::LOGITS, others: &others, force }.check()?;
    }
    let choice = flags.classes.choice()?;
    let mut config = read_recipe(flags.recipe.as_deref())?.data;
    flags.data.lay_over(&mut config);
    let on_train = flags.on == "train";
    // Where no training image is looked at, one is enough to hold in memory.
    config.train_limit = if on_train { None } else { Some(1) };
    let device = flags.compute.device()?;
    if config.size.is_none() {
        as_in_training(&flags.weights, flags.model, &mut config)?;
    }
    let mut data = load(flags, &mut config, on_train)?;
    if data.classes.is_empty() {
        data.classes = classes_of(&flags.weights, flags.model, None, data.input())?;
    }
    // Those of the classes are about the test images.
    let of_classes = if on_train { &[][..] } else { &data.class_warnings };
    for warning in data.skipped_sentence().iter().chain(of_classes) {
        tracing::warn!("{warning}");
    }
    let about = PretrainedConfig {
        architecture: flags.model,
        choice: &choice,
        scaling: config.scaling(),
        ..PretrainedConfig::new(&data.classes, data.input(), config.normalization())
    };
    let mut weights = Pretrained::load(&flags.weights, &about)?;
    say(&weights.notes);
    // The images are made with the normalisation of the network's own training, so that nothing has to be changed.
    let normalization = weights.normalization;
    weights.renormalize = None;
    let network = weights.network(&device)?;
    let (images, classes) = (if on_train { &data.train } else { &data.test }, &data.classes);
    if images.is_empty() {
        return Err(Failure::Usage(format!(
            "{}: there are no pictures to train on; leave out --on train",
            flags.data.data.display()
        )));
    }
    if let Some(path) = &flags.logits {
        let logits = logits(&*network, images, normalization, &device)?;
        let names = names_of(&**images).context("the images have no names")?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let labels = images.is_labelled().then(|| images.labels()).transpose()?;
        let classes = classes.clone();
        PictureLogits { names, classes, logits }.write(path, labels.as_deref())?;
    }
    if !images.is_labelled() {
        return without_labels(flags, images.len());
    }
    let mut evaluation = evaluate(&*network, images, classes, normalization, &device)?;
    if flags.flip {
        let flipped = evaluate_with_flip(&*network, images, classes, normalization, &device)?;
        evaluation.test_flip = Some(flipped);
    }
    if !flags.json {
        let kind = if on_train { "training" } else { "test" };
        return Ok(print(&table(&evaluation, kind))?);
    }
    let printed = Printed {
        model: match &weights.foreign {
            Some(_) => "onnx",
            None => weights.config.architecture.name(),
        },
        weights: flags.weights.display().to_string(),
        sha256: &weights.sha256,
        dataset: Dataset {
            name: &data.name,
            test: (!on_train).then_some(images.len()),
            train: on_train.then_some(images.len()),
            sha256: &data.sha256,
            skipped: data
                .skipped
                .iter()
                .map(|skipped| skipped.path.display().to_string())
                .collect(),
        },
        evaluation: &evaluation,
    };
    let json = serde_json::to_string(&printed).context("the result can't be written as JSON")?;
    Ok(print(&format!("{json}\n"))?)
}

/// What is left to say of pictures without labels: that their logits are written, if they were asked for.
fn without_labels(flags: &Eval, count: usize) -> Result<(), Failure> {
    let Some(path) = &flags.logits else {
        return Err(Failure::Usage(format!(
            "{}: the pictures have no labels, so nothing can be measured on them; --logits FILE writes the network's logits of them, and `kd predict` says what they show",
            flags.data.data.display()
        )));
    };
    say(&[format!(
        "{}: the logits of {count} pictures are written; the pictures have no labels, so nothing is measured on them",
        path.display()
    )]);
    Ok(())
}

/// The images to look at. What weights are worth is measured on the test images, even where a recipe holds training images out; where
/// there are no test images, on those that the recipe holds out.
fn load(flags: &Eval, config: &mut DataConfig, on_train: bool) -> anyhow::Result<Portions> {
    let memory = flags.data.data_memory.unwrap_or(data::DATA_MEMORY);
    let (folder, held_out) = (&flags.data.data, config.held_out.take());
    let data = data::load_untested(config, folder, memory)?;
    if on_train || !data.test.is_empty() {
        return Ok(data);
    }
    config.held_out = held_out;
    let Some(held_out) = held_out else {
        anyhow::bail!(
            "{}: there are no pictures to test on; give the recipe of a run that held some of the training pictures out (--recipe OUT/RUN/recipe.toml), look at those that it was trained on (--on train), or add a folder test, val or validation beside train (--test-shards for shards)",
            folder.display()
        );
    };
    say(&[format!(
        "{}: there are no pictures to test on; the test images are the {held_out} training pictures that the recipe holds out",
        folder.display()
    )]);
    Ok(data::load_within(config, folder, memory)?)
}

/// Brings pictures to the network's size as its training did, where nothing else is asked for: one's own pictures in any case, those of
/// another data set where its file says how.
pub(super) fn as_in_training(
    path: &Path,
    model: Option<Architecture>,
    config: &mut DataConfig,
) -> anyhow::Result<()> {
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) {
        return Ok(());
    }
    File::open(path).with_context(|| format!("{}: can't be read", path.display()))?;
    let header = peek(path)?;
    let metadata = header.metadata.as_ref();
    if !config.dataset.is_ones_own() && metadata.is_none_or(|about| about.scaled.is_none()) {
        return Ok(());
    }
    let (timm, _) = timm::beside(path, metadata)?;
    let known = model.or(timm.as_ref().and_then(|timm| timm.architecture));
    let network = header.config(known, None)?.architecture;
    let (found, note) = find(path, metadata, timm.as_ref(), network, &Stated::default())?;
    let Preprocessing { size, resize, interpolation, square_first, .. } = found;
    if square_first {
        config.size = Some(size).filter(|size| *size != images::SIDE);
        return Ok(());
    }
    say(note.as_slice());
    (config.size, config.resize, config.interpolation) = (Some(size), Some(resize), interpolation);
    Ok(())
}

/// Accuracy, balanced accuracy, macro F1 and loss on the test images in a line.
pub(super) fn one_line(evaluation: &Evaluation) -> String {
    line_of(evaluation, "test")
}

/// The same of images of this kind, "test" or "training".
fn line_of(evaluation: &Evaluation, images: &str) -> String {
    let (classes, untested) = (evaluation.classes.len(), evaluation.untested().len());
    let of = match untested {
        0 => String::new(),
        _ => format!(" (of the {} of {classes} classes with test images)", classes - untested),
    };
    let flipped = match &evaluation.test_flip {
        Some(TestFlip { accuracy, loss }) => format!(
            "; with mirror images {images} accuracy {:.2} %, {images} loss {loss:.4}",
            100.0 * accuracy
        ),
        None => String::new(),
    };
    format!(
        "{images} accuracy {:.2} %, balanced accuracy {:.2} %{of}, macro F1 {:.2} %, {images} loss {:.4}{flipped}",
        100.0 * evaluation.accuracy,
        100.0 * evaluation.balanced_accuracy,
        100.0 * evaluation.macro_f1,
        evaluation.loss
    )
}

fn table(evaluation: &Evaluation, images: &str) -> String {
    let mut text = line_of(evaluation, images) + "\n\n";
    let classes = &evaluation.classes;
    let width = classes.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    text += "class, accuracy, predictions (columns in the order of the rows)\n";
    for (index, name) in classes.iter().enumerate() {
        text += &match evaluation.per_class_accuracy[index] {
            Some(share) => format!("{name:width$} {:6.2} %", 100.0 * share),
            None => format!("{name:width$}     none"),
        };
        // A hundred columns would not fit on a screen.
        if classes.len() <= 20 {
            for count in &evaluation.confusion[index] {
                text += &format!(" {count:5}");
            }
        }
        text.push('\n');
    }
    text
}
