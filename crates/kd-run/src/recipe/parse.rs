//! Reading a recipe's text; a mistake in it is named with its line.

use std::fmt;
use std::path::Path;

use kd_models::Architecture;
use kd_record::read::read_text;
use toml::de::{DeTable, DeValue};

use super::invalid::Step;
use super::types::{FORMAT, Recipe};

/// The largest recipe that is read, in bytes. No recipe that people write comes near it.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// A mistake in a recipe: what is wrong, and where.
#[derive(Debug, thiserror::Error)]
pub struct RecipeError {
    /// The file's path, or what the recipe is called where it is no file.
    pub file: String,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// What was found and what was expected.
    pub message: String,
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Recipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// When the file can't be read, is no TOML, or has an unknown key or a value that makes no sense. The message names file and
    /// line.
    pub fn read(path: &Path) -> crate::Result<Self> {
        let text = read_text(path, MAX_BYTES).map_err(|error| match error {
            kd_record::Error::Io { path, cause, .. } => {
                kd_record::Error::Io { path, failed: "the recipe can't be read", cause }
            }
            other => other,
        })?;
        Ok(Self::parse(&text, &path.display().to_string())?)
    }

    /// Parses a recipe's text and fills in what it leaves out. `file` is what messages call it.
    ///
    /// # Errors
    /// When the text is no TOML, or has an unknown key or a value that makes no sense.
    pub fn parse(text: &str, file: &str) -> Result<Self, RecipeError> {
        let error = |line, message| RecipeError { file: file.to_string(), line, message };
        let toml_error = |found: toml::de::Error| {
            let line = found.span().map(|span| line_of(text, span.start));
            error(line, in_words(&with_suggestion(found.message().trim())))
        };
        let root = DeTable::parse(text).map_err(toml_error)?;
        let root = root.into_inner();
        // The format is looked at first, since a recipe of another format may differ in everything else.
        let format = root.get("format").and_then(|format| match format.get_ref() {
            DeValue::Integer(number) => number.as_str().parse::<u32>().ok(),
            _ => None,
        });
        if format != Some(FORMAT) {
            let found = root.get("format").map(|format| &text[format.span()]);
            return Err(error(
                root.get("format").map(|format| line_of(text, format.span().start)),
                match found {
                    Some(found) => format!(
                        "format is {found}; this version of kd reads format {FORMAT}: use the version that wrote the recipe, or write it anew"
                    ),
                    None => format!("format is missing; expected a first line `format = {FORMAT}`"),
                },
            ));
        }
        let mut recipe: Self = toml::from_str(text).map_err(toml_error)?;
        for run in &mut recipe.runs {
            run.dropout = run.dropout.or(run.model.default_dropout());
        }
        recipe.check().map_err(|invalid| {
            error(Some(line_of(text, offset_of(&root, &invalid.path))), invalid.to_string())
        })?;
        Ok(recipe)
    }
}

/// The line, from 1, of a place in `text`, given in bytes.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// Where in the text, in bytes, the value at `path` is; if the recipe leaves it out, where the nearest table above it is.
fn offset_of(root: &DeTable<'_>, path: &[Step]) -> usize {
    let [Step::Key(first), rest @ ..] = path else { return 0 };
    let Some((key, mut value)) = root.get_key_value(*first) else { return 0 };
    let mut offset = key.span().start;
    for step in rest {
        let (at, below) = match (step, value.get_ref()) {
            (Step::Key(key), DeValue::Table(table)) => match table.get_key_value(*key) {
                Some((key, below)) => (key.span().start, below),
                None => break,
            },
            (Step::Index(index), DeValue::Array(array)) => match array.get(*index) {
                Some(below) => (below.span().start, below),
                None => break,
            },
            _ => break,
        };
        offset = at;
        value = below;
    }
    offset
}

/// A message about an unknown name, serde's or that about a network's, with the nearest of the known names added as a
/// suggestion.
fn with_suggestion(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let model = message.strip_prefix("there is no model \"").and_then(|rest| rest.split_once('"'));
    let meant = match (model, is_unknown.then(|| names.next()).flatten()) {
        (Some((found, _)), _) => nearest(found, Architecture::all().map(Architecture::name)),
        (None, Some(found)) => nearest(found, names),
        (None, None) => None,
    };
    match meant {
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message.to_string(),
    }
}

/// The one of `names` that was probably meant by `found`: the nearest by edit distance, `None` if not even that is near.
pub fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = names.map(|name| (edit_distance(found, name), name)).min()?;
    (distance <= 1 + found.len() / 4).then_some(name)
}

/// serde's message about a wrong type, with Rust's name of the expected type put into words.
fn in_words(message: &str) -> String {
    let types = [
        ("expected usize", "expected a whole number, not negative"),
        ("expected u64", "expected a whole number, not negative"),
        ("expected u32", "expected a whole number, not negative"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
    ];
    for (name, words) in types {
        if let Some(start) = message.strip_suffix(name) {
            return format!("{start}{words}");
        }
    }
    message.to_string()
}

/// The number of letters to insert, delete or change to turn `a` into `b` (Levenshtein, 1966).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
