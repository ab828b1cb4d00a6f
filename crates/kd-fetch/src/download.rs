//! One file over HTTP: goes on where it broke off, and never takes a part for the whole.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the look-up of the name to the answer's head.
    pub connect: Duration,
    /// Without a single byte, once the file has begun to arrive.
    pub stall: Duration,
    /// Attempts in a row that bring nothing new.
    pub attempts: u32,
    /// The same as long as nothing at all has arrived: few, where one can do without the file.
    pub first_attempts: u32,
    /// Wait after the first failed attempt; doubled after each further one.
    pub retry_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(8),
            stall: Duration::from_secs(30),
            attempts: 5,
            first_attempts: 5,
            retry_wait: Duration::from_secs(1),
        }
    }
}

const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is to be brought where.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The file's address.
    pub url: &'a str,
    /// The file's length, where it is known.
    pub bytes: Option<u64>,
    /// Whose length `bytes` is, for a message, such as "the published archive".
    pub whose_bytes: &'a str,
    /// A server that sends more than this of a file of unknown length is cut off.
    pub most: u64,
    /// Where the file goes, or a part of it already lies.
    pub path: &'a Path,
    /// When to give up.
    pub patience: &'a Patience,
    /// By what name the program asks, such as `kd/0.2.0`.
    pub user_agent: &'a str,
    /// What to do without a network: the end of the message about a server that can't be reached.
    pub without_network: &'a str,
    /// What to do where the server does not have the file: the end of the message about it.
    pub otherwise: &'a str,
}

/// What is seen of a download while it goes on.
#[derive(Clone, Debug)]
pub enum Seen {
    /// So many bytes are there, of so many in all, if that is known.
    Arrived(u64, Option<u64>),
    /// A sentence on what went wrong and is tried again.
    Said(String),
}

/// Why an attempt ended before the file did.
enum Broken {
    /// No answer at all.
    Unreachable(String),
    /// An answer, but not the whole file; another attempt may bring more.
    Off(String),
    /// No attempt will do better.
    Fatal(anyhow::Error),
}

/// Brings a file to its path, going on with what lies there from an earlier download, and says whether there was any. With `bytes`
/// known, a file of another length is an error. `watch` is told what happens.
///
/// What lies at `path` after an error is a part to go on with; the caller compares checksums.
/// A server that has never answered is not asked twice, so an absent network is noticed at once.
///
/// # Errors
/// When the server can't be reached, does not have the file, has another one, or breaks off too often; or the file can't be written.
pub fn download(request: &Request<'_>, watch: &mut dyn FnMut(Seen)) -> anyhow::Result<bool> {
    let Request { url, bytes, path, patience, .. } = *request;
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(patience.connect))
        .timeout_connect(Some(patience.connect))
        .timeout_recv_response(Some(patience.connect))
        .timeout_per_read(Some(patience.stall))
        .user_agent(request.user_agent)
        .build()
        .into();
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut resumed = false;
    let mut furthest = 0;
    let mut failures = 0;
    let mut answered = false;
    loop {
        let mut have = length(&file, path)?;
        if bytes.is_some_and(|bytes| have > bytes) {
            truncate(&file, path)?;
            have = 0;
        }
        if bytes == Some(have) && have > 0 {
            return Ok(resumed || furthest == 0);
        }
        resumed |= have > 0;
        let why = match attempt(&agent, request, &mut file, watch) {
            Ok(()) => return Ok(resumed),
            Err(Broken::Fatal(error)) => return Err(error),
            Err(Broken::Unreachable(why)) if !answered => {
                bail!("cannot reach {url}: {why}. {}", request.without_network)
            }
            Err(Broken::Unreachable(why)) => why,
            Err(Broken::Off(why)) => {
                answered = true;
                why
            }
        };
        let have = length(&file, path)?;
        if have > furthest {
            furthest = have;
            failures = 0;
        }
        failures += 1;
        let attempts = if have > 0 { patience.attempts } else { patience.first_attempts };
        if failures >= attempts {
            bail!(
                "{url}: {why}; gave up after {failures} attempts that brought nothing new. \
                 What arrived is kept: the same command goes on from there"
            );
        }
        let wait = patience.retry_wait.saturating_mul(1 << (failures - 1).min(16));
        let wait = wait.min(LONGEST_WAIT);
        let wait_s = wait.as_secs_f64();
        watch(Seen::Said(format!("{url}: {why}; next attempt in {wait_s:.1} s")));
        std::thread::sleep(wait);
    }
}

fn attempt(
    agent: &Agent,
    request: &Request<'_>,
    file: &mut File,
    watch: &mut dyn FnMut(Seen),
) -> Result<(), Broken> {
    let Request { url, bytes, path, patience, .. } = *request;
    let mut have = length(file, path).map_err(Broken::Fatal)?;
    let response = ask(agent, url, have, patience.connect)?;
    let status = response.status();
    let range = content_range(&response);
    match status {
        StatusCode::PARTIAL_CONTENT if have > 0 => {
            if range.is_none_or(|range| range.start != Some(have)) {
                truncate(file, path).map_err(Broken::Fatal)?;
                return Err(Broken::Off(format!(
                    "asked for the bytes from {have} on, the server sent others; starting over"
                )));
            }
        }
        StatusCode::OK => {
            if have > 0 {
                watch(Seen::Said(format!(
                    "{url}: the server cannot go on from byte {have}; starting over"
                )));
                truncate(file, path).map_err(Broken::Fatal)?;
                have = 0;
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
            // With no length known beforehand, this is how a part proves to be the whole.
            if range.and_then(|range| range.total) == Some(have) && bytes.is_none() {
                return Ok(());
            }
            truncate(file, path).map_err(Broken::Fatal)?;
            return Err(Broken::Off(format!(
                "the server has nothing from byte {have} on; starting over"
            )));
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            return Err(Broken::Off(format!("the server answered {status}")));
        }
        _ if status.is_server_error() => {
            return Err(Broken::Off(format!("the server answered {status}")));
        }
        _ => {
            return Err(Broken::Fatal(anyhow!(
                "{url}: the server answered {status}; {}",
                request.otherwise
            )));
        }
    }
    let announced = response.body().content_length().map(|rest| have.saturating_add(rest));
    if let (Some(announced), Some(bytes)) = (announced, bytes)
        && announced != bytes
    {
        return Err(Broken::Fatal(anyhow!(
            "{url} has {announced} bytes, {} {bytes}: this is another file",
            request.whose_bytes
        )));
    }
    let total = bytes.or(announced);
    let most = total.unwrap_or(request.most);
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 18];
    loop {
        watch(Seen::Arrived(have, total));
        let read = match body.read(&mut buffer) {
            Ok(read) => read as u64,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) if timed_out(&error) => {
                let why = format!("no byte for {} s", patience.stall.as_secs_f64());
                return Err(Broken::Off(broke_off(have, total, &why)));
            }
            Err(error) => return Err(Broken::Off(broke_off(have, total, &error.to_string()))),
        };
        if read == 0 {
            return match total {
                Some(total) if have < total => {
                    Err(Broken::Off(broke_off(have, Some(total), "connection closed")))
                }
                _ => Ok(()),
            };
        }
        if have + read > most {
            truncate(file, path).map_err(Broken::Fatal)?;
            return Err(Broken::Fatal(anyhow!(
                "{url} sends more than the {most} bytes expected: this is another file"
            )));
        }
        file.write_all(&buffer[..read as usize])
            .with_context(|| format!("cannot write {}", path.display()))
            .map_err(Broken::Fatal)?;
        have += read;
    }
}

/// The answer's head, or why there is none after `limit`, whatever the request is stuck in.
fn ask(agent: &Agent, url: &str, have: u64, limit: Duration) -> Result<Response<Body>, Broken> {
    let mut request = agent.get(url).header(header::ACCEPT_ENCODING, "identity");
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more when the limit was up first.
        let _ = sender.send(request.call());
    });
    match receiver.recv_timeout(limit) {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Broken::Fatal(anyhow!("{url} is not an address of a file on the web: {error}"))
            }
            ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => {
                Broken::Fatal(anyhow!("{url} leads nowhere: {error}"))
            }
            ureq::Error::Protocol(_) => Broken::Off(format!("no proper answer: {error}")),
            ureq::Error::HostNotFound => Broken::Unreachable("no such host is known here".into()),
            ureq::Error::Timeout(_) => Broken::Unreachable("no answer in time".into()),
            other => Broken::Unreachable(other.to_string()),
        }),
        Err(_) => Err(Broken::Unreachable("no answer in time".into())),
    }
}

struct ContentRange {
    start: Option<u64>,
    total: Option<u64>,
}

/// `bytes 100-199/200`, `bytes */200`.
fn content_range(response: &Response<Body>) -> Option<ContentRange> {
    let value = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    Some(ContentRange { start, total: total.trim().parse().ok() })
}

/// ureq hands its own error on inside of the reader's.
fn timed_out(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_))) || error.kind() == std::io::ErrorKind::TimedOut
}

fn broke_off(have: u64, total: Option<u64>, why: &str) -> String {
    match total {
        Some(total) => format!("broke off after {have} of {total} bytes ({why})"),
        None => format!("broke off after {have} bytes ({why})"),
    }
}

fn length(file: &File, path: &Path) -> anyhow::Result<u64> {
    let metadata = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(metadata.len())
}

fn truncate(file: &File, path: &Path) -> anyhow::Result<()> {
    file.set_len(0).with_context(|| format!("cannot write {}", path.display()))
}
