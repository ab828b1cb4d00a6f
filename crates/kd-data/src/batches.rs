//! One epoch's batches in order: prepared ahead on another thread, or gathered on a GPU.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::augment::{Views, apply};
use crate::batch::{Batch, BatchConfig, check};
use crate::crop::Crops;
use crate::mix::{Mix, Mixed, Mixes};
use crate::normalize::Table;
use crate::sampler::order;
use crate::source::{Block, NO_LABEL, Picture, Source};
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
/// Order and views are functions of seed, epoch and sampler alone: neither the threads' number and timing, `prefetch`
/// nor `first_batch` changes them, and an image's view is the same whatever the batch size. With
/// `first_batch` at the number of batches, none is left.
///
/// The pictures of a source without a block are read on as many threads of their own as the caller's rayon pool has, several pictures
/// at a time.
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
    if let (Device::Cuda(gpu), Some(block), true) = (device, source.block(), config.is_gathered()) {
        return Ok(Feed::Gpu(Box::new(crate::cuda::gather(source, block, config, gpu)?)));
    }
    let _ = device;
    let (sender, receiver) = sync_channel(config.prefetch);
    let failed = |error| Error::Thread { reason: format!("could not be started: {error}") };
    let pool = match source.block() {
        Some(_) => None,
        None => {
            let builder = ThreadPoolBuilder::new().num_threads(rayon::current_num_threads());
            let named = builder.thread_name(|number| format!("kd-data pictures {number}"));
            Some(named.build().map_err(|error| failed(error.to_string()))?)
        }
    };
    let (source, config) = (Arc::clone(source), *config);
    let thread = std::thread::Builder::new()
        .name("kd-data batches".into())
        .spawn(move || prepare_all(&*source, &config, pool.as_ref(), &sender))
        .map_err(|error| failed(error.to_string()))?;
    Ok(Feed::Thread { prepared: Some(receiver), thread: Some(thread) })
}

/// Runs on the thread; ends early after an error, and when nobody takes batches any more.
fn prepare_all<S: Source + ?Sized>(
    source: &S,
    config: &BatchConfig,
    pool: Option<&ThreadPool>,
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
        crops: Crops::new(config.augment.resized_crop, seed, config.view()),
        cut: Picture::default(),
        mixes: Mixes::new(config.mix, source.len(), shape, seed, config.view()),
        config,
        table: config.normalization.table(),
        partner: Vec::new(),
    };
    let count = config.count(source.len());
    let chunks = order.chunks(config.batch_size).enumerate();
    for (batch, indices) in chunks.take(count).skip(config.first_batch) {
        let batch = maker.prepare(batch * config.batch_size, indices, pool);
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

    /// Picture `index` before it is brought to the source's shape.
    fn whole(&mut self, index: u32) -> Result<&Picture> {
        self.source.read_whole(index, &mut self.picture)?;
        let Picture { shape, pixels } = &self.picture;
        let bytes: usize = shape.iter().product();
        if shape[0] != 3 || bytes == 0 || pixels.len() != bytes {
            return Err(Error::Source {
                index,
                found: format!("shape {shape:?} and {} bytes", pixels.len()),
                expected: "three channels of at least one pixel, and a byte for each".into(),
            });
        }
        Ok(&self.picture)
    }

    fn label(&self, index: u32) -> Result<u32> {
        match self.source.label(index) {
            Some(label) => Ok(label),
            None if !self.source.is_labelled() => Ok(NO_LABEL),
            None => Err(Error::no_label(index)),
        }
    }
}

/// Makes an epoch's batches.
struct Maker<'a, S: ?Sized> {
    reader: Reader<'a, S>,
    views: Views,
    crops: Crops,
    /// Memory for a crop.
    cut: Picture,
    mixes: Mixes,
    config: &'a BatchConfig,
    table: Table,
    /// Memory for a picture that is mixed into another.
    partner: Vec<f32>,
}

impl<S: Source + ?Sized> Maker<'_, S> {
    /// The same for another thread, with memory of its own.
    fn another(&self) -> Self {
        Self {
            reader: Reader { picture: Picture::default(), ..self.reader },
            views: self.views.clone(),
            crops: self.crops.clone(),
            cut: Picture::default(),
            mixes: self.mixes.clone(),
            config: self.config,
            table: self.table,
            partner: Vec::new(),
        }
    }

    /// The batch of the images `indices`, of which the first comes at `position` of the epoch's order, made by the threads of the pool
    /// where there is one.
    fn prepare(
        &mut self,
        position: usize,
        indices: &[u32],
        pool: Option<&ThreadPool>,
    ) -> Result<Prepared> {
        let image_len = self.reader.source.shape().iter().product();
        let mut images = vec![0.0; indices.len() * image_len];
        let inputs = images.chunks_exact_mut(image_len);
        let places = (position..).zip(indices).zip(inputs);
        let made: Vec<Result<(View, Option<Mix>)>> = match pool {
            None => {
                let make = |((position, &index), input)| self.image(position, index, input);
                places.map(make).collect()
            }
            Some(pool) => {
                let places: Vec<_> = places.collect();
                let this = &*self;
                pool.install(|| {
                    let places = places.into_par_iter();
                    let made = places.map_init(
                        || this.another(),
                        |maker, ((position, &index), input)| maker.image(position, index, input),
                    );
                    made.collect()
                })
            }
        };
        // Of several errors the first, whichever thread met with one first.
        let made: Vec<(View, Option<Mix>)> = made.into_iter().collect::<Result<_>>()?;
        let (views, mixes): (Vec<View>, Vec<Option<Mix>>) = made.into_iter().unzip();
        let mixes: Vec<Mix> = mixes.into_iter().flatten().collect();
        let label = |&index: &u32| self.reader.label(index);
        let labels = indices.iter().map(label).collect::<Result<_>>()?;
        let partners = mixes.iter().map(|mix| label(&mix.partner)).collect::<Result<_>>()?;
        let view = match self.config.augment.is_off() && self.config.mix.is_off() {
            true => 0,
            false => self.config.view(),
        };
        Ok(Prepared { images, labels, indices: indices.to_vec(), views, view, mixes, partners })
    }

    /// Writes image `index`, which comes at `position` of the epoch's order, into `input`: its view, mixed with another where images are.
    fn image(
        &mut self,
        position: usize,
        index: u32,
        input: &mut [f32],
    ) -> Result<(View, Option<Mix>)> {
        let number = self.config.sampler.view_number(position, index);
        let view = self.show(number, index, input)?;
        let mix = self.mixes.mix(number, index);
        if let Some(mix) = mix.filter(|mix| mix.share < 1.0) {
            let mut partner = std::mem::take(&mut self.partner);
            partner.resize(input.len(), 0.0);
            self.show(mix.partner, mix.partner, &mut partner)?;
            let [_, height, width] = self.reader.source.shape();
            mix.apply(&partner, [height, width], input);
            self.partner = partner;
        }
        Ok((view, mix))
    }

    /// Writes image `index` into `input` in the view that has this number.
    fn show(&mut self, number: u32, index: u32, input: &mut [f32]) -> Result<View> {
        let [_, height, width] = self.reader.source.shape();
        let mut view = self.views.view(number);
        let cutout = self.config.augment.cutout;
        let Some(config) = self.crops.config() else {
            let pixels = self.reader.pixels(index, input.len())?;
            apply(&view, pixels, [height, width], cutout, &self.table, input);
            return Ok(view);
        };
        let whole = self.reader.whole(index)?;
        let crop = self.crops.draw(number, [whole.shape[1], whole.shape[2]]);
        crop.scale(whole, [height, width], config.interpolation, &mut self.cut);
        view.crop = Some(crop);
        apply(&view, &self.cut.pixels, [height, width], cutout, &self.table, input);
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
