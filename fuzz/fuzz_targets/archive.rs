//! `.tar.gz` archives: whatever they hold, only the expected files come to lie in the folder, or none is wrong.
//!
//! The first byte chooses: gzip as it is, or a tar that is packed here, so that gzip's checksum keeps nobody out.

#![no_main]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::{Compression, write::GzEncoder};
use libfuzzer_sys::fuzz_target;
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
        File { name: "a.bin", size: Size::Exactly(100) },
        File { name: "names.txt", size: Size::UpTo(50) },
        File { name: "readme.html", size: Size::OptionalUpTo(50) },
    ],
};

/// `outer/deep/into`, in memory where there is such a place.
fn outer() -> &'static Path {
    static OUTER: OnceLock<PathBuf> = OnceLock::new();
    OUTER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        parent.join(format!("kd-fuzz-archive-{}", std::process::id()))
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((&packed, data)) = data.split_first() else { return };
    let into = outer().join("deep/into");
    let _ = fs::remove_dir_all(outer());
    fs::create_dir_all(&into).unwrap();
    let result = if packed % 2 == 0 {
        unpack(data, &SMALL, &into)
    } else {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
        gzip.write_all(data).unwrap();
        unpack(&gzip.finish().unwrap()[..], &SMALL, &into)
    };
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(outer()), ["deep"]);
    assert_eq!(names(&outer().join("deep")), ["into"]);
    for name in names(&into) {
        let file = SMALL.files.iter().find(|file| name == file.name).expect("an expected file");
        let about = fs::symlink_metadata(into.join(file.name)).unwrap();
        assert!(about.is_file());
        assert!(result.is_err() || file.size.allows(about.len()), "{} bytes", about.len());
    }
    if result.is_ok() {
        let whole = names(&into);
        assert!(whole.len() >= 2 && whole[0] == "a.bin" && whole[1] == "names.txt");
    }
    let _ = fs::remove_dir_all(outer());
});
