//! Fetching from a server on this machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kd_fetch::download::Patience;
use kd_fetch::{Fetch, Seen, fetch};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A file of the server, and after how many bytes each answer about it breaks off; the last counts for ever.
struct Served {
    bytes: Vec<u8>,
    breaks: Vec<Option<usize>>,
}

#[derive(Clone)]
struct Server {
    address: String,
    files: Arc<Mutex<BTreeMap<String, Served>>>,
    /// The paths that were asked for, with the first byte.
    asked: Arc<Mutex<Vec<(String, usize)>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { address, files: Arc::default(), asked: Arc::default() };
        let served = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The client may have gone: no concern of the server's.
                let _ = served.answer(stream.unwrap());
            }
        });
        server
    }

    fn put(&self, path: &str, bytes: &[u8], breaks: &[Option<usize>]) {
        let file = Served { bytes: bytes.into(), breaks: breaks.to_vec() };
        self.files.lock().unwrap().insert(path.into(), file);
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap()?;
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let mut from = 0;
        for line in lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(range) = line.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().unwrap();
            }
        }
        self.asked.lock().unwrap().push((path.clone(), from));
        let mut files = self.files.lock().unwrap();
        let Some(file) = files.get_mut(&path) else {
            return stream.write_all(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        };
        let end = match file.breaks.len() {
            0 => None,
            1 => file.breaks[0],
            _ => file.breaks.remove(0),
        };
        let (all, rest) = (file.bytes.len(), &file.bytes[from.min(file.bytes.len())..]);
        let head = match from {
            0 => "HTTP/1.1 200 OK".to_owned(),
            _ => format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{all}",
                all - 1
            ),
        };
        let head = format!("{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", rest.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(&rest[..end.unwrap_or(rest.len()).min(rest.len())])
    }

    fn asked(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn content(seed: u32) -> Vec<u8> {
    (0..100_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed << 24) >> 24) as u8)
        .collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Case {
    server: Server,
    config: Fetch,
    /// Goes with the case.
    _folder: TempDir,
}

impl Case {
    fn new() -> Self {
        let (server, folder) = (Server::start(), TempDir::new().unwrap());
        let patience = Patience { retry_wait: Duration::from_millis(10), ..Patience::default() };
        let (cache, endpoint) = (folder.path().join("cache"), server.address.clone());
        Self {
            server,
            config: Fetch { cache, endpoint, patience, ..Fetch::default() },
            _folder: folder,
        }
    }

    fn fetch(&self, address: &str) -> anyhow::Result<(Vec<PathBuf>, Vec<String>)> {
        let mut said = Vec::new();
        let watch = &mut |seen| {
            if let Seen::Said(sentence) = seen {
                said.push(sentence);
            }
        };
        let paths = fetch(address, &self.config, watch)?;
        Ok((paths, said))
    }

    fn fails(&self, address: &str) -> String {
        format!("{:#}", self.fetch(address).unwrap_err())
    }

    /// A repository of weights and config, as the hub lists and has it.
    fn repository(&self, weights: &[u8]) {
        let listing = format!(
            r#"{{"id": "o/n", "sha": "0123abcd0123", "siblings": [
                {{"rfilename": "README.md", "size": 3}},
                {{"rfilename": "config.json", "size": 2, "blobId": "x"}},
                {{"rfilename": "model.safetensors", "size": {}, "lfs": {{"sha256": "{}", "size": 1}}}}]}}"#,
            content(0).len(),
            hash(&content(0))
        );
        self.server.put("/api/models/o/n/revision/main?blobs=true", listing.as_bytes(), &[]);
        self.server.put("/o/n/resolve/0123abcd0123/model.safetensors", weights, &[]);
        self.server.put("/o/n/resolve/0123abcd0123/config.json", b"{}", &[]);
    }
}

#[test]
fn a_file_of_the_web_goes_on_where_it_broke_off_and_is_fetched_once() {
    let case = Case::new();
    case.server.put("/a/w.pth", &content(0), &[Some(30_000), Some(20_000), None]);
    let url = format!("{}/a/w.pth", case.server.address);
    let (paths, said) = case.fetch(&url).unwrap();
    assert_eq!(std::fs::read(&paths[0]).unwrap(), content(0));
    assert!(paths[0].ends_with("a/w.pth") && said.len() == 2, "{paths:?} {said:?}");
    let from: Vec<usize> = case.server.asked().into_iter().map(|(_, from)| from).collect();
    assert_eq!(from, [0, 30_000, 50_000]);
    assert!(case.fetch(&url).unwrap().1.is_empty());
    assert!(case.server.asked().is_empty());

    // Another file is there now; what is in the cache counts until it is asked for again.
    case.server.put("/a/w.pth", &content(1), &[]);
    let again = Case { config: Fetch { again: true, ..case.config.clone() }, ..case };
    again.fetch(&url).unwrap();
    assert_eq!(std::fs::read(&paths[0]).unwrap(), content(1));
}

#[test]
fn a_checksum_that_is_given_is_checked_also_of_what_is_in_the_cache() {
    let mut case = Case::new();
    case.server.put("/w.pth", &content(0), &[]);
    let url = format!("{}/w.pth", case.server.address);
    case.config.sha256 = Some(hash(&content(1)));
    let message = case.fails(&url);
    assert!(message.contains(&hash(&content(0))) && message.contains("another file"), "{message}");
    case.config.sha256 = Some(hash(&content(0)).to_uppercase());
    let (paths, _) = case.fetch(&url).unwrap();
    let mut damaged = content(0);
    damaged[5] ^= 1;
    std::fs::write(&paths[0], damaged).unwrap();
    let (_, said) = case.fetch(&url).unwrap();
    assert!(said[0].contains("fetched anew"), "{said:?}");
    assert_eq!(std::fs::read(&paths[0]).unwrap(), content(0));
    case.config.sha256 = Some("12".into());
    assert!(case.fails(&url).contains("64 hexadecimal digits"));
}

#[test]
fn a_repository_gives_its_weights_and_the_config_beside_them() {
    let case = Case::new();
    case.repository(&content(0));
    let (paths, _) = case.fetch("hf://o/n").unwrap();
    assert_eq!(paths.len(), 2);
    assert!(paths[0].ends_with("hub/o/n/0123abcd0123/model.safetensors"), "{paths:?}");
    assert_eq!(paths[1], paths[0].with_file_name("config.json"));
    assert_eq!(std::fs::read(&paths[0]).unwrap(), content(0));
    case.server.asked();
    case.fetch("hf://o/n").unwrap();
    assert_eq!(case.server.asked().len(), 1, "the list of files alone");
    let (one, _) = case.fetch("hf://o/n@main/config.json").unwrap();
    assert_eq!(one, [paths[1].clone()]);

    let message = case.fails("hf://o/n/other.bin");
    assert!(message.contains("no file other.bin; it has README.md, config.json"), "{message}");
    let message = case.fails("hf://o/absent");
    assert!(message.contains("404"), "{message}");

    // Without a network what was fetched counts, and another repository can't be had.
    let mut config = case.config.clone();
    config.endpoint = "http://127.0.0.1:9".into();
    let offline = Case { config, ..case };
    let (same, said) = offline.fetch("hf://o/n").unwrap();
    assert!(same == paths && said[0].contains("fetched earlier"), "{said:?}");
    assert!(offline.fails("hf://o/m").contains("HF_ENDPOINT"));
    // A file that was named is that file, or none, and what its SHA-256 says.
    assert_eq!(offline.fetch("hf://o/n@main/config.json").unwrap().0, one);
    assert!(offline.fails("hf://o/n/README.md").contains("HF_ENDPOINT"));
    let mut config = offline.config.clone();
    config.sha256 = Some(hash(b"another"));
    let offline = Case { config, ..offline };
    let message = offline.fails("hf://o/n/config.json");
    assert!(message.contains("its SHA-256 is") && message.contains("cannot reach"), "{message}");
}

#[test]
fn a_part_of_which_nothing_is_known_is_not_gone_on_from() {
    let case = Case::new();
    case.server.put("/w.pth", &content(1), &[]);
    let part = case.config.cache.join("web").join(case.server.address.replace("http://", ""));
    std::fs::create_dir_all(&part).unwrap();
    std::fs::write(part.join("w.pth.part"), &content(0)[..30_000]).unwrap();
    let (paths, _) = case.fetch(&format!("{}/w.pth", case.server.address)).unwrap();
    assert_eq!(
        std::fs::read(&paths[0]).unwrap(),
        content(1),
        "not one file's head and another's tail"
    );
}

#[test]
fn other_weights_than_the_hub_lists_are_refused() {
    let case = Case::new();
    case.repository(&content(1));
    let message = case.fails("hf://o/n");
    assert!(message.contains(&hash(&content(0))), "{message}");
    case.repository(&content(0)[..50_000]);
    let message = case.fails("hf://o/n");
    assert!(message.contains("50000 bytes, the hub's list says 100000"), "{message}");
    case.server.put("/api/models/o/n/revision/main?blobs=true", b"<html>", &[]);
    assert!(case.fails("hf://o/n").contains("no list of a repository's files"));
    case.server.put(
        "/api/models/o/n/revision/main?blobs=true",
        br#"{"sha": "../..", "siblings": []}"#,
        &[],
    );
    assert!(case.fails("hf://o/n").contains("is no commit"));
}

#[test]
fn an_open_connection_to_another_machine_needs_a_checksum() {
    let message = Case::new().fails("http://example.org/w.pth");
    assert!(message.contains("--sha256"), "{message}");
}
