//! The inner loops: two matrix products with gathered rows, and changes of layout.
//!
//! "Rows" are places in an NHWC image: an output pixel's window starts at `a + row_offsets[t]`
//! and is made of one or more segments of contiguous numbers (a window's lines), each
//! `segment_offsets[s]` after the row's start. So a convolution reads its windows where they
//! lie, and no im2col matrix is written.

// Loops over register arrays are written with indices: they unroll whole, and read as the
// formulas do.
#![allow(clippy::needless_range_loop)]

use crate::simd::{Simd, kernel};

/// How the next rows of `left` are grouped: six rows by two vectors fill AVX2's registers, and
/// four by two still hide the latency of a multiply-add (4 cycles, two a cycle); fewer don't.
#[inline(always)]
fn group(left: usize) -> usize {
    match left {
        0..=6 => left,
        7 | 8 => 4,
        9 => 5,
        _ => 6,
    }
}

/// Calls `$f::<S, rows, vectors>` for the group of `$rows` rows and one or two vectors.
macro_rules! by_size {
    ($f:ident::<$s:ident>, $rows:expr, $two:expr, $args:tt) => {
        match ($rows, $two) {
            (6, true) => $f::<$s, 6, 2> $args,
            (5, true) => $f::<$s, 5, 2> $args,
            (4, true) => $f::<$s, 4, 2> $args,
            (3, true) => $f::<$s, 3, 2> $args,
            (2, true) => $f::<$s, 2, 2> $args,
            (1, true) => $f::<$s, 1, 2> $args,
            (6, false) => $f::<$s, 6, 1> $args,
            (5, false) => $f::<$s, 5, 1> $args,
            (4, false) => $f::<$s, 4, 1> $args,
            (3, false) => $f::<$s, 3, 1> $args,
            (2, false) => $f::<$s, 2, 1> $args,
            _ => $f::<$s, 1, 1> $args,
        }
    };
}

/// Where the rows of a product lie, see the module's text.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) row_offsets: &'a [u32],
    pub(super) segment_offsets: &'a [u32],
    pub(super) segment_len: usize,
}

impl Rows<'_> {
    /// Numbers in one row.
    pub(super) fn len(&self) -> usize {
        self.segment_offsets.len() * self.segment_len
    }

    /// Whether every row lies within `len` numbers.
    fn fit(&self, len: usize) -> bool {
        let last = |offsets: &[u32]| offsets.iter().max().map_or(0, |&offset| offset as usize);
        self.row_offsets.is_empty()
            || last(self.row_offsets) + last(self.segment_offsets) + self.segment_len <= len
    }
}

/// Where `pack` puts entry (`k`, `col`) of a matrix of `k_len` rows: panels of two vectors' columns,
/// the last one of a single vector where the number of vectors is odd.
pub(super) fn packed_index(k: usize, col: usize, k_len: usize, cols: usize, lanes: usize) -> usize {
    let width = 2 * lanes;
    let panel = col / width;
    let this_width = width.min(cols - panel * width);
    panel * width * k_len + k * this_width + col % width
}

/// `out[t][0..cols] = row_t b`: `b` is packed (see [`packed_index`]), `out`'s rows are `cols` long.
pub(super) fn rows_times_packed(
    isa: crate::simd::Isa,
    a: &[f32],
    rows: Rows<'_>,
    b: &[f32],
    out: &mut [f32],
    cols: usize,
) {
    debug_assert!(rows.fit(a.len()));
    assert!(cols.is_multiple_of(isa.lanes()) && b.len() >= rows.len() * cols);
    assert!(out.len() >= rows.row_offsets.len() * cols);
    // SAFETY: `isa` is available; the sizes are checked above.
    unsafe { rows_times_packed_kernel(isa, a.as_ptr(), rows, b.as_ptr(), out.as_mut_ptr(), cols) }
}

kernel! {
    fn rows_times_packed_kernel(
        a: *const f32, rows: Rows<'_>, b: *const f32, out: *mut f32, cols: usize,
    ) = rows_times_packed_body;
}

#[inline(always)]
unsafe fn rows_times_packed_body<S: Simd>(
    a: *const f32,
    rows: Rows<'_>,
    b: *const f32,
    out: *mut f32,
    cols: usize,
) {
    let count = rows.row_offsets.len();
    let mut col = 0;
    while col < cols {
        let two = cols - col >= 2 * S::LANES;
        // SAFETY: the panel of column `col` starts after `col` columns of `rows.len()` numbers.
        let panel = unsafe { b.add(col * rows.len()) };
        let mut t = 0;
        while t < count {
            let take = group(count - t);
            // SAFETY: `t + take <= count`, and the columns end within `cols`.
            unsafe {
                by_size!(
                    product_tile::<S>,
                    take,
                    two,
                    (a, rows, t, panel, out.add(t * cols + col), cols)
                );
            }
            t += take;
        }
        col += if two { 2 * S::LANES } else { S::LANES };
    }
}

/// `R` rows times `C` vectors of columns.
#[inline(always)]
unsafe fn product_tile<S: Simd, const R: usize, const C: usize>(
    a: *const f32,
    rows: Rows<'_>,
    t: usize,
    panel: *const f32,
    out: *mut f32,
    cols: usize,
) {
    // SAFETY: rows `t..t + R` exist and lie within `a`; the panel holds `C` vectors for each
    // number of a row; `out` has `R` rows, `cols` apart, of `C` vectors.
    unsafe {
        let mut starts = [a; R];
        for (r, start) in starts.iter_mut().enumerate() {
            *start = a.add(*rows.row_offsets.get_unchecked(t + r) as usize);
        }
        let mut sums = [[S::splat(0.0); C]; R];
        let mut panel = panel;
        for &segment in rows.segment_offsets {
            let segment = segment as usize;
            for k in segment..segment + rows.segment_len {
                let mut b = [S::splat(0.0); C];
                for c in 0..C {
                    b[c] = S::load(panel.add(c * S::LANES));
                }
                panel = panel.add(C * S::LANES);
                for r in 0..R {
                    let a = S::splat(*starts[r].add(k));
                    for c in 0..C {
                        sums[r][c] = S::mul_add(a, b[c], sums[r][c]);
                    }
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                S::store(out.add(r * cols + c * S::LANES), sums[r][c]);
            }
        }
    }
}

/// `sums[k][0..cols] += sum over t of row_t[k] * b[t][0..cols]`; `b`'s and `sums`' rows are `cols` long.
pub(super) fn add_transposed_rows_times(
    isa: crate::simd::Isa,
    a: &[f32],
    rows: Rows<'_>,
    b: &[f32],
    sums: &mut [f32],
    cols: usize,
) {
    debug_assert!(rows.fit(a.len()));
    assert!(cols.is_multiple_of(isa.lanes()) && b.len() >= rows.row_offsets.len() * cols);
    assert!(sums.len() >= rows.len() * cols);
    // SAFETY: `isa` is available; the sizes are checked above.
    unsafe {
        add_transposed_kernel(isa, a.as_ptr(), rows, b.as_ptr(), sums.as_mut_ptr(), cols);
    }
}

kernel! {
    fn add_transposed_kernel(
        a: *const f32, rows: Rows<'_>, b: *const f32, sums: *mut f32, cols: usize,
    ) = add_transposed_body;
}

#[inline(always)]
unsafe fn add_transposed_body<S: Simd>(
    a: *const f32,
    rows: Rows<'_>,
    b: *const f32,
    sums: *mut f32,
    cols: usize,
) {
    let mut col = 0;
    while col < cols {
        let two = cols - col >= 2 * S::LANES;
        for (s, &segment) in rows.segment_offsets.iter().enumerate() {
            let mut k = 0;
            while k < rows.segment_len {
                let take = group(rows.segment_len - k);
                // SAFETY: rows `k..k + take` of the segment and columns within `cols`.
                unsafe {
                    let a = a.add(segment as usize + k);
                    let sums = sums.add((s * rows.segment_len + k) * cols + col);
                    by_size!(
                        outer_tile::<S>,
                        take,
                        two,
                        (a, rows.row_offsets, b.add(col), sums, cols)
                    );
                }
                k += take;
            }
        }
        col += if two { 2 * S::LANES } else { S::LANES };
    }
}

/// `R` entries of the rows times `C` vectors of columns, summed over the rows.
#[inline(always)]
unsafe fn outer_tile<S: Simd, const R: usize, const C: usize>(
    a: *const f32,
    row_offsets: &[u32],
    b: *const f32,
    out: *mut f32,
    cols: usize,
) {
    // SAFETY: `R` numbers at each row's offset, `C` vectors at each of `b`'s rows, and an `out`
    // of `R` rows of `C` vectors, `cols` apart, belong to the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = S::load(out.add(r * cols + c * S::LANES));
            }
        }
        let mut b_row = b;
        for &offset in row_offsets {
            let a = a.add(offset as usize);
            let mut b = [S::splat(0.0); C];
            for c in 0..C {
                b[c] = S::load(b_row.add(c * S::LANES));
            }
            b_row = b_row.add(cols);
            for r in 0..R {
                let a = S::splat(*a.add(r));
                for c in 0..C {
                    sums[r][c] = S::mul_add(a, b[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                S::store(out.add(r * cols + c * S::LANES), sums[r][c]);
            }
        }
    }
}

/// An NHWC image in scratch memory: `rows` lines of `line` pixels of `channels` numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nhwc {
    pub(super) rows: usize,
    pub(super) line: usize,
    pub(super) channels: usize,
}

impl Nhwc {
    pub(super) fn len(&self) -> usize {
        self.rows * self.line * self.channels
    }
}

/// A picture's size: channels, height, width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Size {
    pub(super) fn len(&self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Copies an NCHW picture into the NHWC image `to`, its corner at pixel (`corner`, `corner`);
/// the rest of `to` becomes zero.
pub(super) fn to_nhwc(
    isa: crate::simd::Isa,
    from: &[f32],
    size: Size,
    to: &mut [f32],
    image: Nhwc,
    corner: usize,
) {
    let to = &mut to[..image.len()];
    to.fill(0.0);
    let from = &from[..size.len()];
    if size.len() == 0 {
        return;
    }
    assert!(size.channels <= image.channels);
    assert!(size.height + corner <= image.rows && size.width + corner <= image.line);
    // SAFETY: the picture lies inside the image, as asserted.
    unsafe { to_nhwc_kernel(isa, from.as_ptr(), size, to.as_mut_ptr(), image, corner) }
}

kernel! {
    fn to_nhwc_kernel(
        from: *const f32, size: Size, to: *mut f32, image: Nhwc, corner: usize,
    ) = to_nhwc_body;
}

#[inline(always)]
unsafe fn to_nhwc_body<S: Simd>(
    from: *const f32,
    size: Size,
    to: *mut f32,
    image: Nhwc,
    corner: usize,
) {
    let plane = size.height * size.width;
    let blocks_x = size.width / 8 * 8;
    let blocks_c = size.channels / 8 * 8;
    for y in 0..size.height {
        // SAFETY: all offsets lie inside the picture and the image, by the caller's assertion.
        unsafe {
            let from = from.add(y * size.width);
            let to = to.add(((y + corner) * image.line + corner) * image.channels);
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

/// Copies the picture whose corner is at pixel (`corner`, `corner`) of the NHWC image `from` into NCHW.
pub(super) fn to_nchw(
    isa: crate::simd::Isa,
    from: &[f32],
    image: Nhwc,
    corner: usize,
    to: &mut [f32],
    size: Size,
) {
    let from = &from[..image.len()];
    let to = &mut to[..size.len()];
    if size.len() == 0 {
        return;
    }
    assert!(size.channels <= image.channels);
    assert!(size.height + corner <= image.rows && size.width + corner <= image.line);
    // SAFETY: the picture lies inside the image, as asserted.
    unsafe { to_nchw_kernel(isa, from.as_ptr(), image, corner, to.as_mut_ptr(), size) }
}

kernel! {
    fn to_nchw_kernel(
        from: *const f32, image: Nhwc, corner: usize, to: *mut f32, size: Size,
    ) = to_nchw_body;
}

#[inline(always)]
unsafe fn to_nchw_body<S: Simd>(
    from: *const f32,
    image: Nhwc,
    corner: usize,
    to: *mut f32,
    size: Size,
) {
    let plane = size.height * size.width;
    let blocks_x = size.width / 8 * 8;
    let blocks_c = size.channels / 8 * 8;
    for y in 0..size.height {
        // SAFETY: as in `to_nhwc_body`, the other way round.
        unsafe {
            let from = from.add(((y + corner) * image.line + corner) * image.channels);
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

/// Adds `bias` (one number a channel) to every pixel of an NHWC image, then ReLU if asked.
pub(super) fn bias_relu(isa: crate::simd::Isa, image: &mut [f32], bias: &[f32], relu: bool) {
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

/// 2x2 max-pool of stride 2 over `height` x `width` pixels of an NHWC image: the maxima, and
/// which of the four pixels gave each (0 to 3, row-major; the first of equals).
pub(super) fn max_pool2(
    isa: crate::simd::Isa,
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
    isa: crate::simd::Isa,
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

/// `dy` becomes zero where `y` is not above zero.
pub(super) fn mask(isa: crate::simd::Isa, y: &[f32], dy: &mut [f32]) {
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

/// `sums += ` the sum over the pixels of an NHWC image, a number a channel.
pub(super) fn add_pixels(isa: crate::simd::Isa, image: &[f32], sums: &mut [f32]) {
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
