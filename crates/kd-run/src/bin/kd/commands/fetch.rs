//! `kd fetch`: weights files from the web or a model hub, in a cache.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use kd_fetch::{Fetch as Config, Seen, default_cache, fetch};
use kd_report::text::plain;

use super::print;
use crate::failure::Failure;

const HELP: &str = "\
Examples:
  kd fetch hf://timm/tf_efficientnet_lite0.in1k
  kd fetch https://example.org/teacher.pth --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

It prints the path of the file in the cache, of a repository's that of its weights, beside which its config.json lies:
  kd predict --weights \"$(kd fetch hf://timm/tf_efficientnet_lite0.in1k)\" pictures/

A download goes on where it broke off. The hub's files are checked by the length and the SHA-256 that it lists; what is in
the cache is not fetched again. Without a network what was fetched earlier of a repository is taken.

Environment:
  KD_CACHE       the folder of the cache [default: kd in XDG_CACHE_HOME, or in ~/.cache]
  HF_ENDPOINT    the hub's address, for a mirror [default: https://huggingface.co]";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Fetch {
    /// https://HOST/FILE, or hf://OWNER/NAME[@REVISION][/FILE]
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// The folder of the cache
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// The SHA-256 that the file must have, in hexadecimal digits
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Fetch also what is in the cache
    #[arg(long)]
    again: bool,
}

pub(crate) fn run(flags: &Fetch) -> Result<(), Failure> {
    if flags.sha256.is_some() && flags.addresses.len() > 1 {
        return Err(Failure::Usage("--sha256 is of one file; give one address".into()));
    }
    let cache = flags.cache.clone().map_or_else(default_cache, Ok)?;
    let mut config =
        Config { cache, sha256: flags.sha256.clone(), again: flags.again, ..Config::default() };
    if let Some(endpoint) = std::env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty()) {
        config.endpoint = endpoint;
    }
    for address in &flags.addresses {
        let mut tenths = 0;
        let say = |line: String| {
            // What can't be shown is no reason not to go on.
            let _ = writeln!(std::io::stderr(), "{}", plain(&line));
        };
        let files = fetch(address, &config, &mut |seen| match seen {
            Seen::Said(sentence) => say(sentence),
            Seen::Arrived(have, Some(all)) if all > 0 => {
                let now = have.min(all) * 10 / all;
                if now > tenths {
                    let megabytes = |bytes: u64| bytes as f64 / 1e6;
                    let (have, all) = (megabytes(have), megabytes(all));
                    say(format!("{address}: {} % ({have:.1} of {all:.1} MB)", now * 10));
                }
                tenths = now;
            }
            Seen::Arrived(..) => {}
        })?;
        if let Some(first) = files.first() {
            print(&format!("{}\n", first.display()))?;
        }
    }
    Ok(())
}
