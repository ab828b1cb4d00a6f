//! Shards that are packed with gzip, unpacked to temporary files: pictures are read in any order, which no packed file allows.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// Unpacks a shard to a file that nobody else sees and that is gone with the process. Also gives its length.
///
/// # Errors
/// When the shard can't be read or is no gzip file, and where there is no room for it.
pub(super) fn unpack(path: &Path) -> Result<(File, u64)> {
    let packed = File::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let folder = std::env::temp_dir();
    let aside = |source| Error::Io { path: folder.clone(), source };
    let mut file = nameless(&folder).map_err(aside)?;
    let mut decoder = MultiGzDecoder::new(BufReader::new(packed));
    let mut buffer = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        let read = io::Read::read(&mut decoder, &mut buffer).map_err(|error| Error::Malformed {
            path: path.into(),
            offset: 0,
            found: format!("what can't be unpacked: {error}"),
            expected: "a whole gzip file".into(),
            advice: "fetch or write the shard again".into(),
        })?;
        if read == 0 {
            return Ok((file, len));
        }
        file.write_all(&buffer[..read]).map_err(|source| {
            let reason = format!(
                "{} can't be unpacked here after {len} bytes ({source}): set TMPDIR to a folder with more room, or unpack the shards",
                path.display()
            );
            Error::Io { path: folder.clone(), source: io::Error::new(source.kind(), reason) }
        })?;
        len += read as u64;
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
