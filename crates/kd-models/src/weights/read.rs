//! Reading weights files.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use zip::ZipArchive;

use super::check::check_tensors;
use super::contents::{Contents, Stored};
use super::kind::{self, Kind};
use super::metadata::Metadata;
use super::{fit, header, torch, torch_legacy, values};
use crate::{Architecture, Error, ModelConfig, Result, Tensors};

/// What a weights file says before its weights: its description, and the names and shapes of its tensors.
#[derive(Debug)]
pub struct Header {
    /// The file's own description, if it has one (PyTorch's files have none).
    pub metadata: Option<Metadata>,
    path: PathBuf,
    contents: Contents,
}

impl Header {
    /// The network that the file is for. What the caller knows comes first, then what the file says; a file without a
    /// description is taken for the tutorial's teacher, with as many classes as its last layer has outputs.
    ///
    /// # Errors
    /// When `classes` makes no sense, or tensors of several networks in the file fit.
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
            && let Some(found) = self.classes(&config, false)?
        {
            config.classes = found;
        }
        Ok(config)
    }

    /// The number of classes: what the description says, or the rows of the last layer of the network that `config`
    /// describes; `None` when the file has no such layer. With `prefer`, weights for the classes of `config` come first where
    /// the file has others as well.
    fn classes(&self, config: &ModelConfig, prefer: bool) -> Result<Option<usize>> {
        fit::classes(&self.path, &config.graph()?, &self.contents, prefer)
    }
}

/// The weights of a file.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The network's tensors by name, f32, on the CPU.
    pub tensors: Tensors,
    /// The file's own description, if it has one (PyTorch's files have none).
    pub metadata: Option<Metadata>,
    /// Sentences on what was done to read them: which dict of the file and which names were taken, what was converted. Empty
    /// for a file that holds just the network's f32 tensors under its names.
    pub notes: Vec<String>,
}

/// Reads what a weights file says before its weights. The formats are those of [`load`].
///
/// # Errors
/// When the file can't be read, is cut off or no weights file, or its description can't be understood.
pub fn peek(path: &Path) -> Result<Header> {
    let (mut file, len) = open_file(path)?;
    let (_, contents) = open(path, &mut file, len)?;
    Ok(Header { metadata: contents.metadata.clone(), path: path.into(), contents })
}

/// Loads the weights of the network that `config` describes, onto the CPU, with the file's own
/// description if it has one (PyTorch's files have none).
///
/// The file is a safetensors file or one of `torch.save` (`.pth`, `.pt`, `.bin`, also of the format before PyTorch 1.6), which its content
/// decides. Of the latter tensors alone are read and no code is run. f16, bf16 and f64 become f32.
///
/// The tensors may lie in a dict of the file (`state_dict`, `model`) and have a prefix (`module.`, `_orig_mod.`,
/// `teacher.`), and the last layer may be called `fc` instead of `linear`. What fits the network is taken, and
/// [`Loaded::notes`] says so; of two things that fit, none is. Beside the prefix, a dict must hold exactly the network's
/// tensors.
///
/// Names and shapes are checked before the data is read, so a bad file never makes this allocate more than it has bytes.
/// The description's image shape is not compared: a network whose tensors don't depend on it takes images of other shapes,
/// too.
///
/// # Errors
/// When the file can't be read, is cut off or no weights file; when it is another network's or
/// for another number of classes; when a tensor is missing, extra, of another type or another shape (both
/// shapes are given), not finite, or beyond f32.
pub fn load(path: &Path, config: &ModelConfig) -> Result<Loaded> {
    let (mut file, len) = open_file(path)?;
    read(path, &mut file, len, config)
}

/// [`load`] of a file's contents that are in memory; `path` stands for the file in errors.
///
/// # Errors
/// As for [`load`].
pub fn parse(contents: &[u8], path: &Path, config: &ModelConfig) -> Result<Loaded> {
    read(path, &mut Cursor::new(contents), contents.len() as u64, config)
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
    /// Sentences on what was done to read the tensors, as in [`Loaded::notes`].
    pub notes: Vec<String>,
}

/// Loads weights to start from: as [`load`], but the file may be for another number of classes. Its head, the layer that
/// gives the logits, is then left out.
///
/// # Errors
/// As [`load`], except for another number of classes.
pub fn load_start(path: &Path, config: &ModelConfig) -> Result<Start> {
    let found = peek(path)?.classes(config, true)?.filter(|found| *found != config.classes);
    let other = ModelConfig { classes: found.unwrap_or(config.classes), ..*config };
    let Loaded { mut tensors, metadata, notes } = load(path, &other)?;
    if found.is_some() {
        for spec in &other.graph()?.head().parameters {
            tensors.remove(&spec.name);
        }
    }
    Ok(Start { tensors, metadata, other_classes: found, notes })
}

/// Opens a file; gives it and its length.
fn open_file(path: &Path) -> Result<(BufReader<File>, u64)> {
    let io = |source| Error::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    if !about.is_file() {
        let reason = "it is not a regular file".into();
        return Err(Error::Unusable { path: path.into(), reason });
    }
    Ok((BufReader::new(file), about.len()))
}

/// Where a file's elements are read from.
enum Elements<R> {
    File(R),
    Archive(ZipArchive<R>),
}

impl<R: Read + Seek> Elements<R> {
    /// The bytes of a tensor's elements. The network's shape bounds their number; a file that lies about it ends early.
    fn bytes(&mut self, path: &Path, name: &str, stored: &Stored) -> Result<Vec<u8>> {
        let io = |source| Error::Io { path: path.into(), source };
        let unusable = |reason: String| Error::Unusable { path: path.into(), reason };
        let len = values::span(stored)
            .ok_or_else(|| unusable(format!("the shape of its tensor {name} overflows")))?;
        match self {
            Self::File(file) => {
                file.seek(SeekFrom::Start(stored.offset)).map_err(io)?;
                let mut bytes = vec![0; len];
                file.read_exact(&mut bytes).map_err(io)?;
                Ok(bytes)
            }
            Self::Archive(archive) => torch::bytes(archive, &stored.member, stored.offset, len)
                .map_err(|reason| unusable(format!("tensor {name}: {reason}"))),
        }
    }
}

/// Finds out what a file is and what it holds.
fn open<R: Read + Seek>(
    path: &Path,
    mut file: R,
    file_len: u64,
) -> Result<(Elements<R>, Contents)> {
    let io = |source| Error::Io { path: path.into(), source };
    let unusable = |reason: String| Error::Unusable { path: path.into(), reason };
    let mut start = Vec::new();
    file.by_ref().take(kind::LOOKED_AT as u64).read_to_end(&mut start).map_err(io)?;
    file.rewind().map_err(io)?;
    match kind::kind(&start) {
        Kind::Safetensors => {
            let contents = header::read(path, &mut file, file_len)?;
            Ok((Elements::File(file), contents))
        }
        Kind::Zip => {
            let (archive, contents) = torch::open(file).map_err(unusable)?;
            Ok((Elements::Archive(archive), contents))
        }
        Kind::TorchLegacy => {
            let contents = torch_legacy::open(&mut file, file_len).map_err(unusable)?;
            Ok((Elements::File(file), contents))
        }
        Kind::Foreign(what) => Err(unusable(format!("it is {what}"))),
    }
}

/// The listed network whose tensors a file holds, for any number of classes.
fn another(config: &ModelConfig, contents: &Contents) -> Option<Architecture> {
    // The network that is asked for comes first: if its tensors are there, something else is wrong with them.
    let all = std::iter::once(config.architecture).chain(Architecture::all());
    all.into_iter().find(|architecture| {
        let new = ModelConfig::new(*architecture, config.classes);
        let graph = ModelConfig { input: config.input, ..new }.graph();
        graph.is_ok_and(|graph| fit::any_fits(&graph, contents))
    })
}

fn read<R: Read + Seek>(
    path: &Path,
    file: &mut R,
    file_len: u64,
    config: &ModelConfig,
) -> Result<Loaded> {
    let graph = config.graph()?;
    let (mut elements, contents) = open(path, file, file_len)?;
    if let Some(metadata) = &contents.metadata
        && metadata.architecture != config.architecture
    {
        let (found, expected) =
            (metadata.architecture.to_string(), config.architecture.to_string());
        return Err(Error::WrongArchitecture { path: path.into(), found, expected });
    }
    let view = fit::choose(path, &graph, &contents)?;
    check_tensors(path, &graph, contents.metadata.as_ref(), &view.tensors).map_err(|error| {
        match another(config, &contents).filter(|other| *other != config.architecture) {
            Some(other) => {
                let (found, expected) = (other.to_string(), config.architecture.to_string());
                Error::WrongArchitecture { path: path.into(), found, expected }
            }
            None => error,
        }
    })?;
    let notes = view.notes(path, &graph, &contents);

    // The file's order, so that it is read once from start to end.
    let mut stored: Vec<_> = graph
        .tensors()
        .filter_map(|spec| Some((spec.name.as_str(), *view.tensors.get(&spec.name)?)))
        .collect();
    stored.sort_by_key(|(_, stored)| stored.offset);
    let mut tensors = Tensors::new();
    for (name, stored) in stored {
        let bytes = elements.bytes(path, name, stored)?;
        let values = values::decode(path, name, stored, &bytes)?;
        let tensor = Tensor::from_vec(values, stored.shape.as_slice(), &Device::Cpu)?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(Loaded { tensors, metadata: contents.metadata, notes })
}
