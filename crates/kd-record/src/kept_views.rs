//! `cache/<key>.views`: a teacher's logits of augmented views of the training images, a row for each view of each image, which are
//! computed once and read row by row.
//!
//! A file begins with [`MAGIC`], the length of a JSON text as u32 (all numbers are little-endian) and that text, which holds what the
//! rows depend on. Rows begin at byte [`ROWS`]; row `view * images + image` is a checksum and the values. A row that is not there yet is
//! zeros, which have another checksum, and so has a row that a killed process wrote half of: either is computed anew. So a file grows
//! from several processes at once, and can be deleted at any time.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::f16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::lock::wait_for_lock;
use crate::teacher_outputs::Origin;
use crate::{Error, Result, write};

/// The first bytes of a file.
pub const MAGIC: &[u8; 8] = b"kd-view1";
/// Where the rows begin.
pub const ROWS: u64 = 4096;
/// Bytes that are read at a time where all rows are looked at.
const CHUNK: usize = 1 << 20;
/// Bytes of a row's checksum.
const CHECKSUM: usize = 4;
/// The least logit of a class outside the top: its probability is 0 in any case, and f16 has the number.
const LEAST: f64 = -60_000.0;

/// How a teacher's logits of views are kept: a run's line `keep` in a recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// The type of the numbers.
    #[serde(rename = "type")]
    pub number: NumberType,
    /// Keep the `top` largest logits alone, as logarithms of their probabilities at temperature 1, and the probability of the others
    /// together, which is spread evenly over them; without it all logits are kept. It is fewer than the classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top: Option<usize>,
}

/// A type of kept numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberType {
    /// 32 bits: with all logits what is read is what was computed.
    #[default]
    F32,
    /// 16 bits: a relative error of at most 2^-11, and no logit beyond 65,504.
    F16,
}

impl NumberType {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    fn put(self, value: f64, into: &mut Vec<u8>) -> std::result::Result<(), String> {
        match self {
            Self::F32 => into.extend((value as f32).to_le_bytes()),
            Self::F16 => {
                let narrow = f16::from_f64(value);
                if !narrow.is_finite() {
                    return Err(format!(
                        "{value} is beyond f16, whose largest number is 65504; keep f32"
                    ));
                }
                into.extend(narrow.to_le_bytes());
            }
        }
        Ok(())
    }

    fn get(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::F32, &[a, b, c, d, ..]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b, ..]) => f16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        }
    }
}

impl Keep {
    /// Bytes of a row of so many classes, with its checksum.
    pub fn row_bytes(&self, classes: usize) -> usize {
        let number = self.number.bytes();
        CHECKSUM
            + match self.top {
                None => classes * number,
                Some(top) => top * (2 + number) + number,
            }
    }

    /// A row's bytes.
    ///
    /// # Errors
    /// When a logit is not finite, or too large for the type; what the error says is the end of a sentence about the row.
    pub fn encode(&self, logits: &[f32]) -> std::result::Result<Vec<u8>, String> {
        if let Some(value) = logits.iter().find(|value| !value.is_finite()) {
            return Err(format!("{value} is no finite number"));
        }
        let mut bytes = vec![0; CHECKSUM];
        match self.top {
            None => {
                for &logit in logits {
                    self.number.put(f64::from(logit), &mut bytes)?;
                }
            }
            Some(top) => {
                let mut order: Vec<usize> = (0..logits.len()).collect();
                // Of equal ones the first.
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
                let largest = order.first().map_or(0.0, |&class| f64::from(logits[class]));
                let power = |class: &usize| (f64::from(logits[*class]) - largest).exp();
                let sum: f64 = order.iter().map(power).sum();
                let (first, others) = order.split_at(top.min(order.len()));
                for &class in first {
                    bytes.extend((class as u16).to_le_bytes());
                    let log_p = f64::from(logits[class]) - largest - sum.ln();
                    self.number.put(log_p.max(LEAST), &mut bytes)?;
                }
                let each = others.iter().map(power).sum::<f64>() / sum / others.len().max(1) as f64;
                self.number.put(each.ln().max(LEAST), &mut bytes)?;
            }
        }
        let checksum = checksum(&bytes[CHECKSUM..]).to_le_bytes();
        bytes[..CHECKSUM].copy_from_slice(&checksum);
        Ok(bytes)
    }

    /// The logits of a row of so many classes; `None` where its checksum is not that of its values.
    pub fn decode(&self, row: &[u8], classes: usize) -> Option<Vec<f32>> {
        let (sum, values) = row.split_at_checked(CHECKSUM)?;
        if row.len() != self.row_bytes(classes) || sum != checksum(values).to_le_bytes() {
            return None;
        }
        let number = self.number.bytes();
        let Some(top) = self.top else {
            return Some(values.chunks_exact(number).map(|bytes| self.number.get(bytes)).collect());
        };
        let (first, others) = values.split_at_checked(top * (2 + number))?;
        let mut logits = vec![self.number.get(others); classes];
        for entry in first.chunks_exact(2 + number) {
            let class = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
            *logits.get_mut(class)? = self.number.get(&entry[2..]);
        }
        Some(logits)
    }
}

/// FNV-1a (Fowler, Noll and Vo) of 32 bits: it tells whole rows from zeros and from rows of which half is written.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// What stands at a file's beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    origin: Origin,
    keep: Keep,
    classes: usize,
}

/// A file of kept views.
#[derive(Debug)]
pub struct KeptViews {
    /// The path of the file.
    pub path: PathBuf,
    /// How its rows are kept.
    pub keep: Keep,
    /// Classes of a row.
    pub classes: usize,
    /// Images of each view.
    pub images: usize,
    /// Views that the file has room for.
    pub views: usize,
    file: Mutex<File>,
}

impl KeptViews {
    /// Opens the file of this origin in the cache's folder, or makes it, with room for so many views of each of the origin's images. A
    /// file with room for fewer gets more. Nothing but its beginning is read.
    ///
    /// # Errors
    /// When the file can't be made or opened, or is not what its name says.
    pub fn open(
        folder: &Path,
        origin: Origin,
        keep: Keep,
        classes: usize,
        views: usize,
    ) -> Result<Self> {
        let images = origin.images;
        let header = Header { origin, keep, classes };
        let key = hex(Sha256::new_with_prefix(format!("{header:?}")));
        let path = folder.join(format!("{}.views", &key[..32]));
        write::create_folder(folder)?;
        // One process at a time makes it.
        let _lock = wait_for_lock(folder)?;
        let failed = |cause| Error::io(&path, "can't be opened")(cause);
        if let Err(cause) = path.metadata() {
            if cause.kind() != ErrorKind::NotFound {
                return Err(failed(cause));
            }
            write::remove_partial(folder)?;
            let text = serde_json::to_vec(&header).map_err(|error| {
                Error::corrupt(&path, None, format!("its beginning can't be written: {error}"))
            })?;
            write::write_whole_with(&path, |file| {
                file.write_all(MAGIC)?;
                file.write_all(&(text.len() as u32).to_le_bytes())?;
                file.write_all(&text)
            })?;
        }
        let mut file = File::options().read(true).write(true).open(&path).map_err(failed)?;
        check(&mut file, &header).map_err(|found| {
            let found = format!(
                "these kept views can't be used: {found}; delete the file, and they are computed anew"
            );
            Error::corrupt(&path, None, found)
        })?;
        let row = keep.row_bytes(classes) as u64;
        let size = ROWS + (views * images) as u64 * row;
        if file.metadata().map_err(failed)?.len() < size {
            file.set_len(size).map_err(Error::io(&path, "can't be made larger"))?;
        }
        Ok(Self { path, keep, classes, images, views, file: Mutex::new(file) })
    }

    /// Bytes that all rows take.
    pub fn bytes(&self) -> u64 {
        (self.views * self.images) as u64 * self.keep.row_bytes(self.classes) as u64
    }

    /// The logits of one view of some images; `None` for each that is not kept.
    ///
    /// # Errors
    /// When the file can't be read, or has no room for this view or an image.
    pub fn read(&self, view: usize, images: &[u32]) -> Result<Vec<Option<Vec<f32>>>> {
        let mut row = vec![0; self.keep.row_bytes(self.classes)];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut one = |image: &u32| {
            file.seek(SeekFrom::Start(self.place(view, *image)?))
                .and_then(|_| file.read_exact(&mut row))
                .map_err(Error::io(&self.path, "can't be read"))?;
            Ok(self.keep.decode(&row, self.classes))
        };
        images.iter().map(&mut one).collect()
    }

    /// Writes the [encoded](Keep::encode) row of one view of an image.
    ///
    /// # Errors
    /// When the file can't be written, or has no room for this view or the image.
    pub fn write(&self, view: usize, image: u32, row: &[u8]) -> Result<()> {
        let place = self.place(view, image)?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.seek(SeekFrom::Start(place)).and_then(|_| file.write_all(row));
        written.map_err(Error::io(&self.path, "can't be written"))
    }

    /// How many rows are kept, of all that there is room for. It reads the whole file, a part at a time.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn count(&self) -> Result<u64> {
        let size = self.keep.row_bytes(self.classes);
        let mut chunk = vec![0; (CHUNK / size).max(1) * size];
        let mut rest = self.views * self.images;
        let mut count = 0;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(ROWS)).map_err(Error::io(&self.path, "can't be read"))?;
        while rest > 0 {
            let rows = rest.min(chunk.len() / size);
            let bytes = &mut chunk[..rows * size];
            file.read_exact(bytes).map_err(Error::io(&self.path, "can't be read"))?;
            let whole = |row: &&[u8]| self.keep.decode(row, self.classes).is_some();
            count += bytes.chunks_exact(size).filter(whole).count() as u64;
            rest -= rows;
        }
        Ok(count)
    }

    /// Where a row is in the file.
    fn place(&self, view: usize, image: u32) -> Result<u64> {
        if view >= self.views || image as usize >= self.images {
            let found = format!(
                "it has no row for view {view} of image {image}; it has room for {} views of {} images",
                self.views, self.images
            );
            return Err(Error::corrupt(&self.path, None, found));
        }
        let row = (view * self.images) as u64 + u64::from(image);
        Ok(ROWS + row * self.keep.row_bytes(self.classes) as u64)
    }
}

/// Checks a file's beginning; the error is the end of a sentence.
fn check(file: &mut File, expected: &Header) -> std::result::Result<(), String> {
    let failed = |error: std::io::Error| format!("its beginning can't be read: {error}");
    let mut start = [0; 12];
    file.read_exact(&mut start).map_err(failed)?;
    let (magic, len) = start.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("it is no file of kept views of this version".into());
    }
    let len = u64::from(u32::from_le_bytes([len[0], len[1], len[2], len[3]]));
    if len + start.len() as u64 > ROWS {
        return Err(format!("its beginning has {len} bytes; expected at most {ROWS}"));
    }
    let mut text = vec![0; len as usize];
    file.read_exact(&mut text).map_err(failed)?;
    let found: Header = serde_json::from_slice(&text)
        .map_err(|error| format!("its beginning can't be read: {error}"))?;
    match found == *expected {
        true => Ok(()),
        false => Err("it is of another teacher, other data or other views".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(teacher: &str) -> Origin {
        Origin {
            format: crate::teacher_outputs::FORMAT,
            kd: "0".into(),
            teacher: teacher.into(),
            data: "d".into(),
            images: 3,
            held_out: None,
            mean: [0.0; 3],
            std: [1.0; 3],
            view: "flip, seed 0".into(),
            output: "logits".into(),
        }
    }

    const LOGITS: [f32; 4] = [1.5, -2.0, 4.25, 0.1];

    #[test]
    fn all_logits_in_f32_come_back_as_they_were_and_in_f16_nearly() {
        let whole = Keep::default();
        let row = whole.encode(&LOGITS).unwrap();
        assert_eq!((row.len(), whole.row_bytes(4)), (20, 20));
        assert_eq!(whole.decode(&row, 4).unwrap(), LOGITS);
        let half = Keep { number: NumberType::F16, top: None };
        let found = half.decode(&half.encode(&LOGITS).unwrap(), 4).unwrap();
        assert_eq!(found[..3], LOGITS[..3], "these are numbers of f16");
        assert!((found[3] - 0.1).abs() < 0.1 / 2048.0);
        assert!(half.encode(&[7e4, 0.0]).unwrap_err().contains("beyond f16"));
        assert!(whole.encode(&[f32::NAN, 0.0]).unwrap_err().contains("no finite number"));
    }

    /// The softmax of what is kept: the top's probabilities are the network's, the others share the rest.
    #[test]
    fn the_top_keeps_its_probabilities_and_the_rest_its_mass() {
        let softmax = |logits: &[f32]| {
            let powers: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(|power| power / sum).collect::<Vec<_>>()
        };
        for (number, slack) in [(NumberType::F32, 1e-6), (NumberType::F16, 2e-3)] {
            let keep = Keep { number, top: Some(2) };
            let row = keep.encode(&LOGITS).unwrap();
            assert_eq!(row.len(), keep.row_bytes(4));
            let (all, kept) = (softmax(&LOGITS), softmax(&keep.decode(&row, 4).unwrap()));
            for class in [0, 2] {
                assert!((all[class] - kept[class]).abs() < slack, "{all:?} {kept:?}");
            }
            assert!((kept[1] - kept[3]).abs() < 1e-9);
            assert!((kept[1] + kept[3] - all[1] - all[3]).abs() < slack, "{all:?} {kept:?}");
            // Certainty leaves the rest nothing, and everything finite.
            let sure = keep.decode(&keep.encode(&[1e4, 0.0, -1e4, 3.0]).unwrap(), 4).unwrap();
            assert!(sure.iter().all(|logit| logit.is_finite()) && softmax(&sure)[0] == 1.0);
        }
    }

    #[test]
    fn rows_are_read_one_by_one_and_half_written_ones_are_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let open = |views| KeptViews::open(folder.path(), origin("a"), Keep::default(), 4, views);
        let kept = open(2).unwrap();
        assert_eq!((kept.count().unwrap(), kept.bytes()), (0, 2 * 3 * 20));
        let row = kept.keep.encode(&LOGITS).unwrap();
        kept.write(1, 2, &row).unwrap();
        // A process that was killed had written half of this one.
        kept.write(0, 1, &row[..9]).unwrap();
        let again = open(5).unwrap();
        assert_eq!(again.read(1, &[0, 2]).unwrap(), [None, Some(LOGITS.to_vec())]);
        assert_eq!(again.read(0, &[1]).unwrap(), [None]);
        assert_eq!((again.count().unwrap(), again.views), (1, 5));
        let message = again.read(5, &[0]).unwrap_err().to_string();
        assert!(
            message.contains("no row for view 5 of image 0; it has room for 5 views of 3"),
            "{message}"
        );
    }

    #[test]
    fn another_teacher_has_another_file_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let open = |of| KeptViews::open(folder.path(), origin(of), Keep::default(), 4, 1);
        let (a, b) = (open("a").unwrap(), open("b").unwrap());
        assert_ne!(a.path, b.path);
        for (bytes, expected) in [
            (std::fs::read(&a.path).unwrap(), "of another teacher, other data or other views"),
            (b"kd-view1\xff\xff\xff\xff".to_vec(), "expected at most 4096"),
            (b"something else".to_vec(), "no file of kept views"),
            (Vec::new(), "its beginning can't be read"),
        ] {
            std::fs::write(&b.path, bytes).unwrap();
            let message = open("b").unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("delete the file"), "{message}");
        }
    }
}
