//! The sums over pixels that batch normalisation asks for, in its forward and in its backward pass.

use super::{Activation, Affine, Isa};
use crate::simd::{Simd, kernel};

/// Pixels whose sum is kept in f32; such sums are added in f64.
const RUN: usize = 128;
/// The most lanes that a vector has.
const MOST_LANES: usize = 16;

/// Each channel's mean over one image's pixels, and its sum of squared distances from that mean.
///
/// Both come from one pass, in distances from the image's first pixel, so that a large mean does not cancel. The pixels come
/// part by part: [`Moments::add`] takes them while they are in the cache, [`Moments::finish`] ends it.
pub struct Moments<'a> {
    /// By padded channel; of a meaning once the moments are finished.
    pub mean: &'a mut [f64],
    /// By padded channel; of a meaning once the moments are finished.
    pub squares: &'a mut [f64],
}

impl Moments<'_> {
    /// Before the first part of an image.
    pub fn start(&mut self) {
        self.mean.fill(0.0);
        self.squares.fill(0.0);
    }

    /// Takes some pixels; `origin` is the image's first one.
    pub fn add(&mut self, isa: Isa, origin: &[f32], x: &[f32]) {
        let channels = self.mean.len();
        assert!(channels.is_multiple_of(isa.lanes()) && self.squares.len() == channels);
        assert!(origin.len() >= channels && x.len().is_multiple_of(channels.max(1)));
        // SAFETY: whole vectors and lengths as asserted.
        unsafe { moments_kernel(isa, origin, x, self.mean, self.squares) }
    }

    /// Behind the last part of an image of `pixels`.
    pub fn finish(&mut self, origin: &[f32], pixels: usize) {
        for ((mean, squares), &origin) in self.mean.iter_mut().zip(&mut *self.squares).zip(origin) {
            let distance = *mean / pixels as f64;
            *squares = (*squares - distance * *mean).max(0.0);
            *mean = f64::from(origin) + distance;
        }
    }

    /// Of an image that is there as a whole.
    pub fn whole(&mut self, isa: Isa, x: &[f32]) {
        self.start();
        self.add(isa, x, x);
        self.finish(x, x.len() / self.mean.len().max(1));
    }
}

kernel! {
    fn moments_kernel(origin: &[f32], x: &[f32], sums: &mut [f64], squares: &mut [f64]) = moments_body;
}

#[inline(always)]
unsafe fn moments_body<S: Simd>(origin: &[f32], x: &[f32], sums: &mut [f64], squares: &mut [f64]) {
    let channels = sums.len();
    let pixels = x.len() / channels;
    for c in (0..channels).step_by(S::LANES) {
        let mut totals = [[0.0f64; MOST_LANES]; 2];
        totals[0][..S::LANES].copy_from_slice(&sums[c..c + S::LANES]);
        totals[1][..S::LANES].copy_from_slice(&squares[c..c + S::LANES]);
        // SAFETY: the caller's lengths.
        let origin = unsafe { S::load(origin.as_ptr().add(c)) };
        for first in (0..pixels).step_by(RUN) {
            // SAFETY: as above; `lanes` has room for a vector.
            unsafe {
                let (mut sum, mut square) = ([S::splat(0.0); 2], [S::splat(0.0); 2]);
                for pixel in first..(first + RUN).min(pixels) {
                    let v = S::sub(S::load(x.as_ptr().add(pixel * channels + c)), origin);
                    // Two sums side by side hide an addition's latency.
                    let i = pixel % 2;
                    sum[i] = S::add(sum[i], v);
                    square[i] = S::mul_add(v, v, square[i]);
                }
                add_lanes::<S>(S::add(sum[0], sum[1]), &mut totals[0]);
                add_lanes::<S>(S::add(square[0], square[1]), &mut totals[1]);
            }
        }
        sums[c..c + S::LANES].copy_from_slice(&totals[0][..S::LANES]);
        squares[c..c + S::LANES].copy_from_slice(&totals[1][..S::LANES]);
    }
}

/// Adds a vector's lanes to sums in f64.
#[inline(always)]
unsafe fn add_lanes<S: Simd>(v: S::V, totals: &mut [f64; MOST_LANES]) {
    let mut lanes = [0f32; MOST_LANES];
    // SAFETY: `MOST_LANES >= S::LANES`.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    for (total, lane) in totals.iter_mut().zip(&lanes[..S::LANES]) {
        *total += f64::from(*lane);
    }
}

/// Adds each channel's sum over some pixels of the gradient `g` and of `g * (x - mean)`: what the gradients of a batch
/// normalisation of `x` are made of. The gradient stays as it is.
pub fn add_gradient_sums(
    isa: Isa,
    g: &mut [f32],
    x: &[f32],
    mean: &[f32],
    sums: &mut [f64],
    products: &mut [f64],
) {
    add_masked_sums(isa, g, x, None, mean, sums, products);
}

/// The same; but first `g` goes, in place, through the activation that was applied to `x * scale + shift`: it becomes zero
/// where that is not within its bounds.
pub(super) fn add_masked_sums(
    isa: Isa,
    g: &mut [f32],
    x: &[f32],
    mask: Option<(Affine<'_>, Activation)>,
    mean: &[f32],
    sums: &mut [f64],
    products: &mut [f64],
) {
    let channels = mean.len();
    assert!(channels.is_multiple_of(isa.lanes()) && g.len().is_multiple_of(channels.max(1)));
    assert!(x.len() == g.len() && sums.len() == channels && products.len() == channels);
    let mask = mask.filter(|(_, activation)| *activation != Activation::Identity);
    assert!(mask.is_none_or(|(affine, _)| affine.fits(channels)));
    let mask = mask.map(|(affine, activation)| (affine, activation.bounds()));
    // SAFETY: whole vectors and lengths as asserted.
    unsafe { masked_sums_kernel(isa, g, x, mask, mean, sums, products) }
}

kernel! {
    fn masked_sums_kernel(
        g: &mut [f32], x: &[f32], mask: Option<(Affine<'_>, [f32; 2])>, mean: &[f32], sums: &mut [f64],
        products: &mut [f64],
    ) = masked_sums_body;
}

#[inline(always)]
unsafe fn masked_sums_body<S: Simd>(
    g: &mut [f32],
    x: &[f32],
    mask: Option<(Affine<'_>, [f32; 2])>,
    mean: &[f32],
    sums: &mut [f64],
    products: &mut [f64],
) {
    let channels = mean.len();
    let pixels = g.len() / channels;
    for c in (0..channels).step_by(S::LANES) {
        let mut totals = [[0.0f64; MOST_LANES]; 2];
        totals[0][..S::LANES].copy_from_slice(&sums[c..c + S::LANES]);
        totals[1][..S::LANES].copy_from_slice(&products[c..c + S::LANES]);
        for first in (0..pixels).step_by(RUN) {
            // SAFETY: the caller's lengths.
            unsafe {
                let mean = S::load(mean.as_ptr().add(c));
                let (mut sum, mut product) = ([S::splat(0.0); 2], [S::splat(0.0); 2]);
                let mut add = |pixel: usize, g: S::V, x: S::V| {
                    let i = pixel % 2;
                    sum[i] = S::add(sum[i], g);
                    product[i] = S::mul_add(g, S::sub(x, mean), product[i]);
                };
                let run = first..(first + RUN).min(pixels);
                let places = |pixel: usize| pixel * channels + c;
                if let Some((affine, [low, high])) = mask {
                    let (low, high) = (S::splat(low), S::splat(high));
                    let scale = S::load(affine.scale.as_ptr().add(c));
                    let shift = S::load(affine.shift.as_ptr().add(c));
                    for pixel in run {
                        let at = g.as_mut_ptr().add(places(pixel));
                        let x = S::load(x.as_ptr().add(places(pixel)));
                        let y = S::mul_add(x, scale, shift);
                        let masked = S::where_within(y, low, high, S::load(at));
                        S::store(at, masked);
                        add(pixel, masked, x);
                    }
                } else {
                    for pixel in run {
                        let at = places(pixel);
                        add(pixel, S::load(g.as_ptr().add(at)), S::load(x.as_ptr().add(at)));
                    }
                }
                add_lanes::<S>(S::add(sum[0], sum[1]), &mut totals[0]);
                add_lanes::<S>(S::add(product[0], product[1]), &mut totals[1]);
            }
        }
        sums[c..c + S::LANES].copy_from_slice(&totals[0][..S::LANES]);
        products[c..c + S::LANES].copy_from_slice(&totals[1][..S::LANES]);
    }
}

/// The factors by channel of a batch normalisation's gradient: `dx = scale * g + slope * (x - mean) + shift`.
#[derive(Clone, Copy, Debug)]
pub struct NormGradient<'a> {
    /// The normalisation's weight over its standard deviation.
    pub scale: &'a [f32],
    /// What the variance gives.
    pub slope: &'a [f32],
    /// The mean that was subtracted.
    pub mean: &'a [f32],
    /// What the mean gives.
    pub shift: &'a [f32],
}

/// The gradient of a batch normalisation's input `x`, of some pixels.
pub fn norm_gradient(isa: Isa, (g, x): (&[f32], &[f32]), by: NormGradient<'_>, to: &mut [f32]) {
    let channels = by.mean.len();
    assert!(g.len() == to.len() && x.len() == to.len());
    assert!(channels.is_multiple_of(isa.lanes()) && to.len().is_multiple_of(channels.max(1)));
    for factors in [by.scale, by.slope, by.shift] {
        assert!(factors.len() == channels);
    }
    // SAFETY: whole vectors and equal lengths, as asserted.
    unsafe { norm_gradient_kernel(isa, g, x, by, to) }
}

kernel! {
    fn norm_gradient_kernel(
        g: &[f32], x: &[f32], by: NormGradient<'_>, to: &mut [f32],
    ) = norm_gradient_body;
}

#[inline(always)]
unsafe fn norm_gradient_body<S: Simd>(g: &[f32], x: &[f32], by: NormGradient<'_>, to: &mut [f32]) {
    let channels = by.mean.len();
    for first in (0..to.len()).step_by(channels) {
        for c in (0..channels).step_by(S::LANES) {
            // SAFETY: `first + c + LANES` numbers are there.
            unsafe {
                let at = first + c;
                let of = |factors: &[f32]| S::load(factors.as_ptr().add(c));
                let distance = S::sub(S::load(x.as_ptr().add(at)), of(by.mean));
                let v = S::mul_add(distance, of(by.slope), of(by.shift));
                let v = S::mul_add(S::load(g.as_ptr().add(at)), of(by.scale), v);
                S::store(to.as_mut_ptr().add(at), v);
            }
        }
    }
}

/// Adds each channel's sum over the pixels of a map or frame to `sums`.
pub(super) fn add_pixels(isa: Isa, x: &[f32], sums: &mut [f32]) {
    crate::conv::pointwise::add_pixels(isa, x, sums);
}
