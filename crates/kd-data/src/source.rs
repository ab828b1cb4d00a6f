//! Where pictures come from: the seam between what is on disk or in memory and the batches made of it.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::names::Named;
use crate::{Error, Result, Split};
use kd_record::hash::hex;

/// What stands for the label of a picture without one in [`Split::labels`], [`Block::labels`] and [`Batch::labels`](crate::Batch::labels).
pub const NO_LABEL: u32 = u32::MAX;

/// Pictures of one size, numbered from 0, that batches can be made of in any order; with labels or without.
///
/// [`Split`](crate::Split), which holds its pictures in memory, is one. A source of one's own needs no more than the
/// methods without a body:
///
/// ```
/// use std::sync::Arc;
/// use kd_data::{BatchConfig, Picture, Result, Source, batches};
///
/// /// Two classes: black pictures and white ones.
/// struct BlackAndWhite;
///
/// impl Source for BlackAndWhite {
///     fn len(&self) -> usize {
///         100
///     }
///     fn shape(&self) -> [usize; 3] {
///         [3, 32, 32]
///     }
///     fn label(&self, index: u32) -> Option<u32> {
///         Some(index % 2)
///     }
///     fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
///         into.shape = self.shape();
///         into.pixels.clear();
///         into.pixels.resize(3 * 32 * 32, if index % 2 == 0 { 0 } else { 255 });
///         Ok(())
///     }
///     fn identity(&self) -> String {
///         "black and white, 100".into()
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let source = Arc::new(BlackAndWhite);
/// let mut batches = batches(&source, &BatchConfig::default(), &candle_core::Device::Cpu)?;
/// assert_eq!(batches.next().unwrap()?.images.dims(), [100, 3, 32, 32]);
/// # Ok(())
/// # }
/// ```
pub trait Source: Send + Sync {
    /// The number of pictures.
    fn len(&self) -> usize;

    /// Channels, height and width, in pixels, of every picture that [`read`](Self::read) gives. A height and width of 0 stand for
    /// pictures of any size; [`Scaled`](crate::Scaled) makes pictures of one size of them.
    fn shape(&self) -> [usize; 3];

    /// The class of picture `index`, counted from 0; `None` where the picture has no label, or there is no such picture.
    fn label(&self, index: u32) -> Option<u32>;

    /// Whether the pictures have labels: all have one, or none has. A source without pictures has none.
    fn is_labelled(&self) -> bool {
        self.label(0).is_some()
    }

    /// Reads picture `index` into `into`. What `into` held before is replaced; its memory is used again.
    ///
    /// # Errors
    /// When there is no such picture, or it can't be read.
    fn read(&self, index: u32, into: &mut Picture) -> Result<()>;

    /// Reads picture `index` as it is before it is brought to the source's [`shape`](Self::shape): what random crops are cut out of.
    ///
    /// # Errors
    /// As [`read`](Self::read)'s.
    fn read_whole(&self, index: u32, into: &mut Picture) -> Result<()> {
        self.read(index, into)
    }

    /// A text that tells this source from others: two sources with the same identity hold the same pictures with the same
    /// labels in the same order.
    fn identity(&self) -> String;

    /// The name by which picture `index` is known outside: of a file its path as seen from the data set's folder, with `/` between
    /// folders; of a picture in a shard the shard's name and its number there, or the name that it had before `prepare`; of a picture of CIFAR `train/17` or `test/17`, by its number in
    /// the files. `None` where the source's pictures have no names,
    /// or there is no such picture.
    fn name(&self, index: u32) -> Option<String> {
        let _ = index;
        None
    }

    /// Whether there is no picture.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes of memory the source takes at most.
    fn memory(&self) -> u64 {
        0
    }

    /// All pictures as one block of memory, where they lie in one: batches are then gathered from it, on a GPU from a copy
    /// of it that stays there. It holds what [`read`](Self::read) and [`label`](Self::label) give.
    fn block(&self) -> Option<Block<'_>> {
        None
    }

    /// Refuses a source whose parts don't fit together. Batches ask once, before an epoch.
    ///
    /// # Errors
    /// When they don't; the error says which.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl dyn Source + '_ {
    /// The class of each picture.
    ///
    /// # Errors
    /// When a picture has none; the error has its number.
    pub fn labels(&self) -> Result<Vec<u32>> {
        let label = |index| self.label(index).ok_or_else(|| Error::no_label(index));
        (0..self.len() as u32).map(label).collect()
    }

    /// How many pictures each of the first `classes` classes has; pictures of further classes and without one are not counted.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let labels: Vec<u32> =
            (0..self.len() as u32).filter_map(|index| self.label(index)).collect();
        crate::labels::class_counts(&labels, classes)
    }
}

impl fmt::Debug for dyn Source + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, shape) = (self.len(), self.shape());
        f.debug_struct("Source").field("len", &len).field("shape", &shape).finish_non_exhaustive()
    }
}

/// The pictures of `source` with these numbers, in that order; a number may occur twice. Of a source that lies in one block of memory
/// they are copied into one of their own.
///
/// # Panics
/// Where a source with a block has no picture of such a number.
pub fn select(source: &Arc<dyn Source>, indices: &[u32]) -> Arc<dyn Source> {
    let Some(Block { images, labels }) = source.block() else {
        return Arc::new(Selected { source: Arc::clone(source), indices: indices.to_vec() });
    };
    let shape = source.shape();
    let size: usize = shape.iter().product();
    let mut chosen = Split { shape, ..Split::default() };
    for index in indices.iter().map(|&index| index as usize) {
        chosen.images.extend_from_slice(&images[index * size..][..size]);
        chosen.labels.push(labels[index]);
    }
    Named::chosen(Arc::new(chosen), &**source, indices)
}

/// Some of a source's pictures.
struct Selected {
    source: Arc<dyn Source>,
    /// Their numbers in the source.
    indices: Vec<u32>,
}

impl Selected {
    fn number(&self, index: u32) -> Result<u32> {
        self.indices.get(index as usize).copied().ok_or_else(|| Error::Source {
            index,
            found: format!("a source of {} pictures", self.indices.len()),
            expected: "the number of one of them".into(),
        })
    }
}

impl Source for Selected {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.source.shape()
    }

    fn label(&self, index: u32) -> Option<u32> {
        self.source.label(*self.indices.get(index as usize)?)
    }

    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        self.source.read(self.number(index)?, into)
    }

    fn read_whole(&self, index: u32, into: &mut Picture) -> Result<()> {
        self.source.read_whole(self.number(index)?, into)
    }

    fn name(&self, index: u32) -> Option<String> {
        self.source.name(*self.indices.get(index as usize)?)
    }

    fn identity(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.source.identity());
        self.indices.iter().for_each(|index| hash.update(index.to_le_bytes()));
        hex(hash)
    }

    fn memory(&self) -> u64 {
        self.source.memory() + 4 * self.indices.len() as u64
    }

    fn check(&self) -> Result<()> {
        self.source.check()
    }
}

/// One picture as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Channels, height and width.
    pub shape: [usize; 3],
    /// The pixels `[C, H, W]`, row-major: for a colour picture all of red, then green, then blue, 0 to 255 each.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Refuses a picture that is not of this shape; `index` is its number in its source.
    pub(crate) fn check(&self, index: u32, shape: [usize; 3]) -> Result<()> {
        let bytes: usize = shape.iter().product();
        if self.shape == shape && self.pixels.len() == bytes {
            return Ok(());
        }
        Err(Error::Source {
            index,
            found: format!("shape {:?} and {} bytes", self.shape, self.pixels.len()),
            expected: format!("the source's shape {shape:?}, {bytes} bytes"),
        })
    }
}

/// All pictures of a source as one block of memory.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The pixels `[N, C, H, W]`, row-major.
    pub images: &'a [u8],
    /// The class of each picture, `[N]`; [`NO_LABEL`] of pictures without labels.
    pub labels: &'a [u32],
}
