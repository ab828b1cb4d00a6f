//! A network's logits of pictures, by the pictures' names: answers that can be taken from one machine to another.
//!
//! The file is safetensors with these tensors; other programs can write it as easily, for names and classes are text, a line each:
//!
//! | tensor | type and shape | what it is |
//! | --- | --- | --- |
//! | `logits` | F32, F16 or F64 `[N, C]` | the logits of N pictures for C classes |
//! | `names` | U8 | UTF-8 text: the name of each picture on a line of its own |
//! | `classes` | U8 | UTF-8 text: the name of each class on a line of its own |
//! | `labels` | I64 `[N]` | the class of each picture; may be absent, and is not read |

use std::collections::{HashMap, HashSet};
use std::path::Path;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::read::read_bytes;
use crate::write::write_whole;
use crate::{Error, Result};

/// The metadata entry by which a file is known as kd's when it is to be replaced.
const KEY: &str = "kd-logits";
/// Most bytes of a file that is read: the logits of 10 million pictures for 1,000 classes in f32, with their names.
const MAX_BYTES: u64 = 48 << 30;

/// Logits by picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PictureLogits {
    /// The pictures' names, `[N]`.
    pub names: Vec<String>,
    /// The classes' names in the order of the logits, `[C]`.
    pub classes: Vec<String>,
    /// The logits `[N, C]`, row-major.
    pub logits: Vec<f32>,
}

impl PictureLogits {
    /// Writes the file, with the class of each picture beside it where they have classes. The same contents give the same bytes.
    ///
    /// # Errors
    /// When a name holds a line break or is there twice, the parts don't fit together, or the file can't be written.
    pub fn write(&self, path: &Path, labels: Option<&[u32]>) -> Result<()> {
        let refuse = |found: String| Error::corrupt(path, None, found);
        let lines = |names: &[String]| match names.iter().find(|name| name.contains('\n')) {
            None => Ok(names.join("\n").into_bytes()),
            Some(name) => Err(refuse(format!(
                "can't be written: the name {name:?} holds a line break, and names stand a line each; rename the file or folder"
            ))),
        };
        if let Some(name) = named_twice(&self.names) {
            return Err(refuse(format!(
                "can't be written: two pictures have the name {name:?}, by which their logits are found; rename one of the files"
            )));
        }
        let (names, classes) = (lines(&self.names)?, lines(&self.classes)?);
        let logits: Vec<u8> = self.logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        let labels: Option<Vec<u8>> = labels.map(|labels| {
            labels.iter().flat_map(|&label| i64::from(label).to_le_bytes()).collect()
        });
        let shape = vec![self.names.len(), self.classes.len()];
        let made = || {
            let mut tensors = vec![
                ("logits", TensorView::new(Dtype::F32, shape, &logits)?),
                ("names", TensorView::new(Dtype::U8, vec![names.len()], &names)?),
                ("classes", TensorView::new(Dtype::U8, vec![classes.len()], &classes)?),
            ];
            if let Some(labels) = &labels {
                let view = TensorView::new(Dtype::I64, vec![labels.len() / 8], labels)?;
                tensors.push(("labels", view));
            }
            let own = HashMap::from([(KEY.to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
            safetensors::serialize(tensors, Some(own))
        };
        let bytes = made().map_err(|error| refuse(format!("can't be written: {error}")))?;
        write_whole(path, &bytes)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is missing or no such file, names a picture or a class twice, or has other numbers of logits than of names and classes, or
    /// logits that are not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bytes(path, MAX_BYTES)?;
        let refuse = |found: String| {
            Error::corrupt(path, None, format!("can't be read as logits by picture: {found}"))
        };
        parse(&bytes).map_err(refuse)
    }

    /// The row of each name.
    pub fn rows(&self) -> HashMap<&str, usize> {
        self.names.iter().enumerate().map(|(row, name)| (name.as_str(), row)).collect()
    }
}

/// The first name that is there a second time.
fn named_twice(names: &[String]) -> Option<&str> {
    let mut seen = HashSet::new();
    names.iter().map(String::as_str).find(|name| !seen.insert(*name))
}

/// The contents of a file, or what is wrong with them.
fn parse(bytes: &[u8]) -> std::result::Result<PictureLogits, String> {
    const CURE: &str = "`kd eval --logits FILE` writes such files, and docs/own-teacher.md says how another program does";
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|error| format!("it is no whole safetensors file ({error}); {CURE}"))?;
    let tensor = |name: &str| {
        let there = tensors.names();
        tensors
            .tensor(name)
            .map_err(|_| format!("it has no tensor `{name}`, but {}; {CURE}", there.join(", ")))
    };
    let text = |name: &str| {
        let view = tensor(name)?;
        if view.dtype() != Dtype::U8 {
            return Err(format!("`{name}` is {}; expected the bytes of a text, U8", view.dtype()));
        }
        let text = std::str::from_utf8(view.data())
            .map_err(|error| format!("`{name}` is no UTF-8 text: {error}"))?;
        let lines: Vec<String> =
            text.strip_suffix('\n').unwrap_or(text).split('\n').map(str::to_owned).collect();
        let mut seen = HashMap::new();
        for (line, name_here) in lines.iter().enumerate() {
            if let Some(first) = seen.insert(name_here.as_str(), line + 1) {
                return Err(format!(
                    "`{name}` has {name_here:?} on the lines {first} and {}; expected each name once",
                    line + 1
                ));
            }
        }
        Ok::<_, String>(lines)
    };
    let view = tensor("logits")?;
    let (names, classes) = (text("names")?, text("classes")?);
    let expected = [names.len(), classes.len()];
    if view.shape() != expected {
        return Err(format!(
            "`logits` has the shape {:?}; expected {expected:?}, for there are {} names and {} classes",
            view.shape(),
            names.len(),
            classes.len()
        ));
    }
    let data = view.data();
    let logits: Vec<f32> = match view.dtype() {
        Dtype::F32 => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::F16 => {
            data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        Dtype::F64 => data
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default()) as f32)
            .collect(),
        other => return Err(format!("`logits` is {other}; expected F32, F16 or F64")),
    };
    if let Some(at) = logits.iter().position(|value| !value.is_finite()) {
        return Err(format!(
            "the logit of {:?} for class {:?} is {}; expected finite numbers",
            names[at / classes.len()],
            classes[at % classes.len()],
            logits[at]
        ));
    }
    Ok(PictureLogits { names, classes, logits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> PictureLogits {
        let text = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        PictureLogits {
            names: text(&["train/ä b/1.png", "train/c/2.png"]),
            classes: text(&["cat", "Hund", "鳥"]),
            logits: vec![1.0, -2.0, 3.5, 0.0, 1e30, -1e-30],
        }
    }

    #[test]
    fn logits_come_back_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.safetensors");
        logits().write(&path, Some(&[2, 0])).unwrap();
        let found = PictureLogits::read(&path).unwrap();
        assert_eq!(found, logits());
        assert_eq!(found.rows()["train/c/2.png"], 1);
        let first = std::fs::read(&path).unwrap();
        logits().write(&path, Some(&[2, 0])).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first, "the same contents give the same bytes");
        logits().write(&path, None).unwrap();
        assert_eq!(PictureLogits::read(&path).unwrap(), logits());
        assert!(std::fs::read(&path).unwrap().len() < first.len(), "without labels");
        let mut broken = logits();
        broken.names[0] = "a\nb".into();
        let message = broken.write(&path, None).unwrap_err().to_string();
        assert!(message.contains("\"a\\nb\" holds a line break"), "{message}");
        broken.names = vec!["a".into(); 2];
        let message = broken.write(&path, None).unwrap_err().to_string();
        assert!(message.contains("two pictures have the name \"a\""), "{message}");
    }

    /// A file as another program writes it: the names end with a line break, the logits are of another type.
    fn foreign(names: &str, classes: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> String {
        let tensors = [
            ("names", TensorView::new(Dtype::U8, vec![names.len()], names.as_bytes()).unwrap()),
            (
                "classes",
                TensorView::new(Dtype::U8, vec![classes.len()], classes.as_bytes()).unwrap(),
            ),
            ("logits", TensorView::new(dtype, shape.to_vec(), data).unwrap()),
        ];
        parse(&safetensors::serialize(tensors, None).unwrap())
            .map_or_else(|error| error, |found| format!("{found:?}"))
    }

    #[test]
    fn other_programs_files_are_read_and_wrong_ones_are_refused_by_what_is_wrong() {
        let half: Vec<u8> =
            [1.5f32, -2.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let wide: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (dtype, data) in [(Dtype::F16, &half), (Dtype::F64, &wide)] {
            let found = foreign("a\n", "x\ny\n", dtype, &[1, 2], data);
            assert!(found.contains("names: [\"a\"]") && found.contains("[1.5, -2.0]"), "{found}");
        }
        for (names, classes, dtype, shape, expected) in [
            ("a\na", "x", Dtype::F16, [2, 1], "`names` has \"a\" on the lines 1 and 2"),
            (
                "a\nb",
                "x\ny",
                Dtype::F16,
                [1, 2],
                "shape [1, 2]; expected [2, 2], for there are 2 names",
            ),
            ("a", "x\ny", Dtype::I16, [1, 2], "`logits` is I16; expected F32, F16 or F64"),
        ] {
            let found = foreign(names, classes, dtype, &shape, &half);
            assert!(found.contains(expected), "{found}");
        }
        let nan: Vec<u8> = [1.5f64, f64::INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
        let found = foreign("a", "x\ny", Dtype::F64, &[1, 2], &nan);
        assert!(found.contains("the logit of \"a\" for class \"y\" is inf"), "{found}");
        assert!(parse(b"x").unwrap_err().contains("no whole safetensors file"));
        let none = TensorView::new(Dtype::F16, vec![1, 2], &half).unwrap();
        let bytes = safetensors::serialize([("logits", none)], None).unwrap();
        assert!(parse(&bytes).unwrap_err().contains("no tensor `names`, but logits"));
    }
}
