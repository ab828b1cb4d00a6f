//! `test-outputs.safetensors` in a run's folder: what the network says of every test image, for the
//! report (calibration, agreement with the teacher, soft targets).
//!
//! | tensor | what |
//! | --- | --- |
//! | `logits` | f32 `[N, classes]`, in the order of the test images |
//! | `labels` | u8 `[N]` |
//! | `sample` | u32 `[S]`: some test images, balanced over the classes, the same in every run on the same data |
//! | `sample_images` | u8 `[S, 3, H, W]`: their pixels |
//! | `teacher_logits` | f32 `[N, classes]`, where no such file lies beside the teacher's weights |
//!
//! The one metadata entry is the SHA-256 of the weights that the logits are of.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::run::ResolvedRun;
use crate::teacher::Pretrained;
use crate::{evaluate, files};

pub(crate) const FILE: &str = "test-outputs.safetensors";
/// The one metadata entry.
const WEIGHTS: &str = "weights-sha256";
/// Images whose pixels are kept, of which the report chooses: 300 KB.
const SAMPLE: usize = 100;
/// A seed of its own, so that the sample is the same in every run.
const SAMPLE_SEED: u64 = 4;

/// The file for weights that a run left in `weights`: in the run's folder beside them.
pub(crate) fn path_for(weights: &Path) -> PathBuf {
    weights.with_extension("").join(FILE)
}

/// Asks the finished network, and where need be its teacher, about the test images.
pub(crate) fn write(run: &ResolvedRun, weights: &Path) -> anyhow::Result<()> {
    let test = &run.data.test;
    let (classes, normalization) = (run.data.classes.len(), run.recipe.data.normalization());
    let logits_of = |network: &Pretrained| {
        let built = network.network(&run.device)?;
        bytes(&evaluate::logits(&*built, test, normalization, &run.device)?)
    };
    let own = Pretrained::load(weights, Some(run.recipe.run.model), classes, normalization)?;
    let logits = logits_of(&own)?;
    // Cross-fitted teachers are several, of which none is the teacher of a test image.
    let alone = run.teacher.as_ref().filter(|teacher| teacher.parts.is_empty());
    let sample = test.balanced_subset(SAMPLE, classes, SAMPLE_SEED);
    let images = test.select(&sample).images;
    // The teacher may have been tested on other images.
    let known = |teacher: &&Pretrained| {
        let bytes = std::fs::read(path_for(&teacher.path)).ok();
        let found = bytes.and_then(|bytes| TestOutputs::from_bytes(&bytes).ok());
        found.is_some_and(|found| {
            found.weights_sha256 == teacher.sha256
                && found.labels == test.labels
                && found.sample_images == images
        })
    };
    let teacher = match alone.filter(|teacher| !known(teacher)) {
        Some(teacher) => Some(logits_of(teacher)?),
        None => None,
    };
    let indices: Vec<u8> = sample.iter().flat_map(|index| index.to_le_bytes()).collect();

    let (shape, pixels) = (vec![test.len(), classes], [&[sample.len()], &test.shape[..]].concat());
    let mut tensors = vec![
        ("logits", TensorView::new(Dtype::F32, shape.clone(), &logits)?),
        ("labels", TensorView::new(Dtype::U8, vec![test.len()], &test.labels)?),
        ("sample", TensorView::new(Dtype::U32, vec![sample.len()], &indices)?),
        ("sample_images", TensorView::new(Dtype::U8, pixels, &images)?),
    ];
    if let Some(logits) = &teacher {
        tensors.push(("teacher_logits", TensorView::new(Dtype::F32, shape, logits)?));
    }
    let metadata = HashMap::from([(WEIGHTS.to_owned(), own.sha256.clone())]);
    let path = path_for(weights);
    files::write_whole(&path, &safetensors::serialize(tensors, Some(metadata))?)
}

fn bytes(logits: &Tensor) -> anyhow::Result<Vec<u8>> {
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// The file as the report reads it.
pub(crate) struct TestOutputs {
    pub(crate) classes: usize,
    /// Row by row.
    pub(crate) logits: Vec<f32>,
    pub(crate) labels: Vec<u8>,
    pub(crate) teacher_logits: Option<Vec<f32>>,
    pub(crate) sample: Vec<u32>,
    /// Channels, height and width of an image.
    pub(crate) shape: [usize; 3],
    pub(crate) sample_images: Vec<u8>,
    pub(crate) weights_sha256: String,
}

impl TestOutputs {
    /// # Errors
    /// What is wrong with the bytes and what was expected.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
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
        let (images, classes) = (shape[0], shape[1]);
        let (_, labels) = tensor("labels", Dtype::U8, 1)?;
        let teacher = match whole.tensor("teacher_logits") {
            Ok(_) => Some(tensor("teacher_logits", Dtype::F32, 2)?),
            Err(_) => None,
        };
        let (_, sample) = tensor("sample", Dtype::U32, 1)?;
        let (pixels, sample_images) = tensor("sample_images", Dtype::U8, 4)?;
        let sample: Vec<u32> = words(&sample).map(u32::from_le_bytes).collect();
        let floats = |bytes: &[u8]| words(bytes).map(f32::from_le_bytes).collect::<Vec<f32>>();
        let fits = labels.len() == images
            && labels.iter().all(|label| usize::from(*label) < classes)
            && teacher.as_ref().is_none_or(|(other, _)| *other == shape)
            && pixels[..2] == [sample.len(), 3]
            // An image without pixels takes no bytes, whatever its other side.
            && pixels[2..].iter().all(|side| (1..=1024).contains(side))
            && sample.iter().all(|index| (*index as usize) < images);
        let found = Self {
            classes,
            logits: floats(&logits),
            labels,
            teacher_logits: teacher.map(|(_, logits)| floats(&logits)),
            sample,
            shape: [pixels[1], pixels[2], pixels[3]],
            sample_images,
            weights_sha256,
        };
        let teacher = found.teacher_logits.iter().flatten();
        if !fits || !found.logits.iter().chain(teacher).all(|logit| logit.is_finite()) {
            return Err("its tensors don't fit each other, or a logit is not finite".to_owned());
        }
        Ok(found)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (&[f32], usize)> {
        let labels = self.labels.iter().map(|label| usize::from(*label));
        self.logits.chunks_exact(self.classes.max(1)).zip(labels)
    }

    /// The pixels of the sample's image at `place`, `[3, H, W]`.
    pub(crate) fn image(&self, place: usize) -> &[u8] {
        let size: usize = self.shape.iter().product();
        &self.sample_images[place * size..][..size]
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}
