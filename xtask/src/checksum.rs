//! MD5, which the authors publish, and SHA-256 of a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context;
use md5::{Digest, Md5};
use sha2::Sha256;

/// Length and checksums of a file, the latter in lowercase hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checksums {
    pub bytes: u64,
    pub md5: String,
    pub sha256: String,
}

/// Reads the file once.
pub fn of_file(path: &Path) -> anyhow::Result<Checksums> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let (mut md5, mut sha256) = (Md5::new(), Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer).with_context(reading)?;
        if read == 0 {
            break;
        }
        md5.update(&buffer[..read]);
        sha256.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok(Checksums { bytes, md5: hex(&md5.finalize()), sha256: hex(&sha256.finalize()) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A SHA-256 as given on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sha256Hex(pub String);

impl FromStr for Sha256Hex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim().to_ascii_lowercase();
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err("a SHA-256 is 64 hexadecimal digits, as `sha256sum FILE` prints it".into());
        }
        Ok(Sha256Hex(digits))
    }
}
