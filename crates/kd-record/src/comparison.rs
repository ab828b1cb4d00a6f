//! `comparison.json`: the table of `kd compare`, as the report shows it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::read::read_json;
use crate::{Error, Result};

/// A table of texts, an arm of the comparison a row. The statistics are already in the cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What was compared on which images.
    pub title: String,
    /// The columns' titles.
    pub head: Vec<String>,
    /// One row for each arm, with a cell for each column.
    pub rows: Vec<Vec<String>>,
    /// Sentences below the table: what the columns mean.
    pub notes: Vec<String>,
}

/// A comparison of a thousand arms is far smaller.
const MAX_BYTES: u64 = 64 << 20;

impl Comparison {
    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read, or is no comparison.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let comparison: Self = read_json(path, MAX_BYTES, "a comparison")?;
        let columns = comparison.head.len();
        match comparison.rows.iter().position(|row| row.len() != columns) {
            None => Ok(Some(comparison)),
            Some(row) => {
                let found = comparison.rows[row].len();
                let found = format!("row {} has {found} cells; expected {columns}", row + 1);
                Err(Error::corrupt(path, None, found))
            }
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_too_short_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        let cells = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let mut table = Comparison {
            title: "t".into(),
            head: cells(&["arm", "p"]),
            rows: vec![cells(&["kd", "0.03"])],
            notes: Vec::new(),
        };
        std::fs::write(&path, table.to_json()).unwrap();
        assert_eq!(Comparison::read(&path).unwrap(), Some(table.clone()));
        table.rows.push(cells(&["dkd"]));
        std::fs::write(&path, table.to_json()).unwrap();
        let message = Comparison::read(&path).unwrap_err().to_string();
        assert!(message.ends_with("row 2 has 1 cells; expected 2"), "{message}");
        assert_eq!(Comparison::read(&folder.path().join("none")).unwrap(), None);
    }
}
