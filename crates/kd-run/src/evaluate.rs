//! A network's figures on the test images.

use std::sync::Arc;

use anyhow::ensure;
use candle_core::{D, DType, Device, Tensor};
use kd_data::{Augment, BatchConfig, Normalization, Split};
use kd_models::{Classifier, Mode};

pub use kd_record::Evaluation;

/// Images in a batch where nothing is trained.
pub(crate) const BATCH: usize = 128;
/// Batches prepared ahead.
pub(crate) const PREFETCH: usize = 2;

/// Batches between looks at what a GPU computed: each makes it wait.
const LOOK: usize = 32;

/// What the network says of a batch, on the device.
struct Said {
    mean_loss: Tensor,
    logits: Tensor,
    indices: Vec<u32>,
}

/// Runs the network over all of `split`.
///
/// # Errors
/// When the loss is not finite, or a batch can't be made or computed.
pub fn evaluate(
    model: &dyn Classifier,
    split: &Arc<Split>,
    classes: &[String],
    normalization: Normalization,
    device: &Device,
) -> anyhow::Result<Evaluation> {
    let mut confusion = vec![vec![0u32; classes.len()]; classes.len()];
    let mut loss = 0.0;
    let mut add = |said: Vec<Said>| -> anyhow::Result<()> {
        // One copy from the device for each kind.
        let column = |of: fn(&Said) -> &Tensor| said.iter().map(of).collect::<Vec<_>>();
        let means = Tensor::stack(&column(|said| &said.mean_loss), 0)?.to_vec1::<f32>()?;
        let answers = answers(&Tensor::cat(&column(|said| &said.logits), 0)?)?;
        for (mean, said) in means.into_iter().zip(&said) {
            loss += f64::from(mean) * said.indices.len() as f64;
        }
        let images = said.iter().flat_map(|said| &said.indices);
        for (&image, answer) in images.zip(answers) {
            confusion[usize::from(split.labels[image as usize])][answer] += 1;
        }
        Ok(())
    };
    let mut said = Vec::with_capacity(LOOK);
    for batch in kd_data::batches(split, &in_order(normalization), device)? {
        let batch = batch?;
        let logits = model.forward_t(&batch.images, Mode::Eval, &[])?.logits;
        let mean_loss = kd_loss::cross_entropy(&logits, &batch.labels)?;
        said.push(Said { mean_loss, logits, indices: batch.indices });
        if said.len() == LOOK {
            add(std::mem::take(&mut said))?;
        }
    }
    if !said.is_empty() {
        add(said)?;
    }
    let loss = loss / split.len() as f64;
    ensure!(loss.is_finite(), "the loss on the test images is {loss}; expected a finite number");
    Ok(Evaluation::new(classes, confusion, loss))
}

/// What the network says of all of `split`: f32 `[N, classes]`, on the CPU, in the data's order.
///
/// # Errors
/// When a batch can't be made or computed.
pub fn logits(
    model: &dyn Classifier,
    split: &Arc<Split>,
    normalization: Normalization,
    device: &Device,
) -> anyhow::Result<Tensor> {
    let mut all = Vec::new();
    for batch in kd_data::batches(split, &in_order(normalization), device)? {
        let logits = model.forward_t(&batch?.images, Mode::Eval, &[])?.logits;
        all.push(logits.to_device(&Device::Cpu)?);
    }
    Ok(Tensor::cat(&all, 0)?)
}

/// Every image once, as it is, in the data's order.
pub(crate) fn in_order(normalization: Normalization) -> BatchConfig {
    BatchConfig {
        batch_size: BATCH,
        shuffle_seed: None,
        epoch: 0,
        first_batch: 0,
        augment: Augment::default(),
        normalization,
        prefetch: PREFETCH,
    }
}

/// The predicted class of each row of logits (f32 `[N, classes]`): the one with the largest logit, of equal ones the first.
///
/// # Errors
/// When the tensor has another shape or type.
pub fn answers(logits: &Tensor) -> anyhow::Result<Vec<usize>> {
    let rows = logits.to_vec2::<f32>()?;
    let largest = |row: &Vec<f32>| {
        let better = |best, class| if row[class] > row[best] { class } else { best };
        (0..row.len()).reduce(better).unwrap_or(0)
    };
    Ok(rows.iter().map(largest).collect())
}

/// How many images are told right, a f32 scalar on the logits' device; off the CPU nothing waits for it.
pub(crate) fn right(logits: &Tensor, labels: &Tensor) -> anyhow::Result<Tensor> {
    if logits.device().is_cpu() {
        let labels = labels.to_vec1::<u32>()?;
        let answers = answers(logits)?;
        let right = labels.iter().zip(answers).filter(|(l, a)| **l as usize == *a).count();
        return Ok(Tensor::new(right as f32, logits.device())?);
    }
    let answers = logits.detach().argmax(D::Minus1)?;
    Ok(answers.eq(labels)?.to_dtype(DType::F32)?.sum_all()?)
}
