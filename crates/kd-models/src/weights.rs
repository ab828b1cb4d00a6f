//! Weights on disk: safetensors files under the reference's names, which PyTorch loads with
//! `load_state_dict(safetensors.torch.load_file(path))`.
//!
//! Running statistics are among them. PyTorch also counts batches (`num_batches_tracked`, an integer that only
//! an average with `momentum=None` uses): it is passed over when a file has it and never written. PyTorch
//! puts in what it has itself, `strict=True` or not.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorInfo, TensorView};
use serde::{Deserialize, Serialize};

use crate::{Architecture, Error, ModelConfig, Result, buffer_shapes, parameter_shapes};

/// The version of [`Metadata`] that this crate writes and reads.
const FORMAT: u32 = 1;
/// The only metadata entry: with two, safetensors' hash map would make the order, and so the
/// bytes, change from run to run.
const KEY: &str = "kd";
/// No network here needs a header near this size; a larger one is not read at all.
const MAX_HEADER: u64 = 1 << 20;

/// What a weights file says of its network, beyond the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The version of this description: 1.
    pub format: u32,
    /// The network.
    pub architecture: Architecture,
    /// The number of classes.
    pub classes: usize,
    /// The classes' names in the order of the logits, if they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
    /// What was subtracted from each colour of the images, on a scale from 0 to 1.
    pub mean: [f32; 3],
    /// What each colour was then divided by.
    pub std: [f32; 3],
    /// The data that the network was trained on.
    pub dataset: String,
    /// What of it the network has not seen, for cross-fitted targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
}

/// A part of the training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Which, from 1.
    pub part: usize,
    /// Of how many.
    pub of: usize,
    /// Images in all parts together.
    pub images: usize,
}

impl Metadata {
    /// A description in the current format.
    pub fn new(config: &ModelConfig, mean: [f32; 3], std: [f32; 3], dataset: &str) -> Self {
        Self {
            format: FORMAT,
            architecture: config.architecture,
            classes: config.classes,
            class_names: None,
            mean,
            std,
            dataset: dataset.to_string(),
            left_out: None,
        }
    }

    /// Checks that images normalised with `mean` and `std` are what the network was trained on;
    /// `path` is the weights file, for the message.
    ///
    /// # Errors
    /// When they are not.
    pub fn check_normalization(&self, path: &Path, mean: [f32; 3], std: [f32; 3]) -> Result<()> {
        if self.mean == mean && self.std == std {
            return Ok(());
        }
        let (found_mean, found_std) = (self.mean, self.std);
        Err(Error::Normalization { path: path.into(), found_mean, found_std, mean, std })
    }
}

/// Saves f32 weights. The same weights and metadata give the same bytes. The file is written
/// under another name in the same folder, flushed to disk and renamed: nobody ever sees half of it.
///
/// # Errors
/// When a weight is not f32 or not finite, or the file can't be written.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &Metadata) -> Result<()> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if tensor.dtype() != DType::F32 {
            let found = format!("{:?}", tensor.dtype());
            return Err(Error::TensorDtype { path: path.into(), name: name.clone(), found });
        }
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        check_finite(path, name, &values)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        data.push((name, tensor.dims().to_vec(), bytes));
    }
    let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
    let mut views = Vec::with_capacity(data.len());
    for (name, shape, bytes) in &data {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        views.push((name.as_str(), view.map_err(|error| malformed(error.to_string()))?));
    }
    let metadata = serde_json::to_string(metadata).map_err(|error| malformed(error.to_string()))?;
    let metadata = HashMap::from([(KEY.to_string(), metadata)]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|error| malformed(error.to_string()))?;
    write_whole(path, &bytes)
}

/// Writes aside, flushes, renames.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}.partial", std::process::id()));
    let aside = PathBuf::from(aside);
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_folder(path)
    };
    write().map_err(|source| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&aside);
        Error::Io { path: path.into(), source }
    })
}

/// Makes the new name last; folders can be opened, and so flushed, on Unix only.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder)?.sync_all()
        }
        _ => Ok(()),
    }
}

/// Loads the weights of the network that `config` describes, onto the CPU, with the file's own
/// description if it has one (PyTorch's files have none).
///
/// The file must hold exactly the network's tensors. It is checked before its data is read, so
/// a bad file never makes this allocate more than the network needs.
///
/// # Errors
/// When the file can't be read, is cut off or no safetensors file; when it is another network's or
/// for another number of classes; when a tensor is missing, extra, not f32, of another shape (both
/// shapes are given) or not finite.
pub fn load(
    path: &Path,
    config: &ModelConfig,
) -> Result<(BTreeMap<String, Tensor>, Option<Metadata>)> {
    let io = |source| Error::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    if !about.is_file() {
        let reason = "it is not a regular file".into();
        return Err(Error::Malformed { path: path.into(), reason });
    }
    read(path, &mut file, about.len(), config)
}

/// [`load`] of a file's contents that are in memory; `path` stands for the file in errors.
///
/// # Errors
/// As for [`load`].
pub fn parse(
    mut contents: &[u8],
    path: &Path,
    config: &ModelConfig,
) -> Result<(BTreeMap<String, Tensor>, Option<Metadata>)> {
    let len = contents.len() as u64;
    read(path, &mut contents, len, config)
}

fn read(
    path: &Path,
    file: &mut impl Read,
    file_len: u64,
    config: &ModelConfig,
) -> Result<(BTreeMap<String, Tensor>, Option<Metadata>)> {
    config.validate()?;
    let io = |source| Error::Io { path: path.into(), source };
    let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
    let (header, data_start) = read_header(path, file, file_len)?;
    let in_header = header.data_len() as u64;
    let in_file = file_len - data_start;
    if in_header != in_file {
        return Err(malformed(format!(
            "its header announces {in_header} bytes of data from offset {data_start}, the file has {in_file}"
        )));
    }

    let metadata = metadata(path, header.metadata())?;
    if let Some(metadata) = &metadata {
        let (found, expected) = (metadata.architecture.name(), config.architecture.name());
        if found != expected {
            return Err(Error::WrongArchitecture { path: path.into(), found, expected });
        }
    }
    check_tensors(path, config, metadata.as_ref(), &header.tensors())?;
    let mut known = parameter_shapes(config);
    known.extend(buffer_shapes(config));

    // The file's order, so that it is read once from start to end.
    let mut tensors = BTreeMap::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        if known.iter().all(|(known, _)| *known != name) {
            // Counted batches, wherever the file has them.
            let len = (info.data_offsets.1 - info.data_offsets.0) as u64;
            std::io::copy(&mut file.by_ref().take(len), &mut std::io::sink()).map_err(io)?;
            continue;
        }
        // Its type and shape are the network's by now, so its size is known to be sane.
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        file.read_exact(&mut bytes).map_err(io)?;
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        check_finite(path, &name, &values)?;
        if name.ends_with(".running_var") {
            check_variance(path, &name, &values)?;
        }
        let tensor = Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)?;
        tensors.insert(name, tensor);
    }
    Ok((tensors, metadata))
}

/// Weights that another training starts from.
#[derive(Clone, Debug)]
pub struct Start {
    /// The network's tensors by name, without those of the last layer where it has to be new.
    pub tensors: BTreeMap<String, Tensor>,
    /// The file's own description, if it has one.
    pub metadata: Option<Metadata>,
    /// Where the file tells another number of classes apart: that number. The last layer is then new.
    pub other_classes: Option<usize>,
}

/// Loads weights to start from: as [`load`], but the last layer may be for another number of classes
/// and is then left out.
///
/// # Errors
/// As [`load`], except for another number of classes.
pub fn load_start(path: &Path, config: &ModelConfig) -> Result<Start> {
    match load(path, config) {
        Ok((tensors, metadata)) => Ok(Start { tensors, metadata, other_classes: None }),
        Err(Error::ClassCount { found, .. }) => {
            let other = ModelConfig { classes: found, ..*config };
            let (mut tensors, metadata) = load(path, &other)?;
            for (name, _) in head(&other) {
                tensors.remove(&name);
            }
            Ok(Start { tensors, metadata, other_classes: Some(found) })
        }
        Err(error) => Err(error),
    }
}

/// Weight and bias of the layer that gives the logits.
fn head(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut shapes = parameter_shapes(config);
    shapes.split_off(shapes.len() - 2)
}

/// Reads the header; gives it and the offset at which the data starts.
fn read_header(
    path: &Path,
    file: &mut impl Read,
    file_len: u64,
) -> Result<(safetensors::tensor::Metadata, u64)> {
    let io = |source| Error::Io { path: path.into(), source };
    let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
    if file_len < 8 {
        return Err(malformed(format!(
            "it has {file_len} bytes, fewer than the 8 of its header's length"
        )));
    }
    let mut header_len = [0; 8];
    file.read_exact(&mut header_len).map_err(io)?;
    let header_len = u64::from_le_bytes(header_len);
    if header_len > file_len - 8 {
        return Err(malformed(format!(
            "it announces a header of {header_len} bytes, but has {file_len} bytes in all"
        )));
    }
    if header_len > MAX_HEADER {
        return Err(malformed(format!(
            "it announces a header of {header_len} bytes; no more than {MAX_HEADER} are expected"
        )));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header = serde_json::from_slice(&header)
        .map_err(|error| malformed(format!("its header can't be read: {error}")))?;
    Ok((header, 8 + header_len))
}

/// This crate's entry in the file's metadata.
fn metadata(path: &Path, entries: &Option<HashMap<String, String>>) -> Result<Option<Metadata>> {
    /// Read first: a later format may differ in every other field.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Some(json) = entries.as_ref().and_then(|entries| entries.get(KEY)) else {
        return Ok(None);
    };
    let bad = |reason: String| Error::Metadata { path: path.into(), reason };
    let version: Version = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    if version.format != FORMAT {
        return Err(bad(format!(
            "format is {}; this version reads format {FORMAT}: use the version of kd that wrote the file, or train anew",
            version.format
        )));
    }
    let metadata: Metadata = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    if let Some(names) = &metadata.class_names
        && names.len() != metadata.classes
    {
        return Err(bad(format!("{} class names for {} classes", names.len(), metadata.classes)));
    }
    Ok(Some(metadata))
}

/// Compares the file's tensors with the network's.
fn check_tensors(
    path: &Path,
    config: &ModelConfig,
    metadata: Option<&Metadata>,
    found: &HashMap<String, &TensorInfo>,
) -> Result<()> {
    let architecture = config.architecture.name();
    let mut expected = parameter_shapes(config);
    expected.extend(buffer_shapes(config));
    let is_known = |name: &str| expected.iter().any(|(known, _)| known == name);
    let counts_batches = |name: &str| {
        let norm = name.strip_suffix(".num_batches_tracked");
        norm.is_some_and(|norm| is_known(&format!("{norm}.running_mean")))
    };
    // Sorted, so that the same file always gives the same message.
    let extra = found.keys().filter(|name| !is_known(name) && !counts_batches(name)).min();
    if let Some(name) = extra {
        let found = found[name].shape.clone();
        return Err(Error::ExtraTensor {
            path: path.into(),
            architecture,
            name: name.clone(),
            found,
        });
    }
    for (name, shape) in &expected {
        if !found.contains_key(name) {
            return Err(Error::MissingTensor {
                path: path.into(),
                architecture,
                name: name.clone(),
                expected: shape.clone(),
            });
        }
    }
    // Another number of classes shows as another shape of the last layer; say what it means.
    let classes = metadata.map(|metadata| metadata.classes).or_else(|| {
        let (name, shape) = &head(config)[0];
        let found = &found[name].shape;
        (found.len() == shape.len() && found[1..] == shape[1..]).then(|| found[0])
    });
    if let Some(classes) = classes
        && classes != config.classes
    {
        return Err(Error::ClassCount {
            path: path.into(),
            found: classes,
            expected: config.classes,
        });
    }
    for (name, shape) in &expected {
        let info = found[name];
        if &info.shape != shape {
            return Err(Error::TensorShape {
                path: path.into(),
                architecture,
                name: name.clone(),
                found: info.shape.clone(),
                expected: shape.clone(),
            });
        }
        if info.dtype != Dtype::F32 {
            let found = info.dtype.to_string();
            return Err(Error::TensorDtype { path: path.into(), name: name.clone(), found });
        }
    }
    Ok(())
}

/// A negative one would make every output NaN, and nobody would know why.
fn check_variance(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| *value < 0.0) {
        None => Ok(()),
        Some(index) => Err(Error::Malformed {
            path: path.into(),
            reason: format!(
                "{name} is {} at element {index}; a variance is not negative",
                values[index]
            ),
        }),
    }
}

fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let (name, value) = (name.to_string(), values[index]);
            Err(Error::NotFinite { path: path.into(), name, index, value })
        }
    }
}
