//! Batches, prepared ahead on another thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};

use crate::augment::{Views, apply};
use crate::normalize::Table;
use crate::random::{Purpose, generator, shuffle};
use crate::{Augment, Error, Normalization, Result, Split, View};

/// One epoch's batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchConfig {
    /// Images in a batch; the last one holds what is left.
    pub batch_size: usize,
    /// Seed of the order and of the views. `None` keeps the images in order, and then `augment`
    /// must be off.
    pub shuffle_seed: Option<u64>,
    /// Number of the epoch: each has another order and other views.
    pub epoch: usize,
    /// The batch to start with, to go on inside an epoch: these are exactly the batches that would
    /// have followed.
    pub first_batch: usize,
    /// Random changes to the images.
    pub augment: Augment,
    /// From bytes to inputs.
    pub normalization: Normalization,
    /// Batches that wait ready beside the one in the making; at least one is always prepared ahead.
    pub prefetch: usize,
}

impl Default for BatchConfig {
    /// 128 images a batch, in order, no augmentation, the tutorial's normalisation.
    fn default() -> Self {
        Self {
            batch_size: 128,
            shuffle_seed: None,
            epoch: 0,
            first_batch: 0,
            augment: Augment::default(),
            normalization: Normalization::default(),
            prefetch: 2,
        }
    }
}

/// Some images as a network takes them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Normalised inputs, `f32` `[B, C, H, W]`.
    pub images: Tensor,
    /// Classes, `u32` `[B]`.
    pub labels: Tensor,
    /// Which images of the split these are.
    pub indices: Vec<u32>,
    /// The same, `u32` `[B]`: what `index_select` takes to look up something of each image.
    pub rows: Tensor,
    /// What was done to each.
    pub views: Vec<View>,
}

/// The batches of one epoch, in order. Dropping it stops the thread that prepares them.
#[derive(Debug)]
pub struct Batches {
    device: Device,
    shape: [usize; 3],
    remaining: usize,
    /// `None` once dropping: a thread that waits to hand over a batch then wakes and ends.
    prepared: Option<Receiver<Prepared>>,
    thread: Option<JoinHandle<()>>,
    /// On a GPU there is no thread: batches are gathered there.
    #[cfg(feature = "cuda")]
    gathered: Option<crate::cuda::Gathered>,
}

/// A batch before it becomes tensors.
struct Prepared {
    images: Vec<f32>,
    labels: Vec<u32>,
    indices: Vec<u32>,
    views: Vec<View>,
}

/// The batches of one epoch of `split`, on `device`.
///
/// Order and views are functions of seed and epoch alone: neither the thread's timing, `prefetch`
/// nor `first_batch` changes them, and an image's view is the same whatever the batch size. With
/// `first_batch` at the number of batches, none is left.
///
/// On a GPU (feature `cuda`) the images are copied there at the split's first use and stay as long as the split
/// lives; each batch is then gathered there, the same as on the CPU, bit for bit.
///
/// # Errors
/// Settings that make no sense, a split whose parts don't fit together or whose images don't have
/// three channels, and a thread that can't be started.
pub fn batches(split: &Arc<Split>, config: &BatchConfig, device: &Device) -> Result<Batches> {
    check(split, config)?;
    let count = split.len().div_ceil(config.batch_size);
    let remaining = count - config.first_batch;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        let gathered = crate::cuda::gather(split, config, gpu)?;
        return Ok(Batches {
            device: device.clone(),
            shape: split.shape,
            remaining,
            prepared: None,
            thread: None,
            gathered: Some(gathered),
        });
    }
    let (sender, receiver) = sync_channel(config.prefetch);
    let (split, config, shape) = (Arc::clone(split), *config, split.shape);
    let thread = std::thread::Builder::new()
        .name("kd-data batches".into())
        .spawn(move || prepare_all(&split, &config, &sender))
        .map_err(|error| Error::Thread { reason: format!("could not be started: {error}") })?;
    Ok(Batches {
        device: device.clone(),
        shape,
        remaining,
        prepared: Some(receiver),
        thread: Some(thread),
        #[cfg(feature = "cuda")]
        gathered: None,
    })
}

fn check(split: &Split, config: &BatchConfig) -> Result<()> {
    split.check()?;
    let wrong =
        |field, found: String, expected: String| Err(Error::Config { field, found, expected });
    if split.shape[0] != 3 || split.image_size() == 0 {
        return Err(Error::Split {
            shape: split.shape,
            found: format!("{} channels", split.shape[0]),
            expected: "three channels, and at least one row and one column".into(),
        });
    }
    if config.batch_size == 0 {
        return wrong("batch_size", "0".into(), "at least 1".into());
    }
    let count = split.len().div_ceil(config.batch_size);
    if config.first_batch > count {
        return wrong(
            "first_batch",
            config.first_batch.to_string(),
            format!("at most {count}, the number of batches"),
        );
    }
    if config.shuffle_seed.is_none() && !config.augment.is_off() {
        return wrong("shuffle_seed", "none".into(), "a seed where augment is on".into());
    }
    config.augment.check(split.shape)?;
    config.normalization.check()
}

/// The images of an epoch, in order.
pub(crate) fn order(count: usize, config: &BatchConfig) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    if let Some(seed) = config.shuffle_seed {
        shuffle(&mut generator(seed, Purpose::Shuffle, config.epoch as u64), &mut order);
    }
    order
}

/// Runs on the thread; ends early when nobody takes batches any more.
fn prepare_all(split: &Split, config: &BatchConfig, sender: &SyncSender<Prepared>) {
    let order = order(split.len(), config);
    let table = config.normalization.table();
    let seed = config.shuffle_seed.unwrap_or(0);
    let mut views = Views::new(config.augment, split.shape, seed, config.epoch);
    for indices in order.chunks(config.batch_size).skip(config.first_batch) {
        let views = indices.iter().map(|&index| views.view(index)).collect();
        let batch = prepare(split, indices, views, config.augment.cutout, &table);
        if sender.send(batch).is_err() {
            return;
        }
    }
}

fn prepare(
    split: &Split,
    indices: &[u32],
    views: Vec<View>,
    cutout: usize,
    table: &Table,
) -> Prepared {
    let [_, height, width] = split.shape;
    let mut images = vec![0.0; indices.len() * split.image_size()];
    let inputs = images.chunks_exact_mut(split.image_size());
    for ((&index, view), input) in indices.iter().zip(&views).zip(inputs) {
        apply(view, split.image(index as usize), [height, width], cutout, table, input);
    }
    let labels = indices.iter().map(|&index| u32::from(split.labels[index as usize])).collect();
    Prepared { images, labels, indices: indices.to_vec(), views }
}

impl Batches {
    fn to_tensors(&self, prepared: Prepared) -> Result<Batch> {
        let Prepared { images, labels, indices, views } = prepared;
        let [channels, height, width] = self.shape;
        let images =
            Tensor::from_vec(images, (indices.len(), channels, height, width), &self.device)?;
        let labels = Tensor::from_vec(labels, indices.len(), &self.device)?;
        let rows = Tensor::new(indices.as_slice(), &self.device)?;
        Ok(Batch { images, labels, indices, rows, views })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        #[cfg(feature = "cuda")]
        if let Some(gathered) = &mut self.gathered {
            return Some(gathered.next());
        }
        let Some(Ok(prepared)) = self.prepared.as_ref().map(Receiver::recv) else {
            self.remaining = 0;
            return Some(Err(Error::Thread { reason: "ended before the epoch did".into() }));
        };
        Some(self.to_tensors(prepared))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl ExactSizeIterator for Batches {}

impl Drop for Batches {
    fn drop(&mut self) {
        // First the channel, so that a waiting thread ends; then wait until it has.
        self.prepared = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
