//! What a repository of a model hub holds, as its API lists it (`/api/models/OWNER/NAME/revision/REVISION?blobs=true`).

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use ureq::Agent;

use crate::address::HubAddress;
use crate::download::Patience;

/// A repository at one commit.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    /// The commit that the revision stands for.
    pub(crate) sha: String,
    #[serde(rename = "siblings")]
    pub(crate) files: Vec<Listed>,
}

/// A file of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Listed {
    #[serde(rename = "rfilename")]
    pub(crate) name: String,
    /// Its length in bytes.
    pub(crate) size: Option<u64>,
    /// What large files have.
    pub(crate) lfs: Option<Lfs>,
}

/// The checksum of a large file.
#[derive(Debug, Deserialize)]
pub(crate) struct Lfs {
    pub(crate) sha256: String,
}

/// The most bytes of a listing.
const MOST: u64 = 32 << 20;

/// Weights, in the order in which a repository's are looked for.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// What is said about them.
const CONFIG: &str = "config.json";

/// Why a listing could not be had.
pub(crate) enum NoListing {
    /// The hub did not answer.
    Unreachable(String),
    /// It answered that there is none, or something else than one.
    Refused(anyhow::Error),
}

/// Asks the hub at `endpoint` what a repository holds.
pub(crate) fn listing(
    endpoint: &str,
    address: &HubAddress,
    patience: &Patience,
    user_agent: &str,
) -> Result<Listing, NoListing> {
    let [owner, name] = &address.repository;
    let revision = &address.revision;
    let url = format!("{endpoint}/api/models/{owner}/{name}/revision/{revision}?blobs=true");
    let timeout = Some(patience.connect.saturating_add(Duration::from_secs(30)));
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(patience.connect))
        .timeout_connect(Some(patience.connect))
        .timeout_global(timeout)
        .user_agent(user_agent)
        .build()
        .into();
    let answer = agent.get(&url).call();
    let mut answer = answer.map_err(|error| NoListing::Unreachable(format!("{url}: {error}")))?;
    let status = answer.status();
    let mut read = || -> anyhow::Result<Listing> {
        match status.as_u16() {
            200 => {}
            401 | 403 | 404 => bail!(
                "{url}: the hub answered {status}: there is no such repository or revision, or it is not public; download its files with the hub's own tool and name them"
            ),
            _ => bail!("{url}: the hub answered {status}; try again later"),
        }
        let mut text = Vec::new();
        answer
            .body_mut()
            .as_reader()
            .take(MOST)
            .read_to_end(&mut text)
            .with_context(|| url.clone())?;
        let listing: Listing = serde_json::from_slice(&text)
            .with_context(|| format!("{url}: the answer is no list of a repository's files"))?;
        let is_commit =
            listing.sha.len() >= 8 && listing.sha.chars().all(|c| c.is_ascii_alphanumeric());
        match is_commit {
            true => Ok(listing),
            false => Err(anyhow!("{url}: `{}` is no commit", listing.sha)),
        }
    };
    read().map_err(NoListing::Refused)
}

/// The files that an address means: the one that it names, or the weights first and the config, if there is one.
pub(crate) fn meant<'a>(
    listing: &'a Listing,
    address: &HubAddress,
) -> anyhow::Result<Vec<&'a Listed>> {
    let find = |name: &str| listing.files.iter().find(|file| file.name == name);
    let repository = address.repository.join("/");
    if let Some(name) = &address.file {
        let file = find(name).with_context(|| {
            format!("hf://{repository} has no file {name}; it has {}", names(listing))
        })?;
        return Ok(vec![file]);
    }
    let weights = WEIGHTS.iter().find_map(|name| find(name)).with_context(|| {
        format!(
            "hf://{repository} has neither {} nor {}; name one of its files, hf://{repository}/FILE: it has {}",
            WEIGHTS[0],
            WEIGHTS[1],
            names(listing)
        )
    })?;
    Ok(std::iter::once(weights).chain(find(CONFIG)).collect())
}

/// The names of the files, or of the first of many.
fn names(listing: &Listing) -> String {
    const SHOWN: usize = 12;
    let names: Vec<_> = listing.files.iter().take(SHOWN).map(|file| file.name.as_str()).collect();
    let more = match listing.files.len() {
        0 => "no files".into(),
        all if all > SHOWN => format!(", and {} more", all - SHOWN),
        _ => String::new(),
    };
    names.join(", ") + &more
}
