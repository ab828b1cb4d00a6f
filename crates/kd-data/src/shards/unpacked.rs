//! Shards that are packed with gzip, and pictures in Parquet files, unpacked to temporary files: pictures are read in any order, which no packed
//! file allows.

use std::fs::{self, File};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// Where a shard's contents lie unpacked.
pub(super) struct Unpacked {
    /// A file that other shards lie in, too.
    pub(super) file: Arc<Mutex<File>>,
    /// Where in it they begin, in bytes.
    pub(super) start: u64,
    /// Their length in bytes.
    pub(super) bytes: u64,
}

impl Unpacked {
    /// The file, which stands where the contents begin.
    pub(super) fn reader(&self) -> io::Result<File> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner).try_clone()?;
        file.seek(SeekFrom::Start(self.start))?;
        Ok(file)
    }
}

/// The most bytes that a shard may unpack to: so many times its own length, and some more for small ones. Pictures are packed already; a shard
/// that grows beyond this is made to fill a disk.
const MOST_TIMES: u64 = 64;
const MOST_MORE: u64 = 64 << 20;

/// Unpacks a shard behind what lies in `shared`, a file that nobody else sees and that is gone with the process; it is made where there is none.
///
/// # Errors
/// When the shard can't be read or is no gzip file, unpacks to more than 64 times its length and 64 MiB, and where there is no room for it.
pub(super) fn unpack(path: &Path, shared: &mut Option<Arc<Mutex<File>>>) -> Result<Unpacked> {
    let packed = File::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    aside(path, shared, |write| {
        let mut decoder = MultiGzDecoder::new(BufReader::new(packed));
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read =
                io::Read::read(&mut decoder, &mut buffer).map_err(|error| Error::Malformed {
                    path: path.into(),
                    offset: 0,
                    found: format!("what can't be unpacked: {error}"),
                    expected: "a whole gzip file".into(),
                    advice: "fetch or write the shard again".into(),
                })?;
            if read == 0 {
                return Ok(());
            }
            write(&buffer[..read])?;
        }
    })
}

/// Writes what `fill` gives of the shard at `path` behind what lies in `shared`.
///
/// # Errors
/// Those of `fill`, when it is too much for a shard of this length, and where there is no room for it.
pub(super) fn aside(
    path: &Path,
    shared: &mut Option<Arc<Mutex<File>>>,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<Unpacked> {
    let packed = fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let most = packed.len().saturating_mul(MOST_TIMES).saturating_add(MOST_MORE);
    let folder = std::env::temp_dir();
    let io = |source| Error::Io { path: folder.clone(), source };
    let shared = match shared {
        Some(shared) => shared,
        None => shared.insert(Arc::new(Mutex::new(nameless(&folder).map_err(io)?))),
    };
    let mut file = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let start = file.seek(SeekFrom::End(0)).map_err(io)?;
    let mut bytes = 0;
    fill(&mut |contents| {
        if bytes + contents.len() as u64 > most {
            return Err(Error::Malformed {
                path: path.into(),
                offset: 0,
                found: format!("more than {most} bytes unpacked of {} packed ones", packed.len()),
                expected: format!("at most {MOST_TIMES} times as many, and 64 MiB"),
                advice: "unpack the shard yourself, if it is meant".into(),
            });
        }
        file.write_all(contents).map_err(|source| {
            let reason = format!(
                "{} can't be unpacked here after {bytes} bytes ({source}): set TMPDIR to a folder with more room, or unpack the shards",
                path.display()
            );
            Error::Io { path: folder.clone(), source: io::Error::new(source.kind(), reason) }
        })?;
        bytes += contents.len() as u64;
        Ok(())
    })?;
    Ok(Unpacked { file: Arc::clone(shared), start, bytes })
}

/// A new file in `folder` to read and write, without a name where the system can do that.
fn nameless(folder: &Path) -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("kd-shard-{}-{number}", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path)?;
    // An open file outlives its name, but not on every system.
    let _ = fs::remove_file(&path);
    Ok(file)
}
