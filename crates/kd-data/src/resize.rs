//! Scaling of pictures as Pillow does it (`src/libImaging/Resample.c`), and so torchvision's `Resize` of a PIL picture:
//! over the whole area that a new pixel covers (antialiased), in fixed-point numbers, first along the lines and then along the columns. The result is that of Pillow up to version 12 to the byte;
//! version 13 takes the columns of some pictures first, which rounds otherwise.

use image::RgbImage;

/// What weighs the pixels around a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Pillow's `BILINEAR`: a triangle of two pixels' width, of the larger of old and new ones.
    Bilinear,
    /// Pillow's `BICUBIC`: Keys' cubic with a = -0.5, four pixels wide.
    Bicubic,
}

/// A square picture out of one of any size: its shorter side is scaled to `resize` pixels, and the square of `size` pixels in its
/// middle is cut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// Height and width of the square, in pixels; at most `resize`.
    pub size: usize,
    /// The shorter side of the scaled picture, in pixels.
    pub resize: usize,
    /// How it is scaled.
    pub interpolation: Interpolation,
}

impl Interpolation {
    /// How far from its middle the filter is not zero, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Bits of a weight behind the point: `PRECISION_BITS` of Pillow.
const BITS: u32 = 32 - 8 - 2;

/// For a new pixel the old ones that it is made of: the first of them, and the weight of each.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// What the `new` pixels of a line are made of, which has `old` ones: `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow.
fn taps(old: usize, new: usize, how: Interpolation) -> Vec<Taps> {
    let scale = old as f64 / new as f64;
    let wide = scale.max(1.0);
    let support = how.support() * wide;
    let of = |at: usize| {
        let centre = (at as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(old);
        let weight = |x: usize| how.weight((x as f64 - centre + 0.5) / wide);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let scaled = weight / sum * f64::from(1 << BITS);
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        Taps { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..new).map(of).collect()
}

/// A sum of bytes times weights as a byte.
fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The picture with `width` x `height` pixels, neither of which is zero.
pub(crate) fn resize(picture: &RgbImage, width: u32, height: u32, how: Interpolation) -> RgbImage {
    let (old_width, old_height) = (picture.width() as usize, picture.height() as usize);
    let (new_width, new_height) = (width as usize, height as usize);
    let mut lines = picture.as_raw().clone();
    if new_width != old_width {
        let taps = taps(old_width, new_width, how);
        let mut narrow = Vec::with_capacity(3 * new_width * old_height);
        for line in lines.chunks_exact(3 * old_width) {
            for Taps { first, weights } in &taps {
                let mut sums = [1 << (BITS - 1); 3];
                for (pixel, weight) in line[3 * first..].chunks_exact(3).zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(value) * weight;
                    }
                }
                narrow.extend(sums.map(byte));
            }
        }
        lines = narrow;
    }
    if new_height != old_height {
        let row = 3 * new_width;
        let mut short = Vec::with_capacity(row * new_height);
        let mut sums = vec![0; row];
        for Taps { first, weights } in taps(old_height, new_height, how) {
            sums.fill(1 << (BITS - 1));
            for (line, weight) in lines[row * first..].chunks_exact(row).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(line) {
                    *sum += i32::from(value) * weight;
                }
            }
            short.extend(sums.iter().map(|&sum| byte(sum)));
        }
        lines = short;
    }
    let mut scaled = RgbImage::new(width, height);
    scaled.copy_from_slice(&lines);
    scaled
}

/// Width and height of a picture whose shorter side is scaled to `side`: the longer one is cut to whole pixels, as torchvision's
/// `Resize` does it (`_compute_resized_output_size` in torchvision/transforms/functional.py).
pub(crate) fn with_shorter_side(width: u32, height: u32, side: u32) -> (u32, u32) {
    let longer = |long: u32, short: u32| {
        // The product of two 32-bit numbers fits.
        let scaled = u64::from(side) * u64::from(long) / u64::from(short.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX)
    };
    match width <= height {
        true => (side, longer(height, width)),
        false => (longer(width, height), side),
    }
}

/// Where a cut of `size` pixels begins in the middle of `whole`: half of the rest, a half rounded to the even number, as Python's
/// `round` in torchvision's `center_crop`.
pub(crate) fn middle(whole: u32, size: u32) -> u32 {
    let rest = whole.saturating_sub(size);
    let half = rest / 2;
    half + u32::from(rest % 2 == 1 && half % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Python 3: `[round(rest / 2.0) for rest in range(8)]`.
    #[test]
    fn a_half_pixel_is_rounded_as_python_does() {
        let found: Vec<u32> = (0..8).map(|rest| middle(100 + rest, 100)).collect();
        assert_eq!(found, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn the_longer_side_is_cut_to_whole_pixels() {
        assert_eq!(with_shorter_side(500, 333, 256), (384, 256));
        assert_eq!(with_shorter_side(333, 500, 256), (256, 384));
        assert_eq!(with_shorter_side(7, 7, 3), (3, 3));
        assert_eq!(with_shorter_side(u32::MAX, 1, 4096).0, u32::MAX);
    }
}
