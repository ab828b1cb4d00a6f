//! `kd fetch` as a process, from a server on this machine; with the feature `hub` alone.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Output;

use kd_models::Architecture;
use sha2::{Digest, Sha256};

use crate::workdir::{WorkDir, weights};

/// Serves files by path until the process ends; of `broken` the first answer breaks off in the middle. The address.
fn serve(files: BTreeMap<String, Vec<u8>>, broken: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut breaks = true;
        for stream in listener.incoming() {
            // A client that goes is no concern of the server's.
            let _ = answer(stream.unwrap(), &files, broken, &mut breaks);
        }
    });
    address
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    broken: &str,
    breaks: &mut bool,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap()?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut from = 0;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        match line.strip_prefix("range: bytes=") {
            Some(range) => from = range.trim_end_matches('-').parse().unwrap_or(0),
            None if line.is_empty() => break,
            None => {}
        }
    }
    let Some(bytes) = files.get(&path) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let (all, rest) = (bytes.len(), &bytes[from.min(bytes.len())..]);
    let head = match from {
        0 => "200 OK".to_owned(),
        _ => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{all}", all - 1),
    };
    let length = rest.len();
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let breaks_here = path == broken && std::mem::take(breaks);
    stream.write_all(if breaks_here { &rest[..rest.len() / 2] } else { rest })
}

/// `kd fetch` with the hub at `endpoint`: its exit code, the path that it prints, and what it says.
fn fetch(dir: &WorkDir, endpoint: &str, line: &str) -> (i32, PathBuf, String) {
    let mut command = dir.command(&format!("fetch --cache cache {line}"));
    command.env("HF_ENDPOINT", endpoint);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let path = PathBuf::from(String::from_utf8(stdout).unwrap().trim_end());
    (status.code().unwrap(), path, String::from_utf8(stderr).unwrap())
}

#[test]
fn weights_of_a_hub_are_fetched_and_used() {
    let dir = WorkDir::new();
    weights(&dir.path("student.safetensors"), Architecture::TUTORIAL_STUDENT, 10, 1, true);
    let bytes = dir.read("student.safetensors");
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let listing = format!(
        r#"{{"sha": "0123abcd0123", "siblings": [{{"rfilename": "model.safetensors", "size": {}, "lfs": {{"sha256": "{hash}"}}}}]}}"#,
        bytes.len()
    );
    let resolved = "/o/n/resolve/0123abcd0123/model.safetensors";
    let files = BTreeMap::from([
        ("/api/models/o/n/revision/main?blobs=true".to_owned(), listing.into_bytes()),
        (resolved.to_owned(), bytes.clone()),
        ("/w.pth".to_owned(), bytes.clone()),
    ]);
    let server = serve(files, resolved);
    let (code, path, said) = fetch(&dir, &server, "hf://o/n");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("broke off after"), "{said}");
    assert!(path.ends_with("hub/o/n/0123abcd0123/model.safetensors"), "{path:?}");
    assert_eq!(dir.read(path.to_str().unwrap()), bytes);
    let pixels = |x: u32, y: u32| image::Rgb([(x * 7) as u8, (y * 5) as u8, 90]);
    image::RgbImage::from_fn(32, 32, pixels).save(dir.path("a.png")).unwrap();
    let of = |weights: &str| dir.stdout(&format!("predict --weights {weights} a.png"));
    assert_eq!(of(path.to_str().unwrap()), of("student.safetensors"));

    // Without a network the fetched file is taken; another one can't be had.
    let (code, again, said) = fetch(&dir, "http://127.0.0.1:9", "hf://o/n");
    assert!(code == 0 && again == path && said.contains("what was fetched earlier"), "{said}");
    for (line, expected) in [
        ("hf://o/absent", "404"),
        ("ftp://a/b", "expected https://HOST/FILE"),
        ("hf://o/n/other.bin", "has no file other.bin; it has model.safetensors"),
    ] {
        let (code, _, said) = fetch(&dir, &server, line);
        assert!(code == 1 && said.contains(expected), "{line}: {said}");
    }
    let wrong = format!("{server}/w.pth --sha256 {}", "0".repeat(64));
    let (code, _, said) = fetch(&dir, &server, &wrong);
    assert!(code == 1 && said.contains("this is another file"), "{said}");
    let (code, path, said) = fetch(&dir, &server, &format!("{server}/w.pth --sha256 {hash}"));
    assert!(code == 0 && dir.read(path.to_str().unwrap()) == bytes, "{said}");
}
