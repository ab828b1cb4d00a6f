//! The formulas of 3x3 convolution of stride 1 with four times fewer multiplications, and their vector code.
//!
//! They are Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional
//! Neural Networks", 2015, section 4.1 and its F(4x4, 3x3) matrices). The output is cut into 4x4
//! tiles, each of which follows from a 6x6 tile `d` of the input. With a filter `g`,
//!
//! ```text
//! y  = A^T [ sum over input channels (G g G^T) * (B^T d B) ] A
//! ```
//!
//! where `*` multiplies entry by entry. Over all tiles, input channels (`I`) and output channels (`O`) that is 36 matrix
//! products of `[tiles, I]` and `[I, O]`, one for each entry of a transformed tile, which is called a frequency here. The
//! gradients (`dy` of the output, `dd` of the input tile, `dg` of the filter) are the adjoints of the same formula and cost
//! the same:
//!
//! ```text
//! Z  = A dy A^T
//! dd = B [ sum over output channels (G g G^T) * Z ] B^T     (overlapping tiles are added)
//! dg = G^T [ sum over tiles (B^T d B) * Z ] G
//! ```

// Loops over register arrays are written with indices: they unroll whole, and read as the
// formulas do.
#![allow(clippy::needless_range_loop)]

use crate::simd::{Isa, Simd, kernel};

/// Height and width of a tile of the output, in pixels.
pub(super) const TILE: usize = 4;
/// Entries of a transformed tile: 6 x 6.
pub(super) const FREQUENCIES: usize = 36;

/// `B^T d`, for one column of a tile.
#[inline(always)]
unsafe fn bt<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: arithmetic only.
    unsafe {
        let (two, four) = (S::splat(2.0), S::splat(4.0));
        let (minus_two, minus_four) = (S::splat(-2.0), S::splat(-4.0));
        let minus_five = S::splat(-5.0);
        let even = S::mul_add(minus_four, d[2], d[4]);
        let odd = S::mul_add(minus_four, d[1], d[3]);
        let even2 = S::sub(d[4], d[2]);
        let odd2 = S::sub(d[3], d[1]);
        [
            S::mul_add(four, d[0], S::mul_add(minus_five, d[2], d[4])),
            S::add(even, odd),
            S::sub(even, odd),
            S::mul_add(two, odd2, even2),
            S::mul_add(minus_two, odd2, even2),
            S::mul_add(four, d[1], S::mul_add(minus_five, d[3], d[5])),
        ]
    }
}

/// `B t`, the adjoint of [`bt`].
#[inline(always)]
unsafe fn b<S: Simd>(t: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: arithmetic only.
    unsafe {
        let (two, four) = (S::splat(2.0), S::splat(4.0));
        let (minus_four, minus_five) = (S::splat(-4.0), S::splat(-5.0));
        let sum12 = S::add(t[1], t[2]);
        let dif12 = S::sub(t[1], t[2]);
        let sum34 = S::add(t[3], t[4]);
        let dif34 = S::sub(t[3], t[4]);
        let twice34 = S::mul_add(two, dif34, S::splat(0.0));
        [
            S::mul_add(four, t[0], S::splat(0.0)),
            S::sub(S::mul_add(minus_four, dif12, S::mul_add(four, t[5], S::splat(0.0))), twice34),
            S::sub(
                S::mul_add(minus_four, sum12, S::mul_add(minus_five, t[0], S::splat(0.0))),
                sum34,
            ),
            S::add(S::mul_add(minus_five, t[5], dif12), twice34),
            S::add(S::add(t[0], sum12), sum34),
            t[5],
        ]
    }
}

/// `A^T m`, for one column of a tile of products.
#[inline(always)]
unsafe fn at<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
    // SAFETY: arithmetic only.
    unsafe {
        let sum12 = S::add(m[1], m[2]);
        let dif12 = S::sub(m[1], m[2]);
        let sum34 = S::add(m[3], m[4]);
        let dif34 = S::sub(m[3], m[4]);
        [
            S::add(S::add(m[0], sum12), sum34),
            S::mul_add(S::splat(2.0), dif34, dif12),
            S::mul_add(S::splat(4.0), sum34, sum12),
            S::add(S::mul_add(S::splat(8.0), dif34, dif12), m[5]),
        ]
    }
}

/// `A y`, the adjoint of [`at`].
#[inline(always)]
unsafe fn a<S: Simd>(y: [S::V; 4]) -> [S::V; 6] {
    // SAFETY: arithmetic only.
    unsafe {
        let even = S::add(y[0], y[2]);
        let odd = S::add(y[1], y[3]);
        let even2 = S::mul_add(S::splat(4.0), y[2], y[0]);
        let two_odd = S::add(y[1], y[1]);
        let odd2 = S::mul_add(S::splat(8.0), y[3], two_odd);
        [y[0], S::add(even, odd), S::sub(even, odd), S::add(even2, odd2), S::sub(even2, odd2), y[3]]
    }
}

/// Where a block of tiles lies in an NHWC image, and how its transform lies in memory.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Each tile's first number in the image.
    pub(super) tiles: &'a [u32],
    /// Numbers between an image's lines.
    pub(super) line: usize,
    /// Numbers of a pixel.
    pub(super) channels: usize,
    /// Numbers between two frequencies of the transform.
    pub(super) frequency: usize,
}

impl Block<'_> {
    /// Panics where the block's tiles, `side` pixels high and wide, or its transform would lie outside of memory.
    fn check(&self, isa: Isa, image: usize, transform: usize, side: usize) {
        let last = self.tiles.iter().max().map_or(0, |&tile| tile as usize);
        assert!(self.channels.is_multiple_of(isa.lanes()));
        assert!(last + (side - 1) * self.line + side * self.channels <= image);
        assert!(self.tiles.len() * self.channels <= self.frequency);
        assert!(FREQUENCIES * self.frequency <= transform);
    }
}

/// `B^T d B` of every 6x6 tile: entry `f` of tile `t` goes to `to[f * frequency + t * channels..]`.
pub(super) fn input_transform(isa: Isa, image: &[f32], block: Block<'_>, to: &mut [f32]) {
    block.check(isa, image.len(), to.len(), 6);
    // SAFETY: sizes checked.
    unsafe { input_transform_kernel(isa, image.as_ptr(), block, to.as_mut_ptr()) }
}

kernel! {
    fn input_transform_kernel(image: *const f32, block: Block<'_>, to: *mut f32) = input_transform_body;
}

#[inline(always)]
unsafe fn input_transform_body<S: Simd>(image: *const f32, block: Block<'_>, to: *mut f32) {
    let channels = block.channels;
    for (t, &tile) in block.tiles.iter().enumerate() {
        for c in (0..channels).step_by(S::LANES) {
            // SAFETY: the caller checked that tiles and transform lie inside their memory.
            unsafe {
                let from = image.add(tile as usize + c);
                let to = to.add(t * channels + c);
                let mut half = [[S::splat(0.0); 6]; 6];
                for x in 0..6 {
                    let mut d = [S::splat(0.0); 6];
                    for y in 0..6 {
                        d[y] = S::load(from.add(y * block.line + x * channels));
                    }
                    let d = bt::<S>(d);
                    for y in 0..6 {
                        half[y][x] = d[y];
                    }
                }
                for y in 0..6 {
                    let line = bt::<S>(half[y]);
                    for x in 0..6 {
                        S::store(to.add((y * 6 + x) * block.frequency), line[x]);
                    }
                }
            }
        }
    }
}

/// Adds `B t B^T` of every transformed tile to its 6x6 tile of the image.
pub(super) fn input_transform_adjoint(isa: Isa, from: &[f32], block: Block<'_>, image: &mut [f32]) {
    block.check(isa, image.len(), from.len(), 6);
    // SAFETY: sizes checked.
    unsafe { input_transform_adjoint_kernel(isa, from.as_ptr(), block, image.as_mut_ptr()) }
}

kernel! {
    fn input_transform_adjoint_kernel(from: *const f32, block: Block<'_>, image: *mut f32)
        = input_transform_adjoint_body;
}

#[inline(always)]
unsafe fn input_transform_adjoint_body<S: Simd>(
    from: *const f32,
    block: Block<'_>,
    image: *mut f32,
) {
    let channels = block.channels;
    for (t, &tile) in block.tiles.iter().enumerate() {
        for c in (0..channels).step_by(S::LANES) {
            // SAFETY: as in `input_transform_body`.
            unsafe {
                let from = from.add(t * channels + c);
                let to = image.add(tile as usize + c);
                let mut half = [[S::splat(0.0); 6]; 6];
                for x in 0..6 {
                    let mut m = [S::splat(0.0); 6];
                    for y in 0..6 {
                        m[y] = S::load(from.add((y * 6 + x) * block.frequency));
                    }
                    let m = b::<S>(m);
                    for y in 0..6 {
                        half[y][x] = m[y];
                    }
                }
                for y in 0..6 {
                    let line = b::<S>(half[y]);
                    for x in 0..6 {
                        let to = to.add(y * block.line + x * channels);
                        S::store(to, S::add(S::load(to), line[x]));
                    }
                }
            }
        }
    }
}

/// `A^T m A` of every transformed tile: its 4x4 tile of the image.
pub(super) fn output_transform(isa: Isa, from: &[f32], block: Block<'_>, image: &mut [f32]) {
    block.check(isa, image.len(), from.len(), TILE);
    // SAFETY: sizes checked.
    unsafe { output_transform_kernel(isa, from.as_ptr(), block, image.as_mut_ptr()) }
}

kernel! {
    fn output_transform_kernel(from: *const f32, block: Block<'_>, image: *mut f32) = output_transform_body;
}

#[inline(always)]
unsafe fn output_transform_body<S: Simd>(from: *const f32, block: Block<'_>, image: *mut f32) {
    let channels = block.channels;
    for (t, &tile) in block.tiles.iter().enumerate() {
        for c in (0..channels).step_by(S::LANES) {
            // SAFETY: as in `input_transform_body`.
            unsafe {
                let from = from.add(t * channels + c);
                let to = image.add(tile as usize + c);
                let mut half = [[S::splat(0.0); 6]; 4];
                for x in 0..6 {
                    let mut m = [S::splat(0.0); 6];
                    for y in 0..6 {
                        m[y] = S::load(from.add((y * 6 + x) * block.frequency));
                    }
                    let m = at::<S>(m);
                    for y in 0..4 {
                        half[y][x] = m[y];
                    }
                }
                for y in 0..4 {
                    let line = at::<S>(half[y]);
                    for x in 0..4 {
                        S::store(to.add(y * block.line + x * channels), line[x]);
                    }
                }
            }
        }
    }
}

/// `A dy A^T` of every 4x4 tile of the image.
pub(super) fn output_transform_adjoint(isa: Isa, image: &[f32], block: Block<'_>, to: &mut [f32]) {
    block.check(isa, image.len(), to.len(), TILE);
    // SAFETY: sizes checked.
    unsafe { output_transform_adjoint_kernel(isa, image.as_ptr(), block, to.as_mut_ptr()) }
}

kernel! {
    fn output_transform_adjoint_kernel(image: *const f32, block: Block<'_>, to: *mut f32)
        = output_transform_adjoint_body;
}

#[inline(always)]
unsafe fn output_transform_adjoint_body<S: Simd>(
    image: *const f32,
    block: Block<'_>,
    to: *mut f32,
) {
    let channels = block.channels;
    for (t, &tile) in block.tiles.iter().enumerate() {
        for c in (0..channels).step_by(S::LANES) {
            // SAFETY: as in `input_transform_body`.
            unsafe {
                let from = image.add(tile as usize + c);
                let to = to.add(t * channels + c);
                let mut half = [[S::splat(0.0); 4]; 6];
                for x in 0..4 {
                    let mut d = [S::splat(0.0); 4];
                    for y in 0..4 {
                        d[y] = S::load(from.add(y * block.line + x * channels));
                    }
                    let d = a::<S>(d);
                    for y in 0..6 {
                        half[y][x] = d[y];
                    }
                }
                for y in 0..6 {
                    let line = a::<S>(half[y]);
                    for x in 0..6 {
                        S::store(to.add((y * 6 + x) * block.frequency), line[x]);
                    }
                }
            }
        }
    }
}

/// `G`: a filter's three taps at the six points 0, 1, -1, 2, -2 and infinity.
const G: [[f32; 3]; 6] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// `G g G^T` of a 3x3 filter.
pub(super) fn filter_transform(g: &[f32]) -> [f32; FREQUENCIES] {
    let mut half = [[0.0; 3]; 6];
    for (half, line) in half.iter_mut().zip(&G) {
        for (x, half) in half.iter_mut().enumerate() {
            *half = line[0] * g[x] + line[1] * g[3 + x] + line[2] * g[6 + x];
        }
    }
    let mut all = [0.0; FREQUENCIES];
    for y in 0..6 {
        for x in 0..6 {
            all[y * 6 + x] = half[y][0] * G[x][0] + half[y][1] * G[x][1] + half[y][2] * G[x][2];
        }
    }
    all
}

/// `G^T t G`, the adjoint of [`filter_transform`]: a 3x3 filter.
pub(super) fn filter_transform_adjoint(t: &[f32; FREQUENCIES]) -> [f32; 9] {
    let mut half = [[0.0; 6]; 3];
    for (k, half) in half.iter_mut().enumerate() {
        for (x, half) in half.iter_mut().enumerate() {
            *half = (0..6).map(|y| G[y][k] * t[y * 6 + x]).sum();
        }
    }
    let mut g = [0.0; 9];
    for k in 0..3 {
        for l in 0..3 {
            g[k * 3 + l] = (0..6).map(|x| half[k][x] * G[x][l]).sum();
        }
    }
    g
}
