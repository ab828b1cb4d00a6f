//! Teacher outputs that are computed once and kept: in memory for the run, and in files for the next one.
//!
//! A file holds one output (the logits, or a feature place): `cache/<key>.safetensors` is one f32 tensor `[N, ...]`, a row for
//! each training image in the data's order. The key is a hash of all that the values depend on: the teacher's weights, the
//! order of its classes and its own normalisation, the data and its subset, the view (plain images, their normalisation) and the output. The folder can be deleted at any time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};
use kd_data::Batch;
use kd_loss::Needs;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Answers, CacheConfig, LOGITS, Teacher};
use crate::Result;
use crate::data::Data;
use kd_record::hash::hex;
use kd_record::lock::wait_for_lock;
use kd_record::write;

const FORMAT: u32 = 1;
/// The one metadata entry.
const KEY: &str = "kd-teacher-output";
/// The one tensor.
const TENSOR: &str = "output";
/// A header of one tensor is far below this.
const MAX_HEADER: u64 = 1 << 16;
/// Bytes written or read at a time.
const CHUNK: usize = 1 << 20;

/// A teacher whose outputs, or some of them, are in memory; another teacher computes the rest for each batch.
pub struct Cached {
    /// A row for each training image, by output.
    outputs: BTreeMap<String, Tensor>,
    /// Who answers what is not cached.
    behind: Option<Box<dyn Teacher>>,
}

impl Cached {
    /// The cached outputs, `[N, ...]` by name (`logits`, or a feature place), with a row for each training image in the data's
    /// order; `behind` answers what is not among them.
    pub fn new(outputs: BTreeMap<String, Tensor>, behind: Option<Box<dyn Teacher>>) -> Self {
        Self { outputs, behind }
    }

    /// What is needed and not cached.
    fn rest(&self, needs: &Needs) -> Needs {
        let mut rest = needs.clone();
        rest.teacher.retain(|place| !self.outputs.contains_key(place));
        rest.teacher_logits &= !self.outputs.contains_key(LOGITS);
        rest
    }
}

impl Teacher for Cached {
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
        let rest = self.rest(needs);
        let mut answers = match &self.behind {
            Some(behind) if rest.any_teacher() => behind.answer(batch, &rest)?,
            _ => Answers::default(),
        };
        for (output, rows) in &self.outputs {
            let rows = || rows.index_select(&batch.rows, 0);
            match output.as_str() {
                LOGITS if needs.teacher_logits => answers.logits = Some(rows()?),
                place if needs.teacher.iter().any(|needed| needed == place) => {
                    answers.features.insert(place.to_string(), rows()?);
                }
                _ => {}
            }
        }
        Ok(answers)
    }

    fn not_to_be_captured(&self, needs: &Needs) -> Option<&'static str> {
        let rest = self.rest(needs);
        self.behind.as_ref().filter(|_| rest.any_teacher())?.not_to_be_captured(&rest)
    }
}

/// All that cached values depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    format: u32,
    kd: String,
    teacher: String,
    data: String,
    images: usize,
    /// The training images that were held out before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_out: Option<usize>,
    mean: [f32; 3],
    std: [f32; 3],
    view: String,
    output: String,
}

/// The metadata entry.
#[derive(Serialize, Deserialize)]
struct Header {
    origin: Origin,
    /// SHA-256 of the values' bytes.
    sha256: String,
}

/// One output and its file, whether that exists or is still to be written.
pub(super) struct CacheFile {
    pub(super) output: String,
    /// The shape of one image's values.
    shape: Vec<usize>,
    origin: Origin,
    path: PathBuf,
}

impl CacheFile {
    pub(super) fn new(
        output: &str,
        shape: Vec<usize>,
        teacher: &str,
        data: &Data,
        config: &CacheConfig<'_>,
    ) -> Self {
        let origin = Origin {
            format: FORMAT,
            kd: env!("CARGO_PKG_VERSION").into(),
            teacher: teacher.into(),
            data: data.sha256.clone(),
            // The subset of this size is always the same.
            images: data.train.len(),
            held_out: config.data.held_out,
            mean: config.data.mean,
            std: config.data.std,
            view: "plain".into(),
            output: output.into(),
        };
        let key = hex(Sha256::new_with_prefix(format!("{origin:?}")));
        let path = config.folder.join(format!("{}.safetensors", &key[..32]));
        Self { output: output.into(), shape, origin, path }
    }

    /// The number of values of all images together.
    pub(super) fn values(&self) -> usize {
        self.origin.images * self.shape.iter().product::<usize>()
    }

    /// The shape of all images' values.
    pub(super) fn full_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.origin.images];
        shape.extend(&self.shape);
        shape
    }

    /// The values, if the file is there and whole. A damaged file is reported, and its values are computed anew.
    pub(super) fn read(&self) -> anyhow::Result<Option<Tensor>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.path.display().to_string()),
        };
        match self.values_of(file) {
            Ok(values) => Ok(Some(Tensor::from_vec(values, self.full_shape(), &Device::Cpu)?)),
            Err(error) => {
                tracing::warn!(
                    "{}: this cache of the teacher's outputs can't be used: {error:#}; computing them anew",
                    self.path.display()
                );
                Ok(None)
            }
        }
    }

    fn values_of(&self, mut file: File) -> anyhow::Result<Vec<f32>> {
        let mut len = [0; 8];
        file.read_exact(&mut len)?;
        let len = u64::from_le_bytes(len);
        ensure!(len <= MAX_HEADER, "its header has {len} bytes; expected at most {MAX_HEADER}");
        let mut header = vec![0; len as usize];
        file.read_exact(&mut header)?;
        let header: Metadata =
            serde_json::from_slice(&header).context("its header can't be read")?;
        let info = header.info(TENSOR).context("it has no tensor")?;
        ensure!(
            info.dtype == Dtype::F32 && info.shape == self.full_shape(),
            "it holds {} {:?}; expected F32 {:?}",
            info.dtype,
            info.shape,
            self.full_shape()
        );
        let own = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let own: Header = serde_json::from_str(own.context("it has no origin")?)?;
        ensure!(own.origin == self.origin, "it is of another teacher or other data");
        let expected = 8 + len + 4 * self.values() as u64;
        let found = file.metadata()?.len();
        ensure!(found == expected, "it has {found} bytes; expected {expected}");

        let mut hash = Sha256::new();
        let mut values = Vec::with_capacity(self.values());
        let mut chunk = vec![0; CHUNK];
        while values.len() < self.values() {
            let bytes = &mut chunk[..CHUNK.min(4 * (self.values() - values.len()))];
            file.read_exact(bytes)?;
            hash.update(&*bytes);
            values.extend(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
        let found = hex(hash);
        ensure!(found == own.sha256, "its SHA-256 is {found}; expected {}", own.sha256);
        Ok(values)
    }

    /// Writes the file. A failure is only reported: the run has the values in memory.
    pub(super) fn write(&self, values: &[f32]) {
        if let Err(error) = self.try_write(values) {
            tracing::warn!("{error:#}; the next run computes the teacher's outputs anew");
        }
    }

    fn try_write(&self, values: &[f32]) -> anyhow::Result<()> {
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
        in_chunks(&mut |bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        let own = Header { origin: self.origin.clone(), sha256: hex(hash) };
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: self.full_shape(),
            data_offsets: (0, 4 * values.len()),
        };
        let own = HashMap::from([(KEY.to_string(), serde_json::to_string(&own)?)]);
        let header = Metadata::new(Some(own), vec![(TENSOR.to_string(), info)])?;
        let mut header = serde_json::to_vec(&header)?;
        // The format wants data to start at a multiple of eight.
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(write::write_whole_with(&self.path, |file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            in_chunks(&mut |bytes| file.write_all(bytes))
        })?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers ones, and notes what it was asked.
    struct Behind(Mutex<Vec<Needs>>);

    impl Teacher for &'static Behind {
        fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
            self.0.lock().unwrap().push(needs.clone());
            let ones =
                || Tensor::ones((batch.indices.len(), 1), candle_core::DType::F32, &Device::Cpu);
            let feature = |place: &String| Ok((place.clone(), ones()?));
            let features = needs.teacher.iter().map(feature).collect::<Result<_>>()?;
            Ok(Answers { logits: Some(ones()?), features })
        }

        fn not_to_be_captured(&self, _: &Needs) -> Option<&'static str> {
            Some("it is asked on the host")
        }
    }

    fn batch(rows: &[u32]) -> Batch {
        let images = Tensor::zeros((rows.len(), 3, 1, 1), candle_core::DType::F32, &Device::Cpu);
        Batch {
            images: images.unwrap(),
            labels: Tensor::new(rows, &Device::Cpu).unwrap(),
            rows: Tensor::new(rows, &Device::Cpu).unwrap(),
            indices: rows.to_vec(),
            views: Vec::new(),
        }
    }

    #[test]
    fn what_is_cached_is_looked_up_and_the_rest_is_computed() {
        let behind: &'static Behind = Box::leak(Box::new(Behind(Mutex::default())));
        let rows = Tensor::new(&[[10f32], [11.0], [12.0]], &Device::Cpu).unwrap();
        let outputs = BTreeMap::from([(LOGITS.to_string(), rows.clone()), ("a".to_string(), rows)]);
        let teacher = Cached::new(outputs, Some(Box::new(behind)));
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();

        let mut needs = Needs { teacher_logits: true, ..Needs::default() };
        let answers = teacher.answer(&batch(&[2, 0]), &needs).unwrap();
        assert_eq!(values(&answers.logits.unwrap()), [12.0, 10.0]);
        assert!(answers.features.is_empty(), "nobody needs the cached features");
        assert!(behind.0.lock().unwrap().is_empty(), "nothing was left to compute");
        assert_eq!(teacher.not_to_be_captured(&needs), None);

        needs.teacher = vec!["a".into(), "b".into()];
        let answers = teacher.answer(&batch(&[1]), &needs).unwrap();
        assert_eq!(values(&answers.logits.unwrap()), [11.0]);
        assert_eq!(values(&answers.features["a"]), [11.0]);
        assert_eq!(values(&answers.features["b"]), [1.0]);
        let rest = Needs { teacher: vec!["b".into()], ..Needs::default() };
        assert_eq!(*behind.0.lock().unwrap(), [rest]);
        assert_eq!(teacher.not_to_be_captured(&needs), Some("it is asked on the host"));
    }
}
