//! Shards that are packed with gzip, unpacked to temporary files: pictures are read in any order, which no packed file allows.

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

/// Unpacks a shard behind what lies in `aside`, a file that nobody else sees and that is gone with the process; it is made where there is none.
///
/// # Errors
/// When the shard can't be read or is no gzip file, and where there is no room for it.
pub(super) fn unpack(path: &Path, aside: &mut Option<Arc<Mutex<File>>>) -> Result<Unpacked> {
    let packed = File::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let folder = std::env::temp_dir();
    let io = |source| Error::Io { path: folder.clone(), source };
    let shared = match aside {
        Some(shared) => shared,
        None => aside.insert(Arc::new(Mutex::new(nameless(&folder).map_err(io)?))),
    };
    let mut file = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let start = file.seek(SeekFrom::End(0)).map_err(io)?;
    let mut decoder = MultiGzDecoder::new(BufReader::new(packed));
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let read = io::Read::read(&mut decoder, &mut buffer).map_err(|error| Error::Malformed {
            path: path.into(),
            offset: 0,
            found: format!("what can't be unpacked: {error}"),
            expected: "a whole gzip file".into(),
            advice: "fetch or write the shard again".into(),
        })?;
        if read == 0 {
            return Ok(Unpacked { file: Arc::clone(shared), start, bytes });
        }
        file.write_all(&buffer[..read]).map_err(|source| {
            let reason = format!(
                "{} can't be unpacked here after {bytes} bytes ({source}): set TMPDIR to a folder with more room, or unpack the shards",
                path.display()
            );
            Error::Io { path: folder.clone(), source: io::Error::new(source.kind(), reason) }
        })?;
        bytes += read as u64;
    }
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
