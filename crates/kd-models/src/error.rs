//! What can go wrong in this crate.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one sentence that says where and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no network of this name.
    #[error("there is no model \"{name}\"; the models are {known}")]
    UnknownArchitecture {
        /// The name asked for.
        name: String,
        /// The names that exist, separated by commas.
        known: String,
    },
    /// An ONNX file can't be used.
    #[error("{}: {reason}", path.display())]
    Onnx {
        /// The ONNX file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// ONNX Runtime, which computes networks in ONNX files, can't be used.
    #[error(
        "ONNX Runtime, which computes ONNX files, can't be loaded: {reason}; expected its library of version 1.24 or later: `pip install onnxruntime` brings it as onnxruntime/capi/libonnxruntime.so.*, and ORT_DYLIB_PATH=FILE names it"
    )]
    OnnxRuntime {
        /// Why it can't be loaded.
        reason: String,
    },
    /// A setting of a [`ModelConfig`](crate::ModelConfig) makes no sense.
    #[error("model setting {field} is {found}; expected {expected}")]
    Config {
        /// The setting's name.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// The images have another shape than the network takes.
    #[error("the {network} takes images of shape [B, {}, {}, {}], got {found:?}", expected[0], expected[1], expected[2])]
    Images {
        /// The name of the network concerned.
        network: Box<str>,
        /// The shape of an image that it takes.
        expected: [usize; 3],
        /// The shape it was given.
        found: Vec<usize>,
    },
    /// A batch can't be shared so that the weights get the bits that one process gives them.
    #[error(
        "{ranks} processes with {images} images each can't sum in the order of one process; expected 1, 2 or 4 processes that \
         share a batch size divisible by 16"
    )]
    Sharing {
        /// The number of processes.
        ranks: usize,
        /// The images that each of them was given.
        images: usize,
    },
    /// A network that several processes train is not computed by plan.
    #[error(
        "the {network} can't be trained by several processes: they share f32 images on the CPU that are no result of a \
         computation, and a network whose every layer the planned passes know"
    )]
    NotShared {
        /// The name of the network concerned.
        network: Box<str>,
    },
    /// The network has no feature place of this name.
    #[error("the {network} has no feature place \"{place}\"; its places are {known}")]
    UnknownPlace {
        /// The name of the network concerned.
        network: Box<str>,
        /// The place asked for.
        place: String,
        /// The places that exist, separated by commas.
        known: String,
    },
    /// A layer of a network can't be what it is said to be.
    #[error("the {network}, layer {layer}: {reason}")]
    Layer {
        /// The name of the network concerned.
        network: Box<str>,
        /// The layer or feature place.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The network has no layer of this name.
    #[error("the {network} has no layer {layer:?}; it has {known}")]
    UnknownLayer {
        /// The name of the network concerned.
        network: Box<str>,
        /// The layer asked for.
        layer: String,
        /// The layers with trained values that exist, separated by commas.
        known: String,
    },
    /// All layers of the network would be frozen.
    #[error("in the {network} no layer is left to train")]
    NothingToTrain {
        /// The name of the network concerned.
        network: Box<str>,
    },
    /// A share of the learning rate is given for a layer that is trained the same without it.
    #[error(
        "in the {network} {scale} for {layer:?} changes nothing: all of it is frozen, or has this share of the learning rate without the entry; leave the entry out"
    )]
    ScaleWithoutEffect {
        /// The name of the network concerned.
        network: Box<str>,
        /// The layer that the share is given for.
        layer: String,
        /// The share of the learning rate.
        scale: f64,
    },
    /// Weights in memory are not the network's.
    #[error("the {network} needs a tensor {name} of shape {expected:?} and type F32; {found}")]
    WrongTensor {
        /// The name of the network concerned.
        network: Box<str>,
        /// The name of the tensor in the weights file.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// What there is in its place.
        found: String,
    },
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no safetensors file, or is cut off.
    #[error("{}: not a whole safetensors file: {reason}", path.display())]
    Malformed {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// What is wrong with it, with offsets.
        reason: String,
    },
    /// The network has a tensor that the file lacks.
    #[error("{}: tensor {name} is missing; the {network} needs it with shape {expected:?}", path.display())]
    MissingTensor {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the network concerned.
        network: Box<str>,
        /// The name of the tensor in the weights file.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// The file has a tensor that the network lacks.
    #[error("{}: the {network} has no tensor {name} (shape {found:?})", path.display())]
    ExtraTensor {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the network concerned.
        network: Box<str>,
        /// The name of the tensor in the weights file.
        name: String,
        /// The shape that the tensor has in the file.
        found: Vec<usize>,
    },
    /// A tensor has another shape than the network's.
    #[error("{}: tensor {name} has shape {found:?}; the {network} needs {expected:?}", path.display())]
    TensorShape {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the network concerned.
        network: Box<str>,
        /// The name of the tensor in the weights file.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The network's shape.
        expected: Vec<usize>,
    },
    /// The file is none that weights are read from, is damaged, or holds something else beside its tensors' names.
    #[error("{}: can't be read as weights: {reason}", path.display())]
    Unusable {
        /// The path of the file concerned.
        path: PathBuf,
        /// What the file is or what is wrong with it, and what to do.
        reason: String,
    },
    /// The weights of several networks in the file fit the one that is asked for.
    #[error("{}: both {first} and {second} fit the {network}, so neither is taken; save the one that is meant in a file of its own", path.display())]
    SeveralFit {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the network concerned.
        network: Box<str>,
        /// Where the first ones lie in the file.
        first: String,
        /// Where others lie.
        second: String,
    },
    /// The shortcuts of the file's network have weights, those of the network don't.
    #[error("{}: {name} (shape {found:?}) belongs to a shortcut with weights (option B, as in RepDistiller's and chenyaofo's ResNets); the shortcuts of the {network} have none (option A), so the two compute different things, and the tensors fit none of the networks with option B that kd lists (resnet20_b, resnet8x4 and others) either; give weights of a listed network, or write that network: docs/new-network.md", path.display())]
    ProjectionShortcut {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the network concerned.
        network: Box<str>,
        /// The shortcut's tensor.
        name: String,
        /// The shape that the tensor has in the file.
        found: Vec<usize>,
    },
    /// A weight is finite but larger than any f32.
    #[error("{}: tensor {name} has {value:e} at element {index}, which is beyond F32; weights are computed with as F32", path.display())]
    BeyondF32 {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the tensor in the weights file.
        name: String,
        /// The element's position, row-major.
        index: usize,
        /// The value there.
        value: f64,
    },
    /// A tensor has a type that weights don't have.
    #[error("{}: tensor {name} is {found}; expected {expected}", path.display())]
    TensorDtype {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the tensor in the weights file.
        name: String,
        /// Its type in the file.
        found: String,
        /// The types that it may have.
        expected: &'static str,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor {name} has {value} at element {index}; weights must be finite", path.display())]
    NotFinite {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the tensor in the weights file.
        name: String,
        /// The element's position, row-major.
        index: usize,
        /// The value there.
        value: f32,
    },
    /// The metadata entry "kd" of a file can't be understood.
    #[error("{}: metadata entry \"kd\": {reason}", path.display())]
    Metadata {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A `config.json` beside a weights file can't be used.
    #[error("{}: {reason}", path.display())]
    TimmConfig {
        /// The path of the config.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights are another network's.
    #[error("{}: these are the weights of a {found}, not of a {expected}", path.display())]
    WrongArchitecture {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The network in the file.
        found: String,
        /// The network asked for.
        expected: String,
    },
    /// The weights are for another number of classes.
    #[error("{}: these weights classify {found} classes; the data has {expected}", path.display())]
    ClassCount {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The file's number of classes.
        found: usize,
        /// The number asked for.
        expected: usize,
    },
    /// The classes of the weights are not the data's, and it is not said which stands for which.
    #[error("{}: {reason}", path.display())]
    Classes {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// Both lists of classes, or what of a class map does not fit them, and what to do.
        reason: String,
    },
    /// The weights are for images of another shape, and not all of them fit.
    #[error("{}: these are the weights of a {network} for images of shape {found:?}; expected those for {expected:?}", path.display())]
    InputShape {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The name of the network concerned.
        network: Box<str>,
        /// The image shape of the file.
        found: [usize; 3],
        /// The image shape asked for.
        expected: [usize; 3],
    },
    /// The weights were trained on differently normalised images.
    #[error(
        "{}: these weights were trained on images normalised with mean {found_mean:?} and std {found_std:?}; the data uses mean {mean:?} and std {std:?}",
        path.display()
    )]
    Normalization {
        /// The path of the weights file concerned.
        path: PathBuf,
        /// The file's mean.
        found_mean: [f32; 3],
        /// The file's standard deviation.
        found_std: [f32; 3],
        /// The data's mean.
        mean: [f32; 3],
        /// The data's standard deviation.
        std: [f32; 3],
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
