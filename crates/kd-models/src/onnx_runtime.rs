//! Networks in ONNX files, computed by ONNX Runtime: a library that is looked for when the first of them is opened.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{DType, Tensor};
use ort::environment::Environment;
use ort::session::Session;
use ort::value::{TensorElementType, TensorRef, ValueType};

use crate::{Classifier, Error, Mode, Output, Place, Result};

/// The variable that names ONNX Runtime's library.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// The most images that a file may take at a time where it says a number.
const MOST_AT_ONCE: usize = 4096;

/// How an ONNX file is opened.
#[derive(Clone, Debug, Default)]
pub struct OnnxFileConfig {
    /// The output that holds the logits: its name, or its number among the file's outputs, from 0. A tensor inside of the graph may be named,
    /// too. Not given: the only output of two dimensions.
    pub logits: Option<String>,
    /// Tensors that are wanted besides: outputs, or tensors inside of the graph, by name.
    pub places: Vec<String>,
    /// Threads that compute an image.
    pub threads: usize,
}

/// A network in an ONNX file. It answers and does not learn: [`Classifier::forward_t`] gives no gradients, and has no dropout.
pub struct OnnxNetwork {
    path: PathBuf,
    /// Only one call at a time may use it.
    session: Mutex<Session>,
    input: String,
    /// Whether an image is `[H, W, C]` and not `[C, H, W]`.
    channels_last: bool,
    /// The number of images of a call, where the file says one.
    batch: Option<usize>,
    /// Channels, height and width of the images that it was opened for.
    shape: [usize; 3],
    /// The logits `[C]`.
    logits: Place,
    /// The other outputs of the file, and the tensors inside of it that were asked for.
    places: Vec<Place>,
    /// The file's class for each class of the logits that are given, where these are others or in another order.
    rows: Option<Vec<u32>>,
    /// The classes' names, where the file says them as kd writes them.
    pub class_names: Option<Vec<String>>,
    /// Whether kd wrote the file: it then takes images from 0 to 1 and normalises them itself.
    pub is_of_kd: bool,
    /// Sentences about what may not be meant.
    pub notes: Vec<String>,
}

/// The values of one output for some images.
struct Values {
    /// The images' number and the shape of one's values.
    shape: Vec<usize>,
    /// The values, row-major.
    values: Vec<f32>,
}

impl OnnxNetwork {
    /// Opens a file for images of this shape, `[C, H, W]`.
    ///
    /// # Errors
    /// When ONNX Runtime is not found or older than 1.24, the file is missing or none of its, takes other images, or has no such output.
    pub fn open(path: &Path, shape: [usize; 3], config: &OnnxFileConfig) -> Result<Self> {
        let wrong = |reason: String| Error::Onnx { path: path.into(), reason };
        let bytes =
            std::fs::read(path).map_err(|error| wrong(format!("can't be read: {error}")))?;
        let environment = environment()?;
        let failed = |error: ort::Error| {
            let said = one_line(&error);
            let cure = match said.to_lowercase().contains("external") {
                true => {
                    "; write weights that lie in other files into it: onnx.save(onnx.load(FILE), FILE) in Python"
                }
                false => "",
            };
            wrong(format!("ONNX Runtime refuses it: {said}{cure}"))
        };
        let session = |bytes: &[u8]| -> std::result::Result<Session, ort::Error> {
            let builder = Session::builder(environment)?;
            // From memory: of weights in files beside it, which the file's hash does not cover, ONNX Runtime finds none.
            builder.with_intra_threads(config.threads.max(1))?.commit_from_memory(bytes)
        };
        let mut opened = session(&bytes).map_err(failed)?;
        let own: Vec<String> = opened.outputs().iter().map(|output| output.name().into()).collect();
        let named = match config.logits.as_deref() {
            None => None,
            Some(text) => Some(match text.parse::<usize>() {
                Ok(number) if !own.iter().any(|name| name == text) => {
                    own.get(number).cloned().ok_or_else(|| {
                        wrong(format!("there is no output {number}: {}", listed(&own)))
                    })?
                }
                _ => text.to_owned(),
            }),
        };
        let mut inside: Vec<&String> =
            named.iter().chain(&config.places).filter(|name| !own.contains(name)).collect();
        inside.sort();
        inside.dedup();
        if !inside.is_empty() {
            let mut with = bytes.clone();
            inside.iter().for_each(|name| add_output(&mut with, name));
            opened = session(&with).map_err(|error| {
                let names: Vec<&str> = inside.iter().map(|name| name.as_str()).collect();
                wrong(format!(
                    "it has no tensor {}, or its values can't be had: {} ({})",
                    names.join(" or "),
                    listed(&own),
                    one_line(&error)
                ))
            })?;
        }
        let (input, channels_last, batch) = image_input(&opened, shape).map_err(wrong)?;
        let (is_of_kd, class_names) = described(&opened);
        let mut network = Self {
            path: path.into(),
            session: Mutex::new(opened),
            input,
            channels_last,
            batch,
            shape,
            logits: Place { name: String::new(), shape: Vec::new() },
            places: Vec::new(),
            rows: None,
            class_names,
            is_of_kd,
            notes: Vec::new(),
        };
        network.look_at_outputs(named)?;
        Ok(network)
    }

    /// Gives the logits of these of the file's classes, in this order.
    pub fn select_classes(&mut self, rows: &[usize]) {
        self.rows = Some(rows.iter().map(|&row| row as u32).collect());
    }

    /// Computes one image to see which outputs there are, of which shapes, and finds the logits among them.
    fn look_at_outputs(&mut self, named: Option<String>) -> Result<()> {
        let wrong = |reason: String| Error::Onnx { path: self.path.clone(), reason };
        let names: Vec<String> = {
            let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            // Labels, scores as maps and the like are of no use to a student.
            let is_f32 = |kind: &ValueType| {
                matches!(kind, ValueType::Tensor { ty: TensorElementType::Float32, .. })
            };
            let outputs = session.outputs().iter().filter(|output| is_f32(output.dtype()));
            outputs.map(|output| output.name().to_owned()).collect()
        };
        // Grey, so that probabilities show themselves.
        let image = vec![0.0; self.shape.iter().product()];
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let values = self.answer(&image, &wanted)?;
        let all: Vec<Place> = names
            .iter()
            .zip(&values)
            .map(|(name, values)| Place { name: name.clone(), shape: values.shape[1..].to_vec() })
            .collect();
        let described: Vec<String> = all.iter().map(describe).collect();
        let described = described.join(", ");
        let flat: Vec<&Place> = all.iter().filter(|output| output.shape.len() == 1).collect();
        let logits = match (&named, &flat[..]) {
            (Some(name), _) => all.iter().find(|output| output.name == *name),
            (None, [one]) => Some(*one),
            (None, _) => {
                return Err(wrong(format!(
                    "its outputs are {described}; expected one of the shape [images, classes]: say which holds the logits with --teacher-output NAME (teacher_output in a recipe)"
                )));
            }
        };
        let logits =
            logits.cloned().ok_or_else(|| wrong(format!("its outputs are {described}")))?;
        if logits.shape.len() != 1 || logits.shape[0] < 2 {
            return Err(wrong(format!(
                "its output {} is no row of logits; expected [images, classes] with 2 classes or more: say which output holds the logits with --teacher-output NAME (teacher_output in a recipe)",
                describe(&logits)
            )));
        }
        let row = names.iter().position(|name| *name == logits.name).map(|at| &values[at].values);
        if row.is_some_and(|row| are_probabilities(row)) {
            self.notes.push(format!(
                "{}: the output {} seems to hold probabilities and not logits: name the tensor before the softmax with --teacher-output (teacher_output in a recipe)",
                self.path.display(),
                logits.name
            ));
        }
        self.places = all.into_iter().filter(|output| output.name != logits.name).collect();
        self.logits = logits;
        Ok(())
    }

    /// The values of these outputs for images `[B, C, H, W]`, whose values are given row-major.
    fn answer(&self, images: &[f32], wanted: &[&str]) -> Result<Vec<Values>> {
        let wrong = |reason: String| Error::Onnx { path: self.path.clone(), reason };
        let size: usize = self.shape.iter().product();
        if images.is_empty() || !images.len().is_multiple_of(size) {
            return Err(wrong(format!(
                "{} values are no images of the shape {:?}",
                images.len(),
                self.shape
            )));
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Values> = Vec::new();
        let at_once = self.batch.unwrap_or(images.len() / size);
        for images in images.chunks(at_once * size) {
            let count = images.len() / size;
            let mut batch = self.ordered(images);
            batch.resize(at_once * size, 0.0);
            let [channels, height, width] = self.shape;
            let shape = match self.channels_last {
                true => [at_once, height, width, channels],
                false => [at_once, channels, height, width],
            };
            let failed =
                |error: ort::Error| wrong(format!("ONNX Runtime fails: {}", one_line(&error)));
            let input = TensorRef::from_array_view((shape, &batch[..])).map_err(failed)?;
            let outputs =
                session.run(ort::inputs![self.input.as_str() => input]).map_err(failed)?;
            for (place, name) in wanted.iter().enumerate() {
                let output =
                    outputs.get(*name).ok_or_else(|| wrong(format!("it has no output {name}")))?;
                let (shape, values) = output.try_extract_tensor::<f32>().map_err(failed)?;
                let mut shape: Vec<usize> = shape.iter().map(|size| *size as usize).collect();
                if shape.first() != Some(&at_once) {
                    return Err(wrong(format!(
                        "its output {name} has the shape {shape:?} for {at_once} images; expected the images first"
                    )));
                }
                let row = values.len() / at_once;
                shape[0] = count;
                let values = &values[..count * row];
                match all.get_mut(place) {
                    None => all.push(Values { shape, values: values.to_vec() }),
                    Some(so_far) => {
                        so_far.shape[0] += count;
                        so_far.values.extend_from_slice(values);
                    }
                }
            }
        }
        Ok(all)
    }

    /// Images `[C, H, W]` in the order of the network's.
    fn ordered(&self, images: &[f32]) -> Vec<f32> {
        if !self.channels_last {
            return images.to_vec();
        }
        let [channels, height, width] = self.shape;
        let size = height * width;
        let mut ordered = Vec::with_capacity(images.len());
        for image in images.chunks(channels * size) {
            for at in 0..size {
                ordered.extend((0..channels).map(|channel| image[channel * size + at]));
            }
        }
        ordered
    }
}

impl Classifier for OnnxNetwork {
    fn forward_t(&self, images: &Tensor, _: Mode, places: &[&str]) -> Result<Output> {
        let [channels, height, width] = self.shape;
        if images.dims().get(1..) != Some(&[channels, height, width][..]) {
            return Err(Error::Images {
                network: self.path.display().to_string().into(),
                expected: self.shape,
                found: images.dims().to_vec(),
            });
        }
        let device = images.device();
        let values = images.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut wanted = vec![self.logits.name.as_str()];
        wanted.extend(places);
        let tensor = |values: Values| Tensor::from_vec(values.values, values.shape, device);
        let mut answers = self.answer(&values, &wanted)?.into_iter();
        let mut logits = match answers.next() {
            Some(logits) => tensor(logits)?,
            None => Tensor::zeros((0, self.num_classes()), DType::F32, device)?,
        };
        if let Some(rows) = &self.rows {
            logits = logits.index_select(&Tensor::new(&rows[..], device)?, 1)?;
        }
        let features = places.iter().zip(answers);
        let features = features.map(|(name, values)| Ok((name.to_string(), tensor(values)?)));
        Ok(Output { logits, features: features.collect::<Result<_>>()? })
    }

    fn places(&self) -> Vec<Place> {
        self.places.clone()
    }

    fn num_classes(&self) -> usize {
        self.rows.as_ref().map_or(self.logits.shape[0], Vec::len)
    }

    /// 0: they are not known.
    fn multiply_adds(&self) -> u64 {
        0
    }
}

/// An output and its shape, for messages.
fn describe(output: &Place) -> String {
    let sizes: Vec<String> = output.shape.iter().map(usize::to_string).collect();
    format!("{} [images, {}]", output.name, sizes.join(", "))
}

/// Whether kd wrote the file, and the names of its classes, if it says them as kd does.
fn described(session: &Session) -> (bool, Option<Vec<String>>) {
    let Ok(about) = session.metadata() else { return (false, None) };
    let names = about.custom("classes").and_then(|text| serde_json::from_str(&text).ok());
    (about.producer().as_deref() == Some("kd"), names)
}

/// The input that takes images of this shape: its name, whether the channels come last, and how many images it takes at a time.
fn image_input(
    session: &Session,
    [channels, height, width]: [usize; 3],
) -> std::result::Result<(String, bool, Option<usize>), String> {
    let [input] = session.inputs() else {
        let names: Vec<&str> = session.inputs().iter().map(|input| input.name()).collect();
        return Err(format!(
            "it has the inputs {}; expected one, which takes images",
            names.join(", ")
        ));
    };
    let name = input.name().to_owned();
    let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
        return Err(format!("its input {name} is no tensor; expected images [B, 3, H, W]"));
    };
    if *ty != TensorElementType::Float32 {
        return Err(format!(
            "its input {name} is of {ty}; expected f32: export it so that it takes f32"
        ));
    }
    let sizes: Vec<i64> = shape.iter().copied().collect();
    let [batch, sizes @ ..] = &sizes[..] else {
        return Err(format!("its input {name} is a single number; expected images [B, 3, H, W]"));
    };
    let fits = |wanted: [usize; 3]| {
        sizes.len() == 3
            && sizes.iter().zip(wanted).all(|(size, wanted)| *size < 0 || *size == wanted as i64)
    };
    let (first, last) = (fits([channels, height, width]), fits([height, width, channels]));
    let channels_last = match (first, last) {
        (true, true) => sizes[2] == channels as i64 && sizes[0] < 0,
        (first, last) if first || last => last,
        _ => {
            let shown: Vec<String> = sizes
                .iter()
                .map(|size| if *size < 0 { "any".into() } else { size.to_string() })
                .collect();
            return Err(format!(
                "its input {name} takes images [{}]; the data's are [{channels}, {height}, {width}]: give the data this size (--size, size in a recipe's [data]), or export the network for images of any size",
                shown.join(", ")
            ));
        }
    };
    let batch = usize::try_from(*batch).ok().filter(|batch| *batch > 0);
    if let Some(batch) = batch.filter(|batch| *batch > MOST_AT_ONCE) {
        return Err(format!(
            "its input {name} takes {batch} images at a time; expected at most {MOST_AT_ONCE}, or any number"
        ));
    }
    Ok((name, channels_last, batch))
}

/// Whether a row of values is a probability for each class.
fn are_probabilities(row: &[f32]) -> bool {
    let sum: f32 = row.iter().sum();
    row.iter().all(|value| (0.0..=1.0).contains(value)) && (sum - 1.0).abs() < 1e-3
}

fn listed(outputs: &[String]) -> String {
    format!("its outputs are {}", outputs.join(", "))
}

/// What ONNX Runtime says, on one line.
fn one_line(error: &ort::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Adds a tensor inside of the graph to the outputs of a model's bytes. In protobuf's encoding a message behind another is merged into it:
/// what is added is a `ModelProto` whose `graph` (field 7) has one `output` (field 12) more, of which the `name` (field 1) is said.
fn add_output(model: &mut Vec<u8>, name: &str) {
    let field = |number: u8, contents: &[u8]| {
        let mut bytes = vec![number << 3 | 2];
        let mut length = contents.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend_from_slice(contents);
        bytes
    };
    model.extend(field(7, &field(12, &field(1, name.as_bytes()))));
}

/// ONNX Runtime, loaded when it is first asked for: from where [`LIBRARY_VARIABLE`] says, or else where the system finds libraries.
fn environment() -> Result<&'static Environment> {
    static LOADED: OnceLock<std::result::Result<Environment, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let named = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty());
        let prefix = std::env::consts::DLL_PREFIX;
        let system = format!("{prefix}onnxruntime{}", std::env::consts::DLL_SUFFIX);
        // A path is meant from the working folder, wherever the program lies; the name alone from where the system looks.
        let path = match named.map(PathBuf::from) {
            Some(path) => path.canonicalize().unwrap_or(path),
            None => PathBuf::from(system),
        };
        let builder = ort::init_from(&path).map_err(|error| error.to_string())?;
        builder.with_name("kd").with_telemetry(false).build().map_err(|error| one_line(&error))
    });
    loaded.as_ref().map_err(|reason| Error::OnnxRuntime { reason: reason.clone() })
}
