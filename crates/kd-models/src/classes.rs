//! Which class of a weights file stands for which class of the data.
//!
//! A file that names its classes is matched by name: the same names in another order are mapped, other names are an error unless
//! a [`ClassChoice`] says what is meant. A file without names is matched by number.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::parameters::find;
use crate::{Error, ModelConfig, Result, Tensors};

/// Lists of up to this many names are shown whole in messages; of longer ones, the first names that differ.
const SHOWN: usize = 12;

/// A class of a weights file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a class of the weights file, or its number from 0"
)]
pub enum FileClass {
    /// Its number, from 0: the row of the last layer.
    Number(usize),
    /// Its name, for a file that names its classes.
    Name(String),
}

/// For classes of the data, by name, the file's class that stands for each. A class that is left out is the file's class of the
/// same name.
pub type ClassMap = BTreeMap<String, FileClass>;

/// What is known of the classes of a weights file besides what the file says. The default is nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassChoice {
    /// The file's class for each class of the data.
    pub map: Option<ClassMap>,
    /// Whether the file's class names are ignored: its first class is then the data's first class, and so on.
    pub ignore_names: bool,
    /// How a person gives a class map for this file, for messages.
    pub setting: &'static str,
}

impl ClassChoice {
    /// Nothing is known besides what the file says; a class map would be given with `--class-map`.
    pub const NONE: Self = Self {
        map: None,
        ignore_names: false,
        setting: "--class-map FILE (class_map in a recipe)",
    };
}

impl Default for ClassChoice {
    fn default() -> Self {
        Self::NONE
    }
}

/// How a file's classes stand for the data's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// For each class of the data the file's class, by number; `None` when the file's classes are the data's, in the same order.
    pub rows: Option<Vec<usize>>,
    /// A sentence for whoever uses the file, where the match does not follow from equal lists of names.
    pub note: Option<String>,
}

/// Finds for each class of the data the class of the weights file at `path`, which has `count` classes, of the names `file` where it
/// names them.
///
/// # Errors
/// When the names differ and `choice` does not say what is meant, or when its map does not fit both lists.
pub fn match_classes(
    path: &Path,
    file: Option<&[String]>,
    count: usize,
    data: &[String],
    choice: &ClassChoice,
) -> Result<Matched> {
    let unfit = |reason: String| Error::Classes { path: path.into(), reason };
    let path = path.display();
    if let Some(map) = &choice.map {
        let rows = mapped(file, count, data, map)
            .map_err(|reason| unfit(format!("the class map does not fit: {reason}")))?;
        let same = rows.iter().copied().eq(0..count);
        let name = |row: usize| file.map_or_else(|| row.to_string(), |names| names[row].clone());
        let pairs: Vec<_> =
            data.iter().zip(&rows).map(|(d, &row)| format!("{d} = {}", name(row))).collect();
        let note = Some(format!(
            "{path}: classes are mapped as the class map says: {}",
            shortened(&pairs)
        ));
        return Ok(Matched { rows: (!same).then_some(rows), note });
    }
    if count != data.len() {
        return Err(unfit(format!(
            "these weights classify {count} classes; the data has {}: name the file's class for each class of the data with {}",
            data.len(),
            choice.setting
        )));
    }
    let Some(file) = file else {
        let note = Some(format!(
            "{path}: the file does not name its classes; its {count} classes are taken for the data's, in the data's order"
        ));
        return Ok(Matched { rows: None, note });
    };
    if file == data {
        return Ok(Matched::default());
    }
    if choice.ignore_names {
        let note = Some(format!(
            "{path}: its class names are ignored; its {count} classes ({}) are taken for the data's ({}), in this order",
            shortened(file),
            shortened(data)
        ));
        return Ok(Matched { rows: None, note });
    }
    let place = |name: &String| {
        let mut found = (0..count).filter(|&row| file[row] == *name);
        found.next().filter(|_| found.next().is_none())
    };
    let Some(rows) = data.iter().map(place).collect::<Option<Vec<_>>>() else {
        let (file, data) = differing(file, data);
        let setting = choice.setting;
        return Err(unfit(format!(
            "the file has the classes {file}; the data has the classes {data}: say which class of the file is meant by each class of the data with {setting}, or take them in the data's order with --ignore-class-names (ignore_class_names = true in a recipe)"
        )));
    };
    let note = Some(format!(
        "{path}: its classes have the data's names in another order ({}); they are brought into the data's ({})",
        shortened(file),
        shortened(data)
    ));
    Ok(Matched { rows: Some(rows), note })
}

/// The rows that a class map means, or why it does not fit.
fn mapped(
    file: Option<&[String]>,
    count: usize,
    data: &[String],
    map: &ClassMap,
) -> std::result::Result<Vec<usize>, String> {
    if let Some(unknown) = map.keys().find(|name| !data.contains(name)) {
        return Err(format!("the data has no class {unknown:?}; it has {}", shortened(data)));
    }
    let by_name = |name: &String| {
        let names = file.ok_or_else(|| {
            format!("the file does not name its classes, so {name:?} can't be found in it; expected a number from 0 to {}", count - 1)
        })?;
        let found = names.iter().position(|other| other == name);
        found.ok_or_else(|| format!("the file has no class {name:?}; it has {}", shortened(names)))
    };
    let mut rows: Vec<usize> = Vec::with_capacity(data.len());
    for name in data {
        let row = match map.get(name) {
            None => by_name(name).map_err(|reason| {
                format!("it has no line for the data's class {name:?}, and {reason}")
            })?,
            Some(FileClass::Name(other)) => by_name(other)?,
            Some(FileClass::Number(row)) if *row < count => *row,
            Some(FileClass::Number(row)) => {
                return Err(format!(
                    "{name:?} is {row}; expected a number from 0 to {}",
                    count - 1
                ));
            }
        };
        if let Some(other) = rows.iter().position(|other| *other == row) {
            return Err(format!(
                "the data's classes {:?} and {name:?} are both the file's class {row}; expected a class of its own for each",
                data[other]
            ));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Makes the head of a network's weights that of the classes `rows`: row i of its weight and bias becomes what row `rows[i]` was.
/// Logits are exactly those of the file's own order, each at its new place.
///
/// # Errors
/// When a tensor of the head is missing or has no such row.
pub fn select_rows(config: &ModelConfig, tensors: &mut Tensors, rows: &[usize]) -> Result<()> {
    let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    let graph = config.graph()?;
    for spec in &graph.head().parameters {
        let tensor = find(graph.name(), spec, tensors)?;
        let chosen = tensor.index_select(&Tensor::new(rows.as_slice(), tensor.device())?, 0)?;
        tensors.insert(spec.name.clone(), chosen);
    }
    Ok(())
}

/// What to show of two lists of names that differ: each whole, or of long ones the names that the other lacks.
pub fn differing(a: &[String], b: &[String]) -> (String, String) {
    if a.len().max(b.len()) <= SHOWN {
        return (listed(a), listed(b));
    }
    let only = |of: &[String], other: &[String]| {
        let names: Vec<_> = of.iter().filter(|name| !other.contains(name)).cloned().collect();
        let names = if names.is_empty() { "no others".into() } else { shortened(&names) };
        format!("{} classes, of which only here {names}", of.len())
    };
    (only(a, b), only(b, a))
}

/// The names, or the first of many and the number of the rest.
pub fn shortened(names: &[String]) -> String {
    match names.len() <= SHOWN {
        true => listed(names),
        false => {
            format!("{}, and {} more", listed(&names[..SHOWN / 2]), names.len() - SHOWN / 2)
        }
    }
}

/// The names as a list in which two that differ look different: a name with a comma, or with a space at its start or end, stands in quotes,
/// and a letter that has no width of its own, such as the accent of a decomposed `e\u{301}`, is escaped as in Rust.
fn listed(names: &[String]) -> String {
    let shown = |name: &String| {
        let plain = |letter: char| matches!(letter, '\'' | '"' | '\\');
        let escaped: String = name
            .chars()
            .map(|letter| match plain(letter) {
                true => letter.to_string(),
                false => letter.escape_debug().to_string(),
            })
            .collect();
        match name.trim() != name || name.is_empty() || name.contains(',') {
            true => format!("\"{escaped}\""),
            false => escaped,
        }
    };
    names.iter().map(shown).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Architecture, Mode};

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(String::from).collect()
    }

    fn matched(file: &str, data: &str, choice: &ClassChoice) -> Result<Matched> {
        let (file, data) = (names(file), names(data));
        match_classes(Path::new("t.safetensors"), Some(&file), file.len(), &data, choice)
    }

    #[test]
    fn names_that_differ_look_different() {
        let names = |texts: &[&str]| texts.iter().map(|&text| text.into()).collect::<Vec<String>>();
        let (composed, decomposed) =
            differing(&names(&["caf\u{e9}", "a"]), &names(&["cafe\u{301}", "a "]));
        assert_eq!((&*composed, &*decomposed), ("caf\u{e9}, a", "cafe\\u{301}, \"a \""));
        let (one, two) = (shortened(&names(&["a, b"])), shortened(&names(&["a", "b"])));
        assert_eq!((&*one, &*two), ("\"a, b\"", "a, b"));
        assert_eq!(
            shortened(&names(&["it's", "zero\u{200b}", "\u{1b}[2J"])),
            "it's, zero\\u{200b}, \\u{1b}[2J"
        );
    }

    #[test]
    fn the_same_names_are_found_wherever_they_stand() {
        let none = ClassChoice::default();
        assert_eq!(matched("a b c", "a b c", &none).unwrap(), Matched::default());
        let turned = matched("c a b", "a b c", &none).unwrap();
        assert_eq!(turned.rows, Some(vec![1, 2, 0]));
        assert!(turned.note.unwrap().contains("in another order (c, a, b)"));
        let data = names("a b");
        let bare = match_classes(Path::new("t"), None, 2, &data, &none).unwrap();
        assert!(bare.rows.is_none() && bare.note.unwrap().contains("does not name its classes"));
        // A name that stands twice can't be matched.
        assert!(matched("a a", "a b", &none).is_err());
    }

    #[test]
    fn other_names_are_an_error_with_both_lists_unless_it_is_said_what_is_meant() {
        let message =
            matched("cat ship", "boat cat", &ClassChoice::default()).unwrap_err().to_string();
        for part in
            ["classes cat, ship", "classes boat, cat", "--class-map", "--ignore-class-names"]
        {
            assert!(message.contains(part), "{message}");
        }
        let ignore = ClassChoice { ignore_names: true, ..ClassChoice::default() };
        let ignored = matched("cat ship", "boat cat", &ignore).unwrap();
        assert!(ignored.rows.is_none() && ignored.note.unwrap().contains("ignored"));
        let many: Vec<String> = (0..100).map(|class| format!("c{class}")).collect();
        let other = many.join(" ").replace("c42", "x");
        let message = matched(&other, &many.join(" "), &ClassChoice::default()).unwrap_err();
        let message = message.to_string();
        assert!(
            message.contains(
                "only here x; the data has the classes 100 classes, of which only here c42"
            ),
            "{message}"
        );
    }

    #[test]
    fn a_class_map_names_or_numbers_the_files_classes() {
        let with = |text: &str| ClassChoice {
            map: Some(toml::from_str(text).unwrap()),
            ..ClassChoice::default()
        };
        for map in ["boat = 'ship'", "boat = 1", "boat = 1\ncat = 0"] {
            assert_eq!(matched("cat ship", "boat cat", &with(map)).unwrap().rows, Some(vec![1, 0]));
        }
        // Classes of the data may be some of the file's.
        assert_eq!(matched("a b c", "c a", &with("")).unwrap().rows, Some(vec![2, 0]));
        for (map, expected) in [
            ("boot = 1", "the data has no class \"boot\"; it has boat, cat"),
            ("boat = 'shop'", "the file has no class \"shop\"; it has cat, ship"),
            ("boat = 2", "\"boat\" is 2; expected a number from 0 to 1"),
            ("boat = 0", "are both the file's class 0"),
            ("", "no line for the data's class \"boat\""),
        ] {
            let message = matched("cat ship", "boat cat", &with(map)).unwrap_err().to_string();
            assert!(message.contains(expected), "{map}: {message}");
        }
        let wrong = toml::from_str::<ClassMap>("boat = -1").unwrap_err().to_string();
        assert!(wrong.contains("its number from 0"), "{wrong}");
    }

    #[test]
    fn chosen_rows_give_the_same_logits_at_other_places() {
        let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, 4);
        let parameters = crate::init(&config, 3, &Device::Cpu).unwrap();
        let mut tensors: Tensors =
            parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let images = Tensor::rand(-1f32, 1., (5, 3, 32, 32), &Device::Cpu).unwrap();
        let logits = |tensors: &Tensors| {
            let network = crate::build(&config, crate::frozen(tensors)).unwrap();
            let logits = network.forward_t(&images, Mode::Eval, &[]).unwrap().logits;
            logits.to_vec2::<f32>().unwrap()
        };
        let before = logits(&tensors);
        let rows = [2, 0, 3, 1];
        select_rows(&config, &mut tensors, &rows).unwrap();
        for (before, after) in before.iter().zip(logits(&tensors)) {
            assert_eq!(after, rows.map(|row| before[row]));
        }
    }
}
