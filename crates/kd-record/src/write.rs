//! Files that are whole or absent.
//!
//! A file is written aside in the same folder, under a name that ends in the process's number and `.partial`, flushed to
//! disk and renamed, so that nobody ever sees half of it and a failure leaves what was there. What a killed process leaves is
//! removed by the next one that has the folder to itself.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::layout::PARTIAL;
use crate::{Error, Result};

/// Writes a whole file.
///
/// # Errors
/// When it can't be written; what was there before is still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole_with(path, |file| file.write_all(bytes))
}

/// Writes a whole file through `write`, for contents that are not at hand in one piece.
///
/// # Errors
/// When it can't be written; what was there before is still there.
pub fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{PARTIAL}", std::process::id()));
    let aside = path.with_file_name(name);
    let attempt = || {
        let mut file = File::create(&aside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_folder(path)
    };
    // The first error is the one to report.
    attempt()
        .inspect_err(|_| _ = fs::remove_file(&aside))
        .map_err(Error::io(path, "can't be written"))
}

/// Makes the new name of a file in this folder last.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    // Folders can be opened, and so flushed, on Unix only.
    if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder, and those above it.
///
/// # Errors
/// When it can't be made.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(path, "the folder can't be made"))
}

/// Removes what killed processes left half-written in `folder`. Only with the folder locked.
///
/// # Errors
/// When the folder can't be read, or a file can't be removed.
pub fn remove_partial(folder: &Path) -> Result<()> {
    remove(folder, |path| path.extension().is_some_and(|extension| extension == PARTIAL))
}

/// Removes what killed processes left of writing `path`. Only where nobody else can be writing it.
///
/// # Errors
/// When the folder can't be read, or a file can't be removed.
pub fn remove_partial_of(path: &Path) -> Result<()> {
    let start = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let end = format!(".{PARTIAL}");
    remove(folder_of(path), |found| {
        let name = found.file_name().unwrap_or_default().to_string_lossy();
        let middle = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(&end));
        middle.is_some_and(|process| process.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn remove(folder: &Path, which: impl Fn(&PathBuf) -> bool) -> Result<()> {
    let reading = |cause| Error::io(folder, "the folder can't be read")(cause);
    for entry in fs::read_dir(folder).map_err(reading)? {
        let path = entry.map_err(reading)?.path();
        if which(&path) {
            fs::remove_file(&path).map_err(Error::io(&path, "can't be removed"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_own_half_written_names_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a.bin", "a.bin.7.partial", "a.bin.x.partial", "ba.bin.7.partial", "a.bin.7"] {
            fs::write(path(name), name).unwrap();
        }
        remove_partial_of(&path("a.bin")).unwrap();
        assert!(!path("a.bin.7.partial").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
        remove_partial(folder.path()).unwrap();
        assert!(path("a.bin").exists() && path("a.bin.7").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failed_write_leaves_what_was_there_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_whole(&path, b"before").unwrap();
        let error = write_whole_with(&path, |file| {
            file.write_all(b"half of")?;
            Err(std::io::ErrorKind::StorageFull.into())
        });
        let message = error.unwrap_err().to_string();
        assert!(message.contains("a.bin: can't be written: no storage space"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
