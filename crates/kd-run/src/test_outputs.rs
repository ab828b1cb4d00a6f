//! Asks a finished network, and where need be its teacher, about the test images, for the report:
//! [`kd_record::test_outputs`] says what is in the file.

use std::path::Path;

use candle_core::Tensor;
use kd_data::Picture;
use kd_record::{RunFolder, TestFlip, TestOutputs};

use crate::run::ResolvedRun;
use crate::teacher::{Pretrained, PretrainedConfig};
use crate::{Error, Result, evaluate};

/// Images whose pixels are kept, of which the report chooses: 300 KB at 32x32, and never more than 3 MB.
const SAMPLE: usize = 100;
const SAMPLE_BYTES: usize = 3 << 20;
/// A seed of its own, so that the sample is the same in every run.
const SAMPLE_SEED: u64 = 4;

/// What the finished network gives with test-time flipping.
pub(crate) fn flipped(run: &ResolvedRun, weights: &Path) -> Result<TestFlip> {
    let normalization = run.recipe.data.normalization();
    let network = finished(run, weights)?.network(&run.device)?;
    let (test, classes) = (&run.data.test, &run.data.classes);
    evaluate::evaluate_with_flip(&*network, test, classes, normalization, &run.device)
}

/// The network that the run ended with.
fn finished(run: &ResolvedRun, weights: &Path) -> Result<Pretrained> {
    let normalization = run.recipe.data.normalization();
    let config = PretrainedConfig {
        architecture: Some(run.recipe.run.model),
        ..PretrainedConfig::new(&run.data.classes, run.data.input(), normalization)
    };
    Pretrained::load(weights, &config)
}

/// Asks the finished network, and where need be its teacher, about the test images.
pub(crate) fn write(run: &ResolvedRun, weights: &Path) -> Result<()> {
    let test = &run.data.test;
    let (classes, normalization) = (run.data.classes.len(), run.recipe.data.normalization());
    let logits_of = |network: &Pretrained| {
        let built = network.network(&run.device)?;
        evaluate::logits(&*built, test, normalization, &run.device)
    };
    let values = |logits: Tensor| Ok::<_, Error>(logits.flatten_all()?.to_vec1::<f32>()?);
    let own = finished(run, weights)?;
    // Cross-fitted teachers are several, of which none is the teacher of a test image; and what teachers say together that are weighted
    // by the label is not an answer to a test image.
    let alone = run.teacher.as_ref().filter(|teacher| {
        let weighted = !teacher.members.is_empty() && teacher.combination.uses_labels();
        teacher.parts.is_empty() && !weighted
    });
    let shape = test.shape();
    let size = SAMPLE.min(SAMPLE_BYTES / shape.iter().product::<usize>().max(1));
    let labels = test.labels()?;
    let sample = kd_data::balanced_subset(&labels, size, classes, SAMPLE_SEED);
    let (mut picture, mut sample_images) = (Picture::default(), Vec::new());
    for &index in &sample {
        test.read(index, &mut picture)?;
        sample_images.extend_from_slice(&picture.pixels);
    }
    let mut outputs = TestOutputs {
        classes,
        logits: values(logits_of(&own)?)?,
        labels,
        teacher_logits: None,
        shape,
        sample_images,
        sample,
        weights_sha256: own.sha256.clone(),
    };
    // The teacher may have been tested on other images, with its classes in another order, or with another normalisation.
    let known = |teacher: &&Pretrained| {
        let found = TestOutputs::read(&RunFolder::of_weights(&teacher.path).test_outputs());
        found.ok().flatten().is_some_and(|found| {
            teacher.members.is_empty()
                && teacher.identity == teacher.sha256
                && found.weights_sha256 == teacher.sha256
                && found.same_images(&outputs)
        })
    };
    if let Some(teacher) = alone.filter(|teacher| !known(teacher)) {
        let logits = match &teacher.members[..] {
            [] => logits_of(teacher)?,
            members => {
                let each = members.iter().map(logits_of).collect::<Result<Vec<_>>>()?;
                let labels = test.labels()?;
                let labels = Tensor::new(labels, &run.device)?;
                teacher.combination.combine(&each, &labels).map_err(anyhow::Error::from)?
            }
        };
        outputs.teacher_logits = Some(values(logits)?);
    }
    if let Some(logits) = run.teacher_logits.as_ref().and_then(|stored| stored.test_logits.clone())
    {
        outputs.teacher_logits = Some(values(logits)?);
    }
    Ok(outputs.write(&RunFolder::of_weights(weights).test_outputs())?)
}
