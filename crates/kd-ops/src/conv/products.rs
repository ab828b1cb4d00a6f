//! The two matrix products of a convolution, whose rows are gathered from where they lie.
//!
//! A "row" is a place in an NHWC image: the window of output pixel `t` starts at `a + row_offsets[t]` and is made of one or
//! more segments of contiguous numbers (the window's lines), each `segment_offsets[s]` after the row's start. So a
//! convolution reads its windows where they lie, and no im2col matrix is written.

// Loops over register arrays are written with indices: they unroll whole, and read as the
// formulas do.
#![allow(clippy::needless_range_loop)]

use crate::simd::{Isa, Simd, kernel};

/// How many of the `left` rows are taken together next. Six rows by two vectors fill AVX2's registers, and
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

/// Where the rows of a product lie; see the module's text.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Where each row starts.
    pub(crate) row_offsets: &'a [u32],
    /// Where each segment starts, counted from its row's start.
    pub(crate) segment_offsets: &'a [u32],
    /// Numbers of a segment.
    pub(crate) segment_len: usize,
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

/// Where entry (`k`, `col`) of a matrix of `k_len` rows and `cols` columns lies once it is packed: in panels that are two
/// vectors wide, the last one a single vector where the number of vectors is odd.
pub(crate) fn packed_index(k: usize, col: usize, k_len: usize, cols: usize, lanes: usize) -> usize {
    let width = 2 * lanes;
    let panel = col / width;
    let this_width = width.min(cols - panel * width);
    panel * width * k_len + k * this_width + col % width
}

/// What is done to a product on its way to memory: a number by column is added, then it is held within bounds, of which one
/// that is NaN does not hold.
#[derive(Clone, Copy)]
pub(crate) struct Behind<'a> {
    pub(crate) bias: &'a [f32],
    pub(crate) bounds: [f32; 2],
}

/// The product of all rows with a matrix: `out[t][0..cols] = row_t b`. `b` is packed (see [`packed_index`]), `out`'s rows are `cols` long.
pub(crate) fn rows_times_packed(
    isa: Isa,
    a: &[f32],
    rows: Rows<'_>,
    b: &[f32],
    out: &mut [f32],
    cols: usize,
) {
    rows_times_packed_behind(isa, a, rows, b, None, out, cols);
}

/// The same, with what is done behind it.
pub(crate) fn rows_times_packed_behind(
    isa: Isa,
    a: &[f32],
    rows: Rows<'_>,
    b: &[f32],
    behind: Option<Behind<'_>>,
    out: &mut [f32],
    cols: usize,
) {
    debug_assert!(rows.fit(a.len()));
    assert!(behind.is_none_or(|behind| behind.bias.len() == cols));
    assert!(cols.is_multiple_of(isa.lanes()) && b.len() >= rows.len() * cols);
    assert!(out.len() >= rows.row_offsets.len() * cols);
    // SAFETY: `isa` is available; the sizes are checked above.
    unsafe {
        let (a, b, out) = (a.as_ptr(), b.as_ptr(), out.as_mut_ptr());
        rows_times_packed_kernel(isa, a, rows, b, behind, out, cols);
    }
}

kernel! {
    fn rows_times_packed_kernel(
        a: *const f32, rows: Rows<'_>, b: *const f32, behind: Option<Behind<'_>>, out: *mut f32, cols: usize,
    ) = rows_times_packed_body;
}

#[inline(always)]
unsafe fn rows_times_packed_body<S: Simd>(
    a: *const f32,
    rows: Rows<'_>,
    b: *const f32,
    behind: Option<Behind<'_>>,
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
                    (a, rows, t, panel, (behind, col), out.add(t * cols + col), cols)
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
    (behind, col): (Option<Behind<'_>>, usize),
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
        if let Some(Behind { bias, bounds: [low, high] }) = behind {
            for c in 0..C {
                let bias = S::load(bias.as_ptr().add(col + c * S::LANES));
                for r in 0..R {
                    let v = S::add(sums[r][c], bias);
                    sums[r][c] = S::clamp(v, S::splat(low), S::splat(high));
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

/// The transposed rows times a matrix, added to what is there: `sums[k][0..cols] += sum over t of row_t[k] * b[t][0..cols]`.
/// The rows of `b` and of `sums` are `cols` long.
pub(crate) fn add_transposed_rows_times(
    isa: Isa,
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
