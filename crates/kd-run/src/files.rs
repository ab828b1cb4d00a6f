//! Files that are whole or absent.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// Writes `path` through `write`: aside in the same folder, flushed to disk, then renamed, so that
/// nobody ever sees half of it and a failure leaves what was there.
pub(crate) fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    write_aside(path, write).with_context(|| format!("{}: can't be written", path.display()))
}

/// [`write_whole_with`], and the system's own error.
pub(crate) fn write_aside(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let aside = path.with_file_name(name);
    let attempt = || {
        let mut file = File::create(&aside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_folder(path)
    };
    // The first error is the one to tell.
    attempt().inspect_err(|_| _ = fs::remove_file(&aside))
}

/// Writes `bytes` to `path`: aside in the same folder, flushed to disk, then renamed, so that nobody ever sees half of it and a
/// failure leaves what was there.
///
/// # Errors
/// When the file can't be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_whole_with(path, |file| file.write_all(bytes))
}

/// Makes the new name of a file in this folder last.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        // Folders can be opened, and so flushed, on Unix only.
        Some(folder) if cfg!(unix) => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder)?.sync_all()
        }
        _ => Ok(()),
    }
}

/// Reads a JSON file.
///
/// # Errors
/// When it can't be read or is no JSON.
pub fn read_json(path: &Path) -> anyhow::Result<serde_json::Value> {
    let bytes = fs::read(path).with_context(|| format!("{}: can't be read", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: no JSON", path.display()))
}

/// Makes a folder, and those above it, if it is not there.
///
/// # Errors
/// When it can't be made.
pub fn create_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("{}: the folder can't be made", path.display()))
}

/// Removes what a killed process left half-written in `folder`. Only with the folder locked.
pub(crate) fn remove_partial(folder: &Path) -> anyhow::Result<()> {
    let reading = || format!("{}: the folder can't be read", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            fs::remove_file(&path)
                .with_context(|| format!("{}: can't be removed", path.display()))?;
        }
    }
    Ok(())
}

/// Removes what killed processes left of writing `path`. Only where nobody else can be writing it.
///
/// # Errors
/// When the folder can't be read, or a file in it can't be removed.
pub fn remove_partial_of(path: &Path) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let start = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let reading = || format!("{}: the folder can't be read", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let found = entry.with_context(reading)?.path();
        let name = found.file_name().unwrap_or_default().to_string_lossy();
        let middle = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(".partial"));
        if middle.is_some_and(|process| process.bytes().all(|byte| byte.is_ascii_digit())) {
            fs::remove_file(&found)
                .with_context(|| format!("{}: can't be removed", found.display()))?;
        }
    }
    Ok(())
}

/// A text file of at most `most` bytes: one that never ends is not read for ever.
pub(crate) fn read_text(path: &Path, most: u64) -> std::io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if read as u64 > most {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("it has more than {most} bytes"),
        ));
    }
    Ok(text)
}

/// Takes the lock of a folder, which lasts until the file is dropped or the process ends in
/// whatever way.
///
/// # Errors
/// When it can't be locked; without `wait`, also when another process holds the lock.
pub fn lock(folder: &Path, wait: bool) -> anyhow::Result<File> {
    let path = folder.join(".lock");
    let locking = || format!("{}: can't be locked", path.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(locking)?;
    if wait {
        file.lock().with_context(locking)?;
        return Ok(file);
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => anyhow::bail!(
            "{}: another kd process is using this folder; wait for it to end, or choose another --out",
            folder.display()
        ),
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(locking),
    }
}

/// Seconds since 1970, to the millisecond.
pub(crate) fn unix_seconds() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_millis() as f64 / 1e3)
}

/// A hash as 64 hexadecimal digits.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file's contents, as 64 hexadecimal digits.
///
/// # Errors
/// When it can't be read, or is no regular file.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let reading = || format!("{}: can't be read", path.display());
    let mut file = File::open(path).with_context(reading)?;
    // A device may never end.
    let about = file.metadata().with_context(reading)?;
    anyhow::ensure!(about.is_file(), "{}: it is not a regular file", path.display());
    std::io::copy(&mut file, &mut HashWriter(&mut hash)).with_context(reading)?;
    Ok(hex(hash))
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file as seen from a run's folder below `out`, if it lies below `out` too: both may then move
/// together. Otherwise the whole path.
pub(crate) fn from_run_folder(file: &Path, out: &Path) -> anyhow::Result<PathBuf> {
    let whole = |path: &Path| {
        path.canonicalize().with_context(|| format!("{}: can't be found", path.display()))
    };
    let file = whole(file)?;
    Ok(match file.strip_prefix(whole(out)?) {
        Ok(below) => Path::new("..").join(below),
        Err(_) => file,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_killed_process_left_of_this_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a.bin", "a.bin.7.partial", "a.bin.x.partial", "ba.bin.7.partial", "a.bin.7"] {
            fs::write(path(name), name).unwrap();
        }
        remove_partial_of(&path("a.bin")).unwrap();
        assert!(!path("a.bin.7.partial").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
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
        let message = format!("{:#}", error.unwrap_err());
        assert!(message.contains("a.bin: can't be written: no storage space"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_text_that_never_ends_is_not_read_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        let message = read_text(&path, 4).unwrap_err().to_string();
        assert!(message.contains("more than 4 bytes"), "{message}");
    }
}
