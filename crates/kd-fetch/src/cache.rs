//! Fetched files in a cache: `hub/OWNER/NAME/COMMIT/FILE` and `web/HOST/PATH`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use kd_record::hash::sha256;
use kd_record::lock::wait_for_lock;
use kd_record::write::write_whole;

use crate::address::{Address, HubAddress, is_file_name};
use crate::download::{Patience, Request, Seen, download};
use crate::hub::{self, NoListing};

/// How files are fetched.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// The folder of the cache. It is made if it is not there.
    pub cache: PathBuf,
    /// The hub: `https://huggingface.co`, or what `HF_ENDPOINT` names, a mirror.
    pub endpoint: String,
    /// SHA-256 of the file, in hexadecimal digits, where it is known beforehand.
    pub sha256: Option<String>,
    /// Ask anew also for what is in the cache.
    pub again: bool,
    /// When to give up.
    pub patience: Patience,
}

impl Default for Fetch {
    fn default() -> Self {
        Self {
            cache: PathBuf::new(),
            endpoint: "https://huggingface.co".into(),
            sha256: None,
            again: false,
            patience: Patience::default(),
        }
    }
}

const USER_AGENT: &str = concat!("kd/", env!("CARGO_PKG_VERSION"));

/// No weights file comes near this.
const MOST_BYTES: u64 = 64 << 30;

/// Where fetched files are kept: `KD_CACHE`, or `kd` in `XDG_CACHE_HOME` or in `~/.cache`.
///
/// # Errors
/// When none of the three is known.
pub fn default_cache() -> anyhow::Result<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let below_home = || of("HOME").map(|home| home.join(".cache/kd"));
    let found = of("KD_CACHE").or_else(|| of("XDG_CACHE_HOME").map(|cache| cache.join("kd")));
    found.or_else(below_home).context(
        "there is no folder for fetched files: neither KD_CACHE, XDG_CACHE_HOME nor HOME is set; name one with --cache FOLDER",
    )
}

/// Fetches what `address` names into the cache, and gives the files' paths: of a hub's repository the weights first. What is there
/// already is not fetched again. `watch` is told what happens.
///
/// # Errors
/// When the address makes no sense, the file can't be had, or is not the one that was expected: its length or SHA-256 differ.
pub fn fetch(
    address: &str,
    config: &Fetch,
    watch: &mut dyn FnMut(Seen),
) -> anyhow::Result<Vec<PathBuf>> {
    if let Some(hash) = &config.sha256 {
        let is_hash = hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit());
        ensure!(is_hash, "--sha256 {hash}: expected the 64 hexadecimal digits of a SHA-256");
    }
    match address.parse().map_err(anyhow::Error::msg)? {
        Address::Web { url, parts, is_open } => {
            ensure!(
                !is_open || config.sha256.is_some(),
                "{url}: nothing would show that the file arrives unchanged; give https://, or its SHA-256 with --sha256"
            );
            let path = parts.iter().fold(config.cache.join("web"), |path, part| path.join(part));
            let file =
                Wanted { url: &url, path: &path, bytes: None, sha256: config.sha256.as_deref() };
            file.bring(config, watch)?;
            Ok(vec![path])
        }
        Address::Hub(address) => from_hub(&address, config, watch),
    }
}

fn from_hub(
    address: &HubAddress,
    config: &Fetch,
    watch: &mut dyn FnMut(Seen),
) -> anyhow::Result<Vec<PathBuf>> {
    let [owner, name] = &address.repository;
    let repository = config.cache.join("hub").join(owner).join(name);
    // What was meant when it was last asked about, for a machine without a network: by the revision alone, and by revision and file.
    let known = match &address.file {
        None => repository.join("revisions").join(&address.revision),
        Some(file) => repository.join("files").join(&address.revision).join(file),
    };
    let endpoint = config.endpoint.trim_end_matches('/');
    let listing = match hub::listing(endpoint, address, &config.patience, USER_AGENT) {
        Ok(listing) => listing,
        Err(NoListing::Refused(error)) => return Err(error),
        Err(NoListing::Unreachable(why)) => {
            let Some(files) = offline(&known, &repository) else {
                bail!(
                    "cannot reach {why}. Without a network: bring the files here otherwise and name them, or name a mirror with HF_ENDPOINT"
                );
            };
            if let (Some(expected), [path]) = (config.sha256.as_deref(), &files[..]) {
                let there = Wanted { url: "", path, bytes: None, sha256: Some(expected) };
                if let Some(how) = there.differs()? {
                    bail!("{}: {how}, and cannot reach {why}", path.display());
                }
            }
            ensure!(
                config.sha256.is_none() || files.len() == 1,
                "--sha256 is of one file; name it: hf://{owner}/{name}/FILE"
            );
            watch(Seen::Said(format!(
                "cannot reach {why}; what was fetched earlier of {} is taken",
                address.revision
            )));
            return Ok(files);
        }
    };
    let meant = hub::meant(&listing, address)?;
    ensure!(
        config.sha256.is_none() || meant.len() == 1,
        "--sha256 is of one file; name it: hf://{owner}/{name}/FILE"
    );
    let folder = repository.join(&listing.sha);
    let mut paths = Vec::new();
    for file in meant {
        let parts = || file.name.split('/');
        ensure!(
            parts().all(is_file_name),
            "hf://{owner}/{name}: `{}` can't be a file's name",
            file.name
        );
        let path = parts().fold(folder.clone(), |path, part| path.join(part));
        let url = format!("{endpoint}/{owner}/{name}/resolve/{}/{}", listing.sha, file.name);
        let listed = file.lfs.as_ref().map(|lfs| lfs.sha256.as_str());
        let sha256 = config.sha256.as_deref().or(listed);
        Wanted { url: &url, path: &path, bytes: file.size, sha256 }.bring(config, watch)?;
        paths.push(path);
    }
    let folder = known.parent().unwrap_or(&repository);
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.strip_prefix(&repository).unwrap_or(path).to_string_lossy())
        .collect();
    write_whole(&known, names.join("\n").as_bytes())?;
    Ok(paths)
}

/// The files that were fetched of a revision, if all are there.
fn offline(known: &Path, repository: &Path) -> Option<Vec<PathBuf>> {
    let names = fs::read_to_string(known).ok()?;
    let paths: Vec<_> = names.lines().map(|name| repository.join(name)).collect();
    (!paths.is_empty() && paths.iter().all(|path| path.is_file())).then_some(paths)
}

/// A file that the cache is to have.
struct Wanted<'a> {
    url: &'a str,
    path: &'a Path,
    bytes: Option<u64>,
    sha256: Option<&'a str>,
}

impl Wanted<'_> {
    /// Brings the file, unless it is there. A part that an earlier download left may be of another file, so a wrong checksum after
    /// going on from one means to start over, once.
    fn bring(&self, config: &Fetch, watch: &mut dyn FnMut(Seen)) -> anyhow::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Two processes would write into one part.
        let _lock = wait_for_lock(folder)?;
        if self.path.exists() && !config.again {
            match self.differs()? {
                None => return Ok(()),
                Some(how) => {
                    watch(Seen::Said(format!("{}: {how}; it is fetched anew", self.path.display())))
                }
            }
        }
        let mut part = self.path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        // Nothing would show that what is there and what comes are of one file.
        if self.bytes.is_none() && self.sha256.is_none() && part.exists() {
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        let request = Request {
            url: self.url,
            bytes: self.bytes,
            whose_bytes: "the hub's list says",
            most: MOST_BYTES,
            path: &part,
            patience: &config.patience,
            user_agent: USER_AGENT,
            without_network: "Without a network: bring the file here otherwise and name it",
            otherwise: "look at the address, or bring the file here otherwise and name it",
        };
        loop {
            let downloaded = download(&request, watch);
            if downloaded.is_err() && fs::metadata(&part).is_ok_and(|part| part.len() == 0) {
                // The download's error matters more than an empty file that stays.
                let _ = fs::remove_file(&part);
            }
            let resumed = downloaded?;
            let arrived = Wanted { path: &part, ..*self };
            let Some(how) = arrived.differs()? else { break };
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
            ensure!(resumed, "{}: {how}: this is another file", self.url);
            watch(Seen::Said(format!("{}: {how}; starting over", self.url)));
        }
        fs::rename(&part, self.path)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// What differs in the file from what is known of it.
    fn differs(&self) -> anyhow::Result<Option<String>> {
        let read = || format!("cannot read {}", self.path.display());
        let len = fs::metadata(self.path).with_context(read)?.len();
        if let Some(bytes) = self.bytes.filter(|bytes| *bytes != len) {
            return Ok(Some(format!("it has {len} bytes, expected {bytes}")));
        }
        if let Some(expected) = self.sha256 {
            let found = sha256(self.path)?;
            if !found.eq_ignore_ascii_case(expected) {
                return Ok(Some(format!("its SHA-256 is {found}, expected {expected}")));
            }
        }
        Ok(None)
    }
}
