//! Reading files that somebody else may have put there.

use std::fs::File;
use std::io::{Read, Take};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads a text file of at most `most` bytes: one that never ends is not read for ever.
///
/// # Errors
/// When it can't be read, is no UTF-8, or is longer.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    let mut text = String::new();
    bounded(path, most, |file| file.read_to_string(&mut text))?;
    Ok(text)
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// When it can't be read, or is longer.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bounded(path, most, |file| file.read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// Opens a file and lets `read` read it, at most one byte more than `most`, which is an error.
fn bounded(
    path: &Path,
    most: u64,
    read: impl FnOnce(&mut Take<File>) -> std::io::Result<usize>,
) -> Result<()> {
    let found = File::open(path).and_then(|file| read(&mut file.take(most + 1)));
    let found = found.and_then(|found| match found as u64 > most {
        false => Ok(()),
        true => Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("it has more than {most} bytes"),
        )),
    });
    found.map_err(Error::io(path, "can't be read"))
}

/// The same, where an absent file is a [`Error::Missing`] with this advice.
///
/// # Errors
/// When it is missing, can't be read, is no UTF-8, or is longer.
pub fn read_text_or(path: &Path, most: u64, advice: &'static str) -> Result<String> {
    read_text(path, most).map_err(|error| match error.is_absent() {
        true => Error::Missing { path: path.to_owned(), advice },
        false => error,
    })
}

/// Reads a JSON file of at most `most` bytes; `what` says what it should be ("a summary").
///
/// # Errors
/// When it can't be read, or is something else.
pub fn read_json<T: DeserializeOwned>(path: &Path, most: u64, what: &str) -> Result<T> {
    let text = read_text(path, most)?;
    serde_json::from_str(&text)
        .map_err(|error| Error::corrupt(path, None, format!("not {what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_never_ends_is_not_read_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        let message = read_text(&path, 4).unwrap_err().to_string();
        assert!(message.contains("more than 4 bytes"), "{message}");
        let absent = folder.path().join("absent");
        let message = read_text_or(&absent, 4, "make it").unwrap_err().to_string();
        assert!(message.ends_with("absent: missing; make it"), "{message}");
    }
}
