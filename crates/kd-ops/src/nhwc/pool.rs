//! Pools and the shortcut without parameters, on one image.

use super::{Isa, Map};
use crate::simd::{Simd, kernel};

/// The windows of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Height and width of a window.
    pub kernel: usize,
    /// Pixels between neighbouring windows.
    pub stride: usize,
    /// Pixels by which the first window begins before the map; pixels outside of it are left out.
    pub padding: usize,
}

impl Windows {
    /// Rows or columns (`first..end`) of window `index` along a side, in the map's pixels.
    fn range(&self, index: usize, side: usize) -> (usize, usize) {
        let start = index * self.stride;
        (start.saturating_sub(self.padding), (start + self.kernel - self.padding).min(side))
    }
}

/// The maximum of each window, the first of equals; `winners` gets the position within its window, row by row, of the
/// pixel that each came from. A window has at most 255 pixels.
pub fn max_pool(
    isa: Isa,
    (x, map): (&[f32], &Map),
    windows: Windows,
    (to, result): (&mut [f32], &Map),
    winners: &mut [u8],
) {
    assert!(x.len() == map.len() && to.len() == result.len() && winners.len() == result.len());
    assert!(map.padded == result.padded && map.padded.is_multiple_of(isa.lanes()));
    assert!((1..=15).contains(&windows.kernel) && windows.padding < windows.kernel);
    assert!(
        result.height == 0 || (result.height - 1) * windows.stride < map.height + windows.padding
    );
    assert!(result.width == 0 || (result.width - 1) * windows.stride < map.width + windows.padding);
    // SAFETY: sizes as asserted; `range` stays within the map.
    unsafe { max_pool_kernel(isa, x, *map, windows, to, *result, winners) }
}

kernel! {
    fn max_pool_kernel(
        x: &[f32], map: Map, windows: Windows, to: &mut [f32], result: Map, winners: &mut [u8],
    ) = max_pool_body;
}

#[inline(always)]
unsafe fn max_pool_body<S: Simd>(
    x: &[f32],
    map: Map,
    windows: Windows,
    to: &mut [f32],
    result: Map,
    winners: &mut [u8],
) {
    let mut tags = [0f32; 16];
    for oy in 0..result.height {
        let (top, bottom) = windows.range(oy, map.height);
        for ox in 0..result.width {
            let (left, right) = windows.range(ox, map.width);
            for c in (0..map.padded).step_by(S::LANES) {
                // SAFETY: the pixels of a window lie within the map, the result's within the result; a vector fits `tags`.
                unsafe {
                    let tag = |y: usize, x: usize| {
                        let (y, x) = (y + windows.padding, x + windows.padding);
                        (y - oy * windows.stride) * windows.kernel + x - ox * windows.stride
                    };
                    let at = |y: usize, x: usize| (y * map.width + x) * map.padded + c;
                    let mut best = S::load(x.as_ptr().add(at(top, left)));
                    let mut who = S::splat(tag(top, left) as f32);
                    for wy in top..bottom {
                        for wx in left..right {
                            if (wy, wx) == (top, left) {
                                continue;
                            }
                            let new = S::load(x.as_ptr().add(at(wy, wx)));
                            let tag = S::splat(tag(wy, wx) as f32);
                            (best, who) = S::later_max(best, who, new, tag);
                        }
                    }
                    let at = (oy * result.width + ox) * result.padded + c;
                    S::store(to.as_mut_ptr().add(at), best);
                    S::store(tags.as_mut_ptr(), who);
                    for (winner, &tag) in winners[at..at + S::LANES].iter_mut().zip(&tags) {
                        *winner = tag as u8;
                    }
                }
            }
        }
    }
}

/// The gradient of [`max_pool`]'s input, written to `to`: each number of `g` is added where its maximum came from.
pub fn max_pool_gradient(
    (g, result): (&[f32], &Map),
    winners: &[u8],
    windows: Windows,
    (to, map): (&mut [f32], &Map),
) {
    assert!(g.len() == result.len() && winners.len() == g.len() && to.len() == map.len());
    assert!(map.padded == result.padded);
    to.fill(0.0);
    for oy in 0..result.height {
        for ox in 0..result.width {
            let at = (oy * result.width + ox) * result.padded;
            let pixels = g[at..at + result.padded].iter().zip(&winners[at..at + result.padded]);
            for (c, (&g, &winner)) in pixels.enumerate() {
                let winner = usize::from(winner);
                let y = oy * windows.stride + winner / windows.kernel - windows.padding;
                let x = ox * windows.stride + winner % windows.kernel - windows.padding;
                to[(y * map.width + x) * map.padded + c] += g;
            }
        }
    }
}

/// The mean of each channel over all pixels.
pub fn global_average(isa: Isa, (x, map): (&[f32], &Map), to: &mut [f32]) {
    assert!(x.len() == map.len() && to.len() == map.padded);
    to.fill(0.0);
    for pixel in x.chunks_exact(map.padded) {
        super::add(isa, to, pixel);
    }
    let share = 1.0 / map.pixels() as f32;
    for to in to {
        *to *= share;
    }
}

/// The gradient of [`global_average`]'s input, written to `to`.
pub fn global_average_gradient(g: &[f32], (to, map): (&mut [f32], &Map)) {
    assert!(to.len() == map.len() && g.len() == map.padded);
    let share = 1.0 / map.pixels() as f32;
    for pixel in to.chunks_exact_mut(map.padded) {
        for (to, g) in pixel.iter_mut().zip(g) {
            *to = g * share;
        }
    }
}

/// Every second pixel of a map, its channels between channels of zeros: half of the new ones before them, half behind.
pub fn subsample((x, map): (&[f32], &Map), (to, result): (&mut [f32], &Map)) {
    assert!(x.len() == map.len() && to.len() == result.len());
    let before = (result.channels - map.channels) / 2;
    to.fill(0.0);
    for y in 0..result.height {
        for column in 0..result.width {
            let from = &x[(2 * y * map.width + 2 * column) * map.padded..][..map.channels];
            let at = (y * result.width + column) * result.padded + before;
            to[at..at + map.channels].copy_from_slice(from);
        }
    }
}

/// The gradient of [`subsample`]'s input, written to `to`.
pub fn subsample_gradient((g, result): (&[f32], &Map), (to, map): (&mut [f32], &Map)) {
    assert!(to.len() == map.len() && g.len() == result.len());
    let before = (result.channels - map.channels) / 2;
    to.fill(0.0);
    for y in 0..result.height {
        for column in 0..result.width {
            let at = (y * result.width + column) * result.padded + before;
            let to = &mut to[(2 * y * map.width + 2 * column) * map.padded..][..map.channels];
            to.copy_from_slice(&g[at..at + map.channels]);
        }
    }
}
