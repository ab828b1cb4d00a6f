//! `cargo xtask data` as a process.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use assert_cmd::Command;
use common::archive::{BATCH, FOLDER, cifar10, file, pack};
use common::server::{Answer, Server};
use predicates::prelude::*;
use predicates::str::contains;
use tempfile::TempDir;

/// An archive of black pictures, whole in form.
static PACKED: LazyLock<Vec<u8>> = LazyLock::new(|| pack(&cifar10()));

static SHA256: LazyLock<String> = LazyLock::new(|| {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a");
    fs::write(&path, &*PACKED).unwrap();
    xtask::checksum::of_file(&path).unwrap().sha256
});

fn data(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("xtask").unwrap();
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_uppercase());
    }
    command.args(["data", "--retry-wait", "0.01", "--attempts", "3"]);
    command.args(["--connect-timeout", "120", "--data"]).arg(folder);
    command
}

fn archive(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("mine.tar.gz");
    fs::write(&path, &*PACKED).unwrap();
    path
}

fn source(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join(FOLDER).join("source.json")).unwrap()).unwrap()
}

/// What lies in a folder, the lock's file apart.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.ends_with(".lock")).collect();
    names.sort();
    names
}

#[test]
fn an_archive_that_is_not_the_published_one_is_taken_with_a_warning_that_is_kept() {
    let folder = TempDir::new().unwrap();
    let path = archive(&folder);
    let into = folder.path().join("new/data");
    let warning =
        || contains("warning: the archive has").and(contains("c32a1d4ab5d03f1284b67883e8d87530"));
    data(&into).arg("--archive").arg(&path).assert().success().stderr(warning());
    assert_eq!(names(&into), [FOLDER]);
    let batches = names(&into.join(FOLDER));
    assert_eq!(batches.len(), 8, "{batches:?}");
    assert_eq!(fs::metadata(into.join(FOLDER).join("data_batch_3.bin")).unwrap().len(), BATCH);
    let source = source(&into);
    assert_eq!(source["archive"], "mine.tar.gz");
    assert_eq!(source["sha256"], **SHA256);
    assert!(source["warning"].as_str().unwrap().contains("may not be the published CIFAR-10"));
    // And again, from the folder's parent or the folder itself.
    for place in [into.clone(), into.join(FOLDER)] {
        data(&place).assert().success().stdout(contains("already")).stderr(warning());
    }
    // Another archive does not slip under the first one's name.
    let mut entries = cifar10();
    entries.reverse();
    fs::write(&path, pack(&entries)).unwrap();
    let other = contains("holds CIFAR-10 from another archive").and(contains("move it away"));
    data(&into).arg("--archive").arg(&path).assert().failure().stderr(other);
}

#[test]
fn an_archive_with_its_own_checksum_is_taken_without_a_warning() {
    let folder = TempDir::new().unwrap();
    let mut command = data(folder.path());
    command.arg("--archive").arg(archive(&folder));
    let upper = SHA256.to_uppercase();
    command.args(["--sha256", &upper]).assert().success().stderr("");
    assert!(source(folder.path())["warning"].is_null());
}

#[test]
fn an_archive_with_another_checksum_is_refused() {
    let folder = TempDir::new().unwrap();
    let into = folder.path().join("data");
    let mut command = data(&into);
    command.arg("--archive").arg(archive(&folder)).args(["--sha256", &"0".repeat(64)]);
    command.assert().failure().stderr(contains("expected 000000").and(contains("SHA-256")));
    assert!(names(&into).is_empty());
}

#[test]
fn a_bad_archive_leaves_what_was_there() {
    let folder = TempDir::new().unwrap();
    let into = folder.path().join("data");
    let half = into.join(FOLDER);
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("data_batch_1.bin"), b"short").unwrap();
    let path = folder.path().join("bad.tar.gz");
    let mut entries = cifar10();
    entries.push(file("../outside", 10));
    fs::write(&path, pack(&entries)).unwrap();
    data(&into).arg("--archive").arg(&path).assert().failure().stderr(contains("refused"));
    assert_eq!(names(folder.path()), ["bad.tar.gz", "data"]);
    assert_eq!(names(&into), [FOLDER]);
    assert_eq!(fs::read(half.join("data_batch_1.bin")).unwrap(), b"short");

    // A damaged copy gives way to a whole one, unless something else lies beside it.
    fs::write(half.join("notes.txt"), b"mine").unwrap();
    let good = archive(&folder);
    let besides = contains("holds notes.txt besides");
    data(&into).arg("--archive").arg(&good).assert().failure().stderr(besides);
    assert_eq!(fs::read(half.join("notes.txt")).unwrap(), b"mine");
    fs::remove_file(half.join("notes.txt")).unwrap();
    data(&into).arg("--archive").arg(&good).assert().success();
    assert_eq!(names(&into), [FOLDER]);
    assert_eq!(fs::metadata(half.join("data_batch_1.bin")).unwrap().len(), BATCH);
}

#[test]
fn a_download_that_breaks_off_is_whole_in_the_end() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(PACKED.clone(), vec![Answer::BreakOff(50_000), Answer::Well]);
    let mut command = data(folder.path());
    command.args(["--url", &server.url, "--sha256", &SHA256]);
    command.assert().success().stderr(contains("broke off after 50000"));
    assert_eq!(server.ranges(), [None, Some(50_000)]);
    assert_eq!(names(folder.path()), [FOLDER]);
    assert_eq!(source(folder.path())["url"], server.url.as_str());
}

#[test]
fn a_killed_download_is_never_taken_for_whole_and_goes_on() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(PACKED.clone(), vec![Answer::Stall(50_000), Answer::Well]);
    let program = assert_cmd::cargo::cargo_bin("xtask");
    let mut child = std::process::Command::new(program)
        .args(["data", "--url", &server.url, "--sha256", &SHA256, "--data"])
        .arg(folder.path())
        .env("no_proxy", "127.0.0.1")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let part = folder.path().join("cifar-10-binary.tar.gz.part");
    let started = std::time::Instant::now();
    while fs::metadata(&part).map_or(0, |part| part.len()) < 50_000 {
        assert!(started.elapsed().as_secs() < 600, "nothing arrives");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(folder.path()), ["cifar-10-binary.tar.gz.part"]);
    // The lock went with the process.
    data(folder.path()).args(["--url", &server.url, "--sha256", &SHA256]).assert().success();
    assert_eq!(server.ranges(), [None, Some(50_000)]);
    assert_eq!(names(folder.path()), [FOLDER]);
}

#[test]
fn what_a_killed_unpacking_left_is_removed() {
    let folder = TempDir::new().unwrap();
    let into = folder.path().join("data");
    for left in [".cifar-10-batches-bin.unpacking", ".cifar-10-batches-bin.replaced"] {
        fs::create_dir_all(into.join(left)).unwrap();
        fs::write(into.join(left).join("data_batch_1.bin"), b"half").unwrap();
    }
    data(&into).arg("--archive").arg(archive(&folder)).assert().success();
    assert_eq!(names(&into), [FOLDER]);
}

/// `cargo xtask` with no file growing beyond so many blocks of 512 or 1024 bytes.
#[cfg(unix)]
fn limited(blocks: u32, folder: &Path) -> Command {
    let mut command = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(assert_cmd::cargo::cargo_bin("xtask"));
    command.env("no_proxy", "127.0.0.1");
    command.args(["data", "--retry-wait", "0.01", "--attempts", "3", "--data"]).arg(folder);
    command
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_one_error_and_nothing_half_done_is_taken() {
    let folder = TempDir::new().unwrap();
    let full = contains("File too large");
    // In the middle of the download: what arrived is gone on with.
    let server = Server::start(PACKED.clone(), vec![Answer::Well]);
    let from_server = ["--url", &server.url, "--sha256", &SHA256];
    limited(50, folder.path()).args(from_server).assert().failure().stderr(full.clone());
    assert_eq!(names(folder.path()), ["cifar-10-binary.tar.gz.part"]);
    data(folder.path()).args(from_server).assert().success();
    assert!(server.ranges()[1].is_some());
    // In the middle of the unpacking.
    let into = folder.path().join("data");
    let path = archive(&folder);
    limited(20_000, &into).arg("--archive").arg(&path).assert().failure().stderr(full);
    assert!(names(&into).is_empty());
    data(&into).arg("--archive").arg(&path).assert().success();
}

#[test]
fn wrong_bytes_are_never_taken() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(PACKED.clone(), vec![Answer::Wrong]);
    let mut command = data(folder.path());
    command.args(["--url", &server.url, "--sha256", &SHA256]);
    command.assert().failure().stderr(contains("this is another file"));
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_part_of_another_file_is_dropped_when_the_checksum_tells() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("cifar-10-binary.tar.gz.part"), vec![1; 1000]).unwrap();
    let server = Server::start(PACKED.clone(), vec![Answer::Well]);
    let mut command = data(folder.path());
    command.args(["--url", &server.url, "--sha256", &SHA256]);
    command.assert().success().stderr(contains("starting over"));
    assert_eq!(server.ranges(), [Some(1000), None]);
}

#[test]
fn a_mirror_of_another_length_is_refused_by_the_published_one() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(PACKED.clone(), vec![Answer::Well]);
    let command = &mut data(folder.path());
    let length = contains("the published archive 170052171");
    command.args(["--url", &server.url]).assert().failure().stderr(length);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn two_downloads_into_one_folder_are_one() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(PACKED.clone(), vec![Answer::Well]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut command = data(folder.path());
                command.args(["--url", &server.url, "--sha256", &SHA256]).assert().success();
            });
        }
    });
    assert_eq!(server.requests().len(), 1);
    assert_eq!(names(folder.path()), [FOLDER]);
}

#[test]
fn bad_flags_are_one_clear_error() {
    let folder = TempDir::new().unwrap();
    let fails = |flags: &[&str], why: &str| {
        data(folder.path()).args(flags).assert().failure().stderr(contains(why));
    };
    fails(&["--dataset", "mnist"], "cifar10, cifar100");
    fails(&["--sha256", "abc"], "64 hexadecimal digits");
    fails(&["--stall-timeout", "0"], "above 0");
    fails(&["--archive", "a", "--url", "b"], "cannot be used with");
    fails(&["--archive", "no/such/file"], "there is no archive no/such/file");
    assert!(names(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn a_place_that_cannot_be_written_is_one_clear_error() {
    let folder = TempDir::new().unwrap();
    let path = archive(&folder);
    // A file where the folder should be: refused for root too, whom permissions don't stop.
    let mut command = data(&path.join("data"));
    command.arg("--archive").arg(&path).assert().failure().stderr(contains("cannot make"));
}
