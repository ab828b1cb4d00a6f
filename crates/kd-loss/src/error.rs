//! What can go wrong in this crate.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one sentence that says where and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something went wrong in a method of a recipe or an objective.
    #[error("{method}: {error}")]
    InMethod {
        /// The method's name, "loss" for the sum of all.
        method: &'static str,
        /// What went wrong in it.
        error: Box<Error>,
    },
    /// An option or a weight makes no sense.
    #[error("{field} is {found}; expected {expected}")]
    Option {
        /// The option.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A tensor has not the shape that a loss takes.
    #[error("{what} has shape {found:?}; expected {expected}")]
    Shape {
        /// What the tensor is, such as "logits".
        what: &'static str,
        /// The shape that the tensor has.
        found: Vec<usize>,
        /// The shape it should have.
        expected: &'static str,
    },
    /// The shapes of two tensors don't fit together.
    #[error("the student's {what} has shape {student:?}, the other {other:?}; {expected}")]
    ShapeMismatch {
        /// What is compared.
        what: String,
        /// The student's shape.
        student: Vec<usize>,
        /// The teacher's shape, or the labels'.
        other: Vec<usize>,
        /// How they should fit.
        expected: &'static str,
    },
    /// A batch without images has no mean.
    #[error("the batch is empty; a loss needs at least one image")]
    EmptyBatch,
    /// A label is no class.
    #[error("label {label} at position {position} of the batch is out of range; there are {classes} classes, 0 to {}", classes - 1)]
    LabelOutOfRange {
        /// The image's position in the batch.
        position: usize,
        /// Its label.
        label: u32,
        /// The number of classes.
        classes: usize,
    },
    /// Labels must be u32.
    #[error("labels are {found:?}; expected U32")]
    LabelType {
        /// Their type.
        found: candle_core::DType,
    },
    /// Logits or features are of a type that losses don't compute with.
    #[error("{what} are {found:?}; expected F32, F64, BF16 or F16")]
    NumberType {
        /// What the tensor is, such as "student features".
        what: &'static str,
        /// Its type.
        found: candle_core::DType,
    },
    /// Images that are mixed of two have two classes, and something takes one an image.
    #[error(
        "the images are mixed of two, so that each has two classes, and {what} one; train without mixing, or without it"
    )]
    Mixed {
        /// What takes one class an image, with its verb.
        what: &'static str,
    },
    /// A method needs the teacher's logits and was given none.
    #[error("the teacher's logits are needed and were not given")]
    MissingTeacherLogits,
    /// A method needs what only the host knows of a step and was not given it.
    #[error(
        "the step's number, the seed and the images' positions (Inputs::host) are needed and were not given"
    )]
    MissingHostStep,
    /// A network has no feature place of this name.
    #[error("the {network} has no feature place \"{place}\"; it has {known}")]
    UnknownPlace {
        /// "student" or "teacher".
        network: &'static str,
        /// The place asked for.
        place: String,
        /// The places that there are, separated by commas.
        known: String,
    },
    /// A network has no feature map to take when a recipe names no place.
    #[error("the {network} has no feature map [C, H, W] to take; name a place")]
    NoFeatureMap {
        /// "student" or "teacher".
        network: &'static str,
    },
    /// There is no method of this name.
    #[error("there is no method \"{name}\"; the methods are {known}")]
    UnknownMethod {
        /// The name asked for.
        name: String,
        /// The methods that there are, separated by commas.
        known: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// The error with the name of the method that it happened in.
    pub(crate) fn in_method(self, method: &'static str) -> Self {
        Self::InMethod { method, error: Box::new(self) }
    }
}
