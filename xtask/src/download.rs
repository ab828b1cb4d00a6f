//! One file over HTTP: goes on where it broke off, and never takes a part for the whole; shown as it arrives.

use std::path::Path;

pub use kd_fetch::download::Patience;
use kd_fetch::download::{self, Request, Seen};

use crate::progress::Progress;

/// No archive that is asked for comes near this, so a server that never ends is cut off here.
const MOST_BYTES: u64 = 1 << 30;

/// Brings the file at `url` to `path`, going on with what lies there from an earlier download,
/// and says whether there was any. With `bytes` known, a file of another length is an error.
///
/// What lies at `path` after an error is a part to go on with; the caller compares checksums.
/// A server that has never answered is not asked twice, so an absent network is noticed at once.
pub fn download(
    url: &str,
    bytes: Option<u64>,
    path: &Path,
    patience: &Patience,
) -> anyhow::Result<bool> {
    let request = Request {
        url,
        bytes,
        whose_bytes: "the published archive",
        most: MOST_BYTES,
        path,
        patience,
        user_agent: concat!("kd-xtask/", env!("CARGO_PKG_VERSION")),
        without_network: "Without a network: put the archive on this machine and name it with --archive FILE, or name a mirror with --url URL",
        otherwise: "another address is given with --url URL, an archive on this machine with --archive FILE",
    };
    let name = url.rsplit('/').next().unwrap_or(url);
    let mut shown: Option<(Option<u64>, Progress)> = None;
    download::download(&request, &mut |seen| match seen {
        Seen::Arrived(have, total) => {
            // Another attempt, which may be told another length, has a bar of its own.
            if shown.as_ref().is_none_or(|(of, _)| *of != total) {
                shown = Some((total, Progress::new(name, total)));
            }
            if let Some((_, progress)) = &mut shown {
                progress.set(have);
            }
        }
        Seen::Said(sentence) => {
            shown = None;
            eprintln!("{sentence}");
        }
    })
}
