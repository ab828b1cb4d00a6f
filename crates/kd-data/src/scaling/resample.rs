//! Scaling as Pillow does it (`src/libImaging/Resample.c`), and so torchvision's `Resize` of a PIL picture: over the whole area that a new pixel
//! covers (antialiased), in fixed-point numbers, first along the lines and then along the columns. The result is that of Pillow up to
//! version 12 to the byte; version 13 takes the columns of some pictures first, which rounds otherwise.
//!
//! The crate fast_image_resize has weights of 16 bits, and was two grey levels off where a picture was enlarged eight times.

use std::ops::Range;

use super::Interpolation;

/// How far from its middle the filter is not zero, in pixels.
fn support(how: Interpolation) -> f64 {
    match how {
        Interpolation::Bilinear => 1.0,
        Interpolation::Bicubic => 2.0,
    }
}

/// The filter's value at `x` pixels from its middle.
fn weight(how: Interpolation, x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match how {
        Interpolation::Bilinear if x < 1.0 => 1.0 - x,
        Interpolation::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        Interpolation::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

/// Bits of a weight behind the point: `PRECISION_BITS` of Pillow.
const BITS: u32 = 32 - 8 - 2;

/// For a new pixel the old ones that it is made of: the first of them, and the weight of each.
struct Tap {
    first: usize,
    weights: Vec<i32>,
}

/// What new pixels along a line or a column are made of.
pub(super) struct Taps {
    /// The taps of the new pixels; where the length does not change, pixels are copied and there are none.
    taps: Option<Vec<Tap>>,
    /// The new pixels that are computed, of all.
    window: Range<usize>,
}

impl Taps {
    /// What the new pixels `window` are made of, where `old` pixels become `new`: `precompute_coeffs` and `normalize_coeffs_8bpc` of
    /// Pillow.
    pub(super) fn new([old, new]: [usize; 2], window: Range<usize>, how: Interpolation) -> Self {
        if old == new {
            return Self { taps: None, window };
        }
        let scale = old as f64 / new as f64;
        let wide = scale.max(1.0);
        let support = support(how) * wide;
        let of = |at: usize| {
            let centre = (at as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(old);
            let weight = |x: usize| weight(how, (x as f64 - centre + 0.5) / wide);
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| {
                let scaled = weight / sum * f64::from(1 << BITS);
                (scaled + 0.5f64.copysign(scaled)) as i32
            };
            Tap { first, weights: weights.iter().map(fixed).collect() }
        };
        Self { taps: Some(window.clone().map(of).collect()), window }
    }

    /// The old pixels that the new ones are made of, from the first to the one behind the last.
    pub(super) fn used(&self) -> Range<usize> {
        match &self.taps {
            None => self.window.clone(),
            Some(taps) => {
                let start = taps.first().map_or(0, |tap| tap.first);
                let end = taps.last().map_or(0, |tap| tap.first + tap.weights.len());
                start..end
            }
        }
    }

    /// Scales every line.
    pub(super) fn lines<'a>(&self, from: impl Iterator<Item = &'a [u8]>, to: &mut [u8]) {
        let lines = from.zip(to.chunks_exact_mut(self.window.len()));
        let Some(taps) = &self.taps else {
            lines.for_each(|(line, to)| to.copy_from_slice(&line[self.window.clone()]));
            return;
        };
        for (line, to) in lines {
            for (to, Tap { first, weights }) in to.iter_mut().zip(taps) {
                let products = line[*first..]
                    .iter()
                    .zip(weights)
                    .map(|(&value, weight)| i32::from(value) * weight);
                *to = byte((1 << (BITS - 1)) + products.sum::<i32>());
            }
        }
    }

    /// Scales columns. `from` has the [used](Self::used) lines alone, each `width` pixels long.
    pub(super) fn columns(&self, from: &[u8], width: usize, to: &mut [u8]) {
        let Some(taps) = &self.taps else {
            to.copy_from_slice(from);
            return;
        };
        let start = self.used().start;
        let mut sums = vec![0; width];
        for (to, Tap { first, weights }) in to.chunks_exact_mut(width).zip(taps) {
            sums.fill(1 << (BITS - 1));
            for (line, weight) in from[width * (first - start)..].chunks_exact(width).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(line) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (to, &sum) in to.iter_mut().zip(&sums) {
                *to = byte(sum);
            }
        }
    }
}

/// A sum of bytes times weights as a byte.
fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}
