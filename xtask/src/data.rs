//! `cargo xtask data`: a published data set in a folder, whole or not at all.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::checksum::{self, Checksums, Sha256Hex};
use crate::download::{self, Patience};
use crate::published::{Archive, Dataset};
use crate::unpack;
use crate::workspace;

#[derive(clap::Args)]
pub struct Args {
    /// Which data set
    #[arg(long, value_enum, default_value_t = Dataset::Cifar10)]
    dataset: Dataset,
    /// Where data sets go [default: data/ in the checkout]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Take the archive from this machine, download nothing
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    archive: Option<PathBuf>,
    /// What the archive must hash to, instead of the published MD5
    #[arg(long, value_name = "HEX")]
    sha256: Option<Sha256Hex>,
    #[command(flatten)]
    network: Network,
}

/// How to download.
#[derive(clap::Args, Clone, Default)]
pub struct Network {
    /// A mirror of the archive
    #[arg(long)]
    pub url: Option<String>,
    /// Seconds that a server has to answer in [default: 8]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub connect_timeout: Option<Duration>,
    /// Seconds without a byte after which a download is broken off and tried again [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub stall_timeout: Option<Duration>,
    /// Attempts in a row that bring nothing new before it gives up [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub attempts: Option<u32>,
    /// Seconds before the second attempt, doubled before each further one [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub retry_wait: Option<Duration>,
    /// Whether one can do without the data: a server that has sent nothing is asked once.
    #[arg(skip)]
    pub dispensable: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("a number of seconds above 0 is expected".into()),
    }
}

impl Network {
    fn patience(&self) -> Patience {
        let default = Patience::default();
        let attempts = self.attempts.unwrap_or(default.attempts);
        Patience {
            connect: self.connect_timeout.unwrap_or(default.connect),
            stall: self.stall_timeout.unwrap_or(default.stall),
            attempts,
            first_attempts: if self.dispensable { 1 } else { attempts },
            retry_wait: self.retry_wait.unwrap_or(default.retry_wait),
        }
    }
}

/// Where the archive comes from.
pub enum Origin {
    /// The authors' site or a mirror.
    Download(Network),
    File(PathBuf),
}

pub fn command(args: &Args) -> anyhow::Result<()> {
    let data = args.data.clone().unwrap_or_else(default_folder);
    let origin = match &args.archive {
        Some(file) => Origin::File(file.clone()),
        None => Origin::Download(args.network.clone()),
    };
    obtain(args.dataset, &data, &origin, args.sha256.as_ref()).map(drop)
}

pub fn default_folder() -> PathBuf {
    workspace::root().join("data")
}

/// What is known of the data beside it, in `source.json`: a warning there goes into reports.
#[derive(Serialize, Deserialize)]
struct Source {
    format: u32,
    dataset: String,
    /// The archive's file name.
    archive: String,
    /// Where it was downloaded from; null for one that was on this machine.
    url: Option<String>,
    bytes: u64,
    md5: String,
    sha256: String,
    published_md5: String,
    /// Why the data may not be what was published; null where the archive's checksum is as it should be.
    warning: Option<String>,
}

const SOURCE: &str = "source.json";
const SOURCE_FORMAT: u32 = 1;

/// The folder with the data set's files if `data` holds it, or is it, with every file as long as
/// it should be. (Their contents are checked by whoever reads them.)
pub fn find(data: &Path, dataset: Dataset) -> Option<PathBuf> {
    let archive = dataset.archive();
    let whole = |folder: &PathBuf| {
        archive.files.iter().filter(|file| file.size.needed()).all(|file| {
            let found = fs::metadata(folder.join(file.name));
            found.is_ok_and(|found| found.is_file() && file.size.allows(found.len()))
        })
    };
    [data.join(archive.folder), data.to_path_buf()].into_iter().find(whole)
}

/// Makes sure that `data` holds the data set and returns the folder of its files. Two of these at
/// a time wait for each other.
pub fn obtain(
    dataset: Dataset,
    data: &Path,
    origin: &Origin,
    sha256: Option<&Sha256Hex>,
) -> anyhow::Result<PathBuf> {
    let archive = dataset.archive();
    if let Origin::File(file) = origin {
        ensure!(file.is_file(), "there is no archive {}", file.display());
    }
    if let Some(folder) = present(data, dataset, origin, sha256)? {
        return Ok(folder);
    }
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    let _lock = lock(data, archive)?;
    // Another process may have brought it meanwhile.
    if let Some(folder) = present(data, dataset, origin, sha256)? {
        return Ok(folder);
    }
    let target = match origin {
        Origin::File(file) => {
            let sums = checksum::of_file(file)?;
            let warning = judge(archive, &sums, origin, sha256)?;
            if let Some(warning) = &warning {
                eprintln!("warning: {warning}");
            }
            install(archive, data, file, &source(archive, origin, &sums, warning))?
        }
        Origin::Download(network) => {
            let part = data.join(format!("{}.part", archive.file));
            let sums = fetch(archive, &part, network, sha256)?;
            let folder = install(archive, data, &part, &source(archive, origin, &sums, None))?;
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
            folder
        }
    };
    println!("{} is in {}", archive.title, workspace::short(&target));
    Ok(target)
}

/// What is there already, if it is what is asked for; an error if it is something else.
fn present(
    data: &Path,
    dataset: Dataset,
    origin: &Origin,
    sha256: Option<&Sha256Hex>,
) -> anyhow::Result<Option<PathBuf>> {
    let Some(folder) = find(data, dataset) else { return Ok(None) };
    let asked = match (origin, sha256) {
        (_, Some(sha256)) => Some(sha256.0.clone()),
        (Origin::File(file), None) => Some(checksum::of_file(file)?.sha256),
        (Origin::Download(_), None) => None,
    };
    let shown = workspace::short(&folder);
    let source = read_source(&folder);
    if let Some(asked) = asked {
        let had = source.as_ref().map(|source| source.sha256.as_str());
        ensure!(
            had == Some(&asked),
            "{shown} holds {} from another archive (SHA-256 {}, asked for {asked}): move it away \
             first, or name another folder with --data",
            dataset.archive().title,
            had.unwrap_or("unknown"),
        );
    }
    println!("{} is in {shown} already", dataset.archive().title);
    if let Some(warning) = source.and_then(|source| source.warning) {
        eprintln!("warning: {warning}");
    }
    Ok(Some(folder))
}

fn read_source(folder: &Path) -> Option<Source> {
    let text = fs::read(folder.join(SOURCE)).ok()?;
    let source: Source = serde_json::from_slice(&text).ok()?;
    (source.format == SOURCE_FORMAT).then_some(source)
}

/// Held until dropped, or until the process ends in whatever way.
fn lock(data: &Path, archive: &Archive) -> anyhow::Result<File> {
    let path = data.join(format!(".{}.lock", archive.name));
    let locking = || format!("cannot lock {}", path.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(locking)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!(
                "another process is bringing {} into {}; waiting for it",
                archive.title,
                workspace::short(data)
            );
            file.lock().with_context(locking)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(locking),
    }
    Ok(file)
}

/// Downloads to `part` until the checksum is right: a part left by an earlier download may be of
/// another file, so a wrong sum after going on from one means to start over, once.
fn fetch(
    archive: &Archive,
    part: &Path,
    network: &Network,
    sha256: Option<&Sha256Hex>,
) -> anyhow::Result<Checksums> {
    let url = network.url.as_deref().unwrap_or(archive.url);
    let bytes = sha256.is_none().then_some(archive.bytes);
    let patience = network.patience();
    loop {
        let downloaded = download::download(url, bytes, part, &patience);
        if downloaded.is_err() && fs::metadata(part).is_ok_and(|part| part.len() == 0) {
            // The download's error matters more than an empty file that stays.
            let _ = fs::remove_file(part);
        }
        let resumed = downloaded?;
        let sums = checksum::of_file(part)?;
        let Err(error) = judge(archive, &sums, &Origin::Download(network.clone()), sha256) else {
            return Ok(sums);
        };
        fs::remove_file(part).with_context(|| format!("cannot remove {}", part.display()))?;
        if !resumed {
            return Err(error);
        }
        eprintln!("{error:#}; starting over");
    }
}

/// An error if the archive must not be used, a warning if it may.
fn judge(
    archive: &Archive,
    sums: &Checksums,
    origin: &Origin,
    sha256: Option<&Sha256Hex>,
) -> anyhow::Result<Option<String>> {
    let name = match origin {
        Origin::File(file) => file.display().to_string(),
        Origin::Download(network) => network.url.as_deref().unwrap_or(archive.url).to_owned(),
    };
    if let Some(Sha256Hex(expected)) = sha256 {
        ensure!(
            sums.sha256 == *expected,
            "{name} has SHA-256 {}, expected {expected}: this is another file",
            sums.sha256
        );
        return Ok(None);
    }
    if sums.md5 == archive.md5 && sums.bytes == archive.bytes {
        return Ok(None);
    }
    let found = format!(
        "{} bytes and MD5 {}; the published {} has {} bytes and MD5 {}",
        sums.bytes, sums.md5, archive.file, archive.bytes, archive.md5
    );
    match origin {
        Origin::Download(_) => bail!("{name} has {found}: this is another file"),
        Origin::File(_) => Ok(Some(format!(
            "the archive has {found}: these may not be the published {} images",
            archive.title
        ))),
    }
}

fn source(archive: &Archive, origin: &Origin, sums: &Checksums, warning: Option<String>) -> Source {
    let (name, url) = match origin {
        // Only the name: where it lay on this machine is nobody's business later.
        Origin::File(file) => (file.file_name().map(|name| name.to_string_lossy().into()), None),
        Origin::Download(network) => (
            Some(archive.file.to_owned()),
            Some(network.url.as_deref().unwrap_or(archive.url).to_owned()),
        ),
    };
    Source {
        format: SOURCE_FORMAT,
        dataset: archive.name.into(),
        archive: name.unwrap_or_default(),
        url,
        bytes: sums.bytes,
        md5: sums.md5.clone(),
        sha256: sums.sha256.clone(),
        published_md5: archive.md5.into(),
        warning,
    }
}

/// Unpacks beside the place where the files are to lie and renames the folder when it is whole.
fn install(
    archive: &Archive,
    data: &Path,
    packed: &Path,
    source: &Source,
) -> anyhow::Result<PathBuf> {
    let target = data.join(archive.folder);
    if target.exists() {
        only_ours(archive, &target)?;
    }
    let aside = data.join(format!(".{}.unpacking", archive.folder));
    remove_folder(&aside)?;
    fs::create_dir(&aside).with_context(|| format!("cannot make {}", aside.display()))?;
    let unpacked = unpack_into(archive, packed, source, &aside)
        .with_context(|| format!("cannot unpack {}", packed.display()));
    if let Err(error) = unpacked {
        remove_folder(&aside)?;
        return Err(error);
    }
    let replaced = data.join(format!(".{}.replaced", archive.folder));
    remove_folder(&replaced)?;
    if target.exists() {
        rename(&target, &replaced)?;
    }
    rename(&aside, &target)?;
    sync_folder(data)?;
    remove_folder(&replaced)?;
    Ok(target)
}

fn unpack_into(
    archive: &Archive,
    packed: &Path,
    source: &Source,
    folder: &Path,
) -> anyhow::Result<()> {
    let file = File::open(packed).context("cannot read it")?;
    unpack::unpack(std::io::BufReader::with_capacity(1 << 18, file), archive, folder)?;
    let path = folder.join(SOURCE);
    let text = serde_json::to_string_pretty(source)? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    File::open(&path).and_then(|file| file.sync_all()).context("cannot flush it")?;
    sync_folder(folder)
}

/// A damaged copy is replaced, but only if nothing of anybody else lies in its folder.
fn only_ours(archive: &Archive, folder: &Path) -> anyhow::Result<()> {
    let reading = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let name = entry.with_context(reading)?.file_name();
        let ours = name == SOURCE || archive.files.iter().any(|file| name == file.name);
        ensure!(
            ours,
            "{} is no whole {} and holds {} besides: move it away first",
            folder.display(),
            archive.title,
            name.display()
        );
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to)
        .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

fn remove_folder(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A rename is on disk once its folder is; only Unix opens folders as files.
fn sync_folder(path: &Path) -> anyhow::Result<()> {
    if cfg!(unix) {
        let flushed = File::open(path).and_then(|folder| folder.sync_all());
        flushed.with_context(|| format!("cannot flush {}", path.display()))?;
    }
    Ok(())
}
