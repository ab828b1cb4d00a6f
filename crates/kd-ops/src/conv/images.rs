//! Images in scratch memory, where they are NHWC: their sizes, and changes of layout from and to NCHW.

use crate::simd::{Isa, Simd, kernel};

/// The layout of an NHWC image in scratch memory: `rows` lines of `line` pixels of `channels` numbers. It may be larger than
/// the picture that lies in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nhwc {
    pub(crate) rows: usize,
    pub(crate) line: usize,
    pub(crate) channels: usize,
}

impl Nhwc {
    /// Numbers of the image.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.line * self.channels
    }
}

/// The size of a picture, which is one input or one result of a layer, without padding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Size {
    /// Numbers of the picture.
    pub(crate) fn len(&self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Copies an NCHW picture into the NHWC image `to`, its first pixel at (`top`, `left`);
/// the rest of `to` becomes zero.
pub(crate) fn to_nhwc(
    isa: Isa,
    from: &[f32],
    size: Size,
    to: &mut [f32],
    image: Nhwc,
    (top, left): (usize, usize),
) {
    let to = &mut to[..image.len()];
    to.fill(0.0);
    let from = &from[..size.len()];
    if size.len() == 0 {
        return;
    }
    assert!(size.channels <= image.channels);
    assert!(size.height + top <= image.rows && size.width + left <= image.line);
    // SAFETY: the picture lies inside the image, as asserted.
    unsafe { to_nhwc_kernel(isa, from.as_ptr(), size, to.as_mut_ptr(), image, (top, left)) }
}

kernel! {
    fn to_nhwc_kernel(
        from: *const f32, size: Size, to: *mut f32, image: Nhwc, corner: (usize, usize),
    ) = to_nhwc_body;
}

#[inline(always)]
unsafe fn to_nhwc_body<S: Simd>(
    from: *const f32,
    size: Size,
    to: *mut f32,
    image: Nhwc,
    (top, left): (usize, usize),
) {
    let plane = size.height * size.width;
    let blocks_x = size.width / 8 * 8;
    let blocks_c = size.channels / 8 * 8;
    for y in 0..size.height {
        // SAFETY: all offsets lie inside the picture and the image, by the caller's assertion.
        unsafe {
            let from = from.add(y * size.width);
            let to = to.add(((y + top) * image.line + left) * image.channels);
            for c in (0..blocks_c).step_by(8) {
                for x in (0..blocks_x).step_by(8) {
                    let from = from.add(c * plane + x);
                    S::transpose8(from, plane, to.add(x * image.channels + c), image.channels);
                }
            }
            for c in 0..size.channels {
                let first = if c < blocks_c { blocks_x } else { 0 };
                for x in first..size.width {
                    *to.add(x * image.channels + c) = *from.add(c * plane + x);
                }
            }
        }
    }
}

/// Copies the picture whose first pixel is at (`top`, `left`) of the NHWC image `from` into NCHW.
pub(crate) fn to_nchw(
    isa: Isa,
    from: &[f32],
    image: Nhwc,
    (top, left): (usize, usize),
    to: &mut [f32],
    size: Size,
) {
    let from = &from[..image.len()];
    let to = &mut to[..size.len()];
    if size.len() == 0 {
        return;
    }
    assert!(size.channels <= image.channels);
    assert!(size.height + top <= image.rows && size.width + left <= image.line);
    // SAFETY: the picture lies inside the image, as asserted.
    unsafe { to_nchw_kernel(isa, from.as_ptr(), image, (top, left), to.as_mut_ptr(), size) }
}

kernel! {
    fn to_nchw_kernel(
        from: *const f32, image: Nhwc, corner: (usize, usize), to: *mut f32, size: Size,
    ) = to_nchw_body;
}

#[inline(always)]
unsafe fn to_nchw_body<S: Simd>(
    from: *const f32,
    image: Nhwc,
    (top, left): (usize, usize),
    to: *mut f32,
    size: Size,
) {
    let plane = size.height * size.width;
    let blocks_x = size.width / 8 * 8;
    let blocks_c = size.channels / 8 * 8;
    for y in 0..size.height {
        // SAFETY: as in `to_nhwc_body`, the other way round.
        unsafe {
            let from = from.add(((y + top) * image.line + left) * image.channels);
            let to = to.add(y * size.width);
            for c in (0..blocks_c).step_by(8) {
                for x in (0..blocks_x).step_by(8) {
                    let from = from.add(x * image.channels + c);
                    S::transpose8(from, image.channels, to.add(c * plane + x), plane);
                }
            }
            for c in 0..size.channels {
                let first = if c < blocks_c { blocks_x } else { 0 };
                for x in first..size.width {
                    *to.add(c * plane + x) = *from.add(x * image.channels + c);
                }
            }
        }
    }
}

/// Copies a picture of `size` from a place in one NHWC image to a place in another; the rest of
/// the other becomes zero. A place is the memory, the image, and the picture's corner in it.
pub(crate) fn copy_picture(
    (from, from_image, from_corner): (&[f32], Nhwc, usize),
    (to, to_image, to_corner): (&mut [f32], Nhwc, usize),
    size: Size,
) {
    let to = &mut to[..to_image.len()];
    to.fill(0.0);
    for y in 0..size.height {
        let from_at = ((y + from_corner) * from_image.line + from_corner) * from_image.channels;
        let to_at = ((y + to_corner) * to_image.line + to_corner) * to_image.channels;
        let from = &from[from_at..from_at + size.width * from_image.channels];
        let to = &mut to[to_at..to_at + size.width * to_image.channels];
        if from_image.channels == to_image.channels {
            to.copy_from_slice(from);
            continue;
        }
        let pixels =
            from.chunks_exact(from_image.channels).zip(to.chunks_exact_mut(to_image.channels));
        for (from, to) in pixels {
            to[..size.channels].copy_from_slice(&from[..size.channels]);
        }
    }
}
