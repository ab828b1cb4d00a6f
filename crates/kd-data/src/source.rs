//! Where pictures come from: the seam between what is on disk or in memory and the batches made of it.

use crate::{Error, Result};

/// Labelled pictures of one size, numbered from 0, that batches can be made of in any order.
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

    /// Channels, height and width, in pixels, of every picture.
    fn shape(&self) -> [usize; 3];

    /// The class of picture `index`, counted from 0; `None` where the picture has no label, or there is no such picture.
    fn label(&self, index: u32) -> Option<u32>;

    /// Reads picture `index` into `into`. What `into` held before is replaced; its memory is used again.
    ///
    /// # Errors
    /// When there is no such picture, or it can't be read.
    fn read(&self, index: u32, into: &mut Picture) -> Result<()>;

    /// A text that tells this source from others: two sources with the same identity hold the same pictures with the same
    /// labels in the same order.
    fn identity(&self) -> String;

    /// Whether there is no picture.
    fn is_empty(&self) -> bool {
        self.len() == 0
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
    /// The class of each picture, `[N]`.
    pub labels: &'a [u8],
}
