//! The sections of the page, a file each.

pub(crate) mod agreement;
pub(crate) mod calibration;
pub(crate) mod classes;
pub(crate) mod comparison;
pub(crate) mod confusion;
pub(crate) mod curves;
pub(crate) mod gain;
pub(crate) mod headline;
pub(crate) mod loss_parts;
pub(crate) mod machine;
pub(crate) mod profile;
pub(crate) mod recipe;
pub(crate) mod runs;
pub(crate) mod skipped;
pub(crate) mod soft_targets;
pub(crate) mod teachers;
