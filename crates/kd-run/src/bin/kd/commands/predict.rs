//! `kd predict`: what pictures show.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use candle_core::Device;
use clap::Args;
use kd_data::{Picture, Scaling, Source, Split, images};
use kd_models::classes::{ClassChoice, differing, match_classes, select_rows};
use kd_models::preprocessing::{Preprocessing, Stated};
use kd_models::{Architecture, ModelConfig};
use kd_record::hash::sha256;
use kd_report::softmax::softmax;
use kd_report::text::plain;
use kd_run::evaluate::{answers, logits};
use kd_run::teacher::Network;
use rayon::prelude::*;
use serde::Serialize;

use super::print;
use super::weights::{self, Weights};
use crate::args::{ComputeFlags, PictureFlags, architecture};
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd predict --weights runs/mine/kd.safetensors cat.jpg dog.png
  kd predict --weights runs/mine/kd.safetensors --teacher runs/mine/teacher.safetensors pictures/
  kd predict --weights runs/mine/kd.safetensors --json pictures/ | jq -r '.images[] | [.path, .class] | @tsv'
  kd predict --model efficientnet_lite0 --weights efficientnet-lite0-57934424.pth --json pictures/

A picture is turned upright as its EXIF data says. For a network that kd trained it is scaled and cut as in training: where a
size was set, the shorter side is scaled and the middle cut out, else the largest square is scaled. For others size, interpolation and normalisation are what the flags say, then a config.json beside
the weights in timm's form, then what the network's authors did; they are said on standard error. Grey pictures become
colour, 16 bits become 8, and transparent parts become white. Where no names of the classes are known, a class is its
number. The confidence is the softmax, which is not calibrated. A file that can't be read is named on standard error; the
others are classified, and the exit code is 3.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Predict {
    /// PNG, JPEG, WebP, BMP or GIF files, or folders that hold some
    #[arg(required = true, value_name = "PICTURE")]
    images: Vec<PathBuf>,
    /// The weights file
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The network, if the weights file doesn't name it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    model: Option<Architecture>,
    /// The weights file of a teacher, whose prediction is shown beside the network's
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// The teacher's network, if its weights file doesn't name it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    teacher_model: Option<Architecture>,
    /// Print JSON, with the probabilities of all classes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pictures: PictureFlags,
    #[command(flatten)]
    compute: ComputeFlags,
}

/// Pixels of the pictures that are read and classified together; each takes 3 bytes.
const CHUNK: usize = 1024 * images::SIDE * images::SIDE;

/// The JSON that `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    /// The classes' names by label.
    classes: &'a [String],
    model: Model,
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<Model>,
    images: Vec<Image>,
    /// The files that could not be read.
    errors: Vec<Unread>,
}

#[derive(Serialize)]
struct Model {
    model: &'static str,
    weights: String,
    sha256: String,
}

#[derive(Serialize)]
struct Image {
    path: String,
    #[serde(flatten)]
    prediction: Prediction,
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<Prediction>,
}

#[derive(Serialize)]
struct Prediction {
    class: String,
    label: usize,
    /// The softmax probability of this class.
    confidence: f64,
    /// The softmax probabilities, by label.
    probabilities: Vec<f64>,
}

#[derive(Serialize)]
struct Unread {
    path: String,
    error: String,
}

/// A network with its weights, ready to classify.
struct Ready {
    network: Network,
    about: Weights,
}

pub(crate) fn run(flags: &Predict) -> Result<(), Failure> {
    let device = flags.compute.device()?;
    let about = weights::load(&flags.weights, flags.model, None, &flags.pictures.stated())?;
    let mut teacher = None;
    if let Some(path) = &flags.teacher {
        let mut its = weights::load(path, flags.teacher_model, None, &Stated::default())?;
        in_the_order_of(&about, &mut its, flags, path)?;
        teacher = Some(its);
    }
    std::iter::once(&about).chain(&teacher).try_for_each(check_square)?;
    let side = std::iter::once(&about).chain(&teacher).map(|about| about.config.input[1]).max();
    let side = side.unwrap_or(1);
    let classes = class_names(&about, teacher.as_ref());
    let model = Ready::new(about, &device)?;
    let teacher = teacher.map(|teacher| Ready::new(teacher, &device)).transpose()?;

    let mut errors = Vec::new();
    let paths = pictures(&flags.images, &mut errors);
    let shown = |path: &PathBuf| path.display().to_string();
    let width = paths.iter().map(|path| shown(path).chars().count()).max().unwrap_or(0);
    let longest = classes.iter().map(|class| class.chars().count()).max().unwrap_or(0);
    let name = |about: &ModelConfig| about.architecture.name();
    if let (Some(teacher), false, false) = (&teacher, flags.json, paths.is_empty()) {
        let (ours, theirs) = (name(&model.about.config), name(&teacher.about.config));
        // A column is a class, a space and "100.0 %".
        let theirs = if ours == theirs { "as teacher" } else { theirs };
        print(&format!("{:width$}  {ours:column$}  {theirs}\n", "", column = longest + 8))?;
    }

    let mut all = Vec::new();
    for chunk in paths.chunks((CHUNK / (side * side)).max(1)) {
        let read = |path: &PathBuf| {
            let theirs = teacher.as_ref().map(|teacher| teacher.about.preprocessing);
            let ours = read(path, &model.about.preprocessing)?;
            let same =
                theirs.is_none_or(|theirs| same_picture(&theirs, &model.about.preprocessing));
            let theirs = theirs.filter(|_| !same).map(|theirs| read(path, &theirs));
            Ok::<_, kd_data::Error>((ours, theirs.transpose()?))
        };
        let read: Vec<_> = chunk.par_iter().map(read).collect();
        let (mut own, mut other) = (Split::default(), Split::default());
        let mut classified = Vec::new();
        for (path, read) in chunk.iter().zip(read) {
            match read {
                Ok((ours, theirs)) => {
                    add(&mut own, ours);
                    theirs.into_iter().for_each(|theirs| add(&mut other, theirs));
                    classified.push(path);
                }
                Err(error) => errors.push(Unread::reported(path, error.to_string())),
            }
        }
        if classified.is_empty() {
            continue;
        }
        let own: Arc<dyn Source> = Arc::new(own);
        let other = if other.is_empty() { Arc::clone(&own) } else { Arc::new(other) };
        let ours = model.predict(&own, &classes, &device)?;
        let theirs = match &teacher {
            Some(teacher) => {
                teacher.predict(&other, &classes, &device)?.into_iter().map(Some).collect()
            }
            None => ours.iter().map(|_| None).collect::<Vec<_>>(),
        };
        for ((path, prediction), teacher) in classified.into_iter().zip(ours).zip(theirs) {
            let image = Image { path: shown(path), prediction, teacher };
            match flags.json {
                true => all.push(image),
                false => print(&image.line(width, longest))?,
            }
        }
    }

    let unread = errors.len();
    if flags.json {
        let teacher_file = flags.teacher.as_deref();
        let described = teacher.as_ref().zip(teacher_file);
        let printed = Printed {
            classes: &classes,
            model: Model::of(&model, &flags.weights)?,
            teacher: described.map(|(teacher, path)| Model::of(teacher, path)).transpose()?,
            images: all,
            errors,
        };
        let json =
            serde_json::to_string(&printed).context("the predictions can't be written as JSON")?;
        print(&format!("{json}\n"))?;
    }
    match unread {
        0 => Ok(()),
        _ => Err(Failure::Partly(format!("{unread} of the pictures could not be read"))),
    }
}

/// Refuses a network of other images than square colour pictures.
pub(super) fn check_square(Weights { config, .. }: &Weights) -> Result<(), Failure> {
    let [channels, height, width] = config.input;
    match channels == 3 && height == width {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "the {} takes images of {channels}x{height}x{width}; kd predict makes square colour pictures: give a network of such",
            config.architecture
        ))),
    }
}

/// Whether a picture has the same pixels for both.
fn same_picture(a: &Preprocessing, b: &Preprocessing) -> bool {
    let of = |a: &Preprocessing| (a.size, a.resize, a.interpolation, a.square_first);
    of(a) == of(b)
}

/// Reads a picture as a network is given it, but for the normalisation: to the byte what its training made of it.
pub(super) fn read(path: &Path, as_given: &Preprocessing) -> kd_data::Result<Picture> {
    let Preprocessing { size, resize, interpolation, square_first, .. } = *as_given;
    match square_first {
        true => images::read(path, size),
        false => images::read_scaled(path, &Scaling { resize, size, interpolation }),
    }
}

/// Adds a picture, whose label nobody looks at.
pub(super) fn add(split: &mut Split, picture: Picture) {
    split.shape = picture.shape;
    split.images.extend(picture.pixels);
    split.labels.push(0);
}

/// Brings the teacher's logits into the order of the network's classes where both files name them.
fn in_the_order_of(
    model: &Weights,
    teacher: &mut Weights,
    flags: &Predict,
    file: &Path,
) -> Result<(), Failure> {
    let different = |how: String| {
        Failure::Usage(format!(
            "{} and {} classify different classes: {how}; give two networks of the same data",
            flags.weights.display(),
            file.display()
        ))
    };
    let (ours, theirs) = (model.config.classes, teacher.config.classes);
    if ours != theirs {
        return Err(different(format!("{ours} and {theirs}")));
    }
    let (Some(ours), Some(theirs)) = (&model.class_names, &teacher.class_names) else {
        let (ours, theirs) = (flags.weights.display(), file.display());
        let who = match (&model.class_names, &teacher.class_names) {
            (None, None) => format!("{ours} and {theirs} do not name their classes"),
            (None, _) => format!("{ours} does not name its classes"),
            (_, _) => format!("{theirs} does not name its classes"),
        };
        weights::say(&[format!(
            "{who}; both files' classes are taken to be the same, in the same order"
        )]);
        return Ok(());
    };
    let matched = match_classes(file, Some(theirs), theirs.len(), ours, &ClassChoice::default())
        .map_err(|_| {
            let (ours, theirs) = differing(ours, theirs);
            different(format!("{ours}, and {theirs}"))
        })?;
    if let Some(rows) = &matched.rows {
        select_rows(&teacher.config, &mut teacher.tensors, rows).map_err(anyhow::Error::from)?;
    }
    if let Some(note) = matched.note {
        weights::say(&[note]);
    }
    Ok(())
}

/// The classes' names, from whichever file has them; if neither has, the labels as numbers.
fn class_names(model: &Weights, teacher: Option<&Weights>) -> Vec<String> {
    let theirs = teacher.and_then(|teacher| teacher.class_names.as_ref());
    let numbers = || (0..model.config.classes).map(|label| label.to_string()).collect();
    model.class_names.as_ref().or(theirs).cloned().unwrap_or_else(numbers)
}

/// The files to classify: those that are named, whatever their extensions, and the pictures in and below folders.
fn pictures(named: &[PathBuf], errors: &mut Vec<Unread>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for path in named {
        if !path.is_dir() {
            paths.push(path.clone());
            continue;
        }
        match images::files(path) {
            Ok(found) if found.is_empty() => {
                let error = format!(
                    "{}: the folder holds no PNG, JPEG, WebP, BMP or GIF file",
                    path.display()
                );
                errors.push(Unread::reported(path, error));
            }
            Ok(found) => paths.extend(found),
            Err(error) => errors.push(Unread::reported(path, error.to_string())),
        }
    }
    paths
}

impl Unread {
    /// Also prints the error at once, so that it stands beside the predictions before it.
    fn reported(path: &Path, error: String) -> Self {
        // If standard error can't be written either, the exit code still says it.
        let _ = writeln!(std::io::stderr(), "error: {error}");
        Self { path: path.display().to_string(), error }
    }
}

impl Ready {
    fn new(about: Weights, device: &Device) -> anyhow::Result<Self> {
        let tensors = about
            .tensors
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.to_device(device)?)));
        let tensors = tensors.collect::<candle_core::Result<_>>()?;
        let network = kd_models::build(&about.config, kd_models::frozen(&tensors))?;
        Ok(Self { network, about })
    }

    fn predict(
        &self,
        split: &Arc<dyn Source>,
        classes: &[String],
        device: &Device,
    ) -> anyhow::Result<Vec<Prediction>> {
        let logits = logits(&*self.network, split, self.about.normalization(), device)?;
        let rows = logits.to_vec2::<f32>()?;
        let prediction = |(row, label): (Vec<f32>, usize)| {
            let probabilities = softmax(&row, 1.0);
            let (class, confidence) = (classes[label].clone(), probabilities[label]);
            Prediction { class, label, confidence, probabilities }
        };
        Ok(rows.into_iter().zip(answers(&logits)?).map(prediction).collect())
    }
}

impl Model {
    fn of(ready: &Ready, path: &Path) -> anyhow::Result<Self> {
        let model = ready.about.config.architecture.name();
        Ok(Self { model, weights: path.display().to_string(), sha256: sha256(path)? })
    }
}

impl Image {
    /// One line: the path, then class and confidence of each network.
    fn line(&self, width: usize, longest: usize) -> String {
        let column = |prediction: &Prediction| {
            format!("{:longest$} {:5.1} %", plain(&prediction.class), 100.0 * prediction.confidence)
        };
        let teacher = self.teacher.as_ref().map(|teacher| "  ".to_owned() + &column(teacher));
        format!(
            "{:width$}  {}{}\n",
            plain(&self.path),
            column(&self.prediction),
            teacher.unwrap_or_default()
        )
    }
}
