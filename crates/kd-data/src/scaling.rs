//! Pictures brought to a size as torchvision's transforms do it with PIL pictures: the shorter side scaled, a square cut out of the
//! middle, a crop scaled to a square.

use std::cell::RefCell;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::source::Picture;
use crate::{Error, Result};

mod resample;

/// How the value of a new pixel is found between old ones; both look at the whole area of the new pixel, as PIL does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Linearly: `InterpolationMode.BILINEAR` of torchvision with antialiasing.
    #[default]
    Bilinear,
    /// By cubic polynomials (Keys, 1981, a = -1/2): `InterpolationMode.BICUBIC`.
    Bicubic,
}

impl Interpolation {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Bilinear, Self::Bicubic];

    /// The name in recipes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
        }
    }

    /// Whether it is the one that recipes need not name.
    pub fn is_bilinear(&self) -> bool {
        *self == Self::Bilinear
    }
}

impl FromStr for Interpolation {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|interpolation| interpolation.name() == name);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no interpolation {name:?}; expected one of {known}"))
    }
}

/// How pictures of any size become squares of one size, where nothing is random: torchvision's `Resize(resize)`, then
/// `CenterCrop(size)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scaling {
    /// Height and width of the square, in pixels: 1 to 512.
    pub size: usize,
    /// What the picture's shorter side is scaled to before that, in pixels: `size` to 1024.
    pub resize: usize,
    /// How pixels are interpolated.
    pub interpolation: Interpolation,
}

/// The largest side of the squares that networks are given.
const MAX_SIZE: usize = 512;
/// The largest shorter side before the middle is cut out.
const MAX_RESIZE: usize = 1024;

/// How many times its shorter side of a picture's longer side is scaled.
const LONGEST: usize = 16;

impl Scaling {
    /// Squares of this side out of the middle of the picture, whose shorter side they have.
    pub fn to(size: usize) -> Self {
        Self { size, resize: size, interpolation: Interpolation::default() }
    }

    /// Refuses sizes out of range.
    ///
    /// # Errors
    /// When `size` is not 1 to 512 or `resize` not `size` to 1024.
    pub fn check(&self) -> Result<()> {
        let wrong = |field, found: usize, expected: String| {
            Err(Error::Config { field, found: found.to_string(), expected })
        };
        if !(1..=MAX_SIZE).contains(&self.size) {
            return wrong("size", self.size, format!("1 to {MAX_SIZE} pixels"));
        }
        if !(self.size..=MAX_RESIZE).contains(&self.resize) {
            let expected = format!("{} (the size) to {MAX_RESIZE} pixels", self.size);
            return wrong("resize", self.resize, expected);
        }
        Ok(())
    }

    /// Scales the picture's shorter side to `resize` and cuts the square out of the middle; `square` is written. Of a picture that is
    /// more than 16 times as long as wide the ends are left out first.
    ///
    /// # Panics
    /// Where the picture has no pixels or not as many as its shape says, or `resize` is less than `size`.
    pub fn apply(&self, picture: &Picture, square: &mut Picture) {
        let [channels, height, width] = picture.shape;
        let resize = self.resize;
        // The ends of a very long picture are far from its middle, and scaled they would take all memory.
        let longest = LONGEST * height.min(width);
        let (rows, columns) = (height.min(longest), width.min(longest));
        let whole = Crop {
            top: ((height - rows) / 2) as u32,
            left: ((width - columns) / 2) as u32,
            height: rows as u32,
            width: columns as u32,
        };
        // As `_compute_resized_output_size` of torchvision/transforms/functional.py, which cuts the longer side down to whole pixels.
        let [to_height, to_width] = match rows <= columns {
            true => [resize, resize * columns / rows],
            false => [resize * rows / columns, resize],
        };
        if [to_height, to_width] == [self.size; 2] {
            return whole.scale(picture, [self.size; 2], self.interpolation, square);
        }
        let mut scaled = Picture::default();
        whole.scale(picture, [to_height, to_width], self.interpolation, &mut scaled);
        let (top, left) = (middle(to_height, self.size), middle(to_width, self.size));
        square.shape = [channels, self.size, self.size];
        square.pixels.clear();
        for plane in scaled.pixels.chunks_exact(to_height * to_width) {
            for row in plane.chunks_exact(to_width).skip(top).take(self.size) {
                square.pixels.extend_from_slice(&row[left..left + self.size]);
            }
        }
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
        let [channels, height, width] = picture.shape;
        let [to_height, to_width] = to;
        into.shape = [channels, to_height, to_width];
        into.pixels.resize(channels * to_height * to_width, 0);
        let Crop { top, left, height: rows, width: columns } = *self;
        let [top, left, rows, columns] = [top, left, rows, columns].map(|side| side as usize);
        let fits = top + rows <= height && left + columns <= width && rows * columns > 0;
        assert!(fits, "{self:?} of a picture of {:?}", picture.shape);
        LINES.with_borrow_mut(|lines| {
            lines.resize(rows * to_width, 0);
            let planes = picture.pixels.chunks_exact(height * width);
            for (plane, to) in planes.zip(into.pixels.chunks_exact_mut(to_height * to_width)) {
                let cut = plane.chunks_exact(width).skip(top).map(|line| &line[left..][..columns]);
                resample::lines(cut.take(rows), [columns, to_width], interpolation, lines);
                resample::columns(lines, [rows, to_height], to_width, interpolation, to);
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
            (0, 32, "size is 0; expected 1 to 512 pixels"),
            (513, 600, "size is 513; expected 1 to 512 pixels"),
            (224, 223, "resize is 223; expected 224 (the size) to 1024 pixels"),
            (224, 1025, "resize is 1025; expected 224 (the size) to 1024 pixels"),
        ] {
            let error = Scaling { size, resize, ..Scaling::to(1) }.check().unwrap_err().to_string();
            assert_eq!(error, format!("data setting {expected}"));
        }
    }
}
