//! One epoch's batches in order: prepared ahead on another thread, or gathered on a GPU.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};

use crate::augment::{Views, apply};
use crate::batch::{Batch, BatchConfig, check};
use crate::mix::{Mix, Mixed, Mixes};
use crate::normalize::Table;
use crate::sampler::order;
use crate::source::{Block, Picture, Source};
use crate::{Error, Result, View};

/// The batches of one epoch, in order, as [`batches`] makes them. Dropping it stops the thread that prepares them.
#[derive(Debug)]
pub struct Batches {
    device: Device,
    /// Channels, height and width of an image.
    shape: [usize; 3],
    /// Batches still to come.
    remaining: usize,
    feed: Feed,
}

/// Where the next batch comes from.
#[derive(Debug)]
enum Feed {
    /// The thread that prepares batches. `prepared` is `None` once `Batches` is being dropped: a thread that waits to hand
    /// over a batch then wakes and ends.
    Thread { prepared: Option<Receiver<Result<Prepared>>>, thread: Option<JoinHandle<()>> },
    /// The source's block on a GPU: there is no thread.
    #[cfg(feature = "cuda")]
    Gpu(Box<crate::cuda::Gathered>),
}

/// A batch before it becomes tensors; see [`Batch`].
struct Prepared {
    images: Vec<f32>,
    labels: Vec<u32>,
    indices: Vec<u32>,
    views: Vec<View>,
    view: usize,
    /// What each image was mixed with, and the partners' labels; empty where no image is mixed.
    mixes: Vec<Mix>,
    partners: Vec<u32>,
}

/// The batches of one epoch of `source`, on `device`.
///
/// Order and views are functions of seed, epoch and sampler alone: neither the thread's timing, `prefetch`
/// nor `first_batch` changes them, and an image's view is the same whatever the batch size. With
/// `first_batch` at the number of batches, none is left.
///
/// On a GPU (feature `cuda`) the block of a source that has one ([`Source::block`]) is copied there at its first use and
/// stays as long as the source lives; each batch is then gathered there, the same as on the CPU, bit for bit. Mixed images are made on
/// the CPU for either.
///
/// # Errors
/// Settings that make no sense, a source whose parts don't fit together or whose images don't have
/// three channels, and a thread that can't be started. A picture that can't be read is the error of its batch, after which
/// no other comes.
pub fn batches<S: Source + ?Sized + 'static>(
    source: &Arc<S>,
    config: &BatchConfig,
    device: &Device,
) -> Result<Batches> {
    check(&**source, config)?;
    let remaining = config.count(source.len()) - config.first_batch;
    let feed = start(source, config, device)?;
    Ok(Batches { device: device.clone(), shape: source.shape(), remaining, feed })
}

/// Starts an epoch whose source and settings have been checked.
fn start<S: Source + ?Sized + 'static>(
    source: &Arc<S>,
    config: &BatchConfig,
    device: &Device,
) -> Result<Feed> {
    #[cfg(feature = "cuda")]
    if let (Device::Cuda(gpu), Some(block), true) = (device, source.block(), config.mix.is_off()) {
        return Ok(Feed::Gpu(Box::new(crate::cuda::gather(source, block, config, gpu)?)));
    }
    let _ = device;
    let (sender, receiver) = sync_channel(config.prefetch);
    let (source, config) = (Arc::clone(source), *config);
    let thread = std::thread::Builder::new()
        .name("kd-data batches".into())
        .spawn(move || prepare_all(&*source, &config, &sender))
        .map_err(|error| Error::Thread { reason: format!("could not be started: {error}") })?;
    Ok(Feed::Thread { prepared: Some(receiver), thread: Some(thread) })
}

/// Runs on the thread; ends early after an error, and when nobody takes batches any more.
fn prepare_all<S: Source + ?Sized>(
    source: &S,
    config: &BatchConfig,
    sender: &SyncSender<Result<Prepared>>,
) {
    let order = match order(source, config) {
        Ok(order) => order,
        Err(error) => {
            // Nobody may take batches any more.
            let _ = sender.send(Err(error));
            return;
        }
    };
    let seed = config.shuffle_seed.unwrap_or(0);
    let shape = source.shape();
    let mut maker = Maker {
        reader: Reader { source, block: source.block(), picture: Picture::default() },
        views: Views::new(config.augment, shape, seed, config.view()),
        mixes: Mixes::new(config.mix, source.len(), shape, seed, config.view()),
        config,
        table: config.normalization.table(),
        partner: Vec::new(),
    };
    let count = config.count(source.len());
    let chunks = order.chunks(config.batch_size).enumerate();
    for (batch, indices) in chunks.take(count).skip(config.first_batch) {
        let batch = maker.prepare(batch * config.batch_size, indices);
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

/// Gives a source's pictures one after the other.
struct Reader<'a, S: ?Sized> {
    source: &'a S,
    block: Option<Block<'a>>,
    /// Memory for a picture that doesn't lie in a block.
    picture: Picture,
}

impl<S: Source + ?Sized> Reader<'_, S> {
    /// The pixels of picture `index`: where they lie in the block, else read.
    fn pixels(&mut self, index: u32, image_len: usize) -> Result<&[u8]> {
        if let Some(block) = self.block {
            return Ok(&block.images[index as usize * image_len..][..image_len]);
        }
        self.source.read(index, &mut self.picture)?;
        self.picture.check(index, self.source.shape())?;
        Ok(&self.picture.pixels)
    }

    fn label(&self, index: u32) -> Result<u32> {
        self.source.label(index).ok_or_else(|| Error::no_label(index))
    }
}

/// Makes an epoch's batches.
struct Maker<'a, S: ?Sized> {
    reader: Reader<'a, S>,
    views: Views,
    mixes: Mixes,
    config: &'a BatchConfig,
    table: Table,
    /// Memory for a picture that is mixed into another.
    partner: Vec<f32>,
}

impl<S: Source + ?Sized> Maker<'_, S> {
    /// The batch of the images `indices`, of which the first comes at `position` of the epoch's order.
    fn prepare(&mut self, position: usize, indices: &[u32]) -> Result<Prepared> {
        let image_len = self.reader.source.shape().iter().product();
        let mut images = vec![0.0; indices.len() * image_len];
        let (mut views, mut mixes) = (Vec::with_capacity(indices.len()), Vec::new());
        let inputs = images.chunks_exact_mut(image_len);
        for ((position, &index), input) in (position..).zip(indices).zip(inputs) {
            let number = self.config.sampler.view_number(position, index);
            views.push(self.show(number, index, input)?);
            let Some(mix) = self.mixes.mix(number, index) else { continue };
            if mix.share < 1.0 {
                let mut partner = std::mem::take(&mut self.partner);
                partner.resize(image_len, 0.0);
                self.show(mix.partner, mix.partner, &mut partner)?;
                let [_, height, width] = self.reader.source.shape();
                mix.apply(&partner, [height, width], input);
                self.partner = partner;
            }
            mixes.push(mix);
        }
        let label = |&index: &u32| self.reader.label(index);
        let labels = indices.iter().map(label).collect::<Result<_>>()?;
        let partners = mixes.iter().map(|mix| label(&mix.partner)).collect::<Result<_>>()?;
        let view = match self.config.augment.is_off() && self.config.mix.is_off() {
            true => 0,
            false => self.config.view(),
        };
        Ok(Prepared { images, labels, indices: indices.to_vec(), views, view, mixes, partners })
    }

    /// Writes image `index` into `input` in the view that has this number.
    fn show(&mut self, number: u32, index: u32, input: &mut [f32]) -> Result<View> {
        let [_, height, width] = self.reader.source.shape();
        let view = self.views.view(number);
        let pixels = self.reader.pixels(index, input.len())?;
        apply(&view, pixels, [height, width], self.config.augment.cutout, &self.table, input);
        Ok(view)
    }
}

impl Prepared {
    fn into_batch(self, [channels, height, width]: [usize; 3], device: &Device) -> Result<Batch> {
        let Self { images, labels, indices, views, view, mixes, partners } = self;
        let images = Tensor::from_vec(images, (indices.len(), channels, height, width), device)?;
        let labels = Tensor::from_vec(labels, indices.len(), device)?;
        let rows = Tensor::new(indices.as_slice(), device)?;
        let mixed = match mixes.is_empty() {
            true => None,
            false => {
                let shares: Vec<f32> = mixes.iter().map(|mix| mix.share).collect();
                let shares = Tensor::from_vec(shares, indices.len(), device)?;
                Some(Mixed {
                    labels: Tensor::from_vec(partners, indices.len(), device)?,
                    shares,
                    mixes,
                })
            }
        };
        Ok(Batch { images, labels, indices, rows, views, mixed, view })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let batch = match &mut self.feed {
            #[cfg(feature = "cuda")]
            Feed::Gpu(gathered) => gathered.next(),
            Feed::Thread { prepared, .. } => match prepared.as_ref().map(Receiver::recv) {
                Some(Ok(prepared)) => {
                    prepared.and_then(|prepared| prepared.into_batch(self.shape, &self.device))
                }
                _ => Err(Error::Thread { reason: "ended before the epoch did".into() }),
            },
        };
        if batch.is_err() {
            self.remaining = 0;
        }
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl ExactSizeIterator for Batches {}

impl Drop for Batches {
    fn drop(&mut self) {
        #[cfg_attr(not(feature = "cuda"), allow(irrefutable_let_patterns))]
        if let Feed::Thread { prepared, thread } = &mut self.feed {
            // First the channel, so that a waiting thread ends; then wait until it has.
            *prepared = None;
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}
