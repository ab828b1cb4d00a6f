//! What batches are: an epoch's settings, the order of its pictures, and what one batch holds.

use candle_core::Tensor;

use crate::sampler::Sampler;
use crate::source::Source;
use crate::{Augment, Error, MixConfig, Mixed, Normalization, Result, View};

/// The settings of one epoch's batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchConfig {
    /// Images in a batch, at least 1; the last batch holds what is left.
    pub batch_size: usize,
    /// Leave out the last batch where it would hold fewer images than the others.
    pub drop_last: bool,
    /// Which images an epoch has: each once, or as many draws that are balanced over the classes.
    pub sampler: Sampler,
    /// Seed of the images' order and of their views. `None` keeps the images in the source's order, and then `augment` and `mix`
    /// must be off and `sampler` [`Sampler::Shuffle`].
    pub shuffle_seed: Option<u64>,
    /// Number of the epoch, from 0: each has an order and views of its own.
    pub epoch: usize,
    /// The batch to start with, from 0. An epoch that was broken off is continued here: what follows are exactly the
    /// batches that would have followed.
    pub first_batch: usize,
    /// Random changes to the images.
    pub augment: Augment,
    /// How images are mixed with others.
    pub mix: MixConfig,
    /// The number of views that each image has over the whole of training, at least 1: epoch `e` shows view `e % views`, what epoch
    /// `e % views` would show without this. `None` draws new ones in each epoch. Another order of the images comes in each epoch
    /// in either case.
    pub views: Option<usize>,
    /// How pixel bytes become network inputs.
    pub normalization: Normalization,
    /// Finished batches that wait beside the one being prepared; at least one is always prepared ahead.
    pub prefetch: usize,
}

impl Default for BatchConfig {
    /// 128 images a batch, in order, no augmentation, the tutorial's normalisation.
    fn default() -> Self {
        Self {
            batch_size: 128,
            drop_last: false,
            sampler: Sampler::default(),
            shuffle_seed: None,
            epoch: 0,
            first_batch: 0,
            augment: Augment::default(),
            mix: MixConfig::default(),
            views: None,
            normalization: Normalization::default(),
            prefetch: 2,
        }
    }
}

impl BatchConfig {
    /// The number of batches in an epoch of so many images.
    ///
    /// # Panics
    /// Where `batch_size` is 0.
    pub fn count(&self, images: usize) -> usize {
        match self.drop_last {
            true => images / self.batch_size,
            false => images.div_ceil(self.batch_size),
        }
    }

    /// Whether a GPU can make the images by itself.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_gathered(&self) -> bool {
        let Augment { resized_crop, color_jitter, policy, random_erasing, .. } = self.augment;
        let on_the_host = resized_crop.is_some()
            || color_jitter.is_some()
            || policy.is_some()
            || random_erasing.is_some();
        self.mix.is_off() && !on_the_host
    }

    /// The number of the view that the epoch shows of each image.
    pub fn view(&self) -> usize {
        self.views.map_or(self.epoch, |views| self.epoch % views.max(1))
    }
}

/// Some images as a network takes them, with what is known of each. Entry `i` of every field belongs to image `i` of the
/// batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The network's inputs, normalised: f32 `[B, C, H, W]`.
    pub images: Tensor,
    /// The classes: u32 `[B]`. Of a source without labels each is [`NO_LABEL`](crate::NO_LABEL), which no loss takes.
    pub labels: Tensor,
    /// Each image's number in its source: `B` of them. A [balanced](Sampler::Balanced) epoch may have an image several times.
    pub indices: Vec<u32>,
    /// The same numbers as a tensor on the batch's device, u32 `[B]`. With `index_select` they pick the batch's rows out of
    /// a table that has a row for each image of the source, such as a teacher's cached logits.
    pub rows: Tensor,
    /// How augmentation changed each image: `B` of them. Applied again ([`View::apply`]), a view gives the same input, so
    /// that a teacher can be shown what its student sees.
    pub views: Vec<View>,
    /// How the images were mixed with others after that; `None` where none is mixed.
    pub mixed: Option<Mixed>,
    /// The number of the view: 0 where images are not changed, else that of the epoch or, with [`BatchConfig::views`], one below it.
    pub view: usize,
}

impl Batch {
    /// The `len` images from image `from` on, as a batch.
    ///
    /// # Errors
    /// When the batch has not so many images.
    pub fn part(&self, from: usize, len: usize) -> Result<Self> {
        let narrow = |tensor: &Tensor| tensor.narrow(0, from, len);
        let mixed = match &self.mixed {
            None => None,
            Some(Mixed { mixes, labels, shares }) => Some(Mixed {
                labels: narrow(labels)?,
                shares: narrow(shares)?,
                mixes: mixes[from..from + len].to_vec(),
            }),
        };
        Ok(Self {
            images: narrow(&self.images)?,
            labels: narrow(&self.labels)?,
            rows: narrow(&self.rows)?,
            indices: self.indices[from..from + len].to_vec(),
            views: self.views[from..from + len].to_vec(),
            mixed,
            view: self.view,
        })
    }
}

/// Refuses settings and sources that no batches can be made of.
pub(crate) fn check<S: Source + ?Sized>(source: &S, config: &BatchConfig) -> Result<()> {
    source.check()?;
    let shape = source.shape();
    let image_len: usize = shape.iter().product();
    let wrong_source = |found, expected| Err(Error::Split { shape, found, expected });
    if shape[0] != 3 || image_len == 0 {
        return wrong_source(
            format!("{} channels", shape[0]),
            "three channels, and at least one row and one column".into(),
        );
    }
    if let Some(block) = source.block()
        && (block.labels.len() != source.len() || block.images.len() != source.len() * image_len)
    {
        let (labels, bytes) = (block.labels.len(), block.images.len());
        return wrong_source(
            format!("a block of {labels} labels and {bytes} bytes of images"),
            format!("{} labels, and {image_len} bytes for each", source.len()),
        );
    }
    let wrong =
        |field, found: String, expected: String| Err(Error::Config { field, found, expected });
    if config.batch_size == 0 {
        return wrong("batch_size", "0".into(), "at least 1".into());
    }
    let count = config.count(source.len());
    if count == 0 && source.len() > 0 {
        let images = source.len();
        return wrong(
            "batch_size",
            config.batch_size.to_string(),
            format!("at most {images}, the number of images, where drop_last is true"),
        );
    }
    if config.first_batch > count {
        return wrong(
            "first_batch",
            config.first_batch.to_string(),
            format!("at most {count}, the number of batches"),
        );
    }
    if config.shuffle_seed.is_none() && !(config.augment.is_off() && config.mix.is_off()) {
        return wrong("shuffle_seed", "none".into(), "a seed where augment or mix is on".into());
    }
    if config.views == Some(0) {
        return wrong("views", "0".into(), "at least 1, or none".into());
    }
    if config.views.is_some() && !config.sampler.is_shuffle() {
        let expected =
            "none where sampler is balanced, which shows an image several times in an epoch";
        return wrong("views", config.views.unwrap_or(0).to_string(), expected.into());
    }
    config.mix.check()?;
    if config.shuffle_seed.is_none() && !config.sampler.is_shuffle() {
        return wrong("shuffle_seed", "none".into(), "a seed where sampler is balanced".into());
    }
    config.augment.check(shape)?;
    config.normalization.check()
}
