//! A value of a recipe that makes no sense, and where in the recipe it is.

use std::fmt;

/// A value that makes no sense. It is displayed as its place and what is wrong with it, such as
/// `run[1].epochs: is 0; expected at least 1`.
#[derive(Debug)]
pub(crate) struct Invalid {
    /// The keys and positions that lead to the value.
    pub(super) path: Vec<Step>,
    pub(super) message: String,
}

/// One step on the way from the recipe's root to a value.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Into a table, by key.
    Key(&'static str),
    /// Into an array of tables, from 0.
    Index(usize),
}

/// An [`Invalid`] at `path`, which says what was found and what is expected, unless `good`.
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
    /// The same, seen from the table that has the value's table at `place`.
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
                // Counted from 1, as people count tables.
                Step::Index(index) => write!(f, "[{}]", index + 1)?,
            }
        }
        write!(f, ": {}", self.message)
    }
}
