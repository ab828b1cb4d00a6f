//! A value of a recipe that makes no sense, and where in the recipe it is.

use std::fmt;

/// A value that makes no sense.
#[derive(Debug)]
pub(crate) struct Invalid {
    /// Keys and positions down to the value.
    pub(super) path: Vec<Step>,
    pub(super) message: String,
}

/// One step towards a value in a recipe.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Key(&'static str),
    Index(usize),
}

pub(super) fn require(
    good: bool,
    path: &[Step],
    found: impl fmt::Display,
    expected: &str,
) -> Result<(), Invalid> {
    if good {
        return Ok(());
    }
    let message = format!("is {found}; expected {expected}");
    Err(Invalid { path: path.to_vec(), message })
}

impl Invalid {
    pub(super) fn below(mut self, place: &[Step]) -> Self {
        self.path.splice(0..0, place.iter().cloned());
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.path.iter().enumerate() {
            match step {
                Step::Key(key) if index == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                // Counted from 1, as people count the tables.
                Step::Index(index) => write!(f, "[{}]", index + 1)?,
            }
        }
        write!(f, ": {}", self.message)
    }
}
