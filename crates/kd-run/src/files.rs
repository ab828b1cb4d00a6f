//! Files that are whole or absent.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// Writes `path` through `write`: aside in the same folder, flushed to disk, then renamed, so that
/// nobody ever sees half of it and a failure leaves what was there.
pub(crate) fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> anyhow::Result<()> {
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
    attempt().map_err(|error| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&aside);
        anyhow::Error::new(error).context(format!("{}: can't be written", path.display()))
    })
}

/// [`write_whole_with`] of bytes that are at hand.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
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
pub(crate) fn read_json(path: &Path) -> anyhow::Result<serde_json::Value> {
    let bytes = fs::read(path).with_context(|| format!("{}: can't be read", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: no JSON", path.display()))
}

pub(crate) fn create_folder(path: &Path) -> anyhow::Result<()> {
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

/// Takes the lock of a folder, which lasts until the file is dropped or the process ends in
/// whatever way. Without `wait`, a folder in use is an error.
pub(crate) fn lock(folder: &Path, wait: bool) -> anyhow::Result<File> {
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

/// A hash as 64 hexadecimal digits.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file's contents.
pub(crate) fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let reading = || format!("{}: can't be read", path.display());
    let mut file = File::open(path).with_context(reading)?;
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
