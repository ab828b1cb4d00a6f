//! Names of several files in one text, as WebDataset writes them: `train-{000..015}.tar`, `{a,b}.tar`, `train/*.tar`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::one_line::shown;
use crate::{Error, Result};

/// The most files that a pattern may name.
const MOST: usize = 1_000_000;
/// The most bytes of a pattern, so that what it stands for fits into memory and its braces into the stack.
const LONGEST: usize = 4096;
/// The most bytes of all names together.
const MOST_BYTES: usize = 256 << 20;
/// The most digits of a range's ends.
const MOST_DIGITS: usize = 20;

/// The files in `dir` that `pattern` names, relative to `dir`: numbers in their order, `*` in the order of the names. Braces may hold
/// a range of numbers, which have as many digits as its ends, or texts with commas between; `*` may be in the last part of the path.
///
/// # Errors
/// When the pattern makes no sense, `*` finds no file, or it names more than a million files.
pub(super) fn files(dir: &Path, pattern: &str, field: &'static str) -> Result<Vec<PathBuf>> {
    let wrong = |expected: &str| Error::Config {
        field,
        found: format!("{pattern:?}"),
        expected: expected.into(),
    };
    if pattern.len() > LONGEST {
        let found = format!("{} bytes long", pattern.len());
        let expected = format!("a pattern of at most {LONGEST} bytes");
        return Err(Error::Config { field, found, expected });
    }
    let names = expanded(pattern).ok_or_else(|| {
        wrong("braces around a range such as {000..015} of at most 20 digits, the smaller number first, or around texts with commas between, and at most a million files with 256 MiB of names")
    })?;
    let mut files = Vec::new();
    for name in names {
        let path = PathBuf::from(&name);
        let last = path.file_name().and_then(|last| last.to_str()).unwrap_or_default();
        let Some((begin, end)) = last.split_once('*') else {
            files.push(path);
            continue;
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let folder = dir.join(above);
        let io = |source| Error::Io { path: folder.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let is_meant = name.to_str().is_some_and(|name| {
                let fits = name.len() >= begin.len() + end.len();
                fits && name.starts_with(begin) && name.ends_with(end) && !name.starts_with('.')
            });
            if is_meant {
                found.push(above.join(name));
            }
        }
        if found.is_empty() {
            return Err(Error::Missing {
                path: dir.join(&path),
                expected: format!("at least one file for the pattern {pattern:?}"),
                advice: format!(
                    "give the folder and the names of the shards, such as \"train-{{000..015}}.tar\" in {}",
                    shown(dir)
                ),
            });
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// The texts that a pattern with braces stands for; `None` where it makes no sense.
fn expanded(pattern: &str) -> Option<Vec<String>> {
    let Some(open) = pattern.find('{') else {
        return (!pattern.contains('}') && !pattern.is_empty()).then(|| vec![pattern.to_owned()]);
    };
    let (before, rest) = (&pattern[..open], &pattern[open + 1..]);
    let close = rest.find('}')?;
    let (inside, behind) = (&rest[..close], &rest[close + 1..]);
    if before.contains('}') || inside.contains('{') {
        return None;
    }
    let choices: Vec<String> = match inside.split_once("..") {
        None => inside.split(',').map(str::to_owned).collect(),
        Some((first, last)) => {
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(first) || !digits(last) || first.len().max(last.len()) > MOST_DIGITS {
                return None;
            }
            let [from, to]: [usize; 2] = [first.parse().ok()?, last.parse().ok()?];
            if from > to || to - from >= MOST {
                return None;
            }
            let width = first.len();
            (from..=to).map(|number| format!("{number:0width$}")).collect()
        }
    };
    let behind = match behind.is_empty() {
        true => vec![String::new()],
        false => expanded(behind)?,
    };
    let count = choices.len().checked_mul(behind.len())?;
    if count > MOST || count.checked_mul(pattern.len())? > MOST_BYTES {
        return None;
    }
    let joined = choices
        .iter()
        .flat_map(|choice| behind.iter().map(move |behind| format!("{before}{choice}{behind}")));
    Some(joined.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_ranges_and_lists() {
        let of = |pattern: &str| expanded(pattern).map(|names| names.join(" "));
        assert_eq!(of("a.tar").as_deref(), Some("a.tar"));
        assert_eq!(
            of("s/{008..011}.tar").as_deref(),
            Some("s/008.tar s/009.tar s/010.tar s/011.tar")
        );
        assert_eq!(of("{9..10}").as_deref(), Some("9 10"));
        assert_eq!(of("{a,b}-{0..1}.tar").as_deref(), Some("a-0.tar a-1.tar b-0.tar b-1.tar"));
        for wrong in
            ["", "{", "a}", "{3..1}", "{a..b}", "{{1..2}", "{0..9999999}", "{0..1999}{0..1999}"]
        {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let zeros = "0".repeat(70_000);
        assert_eq!(of(&format!("{{{zeros}..{zeros}}}")), None);
        assert_eq!(of(&format!("{}{{0..999999}}", "a".repeat(300))), None);
        let deep = "{a}".repeat(100_000);
        let message = files(Path::new(""), &deep, "train_shards").unwrap_err().to_string();
        assert!(
            message.contains("300000 bytes long; expected a pattern of at most 4096"),
            "{message}"
        );
    }

    #[test]
    fn a_star_finds_files_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.tar", "c.txt", ".a.tar"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = files(dir.path(), "*.tar", "train_shards").unwrap();
        assert_eq!(found, [PathBuf::from("a.tar"), PathBuf::from("b.tar")]);
        let message = files(dir.path(), "x*.tar", "train_shards").unwrap_err().to_string();
        assert!(message.contains("x*.tar: not found; expected at least one file"), "{message}");
        let message = files(dir.path(), "{2..1}", "train_shards").unwrap_err().to_string();
        assert!(message.contains("train_shards is \"{2..1}\"; expected braces"), "{message}");
    }
}
