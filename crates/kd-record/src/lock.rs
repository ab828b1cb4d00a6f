//! Folders that one process at a time works in.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::{Error, Result, layout};

/// The lock of a folder. It lasts until this is dropped or the process ends, in whatever way.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    /// Closing the file is not enough: a child process that another thread is just starting has a copy of the open file until its
    /// program begins, and the system keeps the lock as long as there is a copy.
    fn drop(&mut self) {
        // Where this fails the file is closed all the same.
        let _ = self.0.unlock();
    }
}

/// Takes the lock of a folder.
///
/// # Errors
/// [`Error::InUse`] when another process has it; when the folder can't be locked at all.
pub fn try_lock(folder: &Path) -> Result<Lock> {
    let (path, file) = open(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { folder: folder.to_owned() }),
        Err(TryLockError::Error(cause)) => Err(Error::io(&path, LOCKING)(cause)),
    }
}

/// The same, and waits while another process has it.
///
/// # Errors
/// When the folder can't be locked.
pub fn wait_for_lock(folder: &Path) -> Result<Lock> {
    let (path, file) = open(folder)?;
    file.lock().map_err(Error::io(&path, LOCKING))?;
    Ok(Lock(file))
}

const LOCKING: &str = "can't be locked";

fn open(folder: &Path) -> Result<(std::path::PathBuf, File)> {
    let path = layout::lock(folder);
    let options = File::options().create(true).truncate(false).write(true).open(&path);
    let file = options.map_err(Error::io(&path, LOCKING))?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_locked_until_the_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let held = try_lock(folder.path()).unwrap();
        assert!(matches!(try_lock(folder.path()), Err(Error::InUse { .. })));
        // As a child process has it that is being started.
        let _copy = held.0.try_clone().unwrap();
        drop(held);
        try_lock(folder.path()).unwrap();
        assert!(matches!(try_lock(&folder.path().join("absent")), Err(Error::Io { .. })));
    }
}
