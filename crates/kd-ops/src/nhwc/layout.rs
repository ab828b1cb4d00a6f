//! Where an image's values lie, and the way from and to NCHW.

use super::Isa;
use crate::conv::images::{self, Nhwc, Size};

/// The size of one image's values, NHWC without padding pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Channels that mean something.
    pub channels: usize,
    /// Numbers of a pixel: the channels, rounded up to whole vectors.
    pub padded: usize,
}

impl Map {
    /// A map for the vectors of `isa`.
    pub fn new(isa: Isa, [channels, height, width]: [usize; 3]) -> Self {
        Self { height, width, channels, padded: channels.next_multiple_of(isa.lanes()) }
    }

    /// Numbers of the map, the padding channels included.
    pub fn len(&self) -> usize {
        self.height * self.width * self.padded
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of the map.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Numbers of the map without the padding channels.
    pub fn values(&self) -> usize {
        self.pixels() * self.channels
    }

    pub(super) fn size(&self) -> Size {
        Size { channels: self.channels, height: self.height, width: self.width }
    }
}

/// The memory of a convolution's input or output: `rows` lines of `line` pixels of `channels` numbers, in which a map's
/// first pixel lies at row `top` and column `left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Lines of pixels.
    pub rows: usize,
    /// Pixels of a line.
    pub line: usize,
    /// Numbers of a pixel.
    pub channels: usize,
    /// The row of the map's first pixel.
    pub top: usize,
    /// The column of the map's first pixel.
    pub left: usize,
}

impl Frame {
    /// Numbers of the frame.
    pub fn len(&self) -> usize {
        self.rows * self.line * self.channels
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn image(&self) -> Nhwc {
        Nhwc { rows: self.rows, line: self.line, channels: self.channels }
    }

    pub(super) fn holds(&self, map: &Map) -> bool {
        map.height + self.top <= self.rows && map.width + self.left <= self.line
    }
}

/// Lays an NCHW image out in a frame; the rest of the frame becomes zero.
pub fn from_nchw(isa: Isa, from: &[f32], map: &Map, to: &mut [f32], frame: &Frame) {
    images::to_nhwc(isa, from, map.size(), to, frame.image(), (frame.top, frame.left));
}

/// Copies a map into NCHW, without its padding channels.
pub fn to_nchw(isa: Isa, from: &[f32], map: &Map, to: &mut [f32]) {
    let image = Nhwc { rows: map.height, line: map.width, channels: map.padded };
    images::to_nchw(isa, from, image, (0, 0), to, map.size());
}
