//! What surrounds a convolution's products, on one NHWC image: bias, ReLU, 2x2 max-pool, and their gradients.

use super::images::Nhwc;
use crate::simd::{Isa, Simd, kernel};

/// Adds `bias` (one number a channel) to every pixel of an NHWC image, then ReLU if asked.
pub(super) fn bias_relu(isa: Isa, image: &mut [f32], bias: &[f32], relu: bool) {
    assert!(bias.len().is_multiple_of(isa.lanes()) && image.len().is_multiple_of(bias.len()));
    // SAFETY: whole vectors, as asserted.
    unsafe { bias_relu_kernel(isa, image, bias, relu) }
}

kernel! {
    fn bias_relu_kernel(image: &mut [f32], bias: &[f32], relu: bool) = bias_relu_body;
}

#[inline(always)]
unsafe fn bias_relu_body<S: Simd>(image: &mut [f32], bias: &[f32], relu: bool) {
    for pixel in image.chunks_exact_mut(bias.len()) {
        for c in (0..bias.len()).step_by(S::LANES) {
            // SAFETY: `c + LANES <= bias.len() == pixel.len()`.
            unsafe {
                let at = pixel.as_mut_ptr().add(c);
                let v = S::add(S::load(at), S::load(bias.as_ptr().add(c)));
                S::store(at, if relu { S::relu(v) } else { v });
            }
        }
    }
}

/// A 2x2 max-pool of stride 2 over the first `height` x `width` pixels of an NHWC image: the maxima, and
/// which of the four pixels gave each (0 to 3, row-major; the first of equals).
pub(super) fn max_pool2(
    isa: Isa,
    from: &[f32],
    image: Nhwc,
    (height, width): (usize, usize),
    maxima: &mut [f32],
    winners: &mut [f32],
) {
    let len = (height / 2) * (width / 2) * image.channels;
    assert!(image.channels.is_multiple_of(isa.lanes()) && from.len() >= image.len());
    assert!(height <= image.rows && width <= image.line);
    assert!(maxima.len() >= len && winners.len() >= len);
    // SAFETY: sizes checked above.
    unsafe {
        max_pool2_kernel(
            isa,
            from.as_ptr(),
            image,
            (height, width),
            maxima.as_mut_ptr(),
            winners.as_mut_ptr(),
        );
    }
}

kernel! {
    fn max_pool2_kernel(
        from: *const f32, image: Nhwc, size: (usize, usize), maxima: *mut f32, winners: *mut f32,
    ) = max_pool2_body;
}

#[inline(always)]
unsafe fn max_pool2_body<S: Simd>(
    from: *const f32,
    image: Nhwc,
    (height, width): (usize, usize),
    maxima: *mut f32,
    winners: *mut f32,
) {
    let channels = image.channels;
    let (out_height, out_width) = (height / 2, width / 2);
    for y in 0..out_height {
        for x in 0..out_width {
            for c in (0..channels).step_by(S::LANES) {
                // SAFETY: the four pixels lie within height x width, the result within its image.
                unsafe {
                    let first = from.add((2 * y * image.line + 2 * x) * channels + c);
                    let below = first.add(image.line * channels);
                    let (mut best, mut who) = (S::load(first), S::splat(0.0));
                    let pixels = [first.add(channels), below, below.add(channels)];
                    for (i, &pixel) in pixels.iter().enumerate() {
                        let tag = S::splat((i + 1) as f32);
                        (best, who) = S::later_max(best, who, S::load(pixel), tag);
                    }
                    let at = (y * out_width + x) * channels + c;
                    S::store(maxima.add(at), best);
                    S::store(winners.add(at), who);
                }
            }
        }
    }
}

/// The gradient of [`max_pool2`]: each number of `dy` goes to the pixel that won, the other
/// three get zero. Pixels of `to` outside `height` x `width`, rounded down to even, stay.
pub(super) fn max_pool2_gradient(
    isa: Isa,
    dy: &[f32],
    winners: &[f32],
    to: &mut [f32],
    image: Nhwc,
    (height, width): (usize, usize),
) {
    let len = (height / 2) * (width / 2) * image.channels;
    assert!(image.channels.is_multiple_of(isa.lanes()) && to.len() >= image.len());
    assert!(height <= image.rows && width <= image.line);
    assert!(dy.len() >= len && winners.len() >= len);
    // SAFETY: sizes checked above.
    unsafe {
        max_pool2_gradient_kernel(
            isa,
            dy.as_ptr(),
            winners.as_ptr(),
            to.as_mut_ptr(),
            image,
            (height, width),
        );
    }
}

kernel! {
    fn max_pool2_gradient_kernel(
        dy: *const f32, winners: *const f32, to: *mut f32, image: Nhwc, size: (usize, usize),
    ) = max_pool2_gradient_body;
}

#[inline(always)]
unsafe fn max_pool2_gradient_body<S: Simd>(
    dy: *const f32,
    winners: *const f32,
    to: *mut f32,
    image: Nhwc,
    (height, width): (usize, usize),
) {
    let channels = image.channels;
    let (out_height, out_width) = (height / 2, width / 2);
    for y in 0..out_height {
        for x in 0..out_width {
            for c in (0..channels).step_by(S::LANES) {
                // SAFETY: as in `max_pool2_body`.
                unsafe {
                    let at = (y * out_width + x) * channels + c;
                    let (dy, who) = (S::load(dy.add(at)), S::load(winners.add(at)));
                    let first = to.add((2 * y * image.line + 2 * x) * channels + c);
                    let below = first.add(image.line * channels);
                    let pixels = [first, first.add(channels), below, below.add(channels)];
                    for (i, &pixel) in pixels.iter().enumerate() {
                        S::store(pixel, S::where_equal(who, S::splat(i as f32), dy));
                    }
                }
            }
        }
    }
}

/// The gradient before a ReLU whose result was `y`: `dy` becomes zero where `y` is not above zero.
pub(crate) fn mask(isa: Isa, y: &[f32], dy: &mut [f32]) {
    assert!(y.len() == dy.len());
    // SAFETY: equal lengths.
    unsafe { mask_kernel(isa, y, dy) }
}

kernel! {
    fn mask_kernel(y: &[f32], dy: &mut [f32]) = mask_body;
}

#[inline(always)]
unsafe fn mask_body<S: Simd>(y: &[f32], dy: &mut [f32]) {
    let whole = y.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES <= len`.
        unsafe {
            let at = dy.as_mut_ptr().add(i);
            S::store(at, S::where_positive(S::load(y.as_ptr().add(i)), S::load(at)));
        }
    }
    for i in whole..y.len() {
        dy[i] = if y[i] > 0.0 { dy[i] } else { 0.0 };
    }
}

/// Adds each channel's sum over the pixels of an NHWC image to `sums`, which has a number a channel.
pub(crate) fn add_pixels(isa: Isa, image: &[f32], sums: &mut [f32]) {
    assert!(sums.len().is_multiple_of(isa.lanes()) && image.len().is_multiple_of(sums.len()));
    // SAFETY: whole vectors, as asserted.
    unsafe { add_pixels_kernel(isa, image, sums) }
}

kernel! {
    fn add_pixels_kernel(image: &[f32], sums: &mut [f32]) = add_pixels_body;
}

#[inline(always)]
unsafe fn add_pixels_body<S: Simd>(image: &[f32], sums: &mut [f32]) {
    for pixel in image.chunks_exact(sums.len()) {
        for c in (0..sums.len()).step_by(S::LANES) {
            // SAFETY: `c + LANES <= sums.len() == pixel.len()`.
            unsafe {
                let at = sums.as_mut_ptr().add(c);
                S::store(at, S::add(S::load(at), S::load(pixel.as_ptr().add(c))));
            }
        }
    }
}
