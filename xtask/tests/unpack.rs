//! Archives from others: the expected files, or an error and nothing outside the folder.

mod common;

use std::fs;
use std::path::Path;

use common::archive::{Entry, file, gzip, pack, with};
use tar::EntryType;
use tempfile::TempDir;
use xtask::published::{Archive, File, Size};
use xtask::unpack::unpack;

static SMALL: Archive = Archive {
    name: "small",
    title: "Small",
    url: "",
    file: "small.tar.gz",
    bytes: 0,
    md5: "",
    folder: "set",
    files: &[
        File { name: "a.bin", size: Size::Exactly(1000) },
        File { name: "b.bin", size: Size::Exactly(2000) },
        File { name: "names.txt", size: Size::UpTo(100) },
        File { name: "readme.html", size: Size::OptionalUpTo(100) },
    ],
};

fn good() -> Vec<Entry> {
    vec![
        with("set/a.bin", &[7; 1000]),
        with("./set/b.bin", &[8; 2000]),
        with("set/names.txt", b"x\n"),
    ]
}

/// Unpacks into a folder inside an otherwise empty one, which must hold nothing else afterwards.
fn run(packed: &[u8]) -> (TempDir, Result<(), String>) {
    let outer = TempDir::new().unwrap();
    let into = outer.path().join("deep/into");
    fs::create_dir_all(&into).unwrap();
    let result = unpack(packed, &SMALL, &into).map_err(|error| format!("{error:#}"));
    assert_eq!(names(outer.path()), ["deep"], "something was written outside");
    assert_eq!(names(&outer.path().join("deep")), ["into"], "something was written outside");
    (outer, result)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn refused(entries: Vec<Entry>, why: &str) {
    let (_, result) = run(&pack(&entries));
    let error = result.unwrap_err();
    assert!(error.contains(why), "{error}");
}

/// The good archive with one more entry, first and last: both are refused.
fn refused_with(entry: fn() -> Entry, why: &str) {
    let mut last = good();
    last.push(entry());
    refused(last, why);
    let mut first = vec![entry()];
    first.extend(good());
    refused(first, why);
}

#[test]
fn the_expected_files_come_out_as_they_went_in() {
    let mut entries = good();
    entries.push(file("set/", 0));
    entries[3].kind = EntryType::Directory;
    entries.push(with("set/readme.html", b"<p>"));
    let (outer, result) = run(&pack(&entries));
    result.unwrap();
    let into = outer.path().join("deep/into");
    assert_eq!(names(&into), ["a.bin", "b.bin", "names.txt", "readme.html"]);
    assert_eq!(fs::read(into.join("a.bin")).unwrap(), [7; 1000]);
    assert_eq!(fs::read(into.join("b.bin")).unwrap(), [8; 2000]);
}

#[test]
fn other_plain_files_are_passed_over() {
    let mut entries = good();
    entries.push(with("set/._a.bin", b"mac"));
    entries.push(with("other/a.bin", &[1; 1000]));
    entries.push(with("a.bin", &[1; 1000]));
    let (outer, result) = run(&pack(&entries));
    result.unwrap();
    assert_eq!(names(&outer.path().join("deep/into")), ["a.bin", "b.bin", "names.txt"]);
}

#[test]
fn paths_that_lead_out_are_refused() {
    refused_with(|| with("../evil", b"x"), "`../evil`, which would lie outside");
    refused_with(|| with("set/../../evil", b"x"), "outside");
    refused_with(|| with("../set/a.bin", b"x"), "outside");
}

#[test]
fn absolute_paths_are_refused() {
    refused_with(|| with("/nowhere/kd-evil", b"x"), "`/nowhere/kd-evil`, which would lie outside");
}

/// A POSIX extended header, whose values go before those of the entry behind it.
fn extended(key: &str, value: &str) -> Entry {
    // The record's length counts its own digits.
    let rest = format!(" {key}={value}\n");
    let length = (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length);
    let record = format!("{}{rest}", length.unwrap());
    Entry { kind: EntryType::XHeader, ..with("set/extended", record.as_bytes()) }
}

#[test]
fn an_extended_header_leads_nowhere_else() {
    for path in ["../evil", "/nowhere/kd-evil", "set/../../evil"] {
        refused(vec![extended("path", path), with("set/a.bin", &[7; 1000])], "outside");
    }
    let huge = vec![extended("size", "99999999999999"), with("set/a.bin", &[7; 1000])];
    refused(huge, "has 99999999999999 bytes, expected 1000 bytes");
    let wrong = vec![extended("size", "many"), with("set/a.bin", &[7; 999])];
    refused(wrong, "");
}

#[test]
fn a_long_name_leads_nowhere_else() {
    let name = Entry { kind: EntryType::GNULongName, ..with("././@LongLink", b"../../evil\0") };
    refused(vec![name, with("set/a.bin", &[7; 1000])], "outside");
}

#[test]
fn links_are_refused() {
    let link = |kind| Entry { kind, link: "/etc/passwd", ..file("set/a.bin", 0) };
    refused(vec![link(EntryType::Symlink)], "link, `set/a.bin`");
    refused(vec![link(EntryType::Link)], "link, `set/a.bin`");
    refused_with(
        || Entry { kind: EntryType::Symlink, link: "..", ..file("set/elsewhere", 0) },
        "link",
    );
}

#[test]
fn devices_are_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
        let (_, result) = run(&pack(&[Entry { kind, ..file("set/a.bin", 0) }]));
        assert!(result.is_err(), "{kind:?}");
    }
}

#[test]
fn a_file_of_another_size_is_refused_and_names_both() {
    let mut entries = good();
    entries[1] = with("set/b.bin", &[8; 1999]);
    refused(entries, "`set/b.bin` in the archive has 1999 bytes, expected 2000 bytes");
    let mut entries = good();
    entries[2] = with("set/names.txt", &[b'x'; 101]);
    refused(entries, "has 101 bytes, expected at most 100 bytes");
}

#[test]
fn an_entry_that_claims_to_be_huge_is_refused_unread() {
    let huge = Entry { content: Some(vec![0; 512]), ..file("set/a.bin", 1 << 32) };
    refused(vec![huge], "has 4294967296 bytes, expected 1000 bytes");
}

#[test]
fn a_bomb_among_the_files_passed_over_is_cut_off() {
    refused(vec![file("set/zeros", 64 << 20)], "far more than the files it should hold");
}

#[test]
fn a_bomb_in_a_long_name_is_cut_off() {
    let name = Entry { kind: EntryType::GNULongName, ..file("././@LongLink", 64 << 20) };
    let mut entries = vec![name];
    entries.extend(good());
    refused(entries, "far more than the files it should hold");
}

#[test]
fn a_bomb_behind_the_last_entry_is_cut_off() {
    let mut packed = pack(&good());
    packed.extend(gzip(&vec![0; 64 << 20]));
    let (_, result) = run(&packed);
    assert!(result.unwrap_err().contains("far more"));
}

#[test]
fn a_missing_and_a_doubled_file_are_named() {
    let mut entries = good();
    entries.remove(1);
    refused(entries, "does not hold set/b.bin");
    refused_with(|| with("set/a.bin", &[9; 1000]), "`set/a.bin` twice");
}

#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let packed = pack(&good());
    for length in 0..packed.len() {
        let (_, result) = run(&packed[..length]);
        assert!(result.is_err(), "cut to {length} of {} bytes", packed.len());
    }
}

#[test]
fn a_flipped_bit_never_gives_other_contents() {
    let packed = pack(&good());
    for position in 0..packed.len() {
        let mut damaged = packed.clone();
        damaged[position] ^= 0x10;
        let (outer, result) = run(&damaged);
        if result.is_ok() {
            // A time or a name in gzip's own header changes nothing inside.
            let into = outer.path().join("deep/into");
            assert_eq!(fs::read(into.join("a.bin")).unwrap(), [7; 1000], "bit {position}");
            assert_eq!(fs::read(into.join("b.bin")).unwrap(), [8; 2000], "bit {position}");
        }
    }
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    for bytes in [b"".as_slice(), b"<html>", &gzip(b"not a tar"), &gzip(&[b'x'; 4096])] {
        let (_, result) = run(bytes);
        let error = result.unwrap_err();
        assert!(
            error.contains("damaged or not a .tar.gz") || error.contains("not hold"),
            "{error}"
        );
    }
}
