//! How long a run takes, from steps that are taken to find out.

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use kd_data::Batch;
use kd_loss::Needs;
use kd_models::Classifier;
use serde::Serialize;

use crate::at::At;
use crate::figures::{Sums, Unread};
use crate::recipe::TrainingConfig;
use crate::run::ResolvedRun;
use crate::step::StepConfig;
use crate::task::{Supervised, Task};
use crate::teacher::{Cached, Division, Ensemble, NetworkTeacher, Pretrained, Teacher, division};
use crate::train::{batches, cache_config};
use crate::trainer::Trainer;
use crate::{Error, Result, evaluate};

/// Steps are taken until so many seconds have gone, after a first one that makes plans and asks for memory.
const SECONDS: f64 = 1.0;
/// No more steps than this are taken.
const STEPS: usize = 5;

/// Measured times of a run, in seconds, and what they add up to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// A step of training: the median of those that were taken. Where logits of counted views are kept, the teacher computes in it,
    /// as in an epoch that shows a view for the first time. Where layers are frozen in some epochs, the mean over all epochs.
    pub step: f64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The evaluation of all images that the run is tested on, once.
    pub evaluation: f64,
    /// The teacher's pass over the training images, where its outputs are cached; 0 where they are not.
    pub teacher_pass: f64,
    /// The whole run: all steps, an evaluation after each epoch, and the teacher's pass.
    pub run: f64,
}

/// Measures a training step of the run, and batches of its evaluation and of its teacher's pass. The weights of `task` change.
///
/// # Errors
/// When the device fails, or there is no image.
pub fn time(run: &ResolvedRun, task: Supervised) -> Result<Timing> {
    let training = &run.recipe.training;
    let config = run.model_config();
    let needs = task.needs().clone();
    let teacher = run.teacher.as_ref().filter(|_| needs.any_teacher());
    let answers = teacher.map(|teacher| {
        let config = cache_config(run, Path::new(""));
        let Division { cached, .. } = division(teacher, &needs, run.data.train.len(), &config)?;
        let asked: Box<dyn Teacher> = match cached.is_empty() {
            true => answering(teacher, &needs, &run.device)?,
            false => {
                let rows = |(name, shape): &(String, Vec<usize>)| {
                    let shape = [&[training.batch_size], &shape[..]].concat();
                    Ok((name.clone(), Tensor::zeros(shape, DType::F32, &run.device)?))
                };
                let rows = cached.iter().map(rows).collect::<Result<_>>()?;
                Box::new(Cached::new(rows, Some(answering(teacher, &needs, &run.device)?)))
            }
        };
        Ok::<_, Error>((asked, !cached.is_empty()))
    });
    let (mut asked, is_cached) = answers.transpose()?.unzip();
    if let Some(stored) = &run.teacher_logits {
        asked = Some(Box::new(stored.teacher(&run.device)?));
    }
    let TrainingConfig { precision, clip_grad_norm, accumulate: parts, .. } = *training;
    let step_config = StepConfig { precision, clip_grad_norm, parts };
    let mut trainer = Trainer::new(Box::new(task), asked, step_config);
    trainer.compile(run.settings.compile, training.batch_size);
    let batch = first_batch(run)?;
    let steps = training.epochs as u64 * run.steps_per_epoch() as u64;
    let at = At {
        seed: training.seed,
        epoch: 0,
        epochs: training.epochs,
        step: 0,
        part: 0,
        steps: steps.max(1),
        // So that the weights stay what they are, whatever the teacher that knows nothing says.
        learning_rate: 0.0,
    };
    let mut steps_of = |epoch: usize| {
        trainer.begin_epoch(epoch)?;
        median(|| {
            let mut unread = Unread::default();
            unread.push(0, &batch.indices, trainer.step(&batch, &at)?);
            // On a GPU this waits for the step. That figures are not finite is no concern of a measurement.
            let _ = unread.read(&mut Sums::default())?;
            Ok(())
        })
    };
    let mut step = steps_of(0)?;
    if let Some(after) = run.recipe.run.unfreeze_at {
        let share = after as f64 / training.epochs as f64;
        step = share * step + (1.0 - share) * steps_of(after)?;
    }
    let weights = kd_models::init(&config, 0, &run.device)?;
    let weights =
        weights.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
    let evaluated = kd_models::build(&config, kd_models::frozen(&weights))?;
    let tested = run.data.test.len() + run.data.selection.as_ref().map_or(0, |split| split.len());
    let evaluation = pass(&*evaluated, run, tested)?;
    let teacher_pass = match teacher.filter(|_| is_cached == Some(true)) {
        Some(teacher) => {
            let of =
                |one: &Pretrained| pass(&*one.network(&run.device)?, run, run.data.train.len());
            teacher.answering().iter().map(of).sum::<Result<f64>>()?
        }
        None => 0.0,
    };
    let whole = steps as f64 * step + training.epochs as f64 * evaluation + teacher_pass;
    Ok(Timing { step, steps, evaluation, teacher_pass, run: whole })
}

fn answering(teacher: &Pretrained, needs: &Needs, device: &Device) -> Result<Box<dyn Teacher>> {
    Ok(match teacher.members.is_empty() {
        true => Box::new(NetworkTeacher::new(teacher.network(device)?)),
        false => Box::new(Ensemble::new(teacher, needs, device)?),
    })
}

/// The run's first batch, with numbers by which a table of as many rows as it has images is read.
fn first_batch(run: &ResolvedRun) -> Result<Batch> {
    let first = batches(run, 0, 0)?.next();
    let batch = first.ok_or_else(|| crate::error::other!("an epoch of the run has no step"))??;
    let rows: Vec<u32> = (0..batch.indices.len() as u32).collect();
    Ok(Batch { rows: Tensor::new(rows, &run.device)?, ..batch })
}

/// The seconds of an evaluation of so many images, from batches of the run's first ones.
fn pass(network: &dyn Classifier, run: &ResolvedRun, images: usize) -> Result<f64> {
    let normalization = run.recipe.data.normalization();
    let of = kd_data::batches(&run.data.train, &evaluate::in_order(normalization), &run.device)?;
    let Some(batch) = { of }.next() else { return Ok(0.0) };
    let batch = batch?;
    let seconds = median(|| {
        // On a GPU the copy waits for the pass.
        network.evaluate(&batch.images, &[])?.logits.to_vec2::<f32>()?;
        Ok(())
    })?;
    Ok(seconds * images as f64 / batch.indices.len() as f64)
}

/// The median seconds of what is done a few times, without the first.
fn median(mut body: impl FnMut() -> Result<()>) -> Result<f64> {
    body()?;
    let start = Instant::now();
    let mut seconds = Vec::new();
    while seconds.is_empty() || seconds.len() < STEPS && start.elapsed().as_secs_f64() < SECONDS {
        let before = Instant::now();
        body()?;
        seconds.push(before.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
