//! The expected files out of a `.tar.gz`, and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Component, Path};

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;
use tar::EntryType;

use crate::published::{self, Archive};

/// Room for tar's headers and padding, and for small files that are passed over.
const SLACK: u64 = 4 << 20;

/// Writes the files of `archive` that `packed` holds into the existing folder `into`, each whole
/// and on disk before the next. Their names come from `archive` alone: an entry's own path only
/// says which of them it is, so that nothing can be written elsewhere.
///
/// Links, devices, paths that are absolute or lead upwards, files of another size, files twice or
/// missing, a stream that ends early or does not end: errors. Other plain files are passed over.
pub fn unpack(packed: impl Read, archive: &Archive, into: &Path) -> anyhow::Result<()> {
    let contents: u64 = archive.files.iter().map(|file| file.size.most()).sum();
    let mut unzipped = Limited { inner: MultiGzDecoder::new(packed), left: contents + SLACK };
    let mut found = vec![false; archive.files.len()];

    let mut tar = tar::Archive::new(&mut unzipped);
    for entry in tar.entries().context(DAMAGED)? {
        let mut entry = entry.context(DAMAGED)?;
        let path = entry.path().context(DAMAGED)?.into_owned();
        let shown = path.display();
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Directory => {}
            // Written by `git archive` in front of everything; says nothing about a file.
            EntryType::XGlobalHeader => continue,
            EntryType::Symlink | EntryType::Link => {
                bail!("the archive holds a link, `{shown}`: refused")
            }
            other => bail!("the archive holds `{shown}`, neither file nor folder ({other:?})"),
        }
        let Some(names) = plain_names(&path) else {
            bail!("the archive holds `{shown}`, which would lie outside of its folder: refused");
        };
        if entry.header().entry_type() == EntryType::Directory {
            continue;
        }
        let [folder, name] = names[..] else { continue };
        let expected = archive.files.iter().position(|file| file.name == name);
        let Some(index) = expected.filter(|_| folder == archive.folder) else { continue };
        let file = &archive.files[index];
        ensure!(!found[index], "the archive holds `{shown}` twice");
        found[index] = true;
        ensure!(
            file.size.allows(entry.size()),
            "`{shown}` in the archive has {} bytes, expected {}",
            entry.size(),
            file.size
        );
        write(&mut entry, file, into).with_context(|| format!("`{shown}`"))?;
    }
    // What follows the last entry still carries gzip's checksum of all before.
    std::io::copy(&mut unzipped, &mut std::io::sink()).context(DAMAGED)?;

    let missing =
        archive.files.iter().zip(&found).find(|(file, found)| file.size.needed() && !**found);
    if let Some((file, _)) = missing {
        bail!("the archive does not hold {}/{}", archive.folder, file.name);
    }
    Ok(())
}

const DAMAGED: &str = "the archive is damaged or not a .tar.gz";

/// The path's parts if each is a plain name.
fn plain_names(path: &Path) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(names)
}

fn write(entry: &mut impl Read, file: &published::File, into: &Path) -> anyhow::Result<()> {
    let path = into.join(file.name);
    let writing = || format!("cannot write {}", path.display());
    let mut out = File::create_new(&path).with_context(writing)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = entry.read(&mut buffer).context(DAMAGED)?;
        if read == 0 {
            break;
        }
        out.write_all(&buffer[..read]).with_context(writing)?;
    }
    out.sync_all().with_context(writing)?;
    let written = out.metadata().with_context(writing)?.len();
    ensure!(file.size.allows(written), "ends after {written} bytes, expected {}", file.size);
    Ok(())
}

/// A reader that fails, rather than ends, where there is more than allowed.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            std::io::Error::other("it unpacks to far more than the files it should hold")
        })?;
        Ok(read)
    }
}
