//! Pictures brought to a size as torchvision's transforms do it with PIL pictures: the shorter side scaled, a square cut out of the
//! middle, a crop scaled to a square.

use std::cell::RefCell;
use std::ops::Range;

use kd_record::Interpolation;

use crate::source::Picture;
use crate::{Error, Result};

mod resample;

use resample::Taps;

/// How pictures of any size become squares of one size, where nothing is random: torchvision's `Resize(resize)`, then
/// `CenterCrop(size)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scaling {
    /// Height and width of the square, in pixels: 1 to [`MAX_SIDE`].
    pub size: usize,
    /// What the picture's shorter side is scaled to before that, in pixels: `size` to [`MAX_SIDE`].
    pub resize: usize,
    /// How pixels are interpolated.
    pub interpolation: Interpolation,
}

/// The largest side, in pixels, that pictures are scaled to.
pub const MAX_SIDE: usize = 4096;

impl Scaling {
    /// Squares of this side out of the middle of the picture, whose shorter side they have.
    pub fn to(size: usize) -> Self {
        Self { size, resize: size, interpolation: Interpolation::default() }
    }

    /// Refuses sizes out of range.
    ///
    /// # Errors
    /// When `size` is not 1 to [`MAX_SIDE`] or `resize` not `size` to [`MAX_SIDE`].
    pub fn check(&self) -> Result<()> {
        let wrong = |field, found: usize, expected: String| {
            Err(Error::Config { field, found: found.to_string(), expected })
        };
        if !(1..=MAX_SIDE).contains(&self.size) {
            return wrong("size", self.size, format!("1 to {MAX_SIDE} pixels"));
        }
        if !(self.size..=MAX_SIDE).contains(&self.resize) {
            let expected = format!("{} (the size) to {MAX_SIDE} pixels", self.size);
            return wrong("resize", self.resize, expected);
        }
        Ok(())
    }

    /// Scales the picture's shorter side to `resize` and cuts the square out of the middle; `square` is written. Only the pixels of the
    /// square are computed, so that a picture of any length takes no more memory.
    ///
    /// # Panics
    /// Where the picture has no pixels or not as many as its shape says, or `resize` is less than `size`.
    pub fn apply(&self, picture: &Picture, square: &mut Picture) {
        let Self { size, resize, interpolation } = *self;
        let [_, height, width] = picture.shape;
        let whole = Crop { top: 0, left: 0, height: height as u32, width: width as u32 };
        let to = scaled_sides(resize, height, width);
        let window = to.map(|side| middle(side, size)).map(|first| first..first + size);
        whole.scale_part(picture, to, window, interpolation, square);
    }
}

/// Height and width of a picture whose shorter side is scaled to `resize` pixels: `_compute_resized_output_size` of
/// torchvision/transforms/functional.py, which cuts the longer side down to whole pixels.
pub(crate) fn scaled_sides(resize: usize, height: usize, width: usize) -> [usize; 2] {
    match height <= width {
        true => [resize, resize * width / height],
        false => [resize * height / width, resize],
    }
}

/// Where a stretch of `size` pixels in the middle of `side` pixels begins: `round((side - size) / 2)`, a half to the even number, as
/// torchvision's `center_crop` has it by Python's `round`.
fn middle(side: usize, size: usize) -> usize {
    let rest = side - size;
    let half = rest / 2;
    half + usize::from(rest % 2 == 1 && half % 2 == 1)
}

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Crop {
    /// Its first row.
    pub top: u32,
    /// Its first column.
    pub left: u32,
    /// Its number of rows, at least 1.
    pub height: u32,
    /// Its number of columns, at least 1.
    pub width: u32,
}

thread_local! {
    /// Lines on their way to columns: memory that is used again from picture to picture.
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Crop {
    /// Cuts the rectangle, which must lie in the picture, out and scales it to height and width `to`: torchvision's `resized_crop`.
    /// `into` is written.
    ///
    /// # Panics
    /// Where the rectangle is not in the picture, or the picture has not as many pixels as its shape says.
    pub fn scale(
        &self,
        picture: &Picture,
        to: [usize; 2],
        interpolation: Interpolation,
        into: &mut Picture,
    ) {
        self.scale_part(picture, to, to.map(|side| 0..side), interpolation, into);
    }

    /// As [`scale`](Self::scale), but only the rows and columns `window` of what it gives.
    fn scale_part(
        &self,
        picture: &Picture,
        [to_height, to_width]: [usize; 2],
        window: [Range<usize>; 2],
        interpolation: Interpolation,
        into: &mut Picture,
    ) {
        let [channels, height, width] = picture.shape;
        let Crop { top, left, height: rows, width: columns } = *self;
        let [top, left, rows, columns] = [top, left, rows, columns].map(|side| side as usize);
        let fits = top + rows <= height && left + columns <= width && rows * columns > 0;
        assert!(fits, "{self:?} of a picture of {:?}", picture.shape);
        let [new_rows, new_columns] = window;
        into.shape = [channels, new_rows.len(), new_columns.len()];
        into.pixels.resize(channels * new_rows.len() * new_columns.len(), 0);
        let along_lines = Taps::new([columns, to_width], new_columns, interpolation);
        let along_columns = Taps::new([rows, to_height], new_rows, interpolation);
        // Old rows that no new one is made of are left out.
        let used = along_columns.used();
        let new_width = into.shape[2];
        LINES.with_borrow_mut(|lines| {
            lines.resize(used.len() * new_width, 0);
            let planes = picture.pixels.chunks_exact(height * width);
            let new_planes = into.pixels.chunks_exact_mut(into.shape[1] * new_width);
            for (plane, to) in planes.zip(new_planes) {
                let cut = plane.chunks_exact(width).skip(top + used.start);
                let cut = cut.map(|line| &line[left..][..columns]).take(used.len());
                along_lines.lines(cut, lines);
                along_columns.columns(lines, new_width, to);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_pythons() {
        // [int(round((side - 4) / 2)) for side in range(4, 12)]
        let found: Vec<usize> = (4..12).map(|side| middle(side, 4)).collect();
        assert_eq!(found, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(Scaling::to(224).check().is_ok());
        for (size, resize, expected) in [
            (0, 32, "size is 0; expected 1 to 4096 pixels"),
            (4097, 5000, "size is 4097; expected 1 to 4096 pixels"),
            (224, 223, "resize is 223; expected 224 (the size) to 4096 pixels"),
            (224, 4097, "resize is 4097; expected 224 (the size) to 4096 pixels"),
        ] {
            let error = Scaling { size, resize, ..Scaling::to(1) }.check().unwrap_err().to_string();
            assert_eq!(error, format!("data setting {expected}"));
        }
    }
}
