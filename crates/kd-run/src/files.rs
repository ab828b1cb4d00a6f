//! What this crate reads and writes goes through kd-record; these are its functions under the names used here.

use std::fs::File;
use std::path::Path;

pub(crate) use kd_record::event::unix_seconds;
pub(crate) use kd_record::hash::{hex, sha256};
pub(crate) use kd_record::read::read_text;
pub(crate) use kd_record::write::{
    create_folder, remove_partial, remove_partial_of, write_whole, write_whole_with,
};

/// Takes the lock of a folder, which lasts until the file is dropped or the process ends in
/// whatever way. Without `wait`, a folder in use is an error.
pub(crate) fn lock(folder: &Path, wait: bool) -> kd_record::Result<File> {
    match wait {
        true => kd_record::lock::wait_for_lock(folder),
        false => kd_record::lock::try_lock(folder),
    }
}
