//! `test-outputs.safetensors`: the finished network's logits of every test image, for the report (calibration, agreement with
//! the teacher, soft targets), which runs no network itself.
//!
//! | tensor | what |
//! | --- | --- |
//! | `logits` | f32 `[N, classes]`, in the order of the test images |
//! | `labels` | u8 `[N]`, or u32 where there are more than 256 classes |
//! | `sample` | u32 `[S]`: some test images, balanced over the classes, the same in every run on the same data |
//! | `sample_images` | u8 `[S, 3, H, W]`: their pixels |
//! | `teacher_logits` | f32 `[N, classes]`, where no such file lies beside the teacher's weights |
//!
//! The one metadata entry is the SHA-256 of the weights that the logits are of.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::write::write_whole;
use crate::{Error, Result};

/// The one metadata entry.
const WEIGHTS: &str = "weights-sha256";

/// A network's logits of every test image.
#[derive(Clone, Debug, PartialEq)]
pub struct TestOutputs {
    /// Columns of the logits.
    pub classes: usize,
    /// Row by row, one of [`classes`](Self::classes) values for each test image.
    pub logits: Vec<f32>,
    /// The true class of each test image.
    pub labels: Vec<u32>,
    /// The teacher's logits, where no file like this lies beside its weights.
    pub teacher_logits: Option<Vec<f32>>,
    /// Numbers of some test images, counted from 0.
    pub sample: Vec<u32>,
    /// Channels (3), height and width of an image.
    pub shape: [usize; 3],
    /// Their pixels, image by image, channel by channel.
    pub sample_images: Vec<u8>,
    /// SHA-256 of the weights file.
    pub weights_sha256: String,
}

impl TestOutputs {
    /// Reads the file; `None` where there is none, as in the folders of early versions.
    ///
    /// # Errors
    /// When it can't be read, or is something else.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io(path, "can't be read")(cause)),
        };
        let bad = |found| Error::corrupt(path, None, format!("not a network's outputs: {found}"));
        Self::from_bytes(&bytes).map(Some).map_err(bad)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the fields don't fit each other, or the file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bad = |found| Error::corrupt(path, None, format!("outputs can't be written: {found}"));
        write_whole(path, &self.to_bytes().map_err(bad)?)
    }

    fn to_bytes(&self) -> std::result::Result<Vec<u8>, String> {
        self.check()?;
        let logits = bytes(&self.logits);
        let teacher = self.teacher_logits.as_deref().map(bytes);
        let indices: Vec<u8> = self.sample.iter().flat_map(|index| index.to_le_bytes()).collect();
        let (dtype, labels) = match self.classes <= 256 {
            true => (Dtype::U8, self.labels.iter().map(|&label| label as u8).collect()),
            false => (Dtype::U32, self.labels.iter().flat_map(|l| l.to_le_bytes()).collect()),
        };
        let labels: Vec<u8> = labels;
        let shape = vec![self.labels.len(), self.classes];
        let pixels = [&[self.sample.len()], &self.shape[..]].concat();
        let view = |dtype, shape: Vec<usize>, bytes| {
            TensorView::new(dtype, shape, bytes).map_err(|error| error.to_string())
        };
        let mut tensors = vec![
            ("logits", view(Dtype::F32, shape.clone(), &logits[..])?),
            ("labels", view(dtype, vec![self.labels.len()], &labels)?),
            ("sample", view(Dtype::U32, vec![self.sample.len()], &indices)?),
            ("sample_images", view(Dtype::U8, pixels, &self.sample_images)?),
        ];
        if let Some(teacher) = &teacher {
            tensors.push(("teacher_logits", view(Dtype::F32, shape, teacher)?));
        }
        let metadata = HashMap::from([(WEIGHTS.to_owned(), self.weights_sha256.clone())]);
        safetensors::serialize(tensors, Some(metadata)).map_err(|error| error.to_string())
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// What is wrong with the bytes and what was expected.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let whole = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let sha256 = header.metadata().as_ref().and_then(|entries| entries.get(WEIGHTS));
        let weights_sha256 = sha256.ok_or_else(|| format!("no metadata entry {WEIGHTS}"))?.clone();
        let tensor = |name: &str, dtype: Dtype, dims: usize| {
            let found = whole.tensor(name).map_err(|error| error.to_string())?;
            if found.dtype() != dtype || found.shape().len() != dims {
                let (is, shape) = (found.dtype(), found.shape());
                return Err(format!("{name} is {is} {shape:?}; expected {dtype}, {dims} axes"));
            }
            Ok((found.shape().to_vec(), found.data().to_vec()))
        };
        let (shape, logits) = tensor("logits", Dtype::F32, 2)?;
        let labels: Vec<u32> = match tensor("labels", Dtype::U8, 1) {
            Ok((_, labels)) => labels.into_iter().map(u32::from).collect(),
            Err(_) => {
                let (_, labels) = tensor("labels", Dtype::U32, 1)?;
                words(&labels).map(u32::from_le_bytes).collect()
            }
        };
        let teacher = match whole.tensor("teacher_logits") {
            Ok(_) => Some(tensor("teacher_logits", Dtype::F32, 2)?),
            Err(_) => None,
        };
        let (_, sample) = tensor("sample", Dtype::U32, 1)?;
        let (pixels, sample_images) = tensor("sample_images", Dtype::U8, 4)?;
        let floats = |bytes: &[u8]| words(bytes).map(f32::from_le_bytes).collect::<Vec<f32>>();
        let found = Self {
            classes: shape[1],
            logits: floats(&logits),
            labels,
            teacher_logits: teacher.map(|(_, logits)| floats(&logits)),
            sample: words(&sample).map(u32::from_le_bytes).collect(),
            shape: [pixels[1], pixels[2], pixels[3]],
            sample_images,
            weights_sha256,
        };
        found.check()?;
        Ok(found)
    }

    /// Whether the fields fit each other.
    fn check(&self) -> std::result::Result<(), String> {
        let values = self.labels.len().checked_mul(self.classes);
        let pixels =
            self.shape.iter().try_fold(self.sample.len(), |size, side| size.checked_mul(*side));
        let fits = values == Some(self.logits.len())
            && self.labels.iter().all(|label| (*label as usize) < self.classes)
            && self.teacher_logits.as_ref().is_none_or(|other| other.len() == self.logits.len())
            && self.shape[0] == 3
            && pixels == Some(self.sample_images.len())
            // An image without pixels takes no bytes, whatever its other side.
            && self.shape[1..].iter().all(|side| (1..=1024).contains(side))
            && self.sample.iter().all(|index| (*index as usize) < self.labels.len());
        let teacher = self.teacher_logits.iter().flatten();
        if !fits || !self.logits.iter().chain(teacher).all(|logit| logit.is_finite()) {
            return Err("its tensors don't fit each other, or a logit is not finite".to_owned());
        }
        Ok(())
    }

    /// The logits of each test image with its true class, in order.
    pub fn rows(&self) -> impl Iterator<Item = (&[f32], usize)> {
        let labels = self.labels.iter().map(|label| *label as usize);
        self.logits.chunks_exact(self.classes.max(1)).zip(labels)
    }

    /// The pixels of the sample's image at `place`, `[3, H, W]`; `place` must be below the sample's length.
    pub fn image(&self, place: usize) -> &[u8] {
        let size: usize = self.shape.iter().product();
        &self.sample_images[place * size..][..size]
    }

    /// Whether another network's outputs are of the same test images.
    pub fn same_images(&self, other: &Self) -> bool {
        (&self.labels, self.classes) == (&other.labels, other.classes)
            && self.sample_images == other.sample_images
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs() -> TestOutputs {
        TestOutputs {
            classes: 2,
            logits: vec![1.0, -0.5, 0.25, f32::MIN_POSITIVE],
            labels: vec![0, 1],
            teacher_logits: Some(vec![4.0, 3.0, 2.0, 1.0]),
            sample: vec![1],
            shape: [3, 1, 2],
            sample_images: vec![1, 2, 3, 4, 5, 6],
            weights_sha256: "ab".into(),
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("o.safetensors");
        assert_eq!(TestOutputs::read(&path).unwrap(), None);
        outputs().write(&path).unwrap();
        assert_eq!(TestOutputs::read(&path).unwrap(), Some(outputs()));
        // Another program finds the tensors by their names.
        let bytes = std::fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("sample_images").unwrap().shape(), [1, 3, 1, 2]);
        assert_eq!(tensors.tensor("logits").unwrap().data()[..4], 1f32.to_le_bytes());
    }

    #[test]
    fn what_does_not_fit_is_neither_written_nor_read() {
        let wrong = [
            TestOutputs { labels: vec![0], ..outputs() },
            TestOutputs { labels: vec![0, 2], ..outputs() },
            TestOutputs { teacher_logits: Some(vec![0.0]), ..outputs() },
            TestOutputs { sample: vec![2], ..outputs() },
            TestOutputs { shape: [3, 0, 5], sample_images: Vec::new(), ..outputs() },
            TestOutputs { logits: vec![f32::NAN; 4], ..outputs() },
        ];
        for outputs in wrong {
            assert!(outputs.to_bytes().is_err(), "{outputs:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("o.safetensors");
        outputs().write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            assert!(TestOutputs::from_bytes(&bytes[..len]).is_err(), "cut to {len}");
        }
    }
}
