//! Pictures of any size as a source of squares of one size; decoded pictures stay in memory where they fit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::scaling::Scaling;
use crate::source::{Picture, Source};
use crate::{Error, Result};

/// Memory for decoded pictures, which several sources may share.
#[derive(Debug)]
pub struct Room {
    /// Bytes in all.
    size: u64,
    /// Bytes that are left.
    left: AtomicU64,
}

impl Room {
    /// Room for so many bytes of pictures.
    pub fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, left: AtomicU64::new(size) })
    }

    /// Takes so many bytes, if they are left.
    fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// The pictures of another source, of any size, as squares of one size.
///
/// [`read`](Source::read) scales and cuts a picture as [`Scaling`] says; [`read_whole`](Source::read_whole) gives it as it is. A
/// picture that was read once stays in memory as it is where there is room; none is ever dropped for another, since an epoch asks for
/// each once. What is read is the same in either case.
pub struct Scaled {
    source: Arc<dyn Source>,
    scaling: Scaling,
    room: Arc<Room>,
    kept: RwLock<HashMap<u32, Arc<Picture>>>,
}

impl Scaled {
    /// The pictures of `source`, kept in `room` where they fit.
    ///
    /// # Errors
    /// When the sizes of `scaling` are out of range.
    pub fn new(source: Arc<dyn Source>, scaling: Scaling, room: Arc<Room>) -> Result<Self> {
        scaling.check()?;
        Ok(Self { source, scaling, room, kept: RwLock::default() })
    }

    /// The whole picture, where it is kept in memory. Where it is not, it is read into `buffer`, and kept from then on if there is room.
    fn whole(&self, index: u32, buffer: &mut Picture) -> Result<Option<Arc<Picture>>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned();
        if kept.is_some() {
            return Ok(kept);
        }
        self.source.read(index, buffer)?;
        let [channels, height, width] = buffer.shape;
        if channels != 3 || height * width == 0 || buffer.pixels.len() != channels * height * width
        {
            return Err(Error::Source {
                index,
                found: format!("shape {:?} and {} bytes", buffer.shape, buffer.pixels.len()),
                expected: "three channels of at least one pixel, and a byte for each".into(),
            });
        }
        // What lies in a block needs no second place, and a picture's bookkeeping takes memory, too.
        if self.source.block().is_none() && self.room.take(buffer.pixels.len() as u64 + 128) {
            let picture = Arc::new(buffer.clone());
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            kept.insert(index, picture);
        }
        Ok(None)
    }
}

impl Source for Scaled {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn shape(&self) -> [usize; 3] {
        [3, self.scaling.size, self.scaling.size]
    }

    fn label(&self, index: u32) -> Option<u32> {
        self.source.label(index)
    }

    fn name(&self, index: u32) -> Option<String> {
        self.source.name(index)
    }

    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        let mut buffer = Picture::default();
        let kept = self.whole(index, &mut buffer)?;
        self.scaling.apply(kept.as_deref().unwrap_or(&buffer), into);
        Ok(())
    }

    fn read_whole(&self, index: u32, into: &mut Picture) -> Result<()> {
        if let Some(kept) = self.whole(index, into)? {
            into.clone_from(&kept);
        }
        Ok(())
    }

    fn identity(&self) -> String {
        let Scaling { size, resize, interpolation } = self.scaling;
        let of = self.source.identity();
        format!("{of}, resize {resize}, {}, size {size}", interpolation.name())
    }

    fn memory(&self) -> u64 {
        self.source.memory() + if self.source.block().is_none() { self.room.size } else { 0 }
    }
}
