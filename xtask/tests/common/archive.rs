//! Archives, good and bad.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use tar::{Builder, EntryType, Header};

pub const FOLDER: &str = "cifar-10-batches-bin";
pub const BATCH: u64 = 30_730_000;

/// One entry, its header written as it is, valid or not.
pub struct Entry {
    pub path: String,
    pub kind: EntryType,
    pub link: &'static str,
    /// What the header says; the content is as long, of zeros, unless `content` is given.
    pub size: u64,
    pub content: Option<Vec<u8>>,
}

pub fn file(path: &str, size: u64) -> Entry {
    Entry { path: path.into(), kind: EntryType::Regular, link: "", size, content: None }
}

pub fn with(path: &str, content: &[u8]) -> Entry {
    Entry { content: Some(content.to_vec()), ..file(path, content.len() as u64) }
}

/// The entries of a whole CIFAR-10 archive with black pictures.
pub fn cifar10() -> Vec<Entry> {
    let batch = |name: &str| file(&format!("{FOLDER}/{name}"), BATCH);
    let mut entries: Vec<_> = (1..6).map(|i| batch(&format!("data_batch_{i}.bin"))).collect();
    entries.push(batch("test_batch.bin"));
    let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    entries.push(with(&format!("{FOLDER}/batches.meta.txt"), names.as_bytes()));
    entries
}

pub fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for entry in entries {
        let mut header = Header::new_gnu();
        // Not through `set_path`, which refuses what these tests are about.
        let name = &mut header.as_old_mut().name;
        name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(entry.size);
        header.set_mode(0o644);
        header.set_cksum();
        match &entry.content {
            Some(content) => tar.append(&header, content.as_slice()).unwrap(),
            None => {
                tar.append(&header, std::io::Read::take(std::io::repeat(0), entry.size)).unwrap()
            }
        }
    }
    tar.into_inner().unwrap().finish().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
