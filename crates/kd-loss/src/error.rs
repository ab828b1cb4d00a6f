//! What can go wrong in this crate.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one sentence that says where and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense.
    #[error("{method}: {field} is {found}; expected {expected}")]
    Config {
        /// The method, or what else the setting belongs to.
        method: &'static str,
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A tensor has not the shape that a loss takes.
    #[error("{what} has shape {found:?}; expected {expected}")]
    Shape {
        /// The tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have.
        expected: &'static str,
    },
    /// Two tensors' shapes don't fit together.
    #[error(
        "{method}: the student's {what} has shape {student:?}, the other {other:?}; {expected}"
    )]
    ShapeMismatch {
        /// The loss.
        method: &'static str,
        /// What is compared.
        what: String,
        /// The student's shape.
        student: Vec<usize>,
        /// The teacher's, or the labels'.
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
    /// A method needs the teacher's logits and was given none.
    #[error("{method}: the teacher's logits are needed and were not given")]
    MissingTeacherLogits {
        /// The method.
        method: &'static str,
    },
    /// A method needs what only the host knows of a step and was not given it.
    #[error(
        "{method}: the step's number, seed and image indices (Inputs::host) are needed and were not given"
    )]
    MissingHostStep {
        /// The method.
        method: &'static str,
    },
    /// A network has no feature place of this name.
    #[error("{method}: the {network} has no feature place \"{place}\"; it has {known}")]
    UnknownPlace {
        /// The method.
        method: &'static str,
        /// "student" or "teacher".
        network: &'static str,
        /// The place asked for.
        place: String,
        /// Those that there are, separated by commas.
        known: String,
    },
    /// A network has no feature map to take when a recipe names none.
    #[error("{method}: the {network} has no feature map [C, H, W] to take; name a place")]
    NoFeatureMap {
        /// The method.
        method: &'static str,
        /// "student" or "teacher".
        network: &'static str,
    },
    /// There is no method of this name.
    #[error("there is no method \"{name}\"; the methods are {known}")]
    UnknownMethod {
        /// The name asked for.
        name: String,
        /// Those that there are, separated by commas.
        known: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
