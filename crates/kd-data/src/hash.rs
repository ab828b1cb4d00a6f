//! Hashes as text.

use sha2::{Digest, Sha256};

/// A finished SHA-256 in hex.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
