//! Controls: methods without a teacher, which the others are compared with.

mod label_smoothing;

pub use label_smoothing::LabelSmoothingConfig;

pub(crate) use label_smoothing::LabelSmoothing;
