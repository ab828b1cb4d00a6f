//! Reading weights files.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::check::{self, check_finite, check_tensors, check_variance};
use super::metadata::Metadata;
use crate::{Architecture, Error, ModelConfig, Result, Tensors};

/// No network here needs a header near this size; a larger one is not read at all.
const MAX_HEADER: u64 = 1 << 20;

/// What a weights file says before its weights: its description, and the names and shapes of its tensors.
#[derive(Debug)]
pub struct Header {
    /// The file's own description, if it has one (PyTorch's files have none).
    pub metadata: Option<Metadata>,
    tensors: safetensors::tensor::Metadata,
    /// Where the weights start.
    data_start: u64,
}

impl Header {
    /// The network that the file is for. What the caller knows comes first, then what the file says; a file without a
    /// description is taken for the tutorial's teacher, with as many classes as its last layer has outputs.
    ///
    /// # Errors
    /// When `classes` makes no sense.
    pub fn config(
        &self,
        architecture: Option<Architecture>,
        classes: Option<usize>,
    ) -> Result<ModelConfig> {
        let described = self.metadata.as_ref().map(Metadata::config);
        let architecture = architecture
            .or(described.map(|config| config.architecture))
            .unwrap_or(Architecture::TUTORIAL_TEACHER);
        let mut config = ModelConfig::new(architecture, classes.unwrap_or(10));
        if let Some(described) = described {
            config.input = described.input;
        }
        if classes.is_none()
            && let Some(found) = self.classes(&config)?
        {
            config.classes = found;
        }
        Ok(config)
    }

    /// The number of classes: what the description says, or the rows of the last layer of the network that `config`
    /// describes; `None` when the file has no such layer.
    fn classes(&self, config: &ModelConfig) -> Result<Option<usize>> {
        let graph = config.graph()?;
        Ok(check::classes(&graph, self.metadata.as_ref(), &self.tensors.tensors()))
    }
}

/// Reads what a weights file says before its weights.
///
/// # Errors
/// When the file can't be read, is cut off or no safetensors file, or its description can't be understood.
pub fn peek(path: &Path) -> Result<Header> {
    let (mut file, len) = open(path)?;
    read_header(path, &mut file, len)
}

/// Loads the weights of the network that `config` describes, onto the CPU, with the file's own
/// description if it has one (PyTorch's files have none).
///
/// The file must hold exactly the network's tensors. It is checked before its data is read, so
/// a bad file never makes this allocate more than the network needs. The description's image shape is not compared: a
/// network whose tensors don't depend on it takes images of other shapes, too.
///
/// # Errors
/// When the file can't be read, is cut off or no safetensors file; when it is another network's or
/// for another number of classes; when a tensor is missing, extra, not f32, of another shape (both
/// shapes are given) or not finite.
pub fn load(path: &Path, config: &ModelConfig) -> Result<(Tensors, Option<Metadata>)> {
    let (mut file, len) = open(path)?;
    read(path, &mut file, len, config)
}

/// [`load`] of a file's contents that are in memory; `path` stands for the file in errors.
///
/// # Errors
/// As for [`load`].
pub fn parse(
    mut contents: &[u8],
    path: &Path,
    config: &ModelConfig,
) -> Result<(Tensors, Option<Metadata>)> {
    let len = contents.len() as u64;
    read(path, &mut contents, len, config)
}

/// Weights that another training starts from.
#[derive(Clone, Debug)]
pub struct Start {
    /// The network's tensors by name, without those of the head where it has to be new.
    pub tensors: Tensors,
    /// The file's own description, if it has one.
    pub metadata: Option<Metadata>,
    /// The number of classes of the file where it is another one than the network's. The head is new then.
    pub other_classes: Option<usize>,
}

/// Loads weights to start from: as [`load`], but the file may be for another number of classes. Its head, the layer that
/// gives the logits, is then left out.
///
/// # Errors
/// As [`load`], except for another number of classes.
pub fn load_start(path: &Path, config: &ModelConfig) -> Result<Start> {
    let found = peek(path)?.classes(config)?.filter(|found| *found != config.classes);
    let Some(classes) = found else {
        let (tensors, metadata) = load(path, config)?;
        return Ok(Start { tensors, metadata, other_classes: None });
    };
    let other = ModelConfig { classes, ..*config };
    let (mut tensors, metadata) = load(path, &other)?;
    for spec in &other.graph()?.head().parameters {
        tensors.remove(&spec.name);
    }
    Ok(Start { tensors, metadata, other_classes: Some(classes) })
}

/// Opens a file; gives it and its length.
fn open(path: &Path) -> Result<(File, u64)> {
    let io = |source| Error::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    if !about.is_file() {
        let reason = "it is not a regular file".into();
        return Err(Error::Malformed { path: path.into(), reason });
    }
    Ok((file, about.len()))
}

fn read(
    path: &Path,
    file: &mut impl Read,
    file_len: u64,
    config: &ModelConfig,
) -> Result<(Tensors, Option<Metadata>)> {
    let graph = config.graph()?;
    let io = |source| Error::Io { path: path.into(), source };
    let header = read_header(path, file, file_len)?;
    let in_header = header.tensors.data_len() as u64;
    let (data_start, in_file) = (header.data_start, file_len - header.data_start);
    if in_header != in_file {
        let reason = format!(
            "its header announces {in_header} bytes of data from offset {data_start}, the file has {in_file}"
        );
        return Err(Error::Malformed { path: path.into(), reason });
    }
    if let Some(metadata) = &header.metadata
        && metadata.architecture != config.architecture
    {
        let (found, expected) =
            (metadata.architecture.to_string(), config.architecture.to_string());
        return Err(Error::WrongArchitecture { path: path.into(), found, expected });
    }
    check_tensors(path, &graph, header.metadata.as_ref(), &header.tensors.tensors())?;
    let known: HashSet<&str> = graph.tensors().map(|spec| spec.name.as_str()).collect();

    // The file's order, so that it is read once from start to end.
    let mut tensors = Tensors::new();
    for name in header.tensors.offset_keys() {
        let Some(info) = header.tensors.info(&name) else { continue };
        if !known.contains(name.as_str()) {
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
    Ok((tensors, header.metadata))
}

fn read_header(path: &Path, file: &mut impl Read, file_len: u64) -> Result<Header> {
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
    let tensors: safetensors::tensor::Metadata = serde_json::from_slice(&header)
        .map_err(|error| malformed(format!("its header can't be read: {error}")))?;
    let metadata = Metadata::read(path, tensors.metadata())?;
    Ok(Header { metadata, tensors, data_start: 8 + header_len })
}
