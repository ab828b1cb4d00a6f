//! `cache/<key>.safetensors`: one output of a teacher (the logits, or the feature maps of one place) for each training image, which
//! is computed once and read by later runs.
//!
//! A file is one f32 tensor `[N, ...]`, a row for each training image in the data's order. The key is a hash of all that the values
//! depend on, their [`Origin`], which is the one metadata entry, too. The folder can be deleted at any time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::lock::wait_for_lock;
use crate::{Error, Result, write};

/// The format of the files that this version reads and writes: [`Origin::format`].
pub const FORMAT: u32 = 1;
/// The one metadata entry.
const KEY: &str = "kd-teacher-output";
/// The one tensor.
const TENSOR: &str = "output";
/// A header of one tensor is far below this.
const MAX_HEADER: u64 = 1 << 16;
/// Bytes written or read at a time.
const CHUNK: usize = 1 << 20;

/// All that cached values depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The format's number, which is [`FORMAT`] in what this version writes.
    pub format: u32,
    /// The version of kd that computed the values.
    pub kd: String,
    /// A text that tells the teacher's outputs from those of other weights, another order of classes or another normalisation.
    pub teacher: String,
    /// SHA-256 of the data set.
    pub data: String,
    /// The number of training images; a subset of one size is always the same.
    pub images: usize,
    /// The number of training images that were held out before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<usize>,
    /// What is subtracted from each colour channel of the images.
    pub mean: [f32; 3],
    /// What each colour channel is then divided by.
    pub std: [f32; 3],
    /// What is done to the images before the teacher sees them: `plain` for nothing.
    pub view: String,
    /// `logits`, or the feature place.
    pub output: String,
}

/// The metadata entry.
#[derive(Serialize, Deserialize)]
struct Header {
    origin: Origin,
    /// SHA-256 of the values' bytes.
    sha256: String,
}

/// One output of a teacher and its file, whether that exists or is still to be written.
#[derive(Clone, Debug)]
pub struct TeacherOutput {
    /// The path of its file.
    pub path: PathBuf,
    /// What the values depend on.
    pub origin: Origin,
    /// The shape of all images' values, `[N, ...]`.
    pub shape: Vec<usize>,
}

impl TeacherOutput {
    /// The output of this origin in the cache's folder; `shape` is that of one image's values.
    pub fn new(folder: &Path, origin: Origin, shape: &[usize]) -> Self {
        let key = hex(Sha256::new_with_prefix(format!("{origin:?}")));
        let path = folder.join(format!("{}.safetensors", &key[..32]));
        let shape = [&[origin.images], shape].concat();
        Self { path, origin, shape }
    }

    /// The number of values of all images together.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values, row-major; `None` where there is no file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the file is damaged or of another origin, so that the values have to be computed anew; when it can't
    /// be opened.
    pub fn read(&self) -> Result<Option<Vec<f32>>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io(&self.path, "can't be read")(cause)),
        };
        self.values_of(file).map(Some).map_err(|found| {
            let found = format!("this cache of the teacher's outputs can't be used: {found}");
            Error::corrupt(&self.path, None, found)
        })
    }

    fn values_of(&self, mut file: File) -> std::result::Result<Vec<f32>, String> {
        let failed = |error: std::io::Error| error.to_string();
        let mut len = [0; 8];
        file.read_exact(&mut len).map_err(failed)?;
        let len = u64::from_le_bytes(len);
        if len > MAX_HEADER {
            return Err(format!("its header has {len} bytes; expected at most {MAX_HEADER}"));
        }
        let mut header = vec![0; len as usize];
        file.read_exact(&mut header).map_err(failed)?;
        let unread = |error| format!("its header can't be read: {error}");
        let header: Metadata = serde_json::from_slice(&header).map_err(unread)?;
        let info = header.info(TENSOR).ok_or("it has no tensor")?;
        if info.dtype != Dtype::F32 || info.shape != self.shape {
            let Self { shape, .. } = self;
            return Err(format!(
                "it holds {} {:?}; expected F32 {shape:?}",
                info.dtype, info.shape
            ));
        }
        let own = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let own: Header = serde_json::from_str(own.ok_or("it has no origin")?).map_err(unread)?;
        if own.origin != self.origin {
            return Err("it is of another teacher or other data".into());
        }
        let expected = 8 + len + 4 * self.values() as u64;
        let found = file.metadata().map_err(failed)?.len();
        if found != expected {
            return Err(format!("it has {found} bytes; expected {expected}"));
        }
        let mut hash = Sha256::new();
        let mut values = Vec::with_capacity(self.values());
        let mut chunk = vec![0; CHUNK];
        while values.len() < self.values() {
            let bytes = &mut chunk[..CHUNK.min(4 * (self.values() - values.len()))];
            file.read_exact(bytes).map_err(failed)?;
            hash.update(&*bytes);
            values.extend(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
        let found = hex(hash);
        match found == own.sha256 {
            true => Ok(values),
            false => Err(format!("its SHA-256 is {found}; expected {}", own.sha256)),
        }
    }

    /// Writes the file; its folder is made where it is not there.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        write::create_folder(folder)?;
        // One writer at a time, so that what lies there half-written is nobody's.
        let _lock = wait_for_lock(folder)?;
        write::remove_partial(folder)?;
        let mut buffer = Vec::with_capacity(CHUNK);
        let mut in_chunks = |act: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
            for chunk in values.chunks(CHUNK / 4) {
                buffer.clear();
                buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                act(&buffer)?;
            }
            Ok::<(), std::io::Error>(())
        };
        let mut hash = Sha256::new();
        let failed = Error::io(&self.path, "can't be written");
        in_chunks(&mut |bytes| {
            hash.update(bytes);
            Ok(())
        })
        .map_err(failed)?;
        let header = self.header(hex(hash), 4 * values.len()).map_err(|found| {
            let found = format!("the teacher's outputs can't be written: {found}");
            Error::corrupt(&self.path, None, found)
        })?;
        write::write_whole_with(&self.path, |file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            in_chunks(&mut |bytes| file.write_all(bytes))
        })
    }

    /// The header of a file whose values take `len` bytes, which have this SHA-256.
    fn header(&self, sha256: String, len: usize) -> std::result::Result<Vec<u8>, String> {
        let failed = |error: serde_json::Error| error.to_string();
        let own = Header { origin: self.origin.clone(), sha256 };
        let info =
            TensorInfo { dtype: Dtype::F32, shape: self.shape.clone(), data_offsets: (0, len) };
        let own = HashMap::from([(KEY.to_string(), serde_json::to_string(&own).map_err(failed)?)]);
        let header = Metadata::new(Some(own), vec![(TENSOR.to_string(), info)]);
        let header = header.map_err(|error| error.to_string())?;
        let mut header = serde_json::to_vec(&header).map_err(failed)?;
        // The format wants data to start at a multiple of eight.
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_a_damaged_or_foreign_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let origin = |teacher: &str| Origin {
            format: FORMAT,
            kd: "0".into(),
            teacher: teacher.into(),
            data: "d".into(),
            images: 2,
            held_out: None,
            mean: [0.0; 3],
            std: [1.0; 3],
            view: "plain".into(),
            output: "logits".into(),
        };
        let output = TeacherOutput::new(&folder.path().join("cache"), origin("a"), &[3]);
        assert_eq!((output.values(), &output.shape[..]), (6, &[2, 3][..]));
        assert!(output.read().unwrap().is_none());
        let values = [1.0, -2.0, 3.5, 0.0, 1e30, -1e-30];
        output.write(&values).unwrap();
        assert_eq!(output.read().unwrap().unwrap(), values);

        let whole = std::fs::read(&output.path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for (bytes, expected) in [
            (&flipped[..], "its SHA-256 is"),
            (&whole[..whole.len() - 4], "bytes; expected"),
            (&whole[..5], "failed to fill"),
        ] {
            std::fs::write(&output.path, bytes).unwrap();
            let error = output.read().unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let other = TeacherOutput::new(&folder.path().join("cache"), origin("b"), &[3]);
        assert_ne!(other.path, output.path);
        std::fs::write(&other.path, &whole).unwrap();
        let message = other.read().unwrap_err().to_string();
        assert!(message.contains("of another teacher or other data"), "{message}");
    }
}
