//! The teacher: something that does not learn and answers about each batch.

mod cache;
mod cross_fitted;
mod ensemble;
mod kept;
mod network;
mod onnx;
mod pretrained;
mod stored;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use kd_data::{Batch, Portions};
use kd_loss::Needs;
use kd_record::event::TeacherQuality;
use kd_record::teacher_outputs::{self, Origin, TeacherOutput};
use kd_record::{Keep, KeptViews};

pub use cache::Cached;
pub use cross_fitted::CrossFitted;
pub use ensemble::Ensemble;
pub use kept::{Kept, Used};
pub use network::NetworkTeacher;
pub(crate) use onnx::is_onnx;
pub use pretrained::{Network, Pretrained, PretrainedConfig, classes_of};
pub use stored::{StoredLogits, names_of};

use crate::recipe::DataConfig;
use crate::{Error, Result, evaluate};
use kd_report::softmax::argmax;

/// What a teacher says of a batch; plain tensors, which no gradient reaches.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// f32 `[B, C]`; there where they were needed.
    pub logits: Option<Tensor>,
    /// f32 feature maps `[B, ...]` by place; those that were needed.
    pub features: BTreeMap<String, Tensor>,
}

/// A teacher.
pub trait Teacher: Send {
    /// What the teacher says of a batch of training images: the logits and the feature maps that `needs` names.
    ///
    /// # Errors
    /// When the teacher lacks what is needed, or the device fails.
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers>;

    /// Why a step with these answers can't be captured as a CUDA graph, in a few words. A captured graph repeats the same
    /// operations on other batches, so a teacher that decides anything on the host, by a batch's indices for example, must
    /// say so.
    fn not_to_be_captured(&self, needs: &Needs) -> Option<&'static str>;
}

/// The name under which logits are cached; feature places have their own names.
const LOGITS: &str = "logits";

/// What [`prepare`] needs besides teacher and data.
pub(crate) struct CacheConfig<'a> {
    pub(crate) data: &'a DataConfig,
    /// The folder of the cache's files.
    pub(crate) folder: &'a Path,
    /// Most bytes of cached outputs in memory.
    pub(crate) memory: u64,
    /// Where teacher and cached outputs are.
    pub(crate) device: &'a Device,
    /// How logits of views are kept, where they are.
    pub(crate) keep: Option<Keep>,
    /// The number of views of each image in the whole run, where they are counted.
    pub(crate) views: usize,
    /// The seed of the views.
    pub(crate) seed: u64,
}

/// A run's teacher, ready to answer.
pub(crate) struct Prepared {
    pub(crate) teacher: Box<dyn Teacher>,
    /// The cached logits of all training images, if they are cached.
    logits: Option<Tensor>,
    /// The outputs that are cached.
    pub(crate) cached: Vec<String>,
    /// The outputs that each step computes.
    pub(crate) computed: Vec<String>,
    /// The file of kept views, where there is one.
    pub(crate) kept: Option<Arc<Used>>,
}

/// The teacher of a run as a file of kept views has it behind itself.
pub(crate) fn keeping(
    pretrained: &Pretrained,
    needs: &Needs,
    data: &Portions,
    keep: Keep,
    config: &CacheConfig<'_>,
) -> Result<Kept> {
    let (behind, _) = asked(pretrained, needs, data, config.device)?;
    let mut origin = origin(LOGITS, &pretrained.identity, data, config);
    origin.view = config.data.augmented_view(config.seed);
    let classes = pretrained.config.classes;
    if keep.top.is_some_and(|top| top >= classes) {
        return Err(Error::unfit(format!(
            "keep.top is {} and there are {classes} classes; expected fewer than the classes, or none, which keeps all",
            keep.top.unwrap_or(0)
        )));
    }
    let file = KeptViews::open(config.folder, origin, keep, classes, config.views)?;
    Ok(Kept::new(file, behind))
}

/// The training images of each part, of which one network answers each; empty where one network answers for all.
type Parts = Vec<Vec<u32>>;

/// The teacher that computes, and the parts.
fn asked(
    pretrained: &Pretrained,
    needs: &Needs,
    data: &Portions,
    device: &Device,
) -> Result<(Box<dyn Teacher>, Parts)> {
    if !pretrained.members.is_empty() {
        return Ok((Box::new(Ensemble::new(pretrained, needs, device)?), Vec::new()));
    }
    if pretrained.parts.is_empty() {
        return Ok((Box::new(NetworkTeacher::of(pretrained, device)?), Vec::new()));
    }
    let teacher = CrossFitted::new(pretrained, needs, data, device)?;
    let parts = teacher.parts();
    Ok((Box::new(teacher), parts))
}

/// Which of a teacher's outputs are cached and which are computed in each step.
pub(crate) struct Division {
    /// The names and the shapes of one image's values.
    pub(crate) cached: Vec<(String, Vec<usize>)>,
    pub(crate) computed: Vec<String>,
}

/// Divides the outputs of a teacher for so many training images by the `memory` that cached ones may take, in bytes.
///
/// With augmentation nothing is cached: each view of an image is new. Where logits of counted views are [kept](Kept), they are looked
/// up in their file as steps ask for them.
pub(crate) fn division(
    teacher: &Pretrained,
    needs: &Needs,
    images: usize,
    config: &CacheConfig<'_>,
) -> Result<Division> {
    if config.keep.is_some() {
        return Ok(Division { cached: Vec::new(), computed: vec![LOGITS.to_string()] });
    }
    // Cached even if no method needs them: they tell how well the teacher knows the images.
    let mut wanted = vec![(LOGITS.to_string(), vec![teacher.config.classes])];
    let places = teacher.places()?.into_iter();
    wanted.extend(places.filter(|(name, _)| needs.teacher.contains(name)));
    let mut division = Division { cached: Vec::new(), computed: Vec::new() };
    let mut budget = config.memory;
    for (output, shape) in wanted {
        match budget.checked_sub(bytes_of_output(&shape, images)) {
            Some(rest) if config.data.shows_plain_images() => {
                budget = rest;
                division.cached.push((output, shape));
            }
            _ if output == LOGITS && !needs.teacher_logits => {}
            _ => division.computed.push(output),
        }
    }
    Ok(division)
}

/// The bytes of an output for so many images.
pub(crate) fn bytes_of_output(shape: &[usize], images: usize) -> u64 {
    4 * images as u64 * shape.iter().product::<usize>() as u64
}

/// Gets a teacher ready, and what is cached of its outputs: from the cache's folder, or by a pass over the training images, of
/// which `progress` is told the number of images done. `Break` when `progress` breaks.
pub(crate) fn prepare(
    pretrained: &Pretrained,
    needs: &Needs,
    data: &Portions,
    config: &CacheConfig<'_>,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<ControlFlow<(), Prepared>> {
    let device = config.device;
    if let Some(keep) = config.keep {
        let kept = keeping(pretrained, needs, data, keep, config)?;
        let used = Some(Arc::clone(kept.used()));
        let (cached, computed) = (Vec::new(), vec![LOGITS.to_string()]);
        let teacher = Box::new(kept);
        let prepared = Prepared { teacher, logits: None, cached, computed, kept: used };
        return Ok(ControlFlow::Continue(prepared));
    }
    let (behind, parts) = asked(pretrained, needs, data, device)?;
    let Division { cached, computed } = division(pretrained, needs, data.train.len(), config)?;
    let mut outputs = BTreeMap::new();
    let mut missing = Vec::new();
    for (output, shape) in cached {
        let origin = origin(&output, &pretrained.identity, data, config);
        let file = TeacherOutput::new(config.folder, origin, &shape);
        match read(&file)? {
            Some(values) => {
                let rows = Tensor::from_vec(values, &file.shape[..], device)?;
                outputs.insert(output, rows);
            }
            None => missing.push(file),
        }
    }
    if !missing.is_empty() {
        let made = pass(&*behind, &parts, missing, data, config, progress).map_err(|error| {
            let paths = pretrained.answering().iter().map(|one| one.path.display().to_string());
            let paths: Vec<_> = paths.collect();
            error.context(format!("{}: the teacher can't be used", paths.join(", ")))
        });
        match made? {
            ControlFlow::Continue(made) => outputs.extend(made),
            ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
        }
    }
    let cached = outputs.keys().cloned().collect();
    let logits = outputs.get(LOGITS).cloned();
    let teacher: Box<dyn Teacher> = match outputs.is_empty() {
        true => behind,
        false => Box::new(Cached::new(outputs, Some(behind))),
    };
    Ok(ControlFlow::Continue(Prepared { teacher, logits, cached, computed, kept: None }))
}

/// What the cached values of `output` depend on, of the teacher with this [identity](Pretrained::identity).
fn origin(output: &str, teacher: &str, data: &Portions, config: &CacheConfig<'_>) -> Origin {
    Origin {
        format: teacher_outputs::FORMAT,
        kd: env!("CARGO_PKG_VERSION").into(),
        teacher: teacher.into(),
        data: data.sha256.clone(),
        images: data.train.len(),
        held_out: config.data.held_out,
        mean: config.data.mean,
        std: config.data.std,
        view: config.data.plain_view(),
        output: output.into(),
    }
}

/// The values of a file of the cache, if it is there and whole. A damaged one is reported, and its values are computed anew.
fn read(file: &TeacherOutput) -> kd_record::Result<Option<Vec<f32>>> {
    match file.read() {
        Err(error @ kd_record::Error::Corrupt { .. }) => {
            tracing::warn!("{error}; computing them anew");
            Ok(None)
        }
        read => read,
    }
}

/// Computes what is missing in the cache, all in one pass over the training images, and writes it there. With `parts` the
/// images of each part make batches of their own, each of which one network answers whole.
fn pass(
    teacher: &dyn Teacher,
    parts: &[Vec<u32>],
    missing: Vec<TeacherOutput>,
    data: &Portions,
    config: &CacheConfig<'_>,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<ControlFlow<(), BTreeMap<String, Tensor>>> {
    let mut needs = Needs::default();
    for file in &missing {
        match file.origin.output.as_str() {
            LOGITS => needs.teacher_logits = true,
            place => needs.teacher.push(place.to_string()),
        }
    }
    let mut values: Vec<Vec<f32>> = missing.iter().map(|file| vec![0.0; file.values()]).collect();
    let all = [(0..data.train.len() as u32).collect()];
    let parts = if parts.is_empty() { &all } else { parts };
    let mut done = 0;
    for images in parts {
        let split = match images.len() == data.train.len() {
            true => Arc::clone(&data.train),
            false => kd_data::select(&data.train, images),
        };
        let batches = evaluate::in_order(config.data.normalization());
        for batch in kd_data::batches(&split, &batches, config.device)? {
            let batch = among_all(batch?, images)?;
            let answers = teacher.answer(&batch, &needs)?;
            for (file, values) in missing.iter().zip(&mut values) {
                let rows = answers.get(&file.origin.output)?.flatten_all()?.to_vec1::<f32>()?;
                let len = rows.len() / batch.indices.len();
                for (row, &image) in rows.chunks_exact(len).zip(&batch.indices) {
                    if let Some(value) = row.iter().find(|value| !value.is_finite()) {
                        return Err(Error::unfit(format!(
                            "its {} for training image {image} are not finite ({value}); expected finite numbers: its weights are too large, or another network's; look at it with `kd eval`",
                            file.origin.output
                        )));
                    }
                    values[image as usize * len..][..len].copy_from_slice(row);
                }
            }
            done += batch.indices.len();
            if progress(done).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    let mut outputs = BTreeMap::new();
    for (file, values) in missing.into_iter().zip(values) {
        // The run has the values in memory, whether or not the file can be written.
        if let Err(error) = file.write(&values) {
            tracing::warn!("{error}; the next run computes the teacher's outputs anew");
        }
        let tensor = Tensor::from_vec(values, &file.shape[..], config.device)?;
        outputs.insert(file.origin.output, tensor);
    }
    Ok(ControlFlow::Continue(outputs))
}

/// A batch of a selection of the training images, `images`, as one of all of them: with their positions there.
fn among_all(batch: Batch, images: &[u32]) -> Result<Batch> {
    let indices: Vec<u32> = batch.indices.iter().map(|&index| images[index as usize]).collect();
    let rows = Tensor::new(indices.as_slice(), batch.rows.device())?;
    Ok(Batch { indices, rows, ..batch })
}

impl Answers {
    /// The output of this name.
    fn get(&self, output: &str) -> Result<&Tensor> {
        let found = match output {
            LOGITS => self.logits.as_ref(),
            place => self.features.get(place),
        };
        found.ok_or_else(|| crate::error::other!("the teacher gave no {output}"))
    }
}

impl Prepared {
    /// How the teacher does on the images that it teaches with: on all of them where its logits are cached, otherwise on
    /// those of `sample`, batches as the student sees them.
    pub(crate) fn quality(
        &self,
        data: &Portions,
        sample: impl Iterator<Item = kd_data::Result<Batch>>,
    ) -> Result<TeacherQuality> {
        let mut sums = TeacherQuality { images: 0, accuracy: 0.0, entropy: 0.0 };
        let mut add = |logits: &Tensor, labels: &mut dyn Iterator<Item = usize>| -> Result<()> {
            for (row, label) in logits.to_vec2::<f32>()?.iter().zip(labels) {
                sums.images += 1;
                sums.entropy += entropy_of(row);
                sums.accuracy += f64::from(u8::from(argmax(row) == label));
            }
            Ok(())
        };
        match &self.logits {
            Some(logits) => {
                add(logits, &mut data.train_labels()?.into_iter().map(|label| label as usize))?;
            }
            None => {
                let needs = Needs { teacher_logits: true, ..Needs::default() };
                for batch in sample {
                    let batch = batch?;
                    let labels = batch.labels.to_vec1::<u32>()?;
                    let answers = self.teacher.answer(&batch, &needs)?;
                    add(answers.get(LOGITS)?, &mut labels.into_iter().map(|label| label as usize))?;
                }
            }
        }
        let images = sums.images.max(1) as f64;
        let (accuracy, entropy) = (sums.accuracy / images, sums.entropy / images);
        Ok(TeacherQuality { accuracy, entropy, ..sums })
    }
}

/// Entropy of the softmax of a row of logits, in nats.
fn entropy_of(logits: &[f32]) -> f64 {
    let largest = f64::from(logits[argmax(logits)]);
    let shifted = || logits.iter().map(|&logit| f64::from(logit) - largest);
    let sum: f64 = shifted().map(f64::exp).sum();
    // -sum p ln p, with ln p = shifted - ln sum.
    let mean: f64 = shifted().map(|shifted| shifted.exp() * shifted).sum::<f64>() / sum;
    sum.ln() - mean
}
