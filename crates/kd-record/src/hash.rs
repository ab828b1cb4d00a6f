//! SHA-256, by which weights and data are known.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A hash as 64 hexadecimal digits in lower case.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of the contents of a file, as 64 hexadecimal digits.
///
/// # Errors
/// When it can't be read, or is no regular file: a device may never end.
pub fn sha256(path: &Path) -> Result<String> {
    let failed = |cause| Error::io(path, "can't be read")(cause);
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::corrupt(path, None, "it is not a regular file"));
    }
    std::io::copy(&mut file, &mut HashWriter(&mut hash)).map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_file_is_sha256sums() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).unwrap(), expected);
        assert!(sha256(folder.path()).is_err());
    }
}
