//! The members of a tar archive and where they lie in it (POSIX.1-2001 `pax`, `ustar` and GNU's long names), without their
//! contents; and archives written.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

/// A regular file in an archive, or a link to one.
#[derive(Debug)]
pub(super) struct Member {
    /// Its path in the archive.
    pub(super) name: String,
    /// Where its contents begin, in bytes from the archive's start.
    pub(super) offset: u64,
    /// Their length in bytes.
    pub(super) bytes: u64,
    /// How many bytes before its contents its first header begins.
    pub(super) head: u64,
    /// Whether it is a hard or symbolic link, which has no contents of its own.
    pub(super) is_link: bool,
}

/// Where an archive is broken, and how.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) offset: u64,
    pub(super) found: String,
    pub(super) expected: &'static str,
}

/// Reads an archive from its start to its end, header by header.
pub(super) struct Archive {
    /// The buffer is small, so that of large members next to nothing is read; small ones lie in it one behind the other.
    file: BufReader<File>,
    /// Bytes from the archive's start.
    at: u64,
    /// The archive's length in bytes.
    len: u64,
    /// Where the next header is.
    next: u64,
}

const BLOCK: usize = 512;
const BUFFER: usize = 32 << 10;
/// The most bytes of a long name or of a pax header.
const LONGEST: u64 = 1 << 20;
/// The most bytes of headers before a member's contents.
const LONGEST_HEAD: u64 = 4 << 20;
const A_HEADER: &str = "the header of the next member, or the archive's end";

impl Archive {
    /// The archive of `len` bytes in `file`, which stands at the archive's start.
    pub(super) fn new(file: File, len: u64) -> Self {
        Self { file: BufReader::with_capacity(BUFFER, file), at: 0, len, next: 0 }
    }

    /// The next regular file or link; `None` at the archive's end.
    pub(super) fn member(&mut self) -> Result<Option<Member>, Broken> {
        let (mut start, mut long_name, mut long_size) = (self.next, None, None);
        loop {
            let header_at = self.next;
            self.skip_to(header_at)?;
            let mut header = [0; BLOCK];
            if header_at == self.len {
                return Err(Broken {
                    offset: self.len,
                    found: "the end of the file without an archive's end".into(),
                    expected: "a block of zeros there: the archive is cut off",
                });
            }
            self.read(&mut header, A_HEADER)?;
            if header == [0; BLOCK] {
                return Ok(None);
            }
            let broken =
                |found: &str, expected| Broken { offset: header_at, found: found.into(), expected };
            if !checksum_is_right(&header) {
                return Err(broken("512 bytes that are no header of a tar archive", A_HEADER));
            }
            let size = number(&header[124..136]);
            let kind = header[156];
            let is_file = matches!(kind, b'0' | b'\0' | b'7');
            let is_link = matches!(kind, b'1' | b'2');
            let size = match (size, long_size) {
                (_, Some(size)) if is_file => size,
                (Some(size), _) => size,
                (None, _) => {
                    return Err(broken("a header without a length", "one in octal digits"));
                }
            };
            let end = self.at.checked_add(size).filter(|end| *end <= self.len);
            let Some(end) = end else {
                let found =
                    format!("a member of {size} bytes and {} bytes of archive", self.len - self.at);
                return Err(broken(
                    &found,
                    "a whole member: the archive is cut off, or its header lies",
                ));
            };
            self.next = end.next_multiple_of(BLOCK as u64).min(self.len);
            match kind {
                b'L' | b'x' if size > LONGEST => {
                    return Err(broken("a name of more than 1 MiB", "a path"));
                }
                b'L' | b'x' => {
                    let mut text = vec![0; size as usize];
                    self.read(&mut text, "a long name")?;
                    if kind == b'L' {
                        long_name = Some(until_zero(&text));
                    } else {
                        let settings = pax(&text).ok_or(broken(
                            "a broken pax header",
                            "lines of a length and a setting",
                        ))?;
                        (long_name, long_size) =
                            (settings.path.or(long_name), settings.size.or(long_size));
                    }
                }
                _ if is_file || is_link => {
                    let name = long_name.unwrap_or_else(|| short_name(&header));
                    let head = self.at - start;
                    if head > LONGEST_HEAD {
                        let found = format!("{head} bytes of headers before one member");
                        return Err(broken(&found, "4 MiB at most"));
                    }
                    return Ok(Some(Member { name, offset: self.at, bytes: size, head, is_link }));
                }
                // Folders and settings of all members say nothing of a picture.
                _ => (start, long_name, long_size) = (self.next, None, None),
            }
        }
    }

    /// The contents of a member that was just given.
    pub(super) fn contents(&mut self, member: &Member) -> Result<Vec<u8>, Broken> {
        let mut contents = vec![0; member.bytes as usize];
        self.read(&mut contents, "a whole member")?;
        Ok(contents)
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), Broken> {
        let forward = offset as i64 - self.at as i64;
        self.file.seek_relative(forward).map_err(|error| self.failed(error, A_HEADER))?;
        self.at = offset;
        Ok(())
    }

    fn read(&mut self, into: &mut [u8], expected: &'static str) -> Result<(), Broken> {
        self.file.read_exact(into).map_err(|error| self.failed(error, expected))?;
        self.at += into.len() as u64;
        Ok(())
    }

    fn failed(&self, error: std::io::Error, expected: &'static str) -> Broken {
        let found = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "the archive's end".into(),
            _ => error.to_string(),
        };
        Broken { offset: self.at, found, expected }
    }
}

/// The key, in pax's form, under which the name is kept that a picture had before it was prepared.
const OWN_NAME: &str = "KD.name";

/// The name of the member whose headers these bytes are, and the name that it had before it was [put into the archive](append), if that is said.
pub(super) fn names(headers: &[u8]) -> Option<(String, Option<String>)> {
    let mut at = 0;
    let (mut long_name, mut own_name) = (None, None);
    while let Some(header) = headers.get(at..).and_then(|rest| rest.first_chunk::<BLOCK>()) {
        let kind = header[156];
        if !matches!(kind, b'L' | b'x') {
            return Some((long_name.unwrap_or_else(|| short_name(header)), own_name));
        }
        let size = number(&header[124..136])? as usize;
        let text = headers.get(at + BLOCK..)?.get(..size)?;
        if kind == b'L' {
            long_name = Some(until_zero(text));
        } else {
            let settings = pax(text)?;
            (long_name, own_name) = (settings.path.or(long_name), settings.own_name.or(own_name));
        }
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    None
}

/// The name that a header has room for, with the folders that `ustar` keeps apart.
fn short_name(header: &[u8; BLOCK]) -> String {
    let name = until_zero(&header[..100]);
    match &header[257..263] == b"ustar\0" && header[345] != 0 {
        true => format!("{}/{name}", until_zero(&header[345..500])),
        false => name,
    }
}

/// Writes a regular file of fewer than 8 GiB, whose name has at most 100 bytes, to an archive; before it the name that it had elsewhere, where it
/// is to be kept.
pub(crate) fn append(
    archive: &mut impl Write,
    name: &str,
    contents: &[u8],
    own_name: Option<&str>,
) -> io::Result<()> {
    if let Some(own_name) = own_name {
        let setting = format!(" {OWN_NAME}={own_name}\n");
        // The length of a line counts its own digits.
        let mut length = setting.len();
        while length != setting.len() + length.to_string().len() {
            length = setting.len() + length.to_string().len();
        }
        member(archive, name, b'x', format!("{length}{setting}").as_bytes())?;
    }
    member(archive, name, b'0', contents)
}

fn member(archive: &mut impl Write, name: &str, kind: u8, contents: &[u8]) -> io::Result<()> {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.write_all(&header)?;
    archive.write_all(contents)?;
    archive.write_all(&[0; BLOCK][..contents.len().next_multiple_of(BLOCK) - contents.len()])
}

/// Writes an archive's end.
pub(crate) fn end(archive: &mut impl Write) -> io::Result<()> {
    archive.write_all(&[0; 2 * BLOCK])
}

/// Whether a header's checksum, the sum of its bytes with blanks in the checksum's place, is right.
fn checksum_is_right(header: &[u8; BLOCK]) -> bool {
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = header[148..156].iter().map(|byte| u64::from(*byte)).sum();
    number(&header[148..156]) == Some(sum - own + 8 * u64::from(b' '))
}

/// A number in octal digits, or where the first bit is set, in the bytes behind it.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (before, rest) = field.split_last_chunk::<8>()?;
        // A field of 8 bytes or fewer, such as the checksum's, has no room for the mark and such a number.
        let (mark, zeros) = before.split_first()?;
        let fits = *mark == 0x80 && zeros.iter().all(|byte| *byte == 0);
        return Some(u64::from_be_bytes(*rest)).filter(|_| fits);
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(['\0', ' ']);
    u64::from_str_radix(digits, 8).ok()
}

/// Text up to the first zero.
fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What is read of a pax header.
#[derive(Default)]
struct Settings {
    path: Option<String>,
    size: Option<u64>,
    own_name: Option<String>,
}

/// What a pax header sets, whose lines are "length name=value"; `None` where it is none.
fn pax(mut text: &[u8]) -> Option<Settings> {
    let mut found = Settings::default();
    while !text.is_empty() && text[0] != 0 {
        let blank = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
        let line = text.get(blank + 1..length)?.strip_suffix(b"\n")?;
        text = &text[length..];
        let equals = line.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&line[..equals], &line[equals + 1..]);
        let as_text = || Some(String::from_utf8_lossy(value).into_owned());
        match key {
            b"path" => found.path = as_text(),
            b"size" => found.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            key if key == OWN_NAME.as_bytes() => found.own_name = as_text(),
            _ => {}
        }
    }
    Some(found)
}
