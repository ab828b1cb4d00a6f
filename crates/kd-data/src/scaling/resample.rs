//! Scaling as Pillow does it (`src/libImaging/Resample.c`), and so torchvision's `Resize` of a PIL picture: over the whole area that a new pixel
//! covers (antialiased), in fixed-point numbers, first along the lines and then along the columns. The result is that of Pillow up to
//! version 12 to the byte; version 13 takes the columns of some pictures first, which rounds otherwise.
//!
//! The crate fast_image_resize has weights of 16 bits, and was two grey levels off where a picture was enlarged eight times.

use super::Interpolation;

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

/// Scales every line, which has `old` pixels, to `new` pixels.
pub(super) fn lines<'a>(
    from: impl Iterator<Item = &'a [u8]>,
    [old, new]: [usize; 2],
    how: Interpolation,
    to: &mut [u8],
) {
    let lines = from.zip(to.chunks_exact_mut(new));
    if old == new {
        lines.for_each(|(line, to)| to.copy_from_slice(line));
        return;
    }
    let taps = taps(old, new, how);
    for (line, to) in lines {
        for (to, Taps { first, weights }) in to.iter_mut().zip(&taps) {
            let products = line[*first..]
                .iter()
                .zip(weights)
                .map(|(&value, weight)| i32::from(value) * weight);
            *to = byte((1 << (BITS - 1)) + products.sum::<i32>());
        }
    }
}

/// Scales columns of `old` pixels to `new` pixels; lines are `width` pixels long.
pub(super) fn columns(
    from: &[u8],
    [old, new]: [usize; 2],
    width: usize,
    how: Interpolation,
    to: &mut [u8],
) {
    if old == new {
        to.copy_from_slice(from);
        return;
    }
    let mut sums = vec![0; width];
    for (to, Taps { first, weights }) in to.chunks_exact_mut(width).zip(taps(old, new, how)) {
        sums.fill(1 << (BITS - 1));
        for (line, weight) in from[width * first..].chunks_exact(width).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += i32::from(value) * weight;
            }
        }
        for (to, &sum) in to.iter_mut().zip(&sums) {
            *to = byte(sum);
        }
    }
}
