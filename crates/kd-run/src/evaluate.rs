//! A network's accuracy, loss and confusion on the test images.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use kd_data::{BatchConfig, Normalization, Source};
use kd_models::Classifier;
use kd_ops::figures::count_largest_at;

pub use kd_record::{Evaluation, TestFlip};

use crate::Result;
use crate::error::other;

/// Images of a batch where nothing is trained.
pub(crate) const BATCH: usize = 128;
/// Batches that are prepared ahead.
pub(crate) const PREFETCH: usize = 2;

/// Batches from one copy of a GPU's answers to the next: each copy waits for the GPU.
const LOOK: usize = 32;

/// A network's answers about a batch, on the device.
struct Answered {
    mean_loss: Tensor,
    logits: Tensor,
    indices: Vec<u32>,
}

/// Evaluates a network on all of the images, in f32.
///
/// # Errors
/// When there is no image, the loss is not finite, or a batch can't be made or computed.
pub fn evaluate(
    model: &dyn Classifier,
    images: &Arc<dyn Source>,
    classes: &[String],
    normalization: Normalization,
    device: &Device,
) -> Result<Evaluation> {
    evaluate_by(
        &|images| Ok(model.evaluate(images, &[])?.logits),
        images,
        classes,
        normalization,
        device,
    )
}

/// The same of the mean of the network's logits of each image and of its mirror image.
///
/// # Errors
/// As [`evaluate`]'s.
pub fn evaluate_with_flip(
    model: &dyn Classifier,
    images: &Arc<dyn Source>,
    classes: &[String],
    normalization: Normalization,
    device: &Device,
) -> Result<TestFlip> {
    let both = |images: &Tensor| -> Result<Tensor> {
        let logits = model.evaluate(images, &[])?.logits;
        let mirrored = model.evaluate(&images.flip(&[3])?.contiguous()?, &[])?.logits;
        Ok(((logits + mirrored)? * 0.5)?)
    };
    let Evaluation { accuracy, loss, .. } =
        evaluate_by(&both, images, classes, normalization, device)?;
    Ok(TestFlip { accuracy, loss })
}

/// Evaluates what gives the logits of a batch's images.
fn evaluate_by(
    answer: &dyn Fn(&Tensor) -> Result<Tensor>,
    images: &Arc<dyn Source>,
    classes: &[String],
    normalization: Normalization,
    device: &Device,
) -> Result<Evaluation> {
    if images.is_empty() {
        return Err(other!("there is no image to evaluate on; expected at least one"));
    }
    let mut confusion = vec![vec![0u32; classes.len()]; classes.len()];
    let mut loss = 0.0;
    let mut add = |answered: Vec<Answered>| -> Result<()> {
        // One copy from the device for each kind.
        let column = |of: fn(&Answered) -> &Tensor| answered.iter().map(of).collect::<Vec<_>>();
        let means = Tensor::stack(&column(|answered| &answered.mean_loss), 0)?.to_vec1::<f32>()?;
        let answers = answers(&Tensor::cat(&column(|answered| &answered.logits), 0)?)?;
        for (mean, answered) in means.into_iter().zip(&answered) {
            loss += f64::from(mean) * answered.indices.len() as f64;
        }
        let numbers = answered.iter().flat_map(|answered| &answered.indices);
        for (&image, answer) in numbers.zip(answers) {
            let label = images.label(image).and_then(|label| confusion.get_mut(label as usize));
            let row = label.ok_or_else(|| {
                other!("image {image} is of no class; expected a label below {}", classes.len())
            })?;
            row[answer] += 1;
        }
        Ok(())
    };
    let mut answered = Vec::with_capacity(LOOK);
    for batch in kd_data::batches(images, &in_order(normalization), device)? {
        let batch = batch?;
        let logits = answer(&batch.images)?;
        let mean_loss = kd_loss::cross_entropy(&logits, &batch.labels)?;
        answered.push(Answered { mean_loss, logits, indices: batch.indices });
        if answered.len() == LOOK {
            add(std::mem::take(&mut answered))?;
        }
    }
    if !answered.is_empty() {
        add(answered)?;
    }
    let loss = loss / images.len() as f64;
    if !loss.is_finite() {
        return Err(other!("the loss on the test images is {loss}; expected a finite number"));
    }
    Ok(Evaluation::new(classes, confusion, loss))
}

/// The network's logits for all of the images: f32 `[N, classes]`, on the CPU, in the data's order.
///
/// # Errors
/// When a batch can't be made or computed.
pub fn logits(
    model: &dyn Classifier,
    images: &Arc<dyn Source>,
    normalization: Normalization,
    device: &Device,
) -> Result<Tensor> {
    let mut all = Vec::new();
    for batch in kd_data::batches(images, &in_order(normalization), device)? {
        let logits = model.evaluate(&batch?.images, &[])?.logits;
        all.push(logits.to_device(&Device::Cpu)?);
    }
    Ok(Tensor::cat(&all, 0)?)
}

/// Batches of every image once, not augmented, in the data's order.
pub(crate) fn in_order(normalization: Normalization) -> BatchConfig {
    BatchConfig { batch_size: BATCH, normalization, prefetch: PREFETCH, ..BatchConfig::default() }
}

/// The predicted class of each row of logits (f32 `[N, classes]`): the one with the largest logit, of equal ones the first.
///
/// # Errors
/// When the tensor has another shape or type.
pub fn answers(logits: &Tensor) -> Result<Vec<usize>> {
    let rows = logits.to_vec2::<f32>()?;
    let largest = |row: &Vec<f32>| {
        let better = |best, class| if row[class] > row[best] { class } else { best };
        (0..row.len()).reduce(better).unwrap_or(0)
    };
    Ok(rows.iter().map(largest).collect())
}

/// The number of correct predictions, an f32 scalar on the logits' device; off the CPU nothing waits for it.
pub(crate) fn correct_predictions(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    if logits.device().is_cpu() {
        let labels = labels.to_vec1::<u32>()?;
        let answers = answers(logits)?;
        let correct = labels.iter().zip(answers).filter(|(l, a)| **l as usize == *a).count();
        return Ok(Tensor::new(correct as f32, logits.device())?);
    }
    Ok(count_largest_at(logits, labels)?)
}
