//! Recipes: what an experiment is, as a TOML file.
//!
//! `types` is what a recipe holds, with the table of `optimizer`; `parse` reads its text, `check` looks at every
//! value (`invalid` says where a wrong one is, `teachers` looks at the teachers), `write` gives its text, and `differences` compares two.

mod check;
mod differences;
mod invalid;
mod optimizer;
mod parse;
mod teachers;
#[cfg(test)]
mod tests;
mod types;
mod write;

pub use check::check_name;
pub use differences::differences;
pub(crate) use differences::{Relation, relation};
pub use kd_ops::schedule::{Anneal, LrSchedule};
pub use kd_record::Precision;
pub use optimizer::OptimizerConfig;
pub(crate) use parse::MAX_BYTES;
pub use parse::{RecipeError, nearest};
pub use teachers::TeacherNames;
pub use types::{
    AugmentConfig, DataConfig, DatasetName, FORMAT, Recipe, RunConfig, RunRecipe, TrainingConfig,
    UnknownRun, needs_teacher,
};

/// The built-in recipe: PyTorch's tutorial on knowledge distillation. It is `recipes/tutorial.toml` of the
/// repository, copied because a published crate has its own folder's files alone.
pub const TUTORIAL: &str = include_str!("tutorial.toml");
